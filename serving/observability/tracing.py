"""Which request a line of the log is about: its own id, and the trace it belongs to."""

from __future__ import annotations

import re
import secrets
from itertools import count

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


class RequestIds:
    """Ids for requests that bring none. Make it in the worker: two must not share a beginning."""

    def __init__(self) -> None:
        self._start = secrets.token_hex(6)
        self._count = count(1)

    def new(self) -> str:
        """An id that no other request has."""
        return f"{self._start}-{next(self._count):x}"


def trace_id(traceparent: str) -> str:
    """The trace that a W3C `traceparent` names; empty where it is malformed.

    A version that is not known yet may carry more after a dash; `ff` is no version.
    """
    found = TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return ""
    version, trace, parent, more = found.groups()
    if (
        version == "ff"
        or (more and version == "00")
        or not trace.strip("0")
        or not parent.strip("0")
    ):
        return ""
    return trace
