"""Structured logs: one JSON object a line, and never anything of what was sent or answered."""

from __future__ import annotations

import sys
import time
from functools import lru_cache
from typing import Any, Protocol, TextIO

import orjson

MAX_TEXT = 256
"""Characters of any one value: names and paths come from strangers."""


def log(level: str, event: str, **fields: Any) -> None:
    """One line on standard error, at once."""
    _write(sys.stderr, [_line({"level": level, "event": event} | fields)])


def places(error: BaseException) -> list[str]:
    """Where it happened, without values: they may be what was sent."""
    steps, frame = [], error.__traceback__
    while frame:
        code = frame.tb_frame.f_code
        steps.append(f"{code.co_filename.rpartition('/')[2]}:{frame.tb_lineno} {code.co_name}")
        frame = frame.tb_next
    return steps


class Asked(Protocol):
    """What of a request is worth a line."""

    method: str
    path: str
    body: bytes
    arrived: float


class AccessLog:
    """A line for every request, gathered and written a few times a second."""

    def __init__(self, enabled: bool, stream: TextIO | None = None) -> None:
        self.enabled = enabled
        self._stream = stream or sys.stdout
        self._lines: list[bytes] = []

    def request(self, asked: Asked, status: int, sent: int, request_id: str) -> None:
        """Note one answered request; `sent` is the bytes of its answer's body."""
        if not self.enabled:
            return
        named = b',"request_id":%b' % _text(request_id) if request_id else b""
        self._lines.append(
            b'{"time":%.3f,"event":"request","method":%b,"path":%b,"status":%d,"ms":%.3f,'
            b'"received":%d,"sent":%d%b}\n'
            % (
                time.time(),
                _text(asked.method),
                _text(asked.path),
                status,
                (time.perf_counter() - asked.arrived) * 1000,
                len(asked.body),
                sent,
                named,
            )
        )

    def flush(self) -> None:
        """Write what was gathered; a log that cannot be written never stops a server."""
        if self._lines:
            lines, self._lines = self._lines, []
            _write(self._stream, lines)


@lru_cache(maxsize=1024)
def _text(value: str) -> bytes:
    """A stranger's text as JSON, no longer than fits a line."""
    return orjson.dumps(value[:MAX_TEXT])


def _line(fields: dict[str, Any]) -> bytes:
    stamped: dict[str, Any] = {"time": round(time.time(), 3)}
    for key, value in fields.items():
        stamped[key] = value[:MAX_TEXT] if isinstance(value, str) else value
    return orjson.dumps(stamped, default=str) + b"\n"


def _write(stream: TextIO, lines: list[bytes]) -> None:
    try:
        stream.write(b"".join(lines).decode())
        stream.flush()
    except (OSError, ValueError):
        return
