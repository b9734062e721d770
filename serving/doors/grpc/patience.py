"""Calls whose message has not come: how long each is waited for. Belongs to the event loop."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Waiting(Protocol):
    """What is told that its time is over."""

    def late(self) -> None: ...


class Patience:
    """Waits the same `seconds` for everyone, so that one timer is enough: who came first ends first."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until: dict[Waiting, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looks = False

    def begin(self, waiting: Waiting) -> None:
        """From now on it is waited for."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        self._until[waiting] = loop.time() + self.seconds
        if not self._looks:
            self._looks = True
            loop.call_later(self.seconds, self._look, loop)

    def over(self, waiting: Waiting) -> bool:
        """Wait no more; false if that had been told to it before."""
        return self._until.pop(waiting, None) is not None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        late = []
        for waiting, until in self._until.items():
            if until > now:
                loop.call_at(until, self._look, loop)
                break
            late.append(waiting)
        else:
            self._looks = False
        for waiting in late:
            del self._until[waiting]
            waiting.late()
