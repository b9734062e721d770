"""Connections kept from one call for the next, whatever carries them."""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections import deque
from math import inf
from typing import Generic, TypeVar

from serving.client.errors import Unreachable
from serving.client.reading import AnswerReader

IDLE_SECONDS = 30.0
"""How long a connection is kept for the next call: less than servers and gateways keep it."""


class Kept(ABC):
    """A connection to a server, used by one call at a time."""

    def __init__(self, answer_bytes: int) -> None:
        self._reader = AnswerReader(answer_bytes)
        self._poll = select.poll()
        self.idle_since = -inf
        """When its last call ended; before the first, never."""
        self.reusable = False

    def usable(self) -> bool:
        """Whether the other side kept it: anything to read between answers means it did not."""
        return time.monotonic() < self.idle_since + IDLE_SECONDS and not self._poll.poll(0)

    def _cut_off(self, told: str) -> Unreachable:
        """What to tell where it ended before the answer did."""
        started = self._reader.started
        return Unreachable(
            f"{told} {'within' if started else 'before'} the answer",
            sent=True,
            stale=self.idle_since > -inf and not started,
        )

    @abstractmethod
    def close(self) -> None:
        """Close at once."""


C = TypeVar("C", bound=Kept)


class Idle(Generic[C]):
    """Those that wait for the next call. Threads may share it."""

    def __init__(self) -> None:
        self._waiting: deque[C] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> C | None:
        """The latest used that the other side kept, too."""
        while True:
            try:
                connection = self._waiting.pop()
            except IndexError:
                return None
            if connection.usable():
                return connection
            connection.close()

    def put(self, connection: C) -> None:
        """After a call: it waits for the next one, or is closed where it cannot carry any."""
        if connection.reusable and not self._closed:
            connection.idle_since = time.monotonic()
            self._waiting.append(connection)
        else:
            connection.close()

    def forget(self) -> None:
        """Let go of all without closing them: they are not ours any more."""
        self._waiting = deque()

    def close(self) -> None:
        """Close them, and from now on whatever comes back."""
        self._closed = True
        while self._waiting:
            self._waiting.pop().close()
