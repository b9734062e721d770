"""grpc's core on our event loop: a listener, the calls that come, the events in which it tells.

grpcio's own asynchronous server makes three tasks and wakes the loop four times for a call;
docs/decisions/0011-grpc.md has what that costs. This speaks to the same core, in the words of grpcio's
plain server, which is Python as well: HTTP/2, flow control, limits, deadlines, compression and TLS stay
the library's. Everything here belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc

from serving.telemetry import log, places

BURST = 256
"""Events that are dealt with before others on the loop have their turn."""

STOP_SECONDS = 2.0
"""How long the core may take to tell that it has stopped, once nothing is left."""

NOW = 0.0
"""A deadline that has passed: look, and do not wait."""

PLAIN = 0
"""An operation's flags."""

Metadata = Sequence[tuple[str, str | bytes]]
Trailing = tuple[tuple[str, str], ...] | None


class Events:
    """What the core has done, told on the event loop: each event's tag is called with it.

    A thread waits for the first event of a burst. The loop then takes all there are by itself, and
    the thread sleeps until a turn of the loop found none: under load it never wakes, and nobody
    fights over the interpreter.
    """

    def __init__(self) -> None:
        self.queue = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._resume = threading.Lock()
        self._resume.acquire()
        self._closed = False
        self._thread = threading.Thread(target=self._wait, name="grpc", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Nothing may be under way any more."""
        self.queue.shutdown()

    def _wait(self) -> None:
        while not self._closed:
            event = self.queue.poll()
            if event.tag is None:  # closed
                return
            self._loop.call_soon_threadsafe(self._first, event)
            del event  # an event holds its call, and a call that is held does not end
            self._resume.acquire()

    def _first(self, event: Any) -> None:
        _tell(event)
        self._turn()

    def _turn(self) -> None:
        found = 0
        while found < BURST:
            event = self.queue.poll(NOW)
            if event.tag is None:
                break
            found += 1
            _tell(event)
            del event
        if found:  # what is run and answered now leads to the next events, so look once more
            self._loop.call_soon(self._turn)
        else:
            self._closed = bool(event.success)
            self._resume.release()


class Incoming:
    """One call. `deadline` is in seconds of the Unix time; `left` is told if the client gives up.

    `key` is the name of the API key that it came with.
    """

    __slots__ = (
        "_begun",
        "_call",
        "_ended",
        "_gone",
        "deadline",
        "key",
        "left",
        "metadata",
        "path",
    )

    def __init__(self, event: Any, gone: Callable[[Incoming], None]) -> None:
        self._call: Any = event.call
        self._gone = gone
        self._begun = self._ended = False
        self.path: str = event.call_details.method.decode("ascii", "replace")
        self.metadata: Metadata = event.invocation_metadata
        self.deadline: float = event.call_details.deadline
        self.key = ""
        self.left: Callable[[], object] | None = None
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(PLAIN),), self._closed)

    def time_remaining(self) -> float:
        """Seconds until the deadline; many, where there is none."""
        return self.deadline - time.time()

    def receive(self, told: Callable[[bytes | None], object]) -> None:
        """Have `told` called with the next message, or with none after the last."""
        if self._call is None:
            told(None)
            return

        def received(event: Any) -> None:
            told(event.batch_operations[0].message())

        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(PLAIN),), received)

    def send(self, payload: bytes, sent: Callable[[Any], object]) -> None:
        """One of several answers; `sent` is called when there is room for the next."""
        if self._call is None:
            return
        operations = (*self._opening(), cygrpc.SendMessageOperation(payload, PLAIN))
        self._call.start_server_batch(operations, sent)

    def answer(self, payload: bytes, trailing: Trailing) -> None:
        """The only answer, and the end."""
        if self._ended or self._call is None:
            return
        self._ended = True
        operations = (
            *self._opening(),
            cygrpc.SendMessageOperation(payload, PLAIN),
            cygrpc.SendStatusFromServerOperation(trailing, 0, b"", PLAIN),
        )
        self._call.start_server_batch(operations, _ignored)

    def end(self, code: grpc.StatusCode, details: str = "", trailing: Trailing = None) -> None:
        """The end, with this status."""
        if self._ended or self._call is None:
            return
        self._ended = True
        number = code.value[0]
        status = cygrpc.SendStatusFromServerOperation(trailing, number, details.encode(), PLAIN)
        self._call.start_server_batch((*self._opening(), status), _ignored)

    def _opening(self) -> tuple[Any, ...]:
        if self._begun:
            return ()
        self._begun = True
        return (cygrpc.SendInitialMetadataOperation(None, PLAIN),)

    def _closed(self, event: Any) -> None:
        """The call is over, by our answer or because the client, or its deadline, called it off."""
        self._gone(self)
        self._call = None  # the core counts a stream as open for as long as it is held
        left, self.left = self.left, None
        if left and not self._ended:
            self._ended = True
            left()


class Listener:
    """A port and the calls that come, each told to `accept` before its first message is read."""

    def __init__(
        self, options: Sequence[tuple[str, int]], accept: Callable[[Incoming], None]
    ) -> None:
        self._accept = accept
        self._events = Events()
        self._server = cygrpc.Server(options, False)
        self._server.register_completion_queue(self._events.queue)
        self._stopping = False
        self.open: set[Incoming] = set()

    def bind(self, place: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listen there; the port it became. Raises `OSError`."""
        secret = (credentials._credentials,) if credentials else ()
        try:
            port = int(self._server.add_http2_port(place.encode(), *secret))
        except RuntimeError:
            port = 0
        if not port:
            self._events.close()
            raise OSError(f"{place}: cannot be listened at")
        return port

    def start(self) -> None:
        """Take calls."""
        self._server.start()
        self._ask()

    async def stop(self, seconds: float) -> None:
        """Take no more calls; cut off those that have not ended after so many seconds."""
        self._stopping = True
        stopped = asyncio.Event()
        self._server.shutdown(self._events.queue, lambda event: stopped.set())
        if not await _within(seconds, stopped):
            self._server.cancel_all_calls()
            if not await _within(STOP_SECONDS, stopped):
                log("warning", "grpc did not stop in time", after_seconds=STOP_SECONDS)
                return
        self._server.destroy()
        self._events.close()

    def _ask(self) -> None:
        self._server.request_call(self._events.queue, self._events.queue, self._came)

    def _came(self, event: Any) -> None:
        if not event.success:  # the server has been stopped
            return
        if not self._stopping:
            self._ask()
        incoming = Incoming(event, self.open.discard)
        self.open.add(incoming)
        self._accept(incoming)


async def _within(seconds: float, happened: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await happened.wait()
    except TimeoutError:
        return False
    return True


def _tell(event: Any) -> None:
    try:
        event.tag(event)
    except Exception as error:  # a defect of ours; other calls go on
        log("error", "internal error", kind=type(error).__name__, trace=places(error))


def _ignored(event: Any) -> None:
    """Sent, or not: who called it off is told otherwise."""
