"""What each worker is doing, in memory that outlives it.

One anonymous mapping, made before the workers are forked, one row for each. A worker writes a beat
twice a second and, for each of its models, whether it is being opened or run right now; setting
and clearing that is one byte each. When the worker has died, the supervisor reads who was running.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

CELLS = 1024
"""Models one worker can tell of; those beyond run all the same, unwatched."""

KEY_BYTES = 112
FLAGS = 64
KEYS = 4096
ROW_BYTES = KEYS + CELLS * KEY_BYTES  # whole pages; those never touched cost nothing
BEATS, OUTSIDE = 0, 8

Result = TypeVar("Result")
Run = Callable[..., Result]


class Doing(IntEnum):
    """What a worker does with a model right now."""

    NOTHING = 0
    OPENING = 1
    RUNNING = 2


@dataclass(frozen=True)
class Suspect:
    """A model that was being opened or run when its worker died."""

    key: str
    doing: Doing


class Board:
    """All rows. Made by the supervisor, inherited by every worker."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, workers * ROW_BYTES)
        view = memoryview(self._memory)
        self._rows = [view[n * ROW_BYTES : (n + 1) * ROW_BYTES] for n in range(workers)]

    def row(self, worker: int) -> Row:
        """The row of one worker."""
        return Row(self._rows[worker])


class Row:
    """One worker's row: written by the worker, read and wiped by the supervisor."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._flags = memory[FLAGS : FLAGS + CELLS]
        self._free = list(range(CELLS - 1, -1, -1))

    def wipe(self) -> None:
        """Forget the worker that was here before."""
        self._memory[:KEYS] = bytes(KEYS)

    @property
    def beats(self) -> int:
        """How many beats the worker has given."""
        return int(struct.unpack_from("<Q", self._memory, BEATS)[0])

    def beat(self) -> None:
        """One more sign of life."""
        struct.pack_into("<Q", self._memory, BEATS, self.beats + 1)

    @property
    def outside(self) -> int:
        """The signal that somebody sent from outside, 0 for none."""
        return int(struct.unpack_from("<I", self._memory, OUTSIDE)[0])

    def signalled(self, number: int) -> None:
        """Note a deadly signal that was sent, not caused."""
        struct.pack_into("<I", self._memory, OUTSIDE, number)

    def cell(self, key: str) -> Cell:
        """A place for one model; `key` tells it and its content apart from all others."""
        try:
            place = self._free.pop()
        except IndexError:
            return Cell(memoryview(bytearray(1)), 0, lambda: None)
        text = key.encode()[:KEY_BYTES].ljust(KEY_BYTES, b"\0")
        start = KEYS + place * KEY_BYTES
        self._memory[start : start + KEY_BYTES] = text
        return Cell(self._flags, place, lambda: self._free.append(place))

    def suspects(self) -> list[Suspect]:
        """The models being opened or run right now, or, of a dead worker, when it died."""
        flags = bytes(self._flags)
        found = []
        for place in range(CELLS):
            if flags[place]:
                start = KEYS + place * KEY_BYTES
                key = bytes(self._memory[start : start + KEY_BYTES]).rstrip(b"\0")
                found.append(Suspect(key.decode(errors="replace"), Doing(flags[place])))
        return found


class Cell:
    """The byte of one model in one worker's row."""

    def __init__(self, flags: memoryview, place: int, release: Callable[[], None]) -> None:
        self._flags = flags
        self._place = place
        self._release: Callable[[], None] | None = release
        self.turn: threading.Lock | None = None

    @contextmanager
    def opening(self) -> Iterator[None]:
        """While the model is being loaded, proven included."""
        self._flags[self._place] = Doing.OPENING
        try:
            yield
        finally:
            self._flags[self._place] = Doing.NOTHING

    def around(self, run: Run[Result]) -> Run[Result]:
        """`run`, noted while it lasts; not to be called twice at the same time.

        Where there is a `turn`, it is held meanwhile: models that share one never run together.
        """
        flags, place, running, turn = self._flags, self._place, int(Doing.RUNNING), self.turn

        def noted(*arguments: Any) -> Result:
            flags[place] = running
            try:
                return run(*arguments)
            finally:
                flags[place] = 0

        def in_turn(*arguments: Any) -> Result:
            with turn:  # type: ignore[union-attr]  # only used where there is one
                return noted(*arguments)

        return in_turn if turn else noted

    def release(self) -> None:
        """The model is gone; its place may go to another. Does nothing the second time."""
        if self._release:
            self._release()
            self._release = None


class Watch:
    """What the models of one worker are noted with, and what they were given from before.

    `quarantined` holds reasons by key, `apart` the keys of models that must take turns.
    """

    def __init__(
        self,
        row: Row | None = None,
        quarantined: Mapping[str, str] | None = None,
        apart: frozenset[str] = frozenset(),
    ) -> None:
        self._row = row or Row(memoryview(bytearray(ROW_BYTES)))
        self.quarantined = dict(quarantined or {})
        self._apart = apart
        self._turn = threading.Lock()

    def cell(self, key: str) -> Cell:
        """The place of one model, whose runs take turns with others' where they have to."""
        cell = self._row.cell(key)
        cell.turn = self._turn if key in self._apart else None
        return cell
