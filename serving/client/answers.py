"""What comes back: named arrays, and HTTP answers turned into values or typed errors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import orjson

from pipeline.bundle.tensors import BY_PROTOCOL, TensorType
from serving.client.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerError,
    Unauthorized,
)
from serving.client.reading import Reply
from serving.protocol import IndexEntry, ModelMetadata, Prediction, TensorSpec

STATUS: dict[int, type[ClientError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    408: DeadlineExceeded,
    504: DeadlineExceeded,
}
"""Other 4xx are the request's fault, other 5xx the server's; 429 and 503 are `Overloaded`."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer(Mapping[str, np.ndarray]):
    """The outputs by name, each an array of its own, and which bundle gave them."""

    outputs: Mapping[str, np.ndarray]
    model_name: str
    model_version: str
    bundle: str
    """Digest of the bundle, empty where the server does not say."""
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.outputs[name]
        except KeyError:
            raise KeyError(f"{name!r}; the outputs are {', '.join(self.outputs)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


def body_of(reply: Reply, limit: int) -> bytes:
    """The body as it was before compression, at most `limit` bytes. Raises `ServerError`."""
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return reply.body
    if encoding != "gzip":
        raise ServerError(f"the answer is encoded as {encoding!r}, expected gzip", reply.status)
    inflating = zlib.decompressobj(wbits=31)
    try:
        body = inflating.decompress(reply.body, limit + 1)
    except zlib.error as error:
        raise ServerError(f"the answer is not gzip: {error}", reply.status) from None
    if len(body) > limit or not inflating.eof:
        raise ServerError(f"the answer inflates beyond {limit} bytes or breaks off", reply.status)
    return body


def check(what: str, reply: Reply, now: float, limit: int) -> None:
    """Raise the typed error of an answer that is none of 200 to 299; `now` is a Unix time."""
    if 200 <= reply.status < 300:
        return
    message = f"{what}: {reply.status}: {_told(reply, limit)}"
    if reply.status in (429, 503):
        raise Overloaded(message, reply.status, _retry_after(reply, now))
    kind = STATUS.get(reply.status)
    if kind is None:
        kind = InvalidRequest if 400 <= reply.status < 500 else ServerError
    raise kind(message, reply.status)


def infer(reply: Reply, body: bytes) -> Answer:
    """Raises `ServerError` for what is not a V2 answer."""
    length = reply.headers.get("inference-header-content-length")
    try:
        at = len(body) if length is None else int(length)
        told = _object(body[:at], reply)
        outputs = {}
        for item in told["outputs"]:
            name, kind, shape = item["name"], BY_PROTOCOL[item["datatype"]], item["shape"]
            if "data" in item:
                outputs[name] = np.array(item["data"], kind.numpy).reshape(shape)
            else:
                size = item["parameters"]["binary_data_size"]
                outputs[name] = _from_bytes(kind, shape, body, at, size)
                at += size
        if at != len(body):
            raise ValueError(f"{len(body) - at} bytes more than the outputs hold")
        parameters = told.get("parameters") or {}
        return Answer(
            outputs,
            told["model_name"],
            str(told.get("model_version", "")),
            str(parameters.get("bundle", "")),
            told.get("id"),
            parameters,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ServerError(f"the answer is not of the V2 protocol: {reason}", reply.status) from None


def prediction(reply: Reply, body: bytes) -> Prediction:
    """What the door for files says."""
    told = _object(body, reply)
    try:
        labels, number = told.get("labels"), told.get("prediction")
        parameters = told.get("parameters", {})
        if not {"label", "labels", "prediction"} & told.keys():
            raise KeyError("label")
        return Prediction(
            model_name=told["model_name"],
            model_version=str(told["model_version"]),
            bundle=str(parameters.get("bundle", "")),
            label=told.get("label"),
            labels=None if labels is None else tuple(labels),
            probabilities={n: float(v) for n, v in told.get("probabilities", {}).items()},
            prediction=None if number is None else float(number),
            units=told.get("units"),
            hint=parameters.get("hint"),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ServerError(f"the answer is not a prediction: {told!r:.200}", reply.status) from None


def metadata(reply: Reply, body: bytes) -> ModelMetadata:
    """What a model is."""
    told = _object(body, reply)
    try:
        return ModelMetadata(
            told["name"],
            tuple(map(str, told.get("versions") or ())),
            tuple(map(_spec, told["inputs"])),
            tuple(map(_spec, told["outputs"])),
            dict(told.get("properties") or {}),
            str(told.get("platform", "")),
        )
    except (KeyError, TypeError, ValueError):
        raise ServerError(f"the answer is not metadata: {told!r:.200}", reply.status) from None


def models(reply: Reply, body: bytes) -> list[str]:
    """The names of the models."""
    told = _object(body, reply)
    if not isinstance(told.get("models"), list):
        raise ServerError(f"the answer lists no models: {told!r:.200}", reply.status)
    return [str(name) for name in told["models"]]


def index(reply: Reply, body: bytes) -> list[IndexEntry]:
    """Every version with its state."""
    told = _json(body, reply)
    try:
        return [
            IndexEntry(e["name"], str(e.get("version", "")), e["state"], e.get("reason", ""))
            for e in told
        ]
    except (KeyError, TypeError, AttributeError):
        raise ServerError(f"the answer is not an index: {told!r:.200}", reply.status) from None


def server(reply: Reply, body: bytes) -> dict[str, Any]:
    """Name, version and extensions."""
    return _object(body, reply)


def nothing(reply: Reply, body: bytes) -> None:
    """That it worked is all there is to know."""


def _from_bytes(kind: TensorType, shape: list[int], body: bytes, at: int, size: int) -> np.ndarray:
    """An array of its own: aligned, writable, and keeping nothing else in memory."""
    if not kind.itemsize:
        return np.array(_texts(body[at : at + size]), object).reshape(shape)
    if size % kind.itemsize or at + size > len(body):
        raise ValueError(f"{size} bytes of {kind.protocol} for shape {shape}")
    return np.frombuffer(body, kind.numpy, size // kind.itemsize, at).reshape(shape).copy()


def _texts(payload: bytes) -> list[str]:
    """BYTES: each element as its length (uint32, little-endian) and that many bytes of UTF-8."""
    texts, at = [], 0
    while at < len(payload):
        end = at + 4 + int.from_bytes(payload[at : at + 4], "little")
        if end > len(payload):
            raise ValueError("a text goes beyond the data")
        texts.append(payload[at + 4 : end].decode())
        at = end
    return texts


def _spec(told: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(told["name"], told["datatype"], tuple(int(axis) for axis in told["shape"]))


def _object(body: bytes, reply: Reply) -> dict[str, Any]:
    told = _json(body, reply)
    if not isinstance(told, dict):
        raise ServerError(f"expected a JSON object, got {told!r:.200}", reply.status)
    return told


def _json(body: bytes, reply: Reply) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ServerError(f"the answer is not JSON: {error}: {body[:80]!r}", reply.status) from None


def _told(reply: Reply, limit: int) -> str:
    """The server's own words, or the beginning of whatever came instead."""
    try:
        body = body_of(reply, limit)
        told = orjson.loads(body)["error"]
        return str(told)
    except ServerError:
        return ""
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def _retry_after(reply: Reply, now: float) -> float | None:
    """Seconds, from the number or the date that the header may be."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now) if text else None
    except (ValueError, OverflowError):
        return None
