"""The bundles that serve, kept as they were read, for workers that come later.

What lies in the repository's folder may be another bundle by then, or half of one, or nothing. The
shelf is one file without a path that every process of a server inherits: blocks one after the
other, each a page of head and room for one bundle. A block counts once its head says how much is in
it, which is written last: one that a killed worker left half-written is room for the next. Locks
are the kernel's and end with their holder.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.bundle.manifest import Bundle, BundleError, canonical, canonical_json, parse, sha256
from serving.system.anonymous_files import on_disk

PAGE = mmap.PAGESIZE
HEAD = struct.Struct("<QQ64s")
"""Bytes of room after the page of this head, bytes that are in it, and whose they are."""

KEEP_SIZE, PUNCH_HOLE = 1, 2
LENGTH = struct.Struct("<Q")
PIECE = 1 << 30
"""Bytes handed to the kernel at once; it takes no more than two thousand million."""


@dataclass(frozen=True)
class Block:
    """One bundle's place: where its head is, its room, what is in it and the bundle's mark."""

    start: int
    room: int
    used: int
    mark: str

    @property
    def end(self) -> int:
        """Where the next block begins."""
        return self.start + PAGE + self.room


class Shelf:
    """The shared file, through one process's hands. Every call blocks: for a thread."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._file = on_disk("slipway-shelf") if descriptor is None else descriptor
        self._thread_lock = threading.Lock()

    def put(self, bundle: Bundle, files: Collection[str]) -> None:
        """Keep a bundle, of its contents only `files`. Raises `OSError` where there is no room."""
        mark = mark_of(bundle)
        parts = _packed(bundle, files)
        size = sum(map(len, parts))
        with self._locked(fcntl.LOCK_EX):
            blocks = list(self._blocks())
            if any(block.mark == mark and block.used for block in blocks):
                return
            end = blocks[-1].end if blocks else 0
            free = [block for block in blocks if not block.used and block.room >= size]
            block = min(
                free, key=lambda b: b.room, default=Block(end, -(-size // PAGE) * PAGE, 0, "")
            )
            try:
                self._write(block.start, [_head(block.room, 0, "")])
                self._write(block.start + PAGE, parts)
                self._write(block.start, [_head(block.room, size, mark)])
            except OSError:
                self._empty(block)
                raise

    def get(self, mark: str) -> Bundle | None:
        """The bundle of that mark, none where it is not here. Raises `BundleError` if damaged."""
        with self._locked(fcntl.LOCK_SH):
            for block in self._blocks():
                if block.mark == mark and block.used:
                    return _unpacked(_Reader(self._file, block.start + PAGE), mark)
        return None

    def keep_only(self, marks: Collection[str]) -> None:
        """Let go of every bundle but these, and of the space they took."""
        with self._locked(fcntl.LOCK_EX):
            for block in list(self._blocks()):
                if block.used and block.mark not in marks:
                    self._empty(block)
            kept = [block.end for block in self._blocks() if block.used]
            os.ftruncate(self._file, max(kept, default=0))

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with self._thread_lock:
            fcntl.lockf(self._file, how)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _blocks(self) -> Iterator[Block]:
        start = 0
        while len(head := os.pread(self._file, HEAD.size, start)) == HEAD.size:
            room, used, mark = HEAD.unpack(head)
            if not room:
                return
            block = Block(start, room, used, mark.rstrip(b"\0").decode())
            yield block
            start = block.end

    def _write(self, start: int, parts: list[bytes]) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                written = os.pwrite(self._file, view[:PIECE], start)
                view, start = view[written:], start + written

    def _empty(self, block: Block) -> None:
        """Have a block count as room, and give its pages back where the file system can."""
        with suppress(OSError):
            self._write(block.start, [_head(block.room, 0, "")])
            _punch(self._file, block.start + PAGE, block.room)


def mark_of(bundle: Bundle) -> str:
    """What tells a bundle with its lineage apart from all others."""
    return sha256(f"{bundle.digest}\n".encode() + canonical_json(bundle.lineage))


def _punch(file: int, start: int, size: int) -> None:
    """Give a file's pages back; where the file system cannot, they are written over later.

    Not by mapping them: whoever closes another descriptor of a file loses the locks on it.
    """
    if sys.platform == "linux":
        where = ctypes.c_int64(start), ctypes.c_int64(size)
        ctypes.CDLL(None).fallocate(file, KEEP_SIZE | PUNCH_HOLE, *where)


def _head(room: int, used: int, mark: str) -> bytes:
    return HEAD.pack(room, used, mark.encode())


def _packed(bundle: Bundle, files: Collection[str]) -> list[bytes]:
    """Its length, a line of JSON, the manifest, then the files."""
    manifest = canonical(bundle.manifest)
    contents = {name: bundle.contents[name] for name in files}
    head = canonical_json(
        {
            "lineage": bundle.lineage,
            "manifest": len(manifest),
            "files": [[name, len(payload)] for name, payload in contents.items()],
        }
    )
    return [LENGTH.pack(len(head)), head, manifest, *contents.values()]


def _unpacked(reader: _Reader, mark: str) -> Bundle:
    """The bundle, its bytes hashed anew: a disk may have changed them."""
    (length,) = LENGTH.unpack(reader.read(LENGTH.size))
    try:
        head: Mapping[str, Any] = json.loads(reader.read(length))
        payload = reader.read(head["manifest"])
        manifest = parse(payload)
        contents = {name: reader.read(size) for name, size in head["files"]}
        bundle = Bundle(manifest, sha256(payload), contents, head["lineage"])
        whole = all(sha256(contents[name]) == manifest.files[name].sha256 for name in contents)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"what was kept of it cannot be read: {error}") from error
    if not whole or mark_of(bundle) != mark:
        raise BundleError("what was kept of it has changed")
    return bundle


class _Reader:
    """Reads on from a place, whoever else moves in the file."""

    def __init__(self, file: int, start: int) -> None:
        self._file, self._start = file, start

    def read(self, size: int) -> bytes:
        parts = []
        while size and (part := os.pread(self._file, min(size, PIECE), self._start)):
            parts.append(part)
            size, self._start = size - len(part), self._start + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
