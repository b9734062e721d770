"""Whether and when a call is tried again that failed, or was too early. Pure: neither clock nor socket.

Inference is pure, so asking twice harms nobody, and so it is with everything that only reads. What
changes the server (`load`, `unload`) is tried again only where nothing of it was sent.
"""

from __future__ import annotations

import random

from serving.client.errors import (
    ClientError,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Unreachable,
)

FIRST_SECONDS = 0.05
LONGEST_SECONDS = 2.0

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.05, 1.0
"""Between the first two looks while waiting for ready, and between later ones at most."""

NOT_YET = (Unreachable, Overloaded, NotFound)
"""How a server answers that is still coming up, or has no such model yet."""


class Retries:
    """The tries of one call, at most `count` after the first, all before `deadline`."""

    def __init__(self, count: int, deadline: float, idempotent: bool) -> None:
        self.deadline = deadline
        self._count = count
        self._idempotent = idempotent
        self._tries = 1
        self._last: ClientError | None = None

    def wait(self, failure: ClientError, now: float) -> float:
        """Seconds until the next try. Raises the failure where there is to be none.

        Exponential back-off with full jitter; a server's Retry-After is waited out first, so that
        clients refused together do not come back together.
        """
        failure.tries = self._tries
        failure.__cause__ = self._last  # a deadline tells little without what used it up
        self._last = failure
        if isinstance(failure, Unreachable) and failure.stale and self._idempotent:
            return 0.0  # no fault of the server's: at once, and not counted
        if self._tries > self._count or not self._may_repeat(failure):
            raise failure
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** (self._tries - 1))
        wait = random.uniform(0, longest)
        if isinstance(failure, Overloaded):
            wait += failure.retry_after or 0.0
        if now + wait >= self.deadline:
            raise failure
        self._tries += 1
        return wait

    def _may_repeat(self, failure: ClientError) -> bool:
        if isinstance(failure, Unreachable):
            return not failure.permanent and (self._idempotent or not failure.sent)
        return isinstance(failure, Overloaded) and self._idempotent


class Polling:
    """The looks at a server that is not ready yet, all before `deadline`."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._pause = POLL_SECONDS

    def wait(self, failure: ClientError, now: float) -> float:
        """Seconds until the next look. Raises where waiting mends nothing, or the time is over."""
        if isinstance(failure, Unreachable) and failure.permanent:
            raise failure
        pause = self._pause
        if now + pause >= self.deadline:
            raise DeadlineExceeded(f"not ready in time: {failure}") from failure
        self._pause = min(LONGEST_POLL_SECONDS, pause * 2)
        return pause
