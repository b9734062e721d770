"""What can be asked, as data: method, path, a body that knows its deadline, a reader of the answer.

Pure functions, no sockets: the blocking and the asynchronous client both run these.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import ArrayLike

from pipeline.bundle.tensors import BY_NUMPY, TensorType
from serving.client import answers
from serving.client.address import Address
from serving.client.answers import Answer
from serving.client.errors import InvalidRequest
from serving.client.reading import Reply
from serving.protocol import IndexEntry, ModelMetadata, Prediction

T = TypeVar("T")
Parts = list[bytes | memoryview]
File = bytes | bytearray | memoryview | str | os.PathLike[str]

REQUEST_ID = re.compile(r"[!-~]{1,128}")
COPY_BYTES = 64 << 10
"""Tensors up to this size are copied into one piece with the head; larger ones are not."""

COMPRESS_LEVEL = 1
"""Of gzip: the cheapest; what a slow network gains beyond it costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One thing to ask. `body` is told the seconds left, and gives (length of JSON, parts)."""

    method: str
    path: str
    read: Callable[[Reply, bytes], T]
    body: Callable[[float], tuple[int, Parts]] | None = None
    content_type: str = ""
    request_id: str | None = None
    idempotent: bool = True
    compressible: bool = False

    @property
    def what(self) -> str:
        """The call in an error's message."""
        return f"{self.method} {self.path}"


def infer(
    model: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str] | None,
    version: str | int | None,
    request_id: str | None,
    binary: bool,
) -> Call[Answer]:
    """Raises `InvalidRequest` for what the protocol cannot say."""
    if not inputs:
        raise InvalidRequest("inputs: expected at least one named array, got none")
    if isinstance(outputs, str):
        raise InvalidRequest(f"outputs: expected a list of names, got the text {outputs!r}")
    arrays = [(name, *_tensor(name, value)) for name, value in inputs.items()]

    def body(seconds_left: float) -> tuple[int, Parts]:
        return _infer_body(arrays, outputs, request_id, binary, seconds_left)

    return Call(
        "POST",
        f"{_model(model, version)}/infer",
        answers.infer,
        body,
        "application/octet-stream" if binary else "application/json",
        _checked_id(request_id),
        compressible=True,
    )


def predict(
    model: str, file: File, version: str | int | None, invert: bool, request_id: str | None
) -> Call[Prediction]:
    """Raises `OSError` where the file cannot be read."""
    payload = bytes(file) if isinstance(file, bytes | bytearray | memoryview) else _read(file)
    if not payload:
        raise InvalidRequest("the file: empty, expected a picture's bytes")
    path = f"{_model(model, version)}/predict{'?invert=true' if invert else ''}"
    return Call(
        "POST",
        path,
        answers.prediction,
        lambda _: (-1, [payload]),
        "application/octet-stream",
        _checked_id(request_id),
    )


def metadata(model: str, version: str | int | None) -> Call[ModelMetadata]:
    return Call("GET", _model(model, version), answers.metadata)


def server() -> Call[dict[str, Any]]:
    return Call("GET", "/v2", answers.server)


def live() -> Call[None]:
    return Call("GET", "/v2/health/live", answers.nothing)


def ready(model: str | None, version: str | int | None) -> Call[None]:
    path = "/v2/health/ready" if model is None else f"{_model(model, version)}/ready"
    return Call("GET", path, answers.nothing)


def models() -> Call[list[str]]:
    return Call("GET", "/v2/models", answers.models)


def index(ready_only: bool) -> Call[list[IndexEntry]]:
    payload = b'{"ready":true}' if ready_only else b"{}"
    return _post("/v2/repository/index", payload, answers.index, idempotent=True)


def load(model: str) -> Call[None]:
    path = f"/v2/repository/models/{quote(model, safe='')}/load"
    return _post(path, b"{}", answers.nothing, idempotent=False)


def unload(model: str) -> Call[None]:
    path = f"/v2/repository/models/{quote(model, safe='')}/unload"
    return _post(path, b"{}", answers.nothing, idempotent=False)


def rendered(call: Call[Any], address: Address, seconds_left: float, compress: bool) -> Parts:
    """The request as it goes over the wire."""
    lines = [f"{call.method} {address.prefix}{call.path} HTTP/1.1\r\n".encode(), address.headers]
    if call.request_id is not None:
        lines.append(f"X-Request-ID: {call.request_id}\r\n".encode())
    if call.body is None:
        return [b"".join([*lines, b"\r\n"])]
    json_bytes, parts = call.body(seconds_left)
    if compress and call.compressible:
        parts = [gzip.compress(b"".join(parts), COMPRESS_LEVEL, mtime=0)]
        lines.append(b"Content-Encoding: gzip\r\n")
    if json_bytes >= 0:
        lines.append(b"Inference-Header-Content-Length: %d\r\n" % json_bytes)
    size = sum(len(part) for part in parts)
    lines.append(f"Content-Type: {call.content_type}\r\nContent-Length: {size}\r\n\r\n".encode())
    if size <= COPY_BYTES:
        return [b"".join([*lines, *parts])]
    return [b"".join(lines), *parts]


def result(call: Call[T], address: Address, reply: Reply, now: float, limit: int) -> T:
    """The answer's value. Raises the typed error it stands for; `now` is a Unix time."""
    answers.check(f"{call.method} {address.url}{call.path}", reply, now, limit)
    return call.read(reply, answers.body_of(reply, limit))


def _post(
    path: str, payload: bytes, read: Callable[[Reply, bytes], T], idempotent: bool
) -> Call[T]:
    return Call("POST", path, read, lambda _: (-1, [payload]), "application/json", None, idempotent)


def _model(name: str, version: str | int | None) -> str:
    if not name:
        raise InvalidRequest("model: expected a name, got an empty text")
    path = f"/v2/models/{quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{quote(str(version), safe='')}"


def _checked_id(request_id: str | None) -> str | None:
    if request_id is not None and not REQUEST_ID.fullmatch(request_id):
        raise InvalidRequest(
            f"request_id: expected 1 to 128 printable ASCII characters, got {request_id!r:.80}"
        )
    return request_id


def _read(file: str | os.PathLike[str]) -> bytes:
    return Path(file).read_bytes()


def _tensor(name: str, value: ArrayLike) -> tuple[np.ndarray, TensorType]:
    """(contiguous little-endian array, its type). Texts of any numpy kind become objects."""
    array = np.asarray(value)
    if array.dtype.kind in "US":
        array = array.astype(object)
    kind = BY_NUMPY.get(array.dtype.newbyteorder("=").name)
    if kind is None:
        raise InvalidRequest(
            f"input {name!r}: the protocol has no type for {array.dtype}; it has "
            f"{', '.join(BY_NUMPY)}"
        )
    return np.asarray(array, kind.numpy, order="C"), kind


def _infer_body(
    arrays: list[tuple[str, np.ndarray, TensorType]],
    outputs: Sequence[str] | None,
    request_id: str | None,
    binary: bool,
    seconds_left: float,
) -> tuple[int, Parts]:
    told: dict[str, Any] = {} if request_id is None else {"id": request_id}
    parameters: dict[str, Any] = {"binary_data_output": binary}
    told["parameters"] = parameters
    if seconds_left < inf:
        parameters["timeout"] = max(1, int(seconds_left * 1e6))  # microseconds
    inputs, payloads = [], Parts()
    for name, array, kind in arrays:
        item: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": kind.protocol}
        if binary:
            payload = _to_bytes(array, kind)
            item["parameters"] = {"binary_data_size": len(payload)}
            payloads.append(payload)
        else:
            item["data"] = _json_values(name, array)
        inputs.append(item)
    told["inputs"] = inputs
    if outputs is not None:
        told["outputs"] = [{"name": o, "parameters": {"binary_data": binary}} for o in outputs]
    text = orjson.dumps(told)
    return (len(text) if binary else -1), [text, *payloads]


def _json_values(name: str, array: np.ndarray) -> list[Any]:
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise InvalidRequest(f"input {name!r} holds NaN or infinity, which JSON cannot say")
    values: list[Any] = array.reshape(-1).tolist()
    if array.dtype.hasobject:
        values = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return values


def _to_bytes(array: np.ndarray, kind: TensorType) -> bytes | memoryview:
    if kind.itemsize:
        if array.nbytes <= COPY_BYTES:
            return array.tobytes()
        return array.reshape(-1).view(np.uint8).data
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in array.reshape(-1)]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
