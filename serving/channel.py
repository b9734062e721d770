"""What supervisor and workers tell each other: JSON, each message after its length in 4 bytes.

A worker uses it to speak for all. With `channel`, its `Channel`:

    channel.on("unload", unload)    # async: a message (a dict that JSON can hold) to an answer
    replies = await channel.everywhere({"do": "unload", "model": "m"}, keep="m")

`everywhere` has every worker, the asking one included, run its handler for `message["do"]`, and
returns a `Reply` of each: its answer, or why there is none (it died, it is late, the handler
raised). Messages reach all workers in one order, and one worker handles them one after the other;
handlers registered with `ordered=False` (those that only look) do not wait for others.

`keep` makes a message last: the supervisor hands the newest of each key to every worker it starts
from then on, which runs its handler after loading what it finds and before it is ready. So a
restarted worker has what its predecessor was told. `forget` ends that, for a load that failed.
Kept messages are handed over in the order in which they were last kept.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serving.telemetry import log

Message = dict[str, Any]
Handler = Callable[[Message], Awaitable[Message]]

LENGTH = struct.Struct(">I")
MAX_MESSAGE = 64 << 20
"""Bytes of one message; more is a mistake of ours."""

ANSWER_SECONDS = 60.0


class Closed(Exception):
    """The other end is gone."""


@dataclass(frozen=True)
class Reply:
    """What one worker said: its answer, or, where there is none, why."""

    worker: int
    answer: Message | None
    error: str = ""


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

    def __init__(self, sock: socket.socket, kept: Sequence[Message] = ()) -> None:
        self._line = Line(sock)
        self._kept = kept
        self._handlers: dict[str, tuple[Handler, bool]] = {}
        self._asked: dict[int, asyncio.Future[list[Reply]]] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._ready: asyncio.Event
        self._order: asyncio.Lock
        self._leave: Callable[[], None]
        self._quarantine: Callable[[str, str], None]

    def on(self, do: str, handler: Handler, *, ordered: bool = True) -> None:
        """Have messages whose `do` is this handled so. An exception becomes the reply's error."""
        self._handlers[do] = (handler, ordered)

    def open(self, leave: Callable[[], None], quarantine: Callable[[str, str], None]) -> None:
        """Begin to listen. `leave()` ends this worker; `quarantine(key, reason)` ends a model."""
        self._loop = asyncio.get_running_loop()
        self._ready, self._order = asyncio.Event(), asyncio.Lock()
        self._leave, self._quarantine = leave, quarantine
        self._loop.add_reader(self._line.sock.fileno(), self._receive)

    async def ready(self, models: Sequence[Message]) -> None:
        """Do what was kept for this worker, then tell the supervisor what it serves."""
        for message in self._kept:
            reply = await self._handled(message)
            if reply.get("error"):
                log("error", "not done again after a restart", what=message, why=reply["error"])
        self._ready.set()
        self._send({"kind": "ready", "models": list(models)})

    def failed(self, kind: str, error: str, name: str = "") -> None:
        """Tell the supervisor why this worker cannot work; it ends after that."""
        self._line.sock.setblocking(True)
        self._line.send({"kind": "failed", "type": kind, "error": error, "name": name})

    async def everywhere(
        self, message: Message, *, keep: str | None = None, seconds: float = ANSWER_SECONDS
    ) -> list[Reply]:
        """The reply of every worker, by number; see the top of this file.

        Never raises: a worker that gives no answer within `seconds` has a reply that says so.
        """
        number = next(self._numbers)
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        self._asked[number] = future
        self._send(
            {"kind": "ask", "id": number, "message": message, "keep": keep, "seconds": seconds}
        )
        try:
            return await future
        finally:
            del self._asked[number]

    def forget(self, keep: str) -> None:
        """No longer hand what is kept under this key to new workers; `a/*`: all that begin `a/`."""
        self._send({"kind": "forget", "key": keep})

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
            case "replies":
                future = self._asked.get(message["id"])
                if future and not future.done():
                    future.set_result([Reply(**reply) for reply in message["replies"]])
            case "do":
                task = self._loop.create_task(self._do(message["id"], message["message"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _do(self, number: int, message: Message) -> None:
        await self._ready.wait()
        _, ordered = self._handlers.get(str(message.get("do")), (None, False))
        if ordered:
            async with self._order:  # asyncio's lock is fair: first come, first served
                reply = await self._handled(message)
        else:
            reply = await self._handled(message)
        self._send({"kind": "reply", "id": number} | reply)

    async def _handled(self, message: Message) -> Message:
        handler, _ = self._handlers.get(str(message.get("do")), (None, False))
        if handler is None:
            return {"answer": None, "error": f"no worker knows how to {message.get('do')!r}"}
        try:
            return {"answer": await handler(message), "error": ""}
        except Exception as error:  # told to whoever asked, who decides what it means
            return {"answer": None, "error": str(error) or type(error).__name__}

    # What goes out

    def _send(self, message: Message) -> None:
        self._line.send(message)
        if self._line.unsent:
            self._loop.add_writer(self._line.sock.fileno(), self._flush)

    def _flush(self) -> None:
        self._line.flush()
        if not self._line.unsent:
            self._loop.remove_writer(self._line.sock.fileno())


class Broadcasts:
    """The supervisor's part: questions on their way, replies gathered, messages kept."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, _Broadcast] = {}
        self._kept: dict[str, Message] = {}

    @property
    def kept(self) -> list[Message]:
        """What a new worker has to do."""
        return list(self._kept.values())

    def ask(self, asker: Line, message: Message, lines: dict[int, Line], now: float) -> None:
        """Pass a worker's question on to all that are there."""
        question = message["message"]
        if message["keep"] is not None:
            self.forget(message["keep"])  # so that the newest is the last
            self._kept[message["keep"]] = question
        number = next(self._numbers)
        self._open[number] = _Broadcast(
            asker, message["id"], now + message["seconds"], set(lines), []
        )
        for line in lines.values():
            line.send({"kind": "do", "id": number, "message": question})

    def forget(self, key: str) -> None:
        """Keep a message no longer; with `*` at the end of the key, all that begin so."""
        if key.endswith("*"):
            for name in [name for name in self._kept if name.startswith(key[:-1])]:
                del self._kept[name]
        self._kept.pop(key, None)

    def reply(self, worker: int, message: Message) -> None:
        """A worker's answer to a question."""
        number = message["id"]
        if number in self._open:
            self._gather(number, Reply(worker, message["answer"], message["error"]))

    def died(self, worker: int) -> None:
        """No answer comes from this worker any more."""
        for number in [n for n, b in self._open.items() if worker in b.missing]:
            self._gather(number, Reply(worker, None, "the worker died"))

    def late(self, now: float) -> None:
        """Answer for those whose time is up."""
        for number in [n for n, b in self._open.items() if now >= b.deadline]:
            for worker in sorted(self._open[number].missing):
                self._gather(number, Reply(worker, None, "no answer in time"))

    def _gather(self, number: int, reply: Reply) -> None:
        broadcast = self._open[number]
        broadcast.missing.discard(reply.worker)
        broadcast.replies.append(reply)
        if not broadcast.missing:
            del self._open[number]
            replies = sorted(broadcast.replies, key=lambda r: r.worker)
            broadcast.asker.send(
                {
                    "kind": "replies",
                    "id": broadcast.asked,
                    "replies": [
                        {"worker": r.worker, "answer": r.answer, "error": r.error} for r in replies
                    ],
                }
            )


@dataclass
class _Broadcast:
    """One question: who asked it under which number, and who has not answered yet."""

    asker: Line
    asked: int
    deadline: float
    missing: set[int]
    replies: list[Reply]
