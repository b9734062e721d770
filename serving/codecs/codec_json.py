"""Wire to request and answer to wire, JSON and binary tensors alike. Pure functions, no sockets.

Liberal in what is accepted where it has one meaning (nested or flat data, unknown parameters),
strict about values, which `tensor_data.py` reads and writes. Nothing here knows a model: whether a
tensor is one of its inputs is the model's to say.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from pipeline.bundle.tensors import BY_PROTOCOL
from serving.codecs import long_lists
from serving.codecs.long_lists import LONG_BYTES, LongList
from serving.codecs.tensor_data import (
    MAX_TOLD,
    from_bytes,
    from_json,
    from_texts,
    kind_of,
    to_bytes,
    to_json,
    to_json_parts,
    told,
    utf8,
)
from serving.codecs.tensor_head import (
    Check,
    check_count,
    check_id,
    check_unique,
    datatype,
    priority,
    timeout,
)
from serving.codecs.tensor_head import shape as axes
from serving.errors import InvalidRequest, TooLarge, Unsupported
from serving.protocol import (
    InferRequest,
    InferResponse,
    Prediction,
    Tensor,
    TensorSpec,
    WantedOutput,
)

MAX_JSON = 16 << 20
"""Bytes of JSON, where a deployment says nothing else."""

LONG_ANSWER = 128 << 10
"""Bytes of an output's numbers, or of the pointers to its texts, that are written at once."""

LENGTH = re.compile(r"[0-9]{1,18}")


def decode(
    body: bytes, header_length: str, check: Check | None = None, json_bytes: int = MAX_JSON
) -> InferRequest:
    """A request from its body and the text of `Inference-Header-Content-Length` ('' if absent).

    Raises `InvalidRequest` naming the tensor, what was expected and what came, and `TooLarge`.
    """
    if not header_length:
        return _request(_object(body, json_bytes), b"", 0, framed=False, check=check)
    length = _header_length(header_length, len(body))
    return _request(_object(body[:length], json_bytes), body, length, framed=True, check=check)


def check_json(size: int, json_bytes: int) -> None:
    """Raise `TooLarge` for more JSON than is read: parsing it holds up every other client."""
    if size > json_bytes:
        raise TooLarge(
            f"the JSON: at most {json_bytes} bytes are accepted (setting http.json_bytes), got "
            f"{size}; send large tensors as binary data"
        )


def json_size(size: int, header_length: str) -> int:
    """Bytes of JSON in a body of `size` bytes, or all of them where the header makes no sense."""
    if header_length.isdecimal() and len(header_length) <= len(str(size)):
        return min(size, int(header_length))
    return size


def is_raw(header_length: str) -> bool:
    """Whether the whole body is the one input's data."""
    return bool(header_length) and not header_length.strip("0")


def decode_raw(body: bytes, inputs: Sequence[TensorSpec]) -> InferRequest:
    """One row of the model's only input; every output is to come back binary."""
    if len(inputs) != 1:
        raise InvalidRequest(
            f"Inference-Header-Content-Length 0 means one input's bytes; this model takes "
            f"{', '.join(repr(i.name) for i in inputs)}"
        )
    spec = inputs[0]
    kind = BY_PROTOCOL[spec.datatype]
    shape = [1, *spec.shape[1:]]
    if shape.count(-1) > 1:
        raise InvalidRequest(f"input {spec.name!r}: raw bytes leave more than one axis open")
    if not kind.itemsize:
        return InferRequest((_raw_text(spec, shape, body),), binary=True)
    if -1 in shape:
        row = int(np.prod([axis for axis in shape if axis != -1])) * kind.itemsize
        shape[shape.index(-1)] = len(body) // row if row else 0
    array = from_bytes(spec.name, kind, shape, body, 0, len(body))
    return InferRequest((Tensor(spec.name, spec.datatype, array),), binary=True)


def _raw_text(spec: TensorSpec, shape: list[int], body: bytes) -> Tensor:
    """A body as the one text it is. Raises `InvalidRequest` where a row may hold others."""
    if any(axis != 1 for axis in shape):
        raise InvalidRequest(
            f"input {spec.name!r}: raw bytes are one text, a row of this model is {shape[1:]} of "
            "them (-1: any number); send them as JSON, or each with its length"
        )
    array = np.array([utf8(f"input {spec.name!r}", body)], object).reshape(shape)
    return Tensor(spec.name, spec.datatype, array)


def encode(request: InferRequest, response: InferResponse) -> tuple[list[bytes | memoryview], int]:
    """(body parts, length of the JSON before binary tensors or -1 where all is JSON).

    Raises `BackendFailure` where a value cannot be said in JSON.
    """
    outputs: list[bytes] = []
    tensors: list[bytes | memoryview] = []
    for position, tensor in enumerate(response.outputs):
        head = _output_head(tensor.name, tensor.datatype, tensor.array.shape)
        if _is_binary(request, position):
            payload = to_bytes(tensor)
            tensors.append(payload)
            outputs.append(b'%b"parameters":{"binary_data_size":%d}}' % (head, len(payload)))
        else:
            outputs.append(b'%b"data":%b}' % (head, to_json(tensor)))
    text = b"%b%b]}" % (_opening(request, response), b",".join(outputs))
    return [text, *tensors], len(text) if tensors else -1


def encode_long(
    request: InferRequest, response: InferResponse
) -> tuple[list[bytes | memoryview], int]:
    """The same for a thread: lists are written in pieces, and copied together nowhere."""
    text: list[bytes | memoryview] = [_opening(request, response)]
    tensors: list[bytes | memoryview] = []
    for position, tensor in enumerate(response.outputs):
        if position:
            text.append(b",")
        text.append(_output_head(tensor.name, tensor.datatype, tensor.array.shape))
        if _is_binary(request, position):
            payload = to_bytes(tensor)
            tensors.append(payload)
            text.append(b'"parameters":{"binary_data_size":%d}}' % len(payload))
        else:
            text += b'"data":', *to_json_parts(tensor), b"}"
    text.append(b"]}")
    return [*text, *tensors], sum(map(len, text)) if tensors else -1


def is_long_answer(request: InferRequest, response: InferResponse) -> bool:
    """Whether an answer takes longer to write than others should wait."""
    for position, tensor in enumerate(response.outputs):
        if tensor.array.nbytes > LONG_ANSWER and (
            tensor.array.dtype.hasobject or not _is_binary(request, position)
        ):
            return True
    return False


def _is_binary(request: InferRequest, position: int) -> bool:
    return request.outputs[position].binary if request.outputs else request.binary


def _opening(request: InferRequest, response: InferResponse) -> bytes:
    """All that comes before the first output."""
    identity = b'"id":%b,' % orjson.dumps(request.id) if request.id is not None else b""
    return b'{%b%b"parameters":{"bundle":"%b"},"outputs":[' % (
        _origin(response.model_name, response.model_version),
        identity,
        response.bundle.encode(),
    )


@lru_cache(maxsize=1024)
def _output_head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return b'{"name":%b,"datatype":"%b","shape":[%b],' % (
        orjson.dumps(name),
        datatype.encode(),
        ",".join(map(str, shape)).encode(),
    )


@lru_cache(maxsize=1024)
def _origin(name: str, version: str) -> bytes:
    return b'"model_name":"%b","model_version":"%b",' % (name.encode(), version.encode())


def encode_prediction(prediction: Prediction) -> bytes:
    """The answer of the door for people. A hint speaks of the query, not of the command's option."""
    hint = prediction.hint and prediction.hint.replace("--invert", "?invert=true")
    return orjson.dumps(
        {
            "model_name": prediction.model_name,
            "model_version": prediction.model_version,
            **prediction.told(),
            "parameters": {"bundle": prediction.bundle} | ({"hint": hint} if hint else {}),
        }
    )


def _header_length(text: str, available: int) -> int:
    if not LENGTH.fullmatch(text) or int(text) > available:
        raise InvalidRequest(
            f"Inference-Header-Content-Length: expected 0 to {available}, the bytes of the body, "
            f"got {text[:MAX_TOLD]!r}"
        )
    return int(text)


def _object(text: bytes, json_bytes: int) -> dict[str, Any]:
    check_json(len(text), json_bytes)
    collecting = gc.isenabled()
    gc.disable()  # a million lists hold no cycle, and looking for one takes longer than they do
    try:
        value = long_lists.loads(text) if len(text) > LONG_BYTES else orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body: expected a JSON object, got {kind_of(value)}")
    return value


def _request(
    fields: dict[str, Any], body: bytes, offset: int, framed: bool, check: Check | None
) -> InferRequest:
    identity = fields.get("id")
    check_id(identity)
    asked = _parameters(fields, "the request")
    binary = _flag(asked, "binary_data_output", "the request", False)
    inputs = []
    for number, item in enumerate(_list(fields, "inputs")):
        name, parameters = _named(item, f"inputs[{number}]")
        tensor, offset = _input(name, item, parameters, body, offset, framed, check)
        inputs.append(tensor)
    if not inputs:
        raise InvalidRequest("inputs: expected at least one tensor, got none")
    if framed and offset != len(body):
        raise InvalidRequest(
            f"the body: {len(body) - offset} bytes more than binary_data_size of the inputs says"
        )
    check_unique([tensor.name for tensor in inputs], "input")
    outputs: tuple[WantedOutput, ...] | None = None
    if fields.get("outputs"):
        outputs = tuple(
            _wanted(item, f"outputs[{number}]", binary)
            for number, item in enumerate(_list(fields, "outputs"))
        )
        check_unique([output.name for output in outputs], "output")
    elif fields.get("outputs", []) != []:
        _list(fields, "outputs")
    return InferRequest(
        tuple(inputs),
        outputs,
        binary,
        identity,
        timeout(asked["timeout"]) if "timeout" in asked else 0.0,
        priority(asked["priority"]) if "priority" in asked else 0,
    )


def _input(
    name: str,
    item: dict[str, Any],
    parameters: dict[str, Any],
    body: bytes,
    offset: int,
    framed: bool,
    check: Check | None,
) -> tuple[Tensor, int]:
    """(the tensor, where the next binary one begins)."""
    where = f"input {name!r}"
    kind = datatype(item.get("datatype"), where)
    shape = axes(item.get("shape"), where)
    if check:
        check(name, kind.protocol, shape)
    size = parameters.get("binary_data_size")
    if "shared_memory_region" in parameters:
        raise Unsupported(f"{where}: shared memory is not offered here; send the data")
    if size == 0 and item.get("data", 0) in (None, []):
        # How KServe's client sends a tensor without elements: both ways at once, without the header.
        return Tensor(name, kind.protocol, from_json(where, kind, shape, [])), offset
    if size is None:
        if "data" not in item:
            raise InvalidRequest(f"{where}: expected 'data' or the parameter 'binary_data_size'")
        data = item["data"]
        if isinstance(data, LongList):
            return Tensor(name, kind.protocol, data.array(where, kind, shape)), offset
        return Tensor(name, kind.protocol, from_json(where, kind, shape, data)), offset
    if "data" in item:
        raise InvalidRequest(f"{where}: expected 'data' or 'binary_data_size', got both")
    if not framed:
        raise InvalidRequest(
            f"{where}: binary data needs the header Inference-Header-Content-Length, "
            "the bytes of JSON"
        )
    if type(size) is not int or not 0 <= size <= len(body) - offset:
        raise InvalidRequest(
            f"{where}: binary_data_size: expected 0 to {len(body) - offset}, the bytes left in the "
            f"body, got {told(size)}"
        )
    array = (
        from_bytes(name, kind, shape, body, offset, size)
        if kind.itemsize
        else from_texts(where, shape, memoryview(body)[offset : offset + size])
    )
    return Tensor(name, kind.protocol, array), offset + size


def _wanted(item: Any, where: str, binary: bool) -> WantedOutput:
    name, parameters = _named(item, where)
    if "classification" in parameters or "shared_memory_region" in parameters:
        raise Unsupported(f"output {name!r}: classification and shared memory are not offered here")
    return WantedOutput(name, _flag(parameters, "binary_data", f"output {name!r}", binary))


def _named(item: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where}: expected an object, got {kind_of(item)}")
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}: name: expected a text, got {told(name)}")
    name = name[: MAX_TOLD * 4]
    return name, _parameters(item, f"{where} {name[:MAX_TOLD]!r}")


def _parameters(fields: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}: parameters: expected an object, got {kind_of(parameters)}")
    return parameters


def _flag(parameters: dict[str, Any], key: str, where: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where}: {key}: expected true or false, got {told(value)}")
    return value


def _list(fields: dict[str, Any], key: str) -> list[Any]:
    value = fields.get(key)
    if not isinstance(value, list):
        raise InvalidRequest(f"{key}: expected a list of tensors, got {kind_of(value)}")
    check_count(key, len(value))
    return value
