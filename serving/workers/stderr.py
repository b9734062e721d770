"""A worker's standard error on its way through the supervisor, which makes JSON lines of all of it.

A worker's own log is such lines already. What else comes is written by others, who know nothing of
JSON: native libraries, the C library that gives up, the stacks of a worker that is aborted.
"""

from __future__ import annotations

import os
import time

from serving.telemetry import MAX_TEXT, log, write

OURS = b'{"time":'
"""How a line of our own begins."""

STANDARD_ERROR = 2
MAX_LINES = 100
"""Lines of others told in one event; more that came with them are counted only."""

TOLD_SECONDS = 1.0
"""Lines of others are told no more often: gRPC's library writes one for each bad handshake."""

MAX_LINE = 64 << 10
"""Bytes that wait for the end of their line."""


class Stderr:
    """A pipe in the place of one worker's standard error."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._begun = b""
        self._others: list[str] = []
        self._left_out = 0
        self._next_told = 0.0

    def fileno(self) -> int:
        """What to poll."""
        return self._reader

    def become(self) -> None:
        """In the worker: write into the pipe from now on, from whatever language."""
        os.dup2(self._writer, STANDARD_ERROR)
        self.close()

    def handed_over(self) -> None:
        """In the supervisor: the worker has the writing end."""
        os.close(self._writer)
        self._writer = -1

    def pass_on(self, worker: int, over: bool = False) -> None:
        """Write what has come, as JSON lines; with `over`, also a line that was not ended."""
        text = self._begun + self._received()
        whole, _, self._begun = text.rpartition(b"\n")
        if over or len(self._begun) > MAX_LINE:
            whole, self._begun = whole + b"\n" + self._begun, b""
        for line in filter(None, whole.split(b"\n")):
            if line.startswith(OURS):
                write(line.decode("utf-8", "replace") + "\n")
            elif len(self._others) < MAX_LINES:
                self._others.append(line[:MAX_TEXT].decode("utf-8", "replace"))
            else:
                self._left_out += 1
        now = time.monotonic()
        if self._others and (over or now >= self._next_told):
            self._next_told = now + TOLD_SECONDS
            self._tell(worker)

    def _tell(self, worker: int) -> None:
        more = {"left_out": self._left_out} if self._left_out else {}
        log("warning", "standard error", worker=worker, lines=self._others, **more)
        self._others, self._left_out = [], 0

    def close(self) -> None:
        """Close what is open here."""
        for end in (self._reader, self._writer):
            if end >= 0:
                os.close(end)
        self._reader = self._writer = -1

    def _received(self) -> bytes:
        parts = []
        while True:
            try:
                part = os.read(self._reader, 1 << 16)
            except BlockingIOError:
                break
            if not part:
                break
            parts.append(part)
        return b"".join(parts)
