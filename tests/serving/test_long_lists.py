"""What is long is read and written piece by piece, in a thread, and says what it says at once."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.bundle.tensors import BY_PROTOCOL
from serving.codecs import codec_json, long_lists
from serving.config import BatchSettings, Settings
from serving.dataplane import DataPlane
from serving.doors.http.exchange import Request, Response
from serving.doors.http.rest import Rest
from serving.errors import BackendFailure, InvalidRequest
from serving.models.repository import Repository
from serving.protocol import InferRequest, InferResponse, Tensor
from tests.serving.bundles import make_echo_bundle
from tests.serving.live import framed

SHAPES = [(60,), (1, 60), (60, 1), (3, 4, 5), (1, 1, 60, 1), (60, 1, 1)]
MUTATIONS = 6000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is long, and a piece is some numbers."""
    monkeypatch.setattr(codec_json, "LONG_BYTES", 0)
    monkeypatch.setattr(long_lists, "PIECE_BYTES", 90)
    monkeypatch.setattr(long_lists, "COUNTED_BYTES", 10)


def body(array: np.ndarray, datatype: str, flat: bool, indent: int | None = None) -> bytes:
    data = (array.reshape(-1) if flat else array).tolist()
    item = {"name": "x", "shape": array.shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [item, item | {"name": "y"}]}, indent=indent).encode()


def values(datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.default_rng(5)
    kind = BY_PROTOCOL[datatype].numpy
    if kind.kind == "f":
        return draw.normal(size=shape).astype(kind)
    return draw.integers(0, 2 if kind.kind == "b" else 200, shape).astype(kind)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("datatype", ["UINT8", "INT64", "UINT64", "FP16", "FP32", "FP64", "BOOL"])
def test_arrays_come_out_alike(datatype: str) -> None:
    for shape in SHAPES:
        array = values(datatype, shape)
        for flat, indent in ((True, None), (False, None), (False, 1)):
            request = codec_json.decode(body(array, datatype, flat, indent), "")
            for tensor in request.inputs:
                assert tensor.array.dtype == array.dtype
                assert np.array_equal(tensor.array, array), (shape, flat, indent)


def test_long_lists_are_not_read_whole(small: None) -> None:
    read = long_lists.loads(body(values("FP32", (3, 4, 5)), "FP32", flat=False))
    assert all(isinstance(item["data"], long_lists.LongList) for item in read["inputs"])


def damaged(text: bytes, chance: random.Random) -> bytes:
    found = bytearray(text)
    for _ in range(chance.randint(1, 2)):
        place = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[place] = chance.choice(b'[],0123456789.-eE "{}tn')
            case 1:
                del found[place : place + chance.randint(1, 4)]
            case 2:
                extra = (
                    b"[",
                    b"]",
                    b",",
                    b"[]",
                    b"],[",
                    b",,",
                    b"[1]",
                    b" ",
                    b"null",
                    b"true",
                    b"1e",
                )
                found[place:place] = chance.choice(
                    (*extra, b'"a"', b"{}", b"9" * 30, b"-1", b"300")
                )
            case _:
                other = chance.randrange(len(found))
                found[place], found[other] = found[other], found[place]
    return bytes(found)


def told(text: bytes) -> Any:
    """The arrays, or none where the request is refused."""
    try:
        return [tensor.array.tolist() for tensor in codec_json.decode(text, "").inputs]
    except InvalidRequest:
        return None


def test_what_is_damaged_is_refused_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    texts = [
        damaged(body(values(datatype, shape), datatype, flat), chance)
        for shape in SHAPES
        for datatype in ("UINT8", "FP32", "BOOL")
        for flat in (True, False)
        for _ in range(MUTATIONS // 36)
    ]
    whole = [told(text) for text in texts]
    monkeypatch.setattr(codec_json, "LONG_BYTES", 0)
    monkeypatch.setattr(long_lists, "PIECE_BYTES", 90)
    for text, expected in zip(texts, whole, strict=True):
        assert told(text) == expected, text
    refused = sum(expected is None for expected in whole)
    assert MUTATIONS / 10 < refused < len(whole) * 0.99


def request_of(data: str, shape: list[int], more: str = "") -> bytes:
    item = {"name": "x", "shape": shape, "datatype": "UINT8"}
    return f'{{"inputs": [{json.dumps(item)[:-1]}, "data": {data}}}]{more}}}'.encode()


def grouped(*sizes: int) -> str:
    """60 numbers in lists of these sizes."""
    numbers = iter(range(60))
    return json.dumps([[next(numbers) for _ in range(size)] for size in sizes])


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (grouped(19, 21, 20), [3, 20]),
        (grouped(20, 20, 20).replace("[0, 1,", "[[0, 1],"), [3, 20]),
        (grouped(*[1] * 60).replace("[7]", "7"), [60, 1]),
        (grouped(*[1] * 60).replace("[7], [8]", "[[7]], 8"), [60, 1]),
        (grouped(60)[1:-2] + ",]", [61]),
        (grouped(60)[1:-1].replace(" 31,", " 31,,"), [61]),
        (grouped(20, 20, 20).replace("], [", "],, ["), [3, 20]),
        (grouped(20, 20, 20).replace("], [", "][", 1), [3, 20]),
    ],
    ids=["uneven", "deeper", "shallower", "both", "at the end", "twice", "between", "none"],
)
@pytest.mark.usefixtures("small")
def test_every_bracket_and_comma_counts(data: str, shape: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        codec_json.decode(request_of(data, shape), "")


@pytest.mark.usefixtures("small")
def test_long_lists_that_nobody_asks_for() -> None:
    """They mean nothing, wherever they are, and have to be JSON."""
    flat = grouped(60)[1:-1]
    for more in (', "other": {"data": %s}', ', "outputs": [{"name": "y", "data": %s}]'):
        fine = codec_json.decode(request_of(flat, [60], more % flat), "")
        assert fine.inputs[0].array.tolist() == list(range(60))
        far = flat[:-1] + "," + " " * 80 + "]"
        for wrong in (flat.replace(" 31,", ","), far, flat.replace(", 31", " 31")):
            with pytest.raises(InvalidRequest):
                codec_json.decode(request_of(flat, [60], more % wrong), "")
    twice = request_of(f'{flat}, "data": {grouped(60)}', [1, 60])
    assert codec_json.decode(twice, "").inputs[0].array.tolist() == [list(range(60))]


@pytest.mark.usefixtures("small")
def test_a_refusal_says_what_was_expected() -> None:
    with pytest.raises(InvalidRequest, match='expected whole numbers within UINT8, got "a"'):
        codec_json.decode(request_of(grouped(20, 20, 20).replace("[40", '["a"'), [3, 20]), "")
    array = values("UINT8", (3, 4, 5))
    for text, expected in (
        (body(array, "UINT8", True).replace(b"[3, 4, 5]", b"[3, 4, 6]"), "expected 72 values"),
        (body(array.reshape(3, 20), "UINT8", False).replace(b"[3, 20]", b"[4, 15]"), "nested"),
        (body(array.astype(float) + 0.5, "UINT8", True), "whole numbers within UINT8"),
        (body(array.astype(int) + 256, "UINT8", True), "from 0 to 255"),
    ):
        with pytest.raises(InvalidRequest, match=f"input 'x'.*{expected}"):
            codec_json.decode(text, "")


def texts_of(data: str, **more: Any) -> bytes:
    item = json.dumps({"name": "x", "shape": [3], "datatype": "BYTES"})[:-1]
    return f'{{"inputs": [{item}, "data": {data}}}], {json.dumps(more)[1:]}'.encode()


def test_what_is_around_the_data_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list takes three bytes of JSON and fifty times that of memory, all made in one call."""
    monkeypatch.setattr(codec_json, "LONG_BYTES", 0)
    monkeypatch.setattr(long_lists, "AROUND_BYTES", 120)
    monkeypatch.setattr(long_lists, "MAX_LISTS", 10)
    fine = json.dumps(["[{" * 200, '"]}' * 200, "\\" * 99])
    for text in (texts_of(fine, id="7"), b" " * 999 + texts_of(fine, id="7") + b" " * 999):
        (tensor,) = codec_json.decode(text, "").inputs
        assert tensor.array.tolist() == json.loads(fine)
    for wrong, told in (
        (texts_of(fine, parameters={"a": [[]] * 60}), 'around the lists named "data"'),
        (texts_of(fine, parameters={"a": "b" * 200}), 'around the lists named "data"'),
        (texts_of(fine, parameters={"data": ["", *[[]] * 60]}), "10 of them in all"),
        (texts_of(json.dumps([["a" * 9]] * 60)), "10 of them in all"),
        (texts_of('[[[[[[[[["' + "a" * 200 + '"]]]]]]]]]'), "up to 8 deep"),
        (texts_of('["' + "a" * 200), "around"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            codec_json.decode(wrong, "")


@pytest.mark.parametrize("name", ["FP32", "UINT8", "BYTES"])
def test_a_long_answer_is_written_in_pieces(name: str) -> None:
    array = np.arange(3 * 40_001).reshape(3, -1).astype(BY_PROTOCOL[name].numpy)
    answer = InferResponse("m", "1", "d", (Tensor("y", name, array), Tensor("z", name, array[:1])))
    asked = InferRequest(())
    parts, _ = codec_json.encode_long(asked, answer)
    assert max(map(len, parts)) < 1 << 20 and len(parts) > 6
    assert codec_json.is_long_answer(asked, answer) == (name != "UINT8")
    assert b"".join(parts) == codec_json.encode(asked, answer)[0][0]
    told = json.loads(b"".join(parts))["outputs"]
    values = array.reshape(-1).tolist()
    expected = list(map(str, values)) if name == "BYTES" else values
    assert told[0]["data"] == expected and told[1]["data"] == expected[:40_001]
    if name == "FP32":
        array[2, -1] = np.nan
        with pytest.raises(BackendFailure, match="'y' holds NaN"):
            codec_json.encode_long(asked, answer)


def packed(texts: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)


def texts_request(texts: list[str], payload: bytes | None = None) -> tuple[bytes, dict[str, str]]:
    payload = packed(texts) if payload is None else payload
    item = {"name": "x", "shape": [1, len(texts)], "datatype": "BYTES"}
    sized = item | {"parameters": {"binary_data_size": len(payload)}}
    return framed({"inputs": [sized]}, payload)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    """The routes to a model that gives texts back, of which it takes 50,000."""
    bundle = tmp_path_factory.mktemp("echo") / "1"
    make_echo_bundle(bundle, "object")
    repository = Repository(bundle, Settings(batching=BatchSettings(request_texts=50_000)))
    repository.load_all()
    yield Rest(DataPlane(repository), json_bytes=1 << 20)
    repository.close()


def answer_of(rest: Rest, body: bytes, headers: dict[str, str]) -> Response:
    async def ask() -> Response:
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        headers_sent = {name.lower(): value for name, value in headers.items()}
        path = "/v2/models/echo-bytes/infer"
        rest(Request("POST", path, headers=headers_sent, body=body), answered.set_result)
        return await asyncio.wait_for(answered, 20)

    return asyncio.run(ask())


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("count", "thread"), [(40, "MainThread"), (50_000, "_0")])
def test_many_texts_are_read_and_written_in_a_thread(
    echo: Rest, monkeypatch: pytest.MonkeyPatch, count: int, thread: str, binary: bool
) -> None:
    threads = []

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def working(*given: Any) -> Any:
            threads.append(threading.current_thread().name)
            return work(*given)

        return working

    for name in ("from_texts", "to_json", "to_json_parts", "to_bytes"):
        monkeypatch.setattr(codec_json, name, noted(getattr(codec_json, name)))
    texts = [("", "a", "é")[number % 3] for number in range(count)]
    body, headers = texts_request(texts)
    if binary:
        head = int(headers["Inference-Header-Content-Length"])
        text = body[: head - 1] + b', "parameters": {"binary_data_output": true}}'
        body, headers["Inference-Header-Content-Length"] = text + body[head:], str(len(text))
    answer = answer_of(echo, body, headers)
    assert answer.status == 200, answer.body
    told = b"".join(answer.body)
    if binary:
        assert told.endswith(packed(texts))
    else:
        assert json.loads(told)["outputs"][0]["data"] == texts
    assert len(threads) == 2 and all(name.endswith(thread) for name in threads), threads


def test_texts_are_held_against_their_shape_and_their_limit(echo: Rest) -> None:
    for texts, payload, told in (
        ([""] * 50_001, None, "expected up to 50000 texts (setting batching.request_texts)"),
        (["a", "b"], packed(["a"] * 3), "expected 2 texts for shape [1, 2], got more"),
        (["a", "b"], packed(["a"]), "expected 2 texts for shape [1, 2], got 1"),
        (["a", "b"], packed(["a"]) + b"\0\0", "text 1: expected its length in 4 bytes, got 2"),
        (["a", "b"], packed(["a"]) + b"\2\0\0\0b", "text 1 says 2 bytes, beyond the data"),
        (["a", "b"], packed(["a", "b"])[:-1] + b"\xff", "expected UTF-8"),
        ([""], bytes(1 << 17), "got more"),
    ):
        answer = answer_of(echo, *texts_request(texts, payload))
        error = json.loads(b"".join(answer.body))["error"]
        assert answer.status == 400 and told in error and "'x'" in error, error


def test_too_much_json_is_refused_before_it_waits_to_be_read(echo: Rest) -> None:
    long, too_long = b" " * (1 << 20), b" " * ((1 << 20) + 1)

    async def ask() -> list[int]:
        answered: list[int] = []
        for body in (long, too_long):
            request = Request("POST", "/v2/models/echo-bytes/infer", body=body)
            echo(request, lambda answer: answered.append(answer.status))
        at_once = list(answered)
        while len(answered) < 2:
            await asyncio.sleep(0.001)
        return [*at_once, *answered]

    assert asyncio.run(ask()) == [413, 413, 400]


def test_an_operators_json_is_short(echo: Rest) -> None:
    replies: list[Response] = []
    body = b'{"ready": true, "a": [' + b"[]," * (1 << 17) + b"[]]}"
    echo(Request("POST", "/v2/repository/index", body=body), replies.append)
    echo(Request("POST", "/v2/repository/index", body=b'{"ready": true}'), replies.append)
    assert [reply.status for reply in replies] == [413, 200]
