"""Memory that was freed and not yet given back: what loads and bursts took must not weigh for good."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def release_memory() -> None:
    """Hand freed memory back to the system: glibc keeps it, several times a model's weights."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """glibc's `malloc_trim`; none where there is another C library."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
