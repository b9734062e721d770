"""Anonymous files: shared by processes through their descriptor, gone with the last of them."""

from __future__ import annotations

import os
import tempfile


def in_memory(name: str) -> int:
    """The descriptor of an empty file, in memory where the system can; `name` is for /proc."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    return _temporary()


def on_disk(name: str) -> int:
    """The descriptor of an empty file in the temporary folder; in memory where there is none."""
    try:
        return _temporary()
    except OSError:  # everything is read-only
        return in_memory(name)


def _temporary() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
