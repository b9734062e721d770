"""What was seen before is read sooner, never otherwise: the quick ways against the strict ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.codecs import codec_json
from serving.codecs.json_templates import MAX_KNOWN, Reader
from serving.config import HttpSettings
from serving.doors.http.exchange import Request, Response
from serving.doors.http.reader import Heads, RequestReader
from serving.errors import ServingError
from serving.protocol import InferRequest
from tests.serving.live import binary, framed

DATATYPES = ("FP32", "FP64", "FP16", "UINT8", "INT8", "INT64", "UINT64", "BOOL", "BYTES")


def unchecked(name: str, datatype: str, shape: Any) -> None:
    """Stands where a model's contract is asked; every tensor will do."""


def outcome(read: Any, *arguments: Any) -> tuple[str, Any]:
    """What a reading gave, in a form that compares."""
    try:
        request: InferRequest = read(*arguments)
    except ServingError as error:
        return type(error).__name__, str(error)
    tensors = [
        (t.name, t.array.shape, t.array.dtype.str, str(t.array.tolist()), t.datatype)
        for t in request.inputs
    ]
    return "request", (tensors, request.outputs, request.binary, request.id)


NUMBER = st.one_of(
    st.integers(-300, 300),
    st.integers(-(2**65), 2**65),
    st.floats(width=32),
    st.sampled_from(
        [1e39, -1e39, 65520.0, 1e400, 0.1, -0.0, True, None, "1", [], [1], {"data": 1}]
    ),
)
DATA = st.one_of(
    st.lists(NUMBER, min_size=4, max_size=4),
    st.lists(st.integers(0, 255), min_size=3, max_size=5),
    st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=3),
    st.sampled_from([[], [[]], 5, "abcd", {"data": [1, 2, 3, 4]}, [[[1, 2, 3, 4]]]]),
)
FRAME = st.fixed_dictionaries(
    {"datatype": st.sampled_from(DATATYPES), "shape": st.sampled_from([[2, 2], [4], [1, 4]])},
    optional={
        "parameters": st.sampled_from([{}, {"data": [7]}, {"x": [1]}, {"binary_data_size": 4}])
    },
)
OUTER = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just("7"),
        "parameters": st.sampled_from([{"data": [1, 2]}, {"binary_data_output": True}, {"a": "]"}]),
        "outputs": st.sampled_from([[], [{"name": "y"}], [{"name": "data", "data": [1]}]]),
    },
)


@settings(max_examples=300, deadline=None)
@given(
    frame=FRAME,
    outer=OUTER,
    data=st.lists(DATA, min_size=2, max_size=5),
    first=st.booleans(),
    spaced=st.booleans(),
    twice=st.booleans(),
)
def test_json_is_read_as_strictly_as_ever(
    frame: dict[str, Any],
    outer: dict[str, Any],
    data: list[Any],
    first: bool,
    spaced: bool,
    twice: bool,
) -> None:
    reader = Reader(unchecked, 1 << 20)
    separators = (", ", ": ") if spaced else (",", ":")
    for values in data:
        item = (
            {"name": "x", "data": values, **frame}
            if first
            else {"name": "x", **frame, "data": values}
        )
        inputs = [item, item | {"name": "y"}] if twice else [item]
        request = {**outer, "inputs": inputs} if first else {"inputs": inputs, **outer}
        body = json.dumps(request, separators=separators).encode()
        for _ in range(2):
            assert outcome(reader.read, body, "") == outcome(codec_json.decode, body, "")


@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=6
        ),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(0, 400),
    flip=st.integers(0, 255),
)
def test_damage_is_seen_through_a_template(numbers: list[list[float]], cut: int, flip: int) -> None:
    """A body whose like was read before is not believed where it is cut or changed."""
    reader = Reader(unchecked, 1 << 20)
    for values in numbers:
        item = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}
        body = json.dumps({"inputs": [item]}).encode()
        reader.read(body, "")
        at = cut % len(body)
        for damaged in (
            body[:at] + bytes([flip]) + body[at + 1 :],
            body[:at],
            body + bytes([flip]),
        ):
            assert outcome(reader.read, damaged, "") == outcome(codec_json.decode, damaged, "")


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from(["<f4", "<f8", "u1", "<i8", "?"]), st.integers(0, 5)),
        min_size=1,
        max_size=3,
    ),
    json_too=st.booleans(),
    fills=st.lists(st.integers(0, 255), min_size=2, max_size=3),
    extra=st.integers(-2, 2),
)
def test_binary_is_read_as_strictly_as_ever(
    pieces: list[tuple[str, int]], json_too: bool, fills: list[int], extra: int
) -> None:
    datatypes = {"<f4": "FP32", "<f8": "FP64", "u1": "UINT8", "<i8": "INT64", "?": "BOOL"}
    reader = Reader(unchecked, 1 << 20)
    for fill in fills:
        items, payloads = [], []
        for number, (dtype, size) in enumerate(pieces):
            array = np.frombuffer(bytes([fill]) * (size * np.dtype(dtype).itemsize), dtype)
            items.append(binary(f"x{number}", array, datatypes[dtype]))
            payloads.append(array.tobytes())
        if json_too:
            items.append({"name": "j", "datatype": "INT64", "shape": [2], "data": [fill, 2]})
        body, headers = framed({"inputs": items}, *payloads)
        length = headers["Inference-Header-Content-Length"]
        for sent in (body, body, body[:extra] if extra < 0 else body + bytes(extra)):
            assert outcome(reader.read, sent, length) == outcome(codec_json.decode, sent, length)


@settings(max_examples=100, deadline=None)
@given(decoys=st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=2, max_size=4))
def test_other_lists_called_data_are_not_taken_for_the_tensor(decoys: list[list[int]]) -> None:
    reader = Reader(unchecked, 1 << 20)
    item = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    for decoy in decoys:
        for request in (
            {"parameters": {"data": decoy}, "inputs": [item]},
            {"inputs": [{"parameters": {"data": decoy}, **item}]},
            {"inputs": [{"x": {"data": decoy}, **item}]},
        ):
            body = json.dumps(request).encode()
            assert outcome(reader.read, body, "") == outcome(codec_json.decode, body, "")


def test_a_second_request_is_read_from_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(unchecked, 1 << 20)
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}]}
    ).encode()
    reader.read(body, "")
    monkeypatch.setattr(codec_json, "decode", None)  # no strict reading is left to call
    found = reader.read(body.replace(b"1.5", b"0.25"), "")
    assert found.inputs[0].array.tolist() == [0.25, 2.0]


def test_what_is_remembered_is_bounded() -> None:
    reader = Reader(unchecked, 1 << 20)
    for number in range(3 * MAX_KNOWN):
        item = {"name": f"x{number}", "datatype": "FP32", "shape": [1], "data": [1]}
        reader.read(json.dumps({"inputs": [item]}).encode(), "")
    assert len(reader._known) <= MAX_KNOWN


HEADS = st.sampled_from(
    [
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /a?q=1 HTTP/1.1\r\nHost: x\r\nX-Request-ID: 5\r\n\r\n",
        b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345",
        b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n\r\n\r\nz",
        b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"POST /d HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        b"GET /e HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"\r\nGET /f HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n\r\nGET /n HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n",
        b"\r\n\r\nPOST /o HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        b"\r\n\r\n",
        b"GET /g HTTP/1.1\nHost: x\n\nGET /h HTTP/1.1\r\nHost: y\r\n\r\n",
        b"GET /i HTTP/1.1\r\nHost: x\r\n\nGET /j HTTP/1.1\r\nHost: y\r\n\r\n",
        b"POST /k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"GET /l HTTP/1.0\r\nHost: x\r\n\r\n",
        b"GET /m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
)


@example(
    requests=[
        b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345",
        b"\r\nGET /f HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    cuts=[54],
)
@settings(max_examples=400, deadline=None)
@given(
    requests=st.lists(HEADS, min_size=1, max_size=6), cuts=st.lists(st.integers(1, 90), max_size=8)
)
def test_known_heads_change_nothing(requests: list[bytes], cuts: list[int]) -> None:
    """A reader that has seen everything before, against one that never saw anything."""
    heads: Heads = {}
    for one in requests:
        RequestReader(HttpSettings(), heads).feed(one)
    stream, pieces = b"".join(requests), []
    for cut in cuts:
        pieces.append(stream[:cut])
        stream = stream[cut:]
    knowing, innocent = RequestReader(HttpSettings(), heads), RequestReader(HttpSettings(), {})
    for piece in [*pieces, stream]:
        assert told(knowing.feed(piece)) == told(innocent.feed(piece))
        assert knowing.state is innocent.state
        innocent._heads.clear()


def told(found: list[Request | Response]) -> list[Any]:
    return [
        (r.method, r.path, r.query, dict(r.headers), r.body, r.keep_alive)
        if isinstance(r, Request)
        else (r.status, bytes(b"".join(r.body)))
        for r in found
    ]


@pytest.mark.parametrize("crooked", range(8))
def test_numbers_that_lie_crooked_in_a_body_are_put_straight(crooked: int) -> None:
    """ONNX Runtime reads them where they lie, and a body's JSON has any length."""
    values = np.arange(4, dtype=np.float64)
    item = {"name": "x" * (crooked + 1), "datatype": "FP64", "shape": [4]}
    head = json.dumps({"inputs": [{**item, "parameters": {"binary_data_size": 32}}]}).encode()
    reader = Reader(unchecked, 1 << 20)
    for _ in range(2):  # the second time by the template
        (found,) = reader.read(head + values.tobytes(), str(len(head))).inputs
        assert found.array.tolist() == values.tolist()
    assert found.array.flags.aligned
