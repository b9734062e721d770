"""The ledger of all counts: memory that the processes share, with a row of cells for each.

A worker writes only its own row, so nothing is locked, and a worker that dies leaves what it
counted. One writer a cell and eight aligned bytes a value: whoever reads sees the number before or
after, never half of one. Counts are exact up to 2^53.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import zlib
from typing import TypeAlias

import numpy as np

from serving.observability.cells import HEAD_CELLS, MODELS, OVERFLOW, ROW_CELLS, account
from serving.system.anonymous_files import in_memory

Cells: TypeAlias = "memoryview[float]"
"""Part of a row, cast to doubles."""

NAME_BYTES = 256
"""One entry of the names' table: checksum, length, then model and version."""
ENTRY_HEAD = 6


class Ledger:
    """The shared memory. Make it before the workers are forked; each then takes a row of it.

    A worker that is started afresh inherits `descriptor` and opens the same memory by it.
    """

    def __init__(self, workers: int = 1, descriptor: int | None = None) -> None:
        self.workers = workers
        table = _whole_pages(MODELS * NAME_BYTES)
        row = _whole_pages(ROW_CELLS * 8)
        # A file without a name, in memory where the system can: it also carries the names' lock.
        self.descriptor = in_memory("slipway-metrics") if descriptor is None else descriptor
        os.truncate(self.descriptor, table + workers * row)
        self._memory = mmap.mmap(self.descriptor, table + workers * row)
        self._cells = np.frombuffer(self._memory, np.float64, offset=table).reshape(workers, -1)
        self._doubles: Cells = memoryview(self._memory)[table:].cast("d")
        self._thread_lock = threading.Lock()
        self._slots: dict[tuple[str, str], int] = {}
        self._known: list[tuple[str, str]] = []

    def row(self, worker: int) -> Cells:
        """One worker's cells, to write."""
        start = worker * self._cells.shape[1]
        return self._doubles[start : start + ROW_CELLS]

    def heads(self) -> np.ndarray:
        """What each worker counted beside its models, float64 [workers, HEAD_CELLS]."""
        return self._cells[:, :HEAD_CELLS].copy()

    def accounts(self, slot: int) -> np.ndarray:
        """What each worker counted of a model version, float64 [workers, ACCOUNT_CELLS]."""
        return self._cells[:, account(slot)].copy()

    def slot(self, name: str, version: str) -> int:
        """The place of a model version, the same in every worker; `OVERFLOW` when all are taken.

        Only for what is in the repository: names that clients invent must not fill the table.
        """
        key = (name, version)
        if key not in self._slots:
            self._slots[key] = self._assigned(key)
        return self._slots[key]

    def find(self, name: str, version: str) -> int | None:
        """The place of a model version, none where it has none of its own."""
        names = self.names()
        return names.index((name, version)) + 1 if (name, version) in names else None

    def names(self) -> list[tuple[str, str]]:
        """(model, version) of the slots 1, 2, ... that are taken."""
        known = list(self._known)  # a list of our own: threads load models while others ask
        while len(known) < MODELS:
            entry = self._entry(len(known))
            if entry is None:
                break
            known.append(entry)
        self._known = known
        return known

    def _assigned(self, key: tuple[str, str]) -> int:
        """First come, first served, one at a time across threads and processes.

        The lock is the kernel's and ends with its holder. An entry counts only with its checksum:
        one that a killed worker left half-written is free, and written over.
        """
        text = "\0".join(key).encode("utf-8", "surrogateescape")
        if len(text) > NAME_BYTES - ENTRY_HEAD:
            return OVERFLOW
        with self._thread_lock:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
            try:
                names = self.names()
                if key not in names and len(names) < MODELS:
                    start = len(names) * NAME_BYTES
                    head = zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(2, "little")
                    self._memory[start : start + ENTRY_HEAD + len(text)] = head + text
                    names = self.names()
                return names.index(key) + 1 if key in names else OVERFLOW
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def _entry(self, position: int) -> tuple[str, str] | None:
        entry = self._memory[position * NAME_BYTES : (position + 1) * NAME_BYTES]
        text = entry[ENTRY_HEAD : ENTRY_HEAD + int.from_bytes(entry[4:6], "little")]
        if not text or zlib.crc32(text) != int.from_bytes(entry[:4], "little"):
            return None
        name, _, version = text.decode("utf-8", "surrogateescape").partition("\0")
        return name, version


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
