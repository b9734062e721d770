"""Work for one request that is done in a thread, and what follows it on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from serving.errors import Overloaded

Made = TypeVar("Made")

MAX_LONG = 64
"""Long requests that may wait for a thread; they are held meanwhile."""


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


class LongReader:
    """A thread that reads long requests, one after the other, and takes turns with the event loop."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting = 0

    def read(
        self,
        work: Callable[[], Made],
        then: Callable[[Made], Cancellable | None],
        failed: Callable[[BaseException], None],
    ) -> Apart[Made]:
        """Have `work` done there. Raises `Overloaded` where too many wait already."""
        if self._waiting >= MAX_LONG:
            raise Overloaded(f"{self._waiting} long requests wait to be read")
        held = [work]
        future = asyncio.get_running_loop().run_in_executor(self._thread, lambda: held[0]())
        self._waiting += 1

        def over(_: object) -> None:
            self._waiting -= 1
            held.clear()  # one that was called off stays in the thread's queue until its turn

        future.add_done_callback(over)
        return Apart(future, then, failed)
