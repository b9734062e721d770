"""Wire to request and answer to wire for gRPC. Pure functions: bytes, messages, no channels.

The rules are those of `codec_json.py`, and so are their texts: `tensor_head.py` and `tensor_data.py`
hold them for both. Answers are always raw, since official clients read nothing else, and are put
together as bytes: all of an answer but its values is the same from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf import json_format

from pipeline.bundle.tensors import TensorType
from serving.codecs.proto_fields import check_fields
from serving.codecs.tensor_data import element_count, from_bytes, from_texts, to_bytes, utf8
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
from serving.errors import InvalidRequest, Unsupported
from serving.observability.statistics import ModelStatistics, as_json
from serving.proto.inference import message
from serving.protocol import (
    IndexEntry,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Tensor,
    WantedOutput,
)

InferMessage = message("inference.ModelInferRequest")
AnswerMessage = message("inference.ModelInferResponse")

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the values of a datatype are when they are typed."""

MAX_SMALL = 256 << 10
"""Bytes of a message that carries no tensors: names, and a configuration at most."""

CHUNK = 1 << 16
"""Typed values that become Python's at a time: between two such steps other threads have their turn."""

RAW, ID, STREAMED = 0x32, 0x1A, 0x12
"""Tags: ModelInferResponse's raw_output_contents and id, ModelStreamInferResponse's answer."""


def parse(payload: bytes, kind: Any = InferMessage) -> Any:
    """The message in some bytes. Raises `InvalidRequest` for what is none, or has too many fields."""
    if kind is InferMessage:
        check_fields(payload)
    try:
        return kind.FromString(payload)
    except Exception as error:  # protobuf's own error type differs by implementation
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequest(f"the message: {len(payload)} bytes that are no {name}") from error


def parse_small(payload: bytes, kind: Any) -> Any:
    """The same for a message without tensors, in which nothing is looked for when it is long."""
    if len(payload) > MAX_SMALL:
        raise InvalidRequest(
            f"the message: expected {kind.DESCRIPTOR.full_name} in at most {MAX_SMALL} bytes, got "
            f"{len(payload)}"
        )
    return parse(payload, kind)


def decode(asked: Any, check: Check | None = None) -> InferRequest:
    """A request from its message.

    Raises `InvalidRequest` naming the tensor, what was expected and what came.
    """
    identity = asked.id or None
    check_id(identity)
    raw = asked.raw_input_contents
    items = asked.inputs
    check_count("inputs", len(items))
    if not items:
        raise InvalidRequest("inputs: expected at least one tensor, got none")
    inputs = []
    for number, item in enumerate(items):
        name, kind, shape = _head(item, number, check)
        if not raw:
            inputs.append(Tensor(name, kind.protocol, _typed(name, kind, shape, item)))
            continue
        _check_raw(name, item, len(items), len(raw))
        payload = raw[number]
        array = (
            from_bytes(name, kind, shape, payload, 0, len(payload))
            if kind.itemsize
            else from_texts(f"input {name!r}", shape, memoryview(payload))
        )
        inputs.append(Tensor(name, kind.protocol, array))
    check_unique([tensor.name for tensor in inputs], "input")
    return InferRequest(
        tuple(inputs),
        _wanted(asked.outputs),
        True,
        identity,
        timeout(_number(asked, "timeout")),
        priority(_number(asked, "priority")),
    )


def encode(request_id: str | None, response: InferResponse) -> bytes:
    """An answer as the bytes of a ModelInferResponse."""
    tensors = response.outputs
    head = _answer_head(
        response.model_name,
        response.model_version,
        response.bundle,
        tuple([(t.name, t.datatype, t.array.shape) for t in tensors]),
    )
    parts: list[bytes | memoryview] = [head]
    if request_id:
        text = request_id.encode()
        parts += field_head(ID, len(text)), text
    for tensor in tensors:
        values = to_bytes(tensor)
        parts += field_head(RAW, len(values)), values
    return b"".join(parts)


def encode_streamed(answer: bytes) -> bytes:
    """One answer in a stream, marked as the last that its request gets."""
    return b"".join((field_head(STREAMED, len(answer) + len(FINAL)), answer, FINAL))


def encode_stream_failure(payload: bytes, reason: str) -> bytes:
    """A failure in a stream; the request's bytes, where they can be read, say whose."""
    told_of = AnswerMessage()
    with suppress(InvalidRequest):
        asked = parse(payload)
        told_of.model_name, told_of.model_version = asked.model_name, asked.model_version
        told_of.id = asked.id
    told_of.parameters["triton_final_response"].bool_param = True
    found: bytes = message("inference.ModelStreamInferResponse")(
        error_message=reason, infer_response=told_of
    ).SerializeToString()
    return found


def _number(asked: Any, name: str) -> Any:
    """A request's own parameter, 0 where it has none; a text where it came as one."""
    if not asked.parameters or name not in asked.parameters:
        return 0
    return _chosen(asked.parameters[name])


def _chosen(parameter: Any) -> Any:
    """A parameter's value, of whatever type it has; 0 where it has none."""
    return getattr(parameter, parameter.WhichOneof("parameter_choice") or "int64_param")


def encode_metadata(known: ModelMetadata) -> bytes:
    """What a model is."""
    answer = message("inference.ModelMetadataResponse")(
        name=known.name, versions=known.versions, platform=known.platform
    )
    for declared, tensors in ((answer.inputs, known.inputs), (answer.outputs, known.outputs)):
        for spec in tensors:
            declared.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    answer.properties.update(known.properties)
    found: bytes = answer.SerializeToString()
    return found


def encode_config(told_of: dict[str, Any]) -> bytes:
    """A model's configuration, from its JSON form; what our schema leaves out stays out."""
    answer = message("inference.ModelConfigResponse")()
    json_format.ParseDict(told_of, answer.config, ignore_unknown_fields=True)
    found: bytes = answer.SerializeToString()
    return found


def encode_statistics(models: Sequence[ModelStatistics]) -> bytes:
    """What was counted of each model; the fields are those of the JSON form."""
    answer = message("inference.ModelStatisticsResponse")(**as_json(models))
    found: bytes = answer.SerializeToString()
    return found


def encode_index(entries: Sequence[IndexEntry]) -> bytes:
    """Every version with its state."""
    answer = message("inference.RepositoryIndexResponse")()
    for e in entries:
        answer.models.add(name=e.name, version=e.version, state=e.state, reason=e.reason)
    found: bytes = answer.SerializeToString()
    return found


def decode_change(asked: Any) -> tuple[str, dict[str, Any]]:
    """(model, the same as HTTP's body) of a load or unload.

    KServe's clients have the model's name in field 1, where others have the repository's, of which
    there is one without a name. Raises `InvalidRequest`.
    """
    name = str(asked.model_name or asked.repository_name)
    if not name:
        raise InvalidRequest("model_name: expected the name of a model, got nothing")
    given = {key: _chosen(value) for key, value in asked.parameters.items()}
    return name, {"parameters": given}


def _head(item: Any, number: int, check: Check | None) -> tuple[str, TensorType, list[int]]:
    """(name, type, shape) of an input, held against the model before its data is looked at."""
    name = item.name[:320]
    if not name:
        raise InvalidRequest(f'inputs[{number}]: name: expected a text, got ""')
    where = f"input {name!r}"
    if item.datatype == "BF16":
        raise InvalidRequest(f"{where}: datatype: BF16 is not offered here; send FP32 or FP16")
    kind = datatype(item.datatype, where)
    shape = axes(list(item.shape), where)
    if check:
        check(name, kind.protocol, shape)
    if item.parameters and "shared_memory_region" in item.parameters:
        raise Unsupported(f"{where}: shared memory is not offered here; send the data")
    return name, kind, shape


def _check_raw(name: str, item: Any, inputs: int, given: int) -> None:
    if item.HasField("contents") and item.contents.ListFields():
        raise InvalidRequest(
            f"input {name!r}: expected its values in raw_input_contents or in contents, got both; "
            "a request is either all raw or all typed"
        )
    if given != inputs:
        raise InvalidRequest(
            f"raw_input_contents: expected {inputs}, one for each input, got {given} "
            f"(at input {name!r})"
        )


def _typed(name: str, kind: TensorType, shape: list[int], item: Any) -> np.ndarray:
    """The values of `contents` [shape]. Raises `InvalidRequest`."""
    where = f"input {name!r}"
    field = CONTENTS.get(kind.protocol)
    given = [found.name for found, _ in item.contents.ListFields()]
    if field is None:
        raise InvalidRequest(
            f"{where}: expected {kind.protocol} in raw_input_contents, the only place for it, "
            f"got {', '.join(given) or 'nothing'}"
        )
    for other in given:
        if other != field:
            raise InvalidRequest(
                f"{where}: contents: expected {field} for {kind.protocol}, got {other}"
            )
    values = getattr(item.contents, field)
    if len(values) != element_count(shape):
        raise InvalidRequest(
            f"{where}: contents: expected {element_count(shape)} values for shape {shape}, "
            f"got {len(values)}"
        )
    if kind.numpy.hasobject:
        texts = [utf8(where, value) for value in values]
        return np.array(texts, object).reshape(shape)
    found = np.empty(len(values), kind.numpy)
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        if kind.itemsize < 4 and kind.numpy.kind in "iu":
            _check_range(where, kind, part)
        found[start : start + CHUNK] = part
    return found.reshape(shape)


def _check_range(where: str, kind: TensorType, values: list[int]) -> None:
    """The wire's integers have 32 bits where the tensor's may have fewer."""
    limits = np.iinfo(kind.numpy)
    for value in (min(values), max(values)):
        if not limits.min <= value <= limits.max:
            raise InvalidRequest(
                f"{where}: contents: expected {kind.protocol} values from {limits.min} to "
                f"{limits.max}, got {value}"
            )


def _wanted(asked: Any) -> tuple[WantedOutput, ...] | None:
    if not asked:
        return None
    check_count("outputs", len(asked))
    names = []
    for number, item in enumerate(asked):
        if not item.name:
            raise InvalidRequest(f'outputs[{number}]: name: expected a text, got ""')
        for extension in item.parameters:
            if extension in ("classification", "shared_memory_region"):
                raise Unsupported(
                    f"output {item.name[:320]!r}: classification and shared memory are not "
                    "offered here"
                )
        names.append(item.name[:320])
    check_unique(names, "output")
    return tuple(WantedOutput(name, True) for name in names)


@lru_cache(maxsize=1024)
def _answer_head(
    model: str,
    version: str,
    bundle: str,
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...],
) -> bytes:
    """Everything of an answer that does not depend on values or id."""
    answer = AnswerMessage(model_name=model, model_version=version)
    answer.parameters["bundle"].string_param = bundle
    for name, kind, shape in tensors:
        answer.outputs.add(name=name, datatype=kind, shape=shape)
    found: bytes = answer.SerializeToString()
    return found


@lru_cache(maxsize=1024)
def field_head(tag: int, size: int) -> bytes:
    """What comes before the `size` bytes of a field: its tag and that length."""
    parts = bytearray((tag,))
    while size > 0x7F:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts)


def _final() -> bytes:
    last = AnswerMessage()
    last.parameters["triton_final_response"].bool_param = True
    found: bytes = last.SerializeToString()
    return found


FINAL = _final()
"""The parameter by which a streaming client knows that nothing more comes for its request."""
