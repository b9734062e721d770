"""What supervisor and workers tell each other: JSON, each message after its length in 4 bytes.

With `channel`, a worker's `Channel`:

    channel.on("prepare", prepare)    # async: a message (a dict that JSON can hold) to an answer
    lineup = await channel.agree(mine)
    answer = await channel.ask({"do": "load", "model": "m"})

The supervisor has a worker do things, one after the other in the order they were sent, once it is
ready; `two_phase_commit.py` says which. A handler that raises is an answer too. `agree` tells what this
worker has loaded and returns what all serve; `ask` has the supervisor bring about a change in all.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

Message = dict[str, Any]
Handler = Callable[[Message], Awaitable[Any]]

LENGTH = struct.Struct(">I")
MAX_MESSAGE = 64 << 20
"""Bytes of one message; more is a mistake of ours."""


class Closed(Exception):
    """The other end is gone."""


class Line:
    """One end of a socket pair, never waiting: messages in and out, whole."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._received = bytearray()
        self._unsent = bytearray()

    @property
    def unsent(self) -> bool:
        """Whether something waits until the socket can be written to."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Queue a message and send what can be sent at once."""
        payload = orjson.dumps(message)
        self._unsent += LENGTH.pack(len(payload)) + payload
        self.flush()

    def flush(self) -> None:
        """Send what can be sent; what nobody reads any more is dropped."""
        while self._unsent:
            try:
                del self._unsent[: self.sock.send(self._unsent)]
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()

    def receive(self) -> list[Message]:
        """Every message that is there. Raises `Closed` where none can come any more."""
        over = False
        while True:
            try:
                part = self.sock.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            if not part:
                over = True
                break
            self._received += part
        messages = list(iter(self._next, None))
        if over and not messages:
            raise Closed
        return messages

    def close(self) -> None:
        """Close this end."""
        self.sock.close()

    def _next(self) -> Message | None:
        if len(self._received) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._received)
        if length > MAX_MESSAGE:
            raise Closed
        end = LENGTH.size + length
        if len(self._received) < end:
            return None
        message: Message = orjson.loads(memoryview(self._received)[LENGTH.size : end])
        del self._received[:end]
        return message


class Channel:
    """A worker's end, on its event loop from `open` on."""

    def __init__(self, sock: socket.socket) -> None:
        self._line = Line(sock)
        self._handlers: dict[str, Handler] = {}
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._lineup: asyncio.Future[Message]
        self._ready: asyncio.Event
        self._order: asyncio.Lock
        self._leave: Callable[[], None]
        self._quarantine: Callable[[str, str], None]

    def on(self, do: str, handler: Handler) -> None:
        """Have messages whose `do` is this handled so. An exception becomes the reply's error."""
        self._handlers[do] = handler

    def open(self, leave: Callable[[], None], quarantine: Callable[[str, str], None]) -> None:
        """Begin to listen. `leave()` ends this worker; `quarantine(key, reason)` ends a model."""
        self._loop = asyncio.get_running_loop()
        self._ready, self._order = asyncio.Event(), asyncio.Lock()
        self._lineup = self._loop.create_future()
        self._leave, self._quarantine = leave, quarantine
        self._loop.add_reader(self._line.sock.fileno(), self._receive)

    async def agree(self, lineup: Message) -> Message:
        """Tell what this worker has loaded; what all serve."""
        self._send({"kind": "loaded", "lineup": lineup})
        return await self._lineup

    def ready(self, models: Sequence[Message], missing: Sequence[str] = ()) -> None:
        """Tell the supervisor what this worker serves, and do from now on what it says.

        `missing` is what keeps it unready all the same, a line each.
        """
        self._ready.set()
        self._send({"kind": "ready", "models": list(models), "missing": list(missing)})

    def failed(self, kind: str, error: str, name: str = "") -> None:
        """Tell the supervisor why this worker cannot work; it ends after that."""
        self._line.sock.setblocking(True)
        self._line.send({"kind": "failed", "type": kind, "error": error, "name": name})

    async def ask(self, message: Message) -> Message:
        """`{"answer": ...}` to a change in all workers, or why there was none: `error`, `failure`."""
        if not self._ready.is_set():
            told = "the server is starting; nothing can be changed now"
            return {"error": told, "failure": "NotReady"}
        number = next(self._numbers)
        future: asyncio.Future[Message] = self._loop.create_future()
        self._asked[number] = future
        self._send({"kind": "ask", "id": number, "message": message})
        try:
            return await future
        finally:
            del self._asked[number]

    # What comes in

    def _receive(self) -> None:
        try:
            messages = self._line.receive()
        except Closed:
            # The supervisor is gone, and with it whoever would end this worker.
            self._loop.remove_reader(self._line.sock.fileno())
            self._leave()
            return
        for message in messages:
            self._take(message)

    def _take(self, message: Message) -> None:
        match message["kind"]:
            case "leave":
                self._leave()
            case "quarantine":
                self._quarantine(message["key"], message["reason"])
            case "lineup":
                if not self._lineup.done():
                    self._lineup.set_result(message["lineup"])
            case "answer":
                future = self._asked.get(message["id"])
                if future and not future.done():
                    future.set_result(message)
            case "do":
                task = self._loop.create_task(self._do(message["id"], message["message"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _do(self, number: int, message: Message) -> None:
        await self._ready.wait()
        async with self._order:  # asyncio's lock is fair: first come, first served
            try:
                reply = {"answer": await self._handlers[message["do"]](message)}
            except Exception as error:  # told to whoever asked, who decides what it means
                reply = {
                    "error": str(error) or type(error).__name__,
                    "failure": type(error).__name__,
                }
        self._send({"kind": "reply", "id": number} | reply)

    # What goes out

    def _send(self, message: Message) -> None:
        self._line.send(message)
        if self._line.unsent:
            self._loop.add_writer(self._line.sock.fileno(), self._flush)

    def _flush(self) -> None:
        self._line.flush()
        if not self._line.unsent:
            self._loop.remove_writer(self._line.sock.fileno())
