"""Structured logs: one JSON object a line, and never anything of what was sent or answered."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

import orjson

MAX_TEXT = 256
"""Characters of any one value: names and paths come from strangers."""


def log(level: str, event: str, **fields: Any) -> None:
    """One line on standard error, at once."""
    _write(sys.stderr, [_line({"level": level, "event": event} | fields)])


class AccessLog:
    """A line for every request, gathered and written a few times a second."""

    def __init__(self, enabled: bool, stream: TextIO | None = None) -> None:
        self.enabled = enabled
        self._stream = stream or sys.stdout
        self._lines: list[bytes] = []

    def request(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        received: int,
        sent: int,
        request_id: str,
    ) -> None:
        """Note one answered request; sizes are the bodies', in bytes."""
        if not self.enabled:
            return
        fields: dict[str, Any] = {
            "event": "request",
            "method": method,
            "path": path,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "received": received,
            "sent": sent,
        }
        if request_id:
            fields["request_id"] = request_id
        self._lines.append(_line(fields))

    def flush(self) -> None:
        """Write what was gathered; a log that cannot be written never stops a server."""
        if self._lines:
            lines, self._lines = self._lines, []
            _write(self._stream, lines)


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
