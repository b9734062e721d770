"""Structured logs: one JSON object a line, and never anything of what was sent or answered."""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson

MAX_TEXT = 256
"""Characters of any one value: names and paths come from strangers."""


def log(level: str, event: str, **fields: Any) -> None:
    """One line on standard error, at once."""
    line = _line({"level": level, "event": event} | fields)
    try:
        sys.stderr.write(line.decode())
        sys.stderr.flush()
    except (OSError, ValueError):  # a log that cannot be written never stops a server
        return


def places(error: BaseException) -> list[str]:
    """Where it happened, without values: they may be what was sent."""
    steps, frame = [], error.__traceback__
    while frame:
        code = frame.tb_frame.f_code
        steps.append(f"{code.co_filename.rpartition('/')[2]}:{frame.tb_lineno} {code.co_name}")
        frame = frame.tb_next
    return steps


def _line(fields: dict[str, Any]) -> bytes:
    stamped: dict[str, Any] = {"time": round(time.time(), 3)}
    for key, value in fields.items():
        stamped[key] = value[:MAX_TEXT] if isinstance(value, str) else value
    return orjson.dumps(stamped, default=str) + b"\n"
