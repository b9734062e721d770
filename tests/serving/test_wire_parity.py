"""The same tensor by every way in and out is the same tensor; texts, which no bundle has, alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.codecs import codec_json, codec_proto
from serving.codecs.tensor_data import to_bytes
from serving.errors import InvalidRequest
from serving.proto.inference import message
from serving.protocol import InferRequest, InferResponse, Tensor, WantedOutput
from tests.serving.bundles import TYPES
from tests.serving.live import Live, binary, framed, outputs, tensor
from tests.serving.rpc_client import Client, infer_request
from tests.serving.rpc_client import outputs as rpc_outputs


def drawn(data: st.DataObject, dtype: str, rows: int) -> np.ndarray:
    """[rows, 2, 2] of any values of a type, in half of them its limits.

    Drawn as bytes: value by value, drawing takes longer than the server does.
    """
    kind, count = np.dtype(dtype), rows * 4
    size = count * kind.itemsize
    given_bytes = data.draw(st.binary(min_size=size, max_size=size), label=dtype)
    if kind.kind == "b":
        return (np.frombuffer(given_bytes, np.uint8) % 2 == 1).reshape(rows, 2, 2)
    array = np.frombuffer(given_bytes, kind).copy()
    limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    if isinstance(limits, np.finfo):
        array[~np.isfinite(array) | (np.abs(array) < limits.tiny)] = 0
    if data.draw(st.booleans(), label="limits"):
        array[:2] = limits.min, limits.max
    return array.reshape(rows, 2, 2)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_json_binary_and_mixed_agree_bit_for_bit(server: Live, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 3))
    given_arrays = {name: drawn(data, name, rows) for name in TYPES}
    binary_in = data.draw(st.sets(st.sampled_from(list(TYPES))), label="binary in")
    binary_out = data.draw(st.sets(st.sampled_from(list(TYPES))), label="binary out")
    nested = data.draw(st.booleans(), label="nested")
    order = data.draw(st.permutations(list(TYPES)), label="order")

    items: list[dict[str, Any]] = []
    payloads = []
    for name in order:
        array, datatype = given_arrays[name], TYPES[name][1]
        if name in binary_in:
            items.append(binary(f"in_{name}", array, datatype))
            payloads.append(array.tobytes())
        else:
            item = tensor(f"in_{name}", array, datatype)
            items.append(item | {"data": array.tolist()} if nested else item)
    wanted = [
        {"name": f"out_{name}", "parameters": {"binary_data": name in binary_out}} for name in order
    ]
    request = {"inputs": items, "outputs": wanted}
    body, headers = framed(request, *payloads) if payloads else (json.dumps(request).encode(), {})
    status, told, answer = server.ask("POST", "/v2/models/types/infer", body, headers)
    assert status == 200, answer
    found = outputs(told, answer)
    for name, array in given_arrays.items():
        assert found[f"out_{name}"].tobytes() == array.tobytes(), name


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Client]:
    with Client(server.grpc_port) as client:
        yield client


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_grpc_answers_the_bytes_it_was_sent(client: Client, data: st.DataObject) -> None:
    """So does HTTP, in every form, by the test above: the bytes out are the same by every way."""
    rows = data.draw(st.integers(1, 3))
    sent = {f"in_{name}": drawn(data, name, rows) for name in TYPES}
    order = data.draw(st.permutations(list(sent)), label="order")
    found = client.infer(infer_request("types", {name: sent[name] for name in order}))
    for name, array in sent.items():
        assert found[name.replace("in_", "out_")].tobytes() == array.tobytes(), name


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_one_tensor_by_every_way_in_is_one_tensor(
    server: Live, client: Client, data: st.DataObject
) -> None:
    """JSON, binary, raw body, gRPC typed and raw, compressed, streamed: the same bytes come out."""
    values = data.draw(
        hnp.arrays(
            "float32",
            st.tuples(st.just(1), st.integers(1, 6)),
            elements=hnp.from_dtype(np.dtype("float32"), min_value=2**-20, max_value=2**20),
        )
    )
    path = "/v2/models/series/infer"
    out = {"parameters": {"binary_data_output": True}}
    as_json = {"inputs": [tensor("values", values, "FP32")], **out}
    in_binary = {"inputs": [binary("values", values, "FP32")], **out}
    typed = infer_request("series", {"values": values}, typed=True)
    raw = infer_request("series", {"values": values})
    stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    (streamed,) = stream(iter([raw.SerializeToString()]), timeout=20)
    answers = {
        "json": _posted(server, path, json.dumps(as_json).encode(), {}),
        "binary": _posted(server, path, *framed(in_binary, values.tobytes())),
        "raw": _posted(server, path, values.tobytes(), {"Inference-Header-Content-Length": "0"}),
        "grpc typed": client.infer(typed),
        "grpc raw": client.infer(raw),
        "grpc gzip": client.infer(raw, compression=grpc.Compression.Gzip),
        "grpc stream": rpc_outputs(
            message("inference.ModelStreamInferResponse").FromString(streamed).infer_response
        ),
    }
    for way, found in answers.items():
        for name in ("sum", "log"):
            assert found[name].tobytes() == answers["json"][name].tobytes(), (way, name)


def _posted(server: Live, path: str, body: bytes, headers: dict[str, str]) -> dict[str, np.ndarray]:
    status, told, answer = server.ask("POST", path, body, headers)
    assert status == 200, answer
    return outputs(told, answer)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8))
def test_texts_are_the_same_by_json_typed_and_raw(texts: list[str]) -> None:
    item = {"name": "t", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    (by_json,) = codec_json.decode(json.dumps({"inputs": [item]}).encode(), "").inputs
    array = np.array(texts, object)
    typed = infer_request("m", {"t": array}, typed=True)
    (by_type,) = codec_proto.decode(typed).inputs
    typed.inputs[0].ClearField("contents")
    typed.raw_input_contents.append(bytes(to_bytes(Tensor("t", "BYTES", array))))
    (by_bytes,) = codec_proto.decode(typed).inputs
    assert by_json.array.tolist() == by_type.array.tolist() == by_bytes.array.tolist() == texts


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=8
)


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS)
def test_texts_survive_both_ways(texts: list[str]) -> None:
    array = np.array(texts, object)
    as_json = json.dumps(
        {"inputs": [{"name": "t", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}
    ).encode()
    (read,) = codec_json.decode(as_json, "").inputs
    assert read.array.tolist() == texts
    request = InferRequest((read,), (WantedOutput("t", True),))
    (head, payload), length = codec_json.encode(
        request, InferResponse("m", "1", "d", (Tensor("t", "BYTES", array),))
    )
    assert len(head) == length
    item = {
        "name": "t",
        "shape": [len(texts)],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(payload)},
    }
    body, headers = framed({"inputs": [item]}, bytes(payload))
    (again,) = codec_json.decode(body, headers["Inference-Header-Content-Length"]).inputs
    assert again.array.tolist() == texts


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), length=st.sampled_from(["", "0", "5", "-1", "200", "x"]))
def test_any_bytes_are_a_request_or_a_sentence(body: bytes, length: str) -> None:
    try:
        codec_json.decode(body, length)
    except InvalidRequest as error:
        assert str(error)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_a_request_or_a_sentence(data: st.DataObject) -> None:
    item = {
        "name": "t",
        "shape": [2],
        "datatype": data.draw(st.sampled_from(["UINT8", "FP32", "BOOL", "BYTES", "FP16"])),
        "data": [1, 2],
        "parameters": {"binary_data_size": 2},
    }
    request: dict[str, Any] = {
        "id": "a",
        "inputs": [item],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"binary_data_output": False},
    }
    places: list[tuple[Any, Any]] = [
        *((item, key) for key in item),
        *((request, key) for key in request),
        (request["outputs"][0], "name"),
        (request["outputs"][0], "parameters"),
        (item["parameters"], "binary_data_size"),
    ]
    for _ in range(data.draw(st.integers(0, 3))):
        holder, key = data.draw(st.sampled_from(places))
        if data.draw(st.booleans()):
            holder.pop(key, None)
        else:
            holder[key] = data.draw(JSON_VALUES)
    body = json.dumps(request).encode()
    length = data.draw(st.sampled_from(["", str(len(body))]))
    try:
        found = codec_json.decode(body + (b"ab" if length else b""), length)
    except (InvalidRequest, codec_json.Unsupported) as error:
        assert str(error)
    else:
        assert found.inputs[0].array.shape == tuple(item["shape"])


@pytest.mark.parametrize("data", [None, []])
def test_an_empty_tensor_both_ways_at_once(data: Any) -> None:
    """KServe's client sends it so, without the header that binary data needs."""
    item = {"name": "t", "datatype": "FP32", "data": data, "parameters": {"binary_data_size": 0}}
    empty = json.dumps({"inputs": [item | {"shape": [2, 0]}]}).encode()
    (read,) = codec_json.decode(empty, "").inputs
    assert read.array.shape == (2, 0)
    with pytest.raises(InvalidRequest, match=r"'t'.*expected 2 values"):
        codec_json.decode(json.dumps({"inputs": [item | {"shape": [2]}]}).encode(), "")


def test_binary_input_is_not_copied() -> None:
    array = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    body, headers = framed({"inputs": [binary("image", array, "UINT8")]}, array.tobytes())
    (read,) = codec_json.decode(body, headers["Inference-Header-Content-Length"]).inputs
    assert np.shares_memory(read.array, np.frombuffer(body, np.uint8))


def test_an_array_of_another_type_is_no_tensor() -> None:
    with pytest.raises(ValueError, match="FP32 cannot hold float64"):
        Tensor("t", "FP32", np.zeros(2))


@pytest.mark.parametrize(
    "text",
    [b"\xff\xff\xff\xff", b"\1\0", b"\1\0\0\0a\1\0\0\0b", b"\1\0\0\0\xff", b""],
    ids=["lies", "cut", "more", "utf8", "none"],
)
def test_mistaken_texts_are_refused(text: bytes) -> None:
    item = {"name": "t", "shape": [1], "datatype": "BYTES"}
    parameters = {"parameters": {"binary_data_size": len(text)}}
    body, headers = framed({"inputs": [item | parameters]}, text)
    with pytest.raises(InvalidRequest, match="'t'"):
        codec_json.decode(body, headers["Inference-Header-Content-Length"])


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**62, 2**62], [0, 2**31 - 1, 2**31 - 1]])
@pytest.mark.parametrize("datatype", ["UINT8", "FP64", "BYTES"])
def test_an_empty_tensor_of_absurd_axes_is_refused(shape: list[int], datatype: str) -> None:
    item = {"name": "t", "shape": shape, "datatype": datatype}
    with pytest.raises(InvalidRequest, match="'t': shape: expected at most 2147483647"):
        codec_json.decode(json.dumps({"inputs": [item | {"data": []}]}).encode(), "")
    body, headers = framed({"inputs": [item | {"parameters": {"binary_data_size": 0}}]})
    with pytest.raises(InvalidRequest, match="'t': shape: expected at most 2147483647"):
        codec_json.decode(body, headers["Inference-Header-Content-Length"])
