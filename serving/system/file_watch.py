"""Files that may change while the server runs, looked at when they are needed, and not too often."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

LOOK_SECONDS = 1.0
"""How long a change may go unseen."""


class Watched:
    """Some files, and whether they are still what they were."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        """Make one before reading the files: what changes meanwhile then counts as a change."""
        self._paths = tuple(paths)
        self._clock = clock
        self._next_look = clock() + LOOK_SECONDS
        self._seen = self._state()

    def changed(self) -> bool:
        """Whether something changed since this was last answered with yes."""
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        seen, self._seen = self._seen, self._state()
        return seen != self._seen

    def _state(self) -> list[tuple[int, ...] | None]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> tuple[int, ...] | None:
    """What differs as soon as the file does, or its mode or owner; none where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
