"""Structured logs: one JSON object a line, and never anything of what was sent or answered.

How a server starts, and why it does not, is prose instead where people read it: see `speak`.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Literal

import orjson

MAX_TEXT = 1024
"""Characters of any one value: names and paths come from strangers."""

Form = Literal["auto", "json", "text"]
_prose = True
"""Whether `say` and `failed_to_start` write prose; of one process, and of those it forks."""


def speak(form: Form) -> None:
    """Choose how this process and its children write; `auto` is prose on a terminal, else JSON."""
    global _prose
    _prose = sys.stderr.isatty() if form == "auto" else form == "text"
    if not _prose:
        sys.excepthook = _unforeseen


def prose() -> bool:
    """Whether some of what is written is for people rather than JSON."""
    return _prose


def log(level: str, event: str, **fields: Any) -> None:
    """One line on standard error, at once."""
    write(_line({"level": level, "event": event} | fields).decode())


def say(text: str, event: str, **fields: Any) -> None:
    """Tell something that people wait for: `text` to them, else the event as any other."""
    if _prose:
        write(f"{text}\n")
    else:
        log("info", event, **fields)


def write(lines: str) -> None:
    """Whole lines to standard error, at once."""
    try:
        sys.stderr.write(lines)
        sys.stderr.flush()
    except (OSError, ValueError):  # a log that cannot be written never stops a server
        return


class Records(logging.Handler):
    """What libraries log, asyncio above all, in the form of all the rest."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            fields |= {"kind": type(error).__name__, "trace": places(error)}
        log(record.levelname.lower(), record.getMessage(), **fields)


def _unforeseen(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log("critical", "internal error", kind=kind.__name__, reason=str(error), trace=places(error))


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
