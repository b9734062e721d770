"""Work for one request that is done in a thread, and what follows it on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Made = TypeVar("Made")


class Cancellable(Protocol):
    """What can be told that nobody waits for the answer any more."""

    def cancel(self) -> object: ...


class Apart(Generic[Made]):
    """A request on its way through a thread, and then wherever it goes next.

    `then` is given what the thread made; `failed` is told what went wrong there or in `then`, so
    that the request is answered whatever happens.
    """

    def __init__(
        self,
        work: asyncio.Future[Made],
        then: Callable[[Made], Cancellable | None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._then, self._failed = then, failed
        self._next: Cancellable | None = None
        self._off = False
        self._work = work
        work.add_done_callback(self._done)

    def cancel(self) -> None:
        """Nobody waits any more. What a thread has begun it ends, which takes no second."""
        self._off = True
        self._work.cancel()
        if self._next:
            self._next.cancel()

    def _done(self, work: asyncio.Future[Made]) -> None:
        if self._off:
            return
        # Asked for, not raised here: its traceback would hold this frame, and so itself and the body.
        failure = asyncio.CancelledError() if work.cancelled() else work.exception()
        if failure is not None:
            self._failed(failure)
            return
        try:
            self._next = self._then(work.result())
        except Exception as error:  # nobody above would hear of it, the client least of all
            self._failed(error)
