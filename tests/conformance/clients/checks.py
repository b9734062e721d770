"""What every client is asked to send, and how it went, as lines of JSON on standard output."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
TEXTS = ["a", "é", "", "日本", "\U0001f680", "line\nbreak"]
ATTEMPTS = 3
"""A timed-out or reset connection on a busy machine is no statement about a protocol."""

TRANSIENT = ("timed out", "Connection reset", "Deadline Exceeded")


def model(datatype: str) -> str:
    """The model that gives a datatype back."""
    return f"echo-{datatype.lower()}"


def values(datatype: str) -> np.ndarray:
    """[2, 3] values, the limits of the type among them."""
    if datatype == "BYTES":
        return np.array(TEXTS, object).reshape(2, 3)
    dtype = np.dtype(NUMPY[datatype])
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[limits.min, limits.max, 0], [1, 2, 3]], dtype)


def empty(datatype: str) -> np.ndarray:
    """[2, 0] values: no element, but two rows."""
    return np.zeros((2, 0), NUMPY[datatype])


def check_same(got: Any, wanted: np.ndarray) -> None:
    """Raise `AssertionError` unless the values came back as they were sent."""
    assert got is not None, "no values came back"
    got = np.asarray(got).reshape(wanted.shape) if np.size(got) == wanted.size else np.asarray(got)
    assert got.shape == wanted.shape, f"shape {got.shape}, sent {wanted.shape}"
    if wanted.dtype.hasobject:
        assert [text(v) for v in got.reshape(-1)] == list(wanted.reshape(-1)), f"got {got.tolist()}"
        return
    assert got.dtype == wanted.dtype, f"{got.dtype}, sent {wanted.dtype}"
    assert got.tobytes() == wanted.tobytes(), f"got {got.tolist()}, sent {wanted.tolist()}"


def text(value: Any) -> str:
    """A text, whether a client gives bytes or text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def check(client: str, what: str, datatype: str, ask: Callable[[], Any]) -> None:
    """Ask once, write down how it went; `datatype` is empty where none is at stake."""
    for left in reversed(range(ATTEMPTS)):
        result, seconds = "pass", time.perf_counter()
        try:
            ask()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            told = str(error) or type(error).__name__
            result = " ".join(told.split())[:300]
            if left and any(sign in told for sign in TRANSIENT):
                continue
        break
    line = {"client": client, "what": what, "datatype": datatype, "result": result}
    print(json.dumps(line | {"seconds": round(time.perf_counter() - seconds, 4)}), flush=True)


def refusal(ask: Callable[[], Any], *told: str) -> Callable[[], None]:
    """An ask that must fail, with these words in the failure."""

    def asked() -> None:
        try:
            ask()
        except Exception as error:
            for part in told:
                assert part.lower() in str(error).lower(), f"expected {part!r}: {error}"
        else:
            raise AssertionError("it was accepted")

    return asked


class Waiting:
    """An asynchronous client with the face of a plain one, on a loop of its own."""

    def __init__(self, runner: asyncio.Runner, client: Any) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def called(*args: Any, **named: Any) -> Any:
            answer = method(*args, **named)
            return self._runner.run(_awaited(answer)) if inspect.isawaitable(answer) else answer

        return called


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer
