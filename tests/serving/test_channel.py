"""Supervisor and workers talking: real sockets, the supervisor's part driven by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from serving.channel import Broadcasts, Channel, Closed, Line, Message, Reply


class Server:
    """Two workers' channels on this loop, and the supervisor's ends of their lines."""

    def __init__(self, count: int = 2, kept: tuple[Message, ...] = ()) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.lines = {n: Line(pair[0]) for n, pair in enumerate(pairs)}
        self.channels = [Channel(pair[1], kept) for pair in pairs]
        self.broadcasts = Broadcasts()
        self.left: list[int] = []
        self.quarantined: list[tuple[str, str]] = []
        self.ready: list[int] = []
        for n, channel in enumerate(self.channels):
            channel.open(
                lambda n=n: self.left.append(n),
                lambda key, reason: self.quarantined.append((key, reason)),
            )

    async def supervise(self) -> None:
        """What the supervisor does with messages, for as long as the test runs."""
        loop = asyncio.get_running_loop()
        while True:
            for n, line in list(self.lines.items()):
                line.flush()
                try:
                    messages = line.receive()
                except Closed:
                    continue
                for message in messages:
                    match message["kind"]:
                        case "ask":
                            self.broadcasts.ask(line, message, self.lines, loop.time())
                        case "reply":
                            self.broadcasts.reply(n, message)
                        case "forget":
                            self.broadcasts.forget(message["key"])
                        case "ready":
                            self.ready.append(n)
            self.broadcasts.late(loop.time())
            await asyncio.sleep(0.002)


def run(test: Callable[[Server], Awaitable[None]], kept: tuple[Message, ...] = ()) -> None:
    async def whole() -> None:
        server = Server(kept=kept)
        supervising = asyncio.ensure_future(server.supervise())
        await asyncio.wait_for(test(server), 10)
        assert not supervising.done(), supervising.exception()
        supervising.cancel()

    asyncio.run(whole())


def answering(n: int) -> Callable[[Message], Awaitable[Message]]:
    async def handler(message: Message) -> Message:
        await asyncio.sleep(0.01)
        if message.get("fail") == n:
            raise ValueError("not here")
        return {"n": n, "was": message["text"]}

    return handler


def test_every_worker_answers_the_asker_too() -> None:
    async def test(server: Server) -> None:
        for n, channel in enumerate(server.channels):
            channel.on("say", answering(n))
            await channel.ready([])
        big = "x" * 3_000_000  # more than a socket takes at once
        replies = await server.channels[1].everywhere({"do": "say", "text": big})
        assert [r.answer and (r.answer["n"], len(r.answer["was"])) for r in replies] == [
            (0, 3_000_000),
            (1, 3_000_000),
        ]
        replies = await server.channels[0].everywhere({"do": "say", "text": "", "fail": 1})
        assert replies == [Reply(0, {"n": 0, "was": ""}), Reply(1, None, "not here")]
        unknown = await server.channels[0].everywhere({"do": "sing"})
        assert [r.error for r in unknown] == ["no worker knows how to 'sing'"] * 2
        assert server.ready == [0, 1]

    run(test)


def test_all_workers_do_the_same_in_the_same_order() -> None:
    async def test(server: Server) -> None:
        done: list[list[int]] = [[], []]

        def handler(n: int) -> Callable[[Message], Awaitable[Message]]:
            async def handle(message: Message) -> Message:
                await asyncio.sleep(0.01 if message["number"] % 2 else 0)
                done[n].append(message["number"])
                return {}

            return handle

        for n, channel in enumerate(server.channels):
            channel.on("count", handler(n))
            await channel.ready([])
        await asyncio.gather(
            *(server.channels[i % 2].everywhere({"do": "count", "number": i}) for i in range(10))
        )
        assert done[0] == done[1] and sorted(done[0]) == list(range(10))

    run(test)


def test_looking_does_not_wait_for_doing() -> None:
    async def test(server: Server) -> None:
        async def look(message: Message) -> Message:
            return {}

        async def load(message: Message) -> Message:
            await asyncio.sleep(1)
            return {}

        for channel in server.channels:
            channel.on("look", look, ordered=False)
            channel.on("load", load)
            await channel.ready([])
        loading = asyncio.ensure_future(server.channels[0].everywhere({"do": "load"}))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(server.channels[0].everywhere({"do": "look"}), 0.5)
        assert not loading.done()
        await loading

    run(test)


def test_one_that_died_and_one_that_is_late() -> None:
    async def test(server: Server) -> None:
        server.channels[0].on("say", answering(0))
        await server.channels[0].ready([])  # the other never is
        replies = await server.channels[0].everywhere({"do": "say", "text": ""}, seconds=0.1)
        assert replies[1] == Reply(1, None, "no answer in time") and replies[0].answer
        asking = asyncio.ensure_future(server.channels[0].everywhere({"do": "say", "text": ""}))
        await asyncio.sleep(0.1)
        server.broadcasts.died(1)
        assert (await asking)[1] == Reply(1, None, "the worker died")

    run(test)


def test_the_newest_of_what_is_kept_in_order() -> None:
    async def test(server: Server) -> None:
        for channel in server.channels:
            channel.on("say", answering(0))
            await channel.ready([])
        for key, text in (("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")):
            await server.channels[0].everywhere({"do": "say", "text": text}, keep=key)
        server.channels[1].forget("b")
        await asyncio.sleep(0.05)
        assert [message["text"] for message in server.broadcasts.kept] == ["3", "4"]

    run(test)


def test_what_was_kept_is_done_before_ready() -> None:
    async def test(server: Server) -> None:
        told: list[str] = []

        async def say(message: Message) -> Message:
            told.append(message["text"])
            return {}

        server.channels[0].on("say", say)
        await server.channels[0].ready([])
        assert told == ["first", "second"]

    run(test, kept=({"do": "say", "text": "first"}, {"do": "say", "text": "second"}))


def test_leaving_and_quarantine_need_no_readiness() -> None:
    async def test(server: Server) -> None:
        server.lines[0].send({"kind": "leave"})
        server.lines[1].send({"kind": "quarantine", "key": "m/1@a", "reason": "it kills"})
        await asyncio.sleep(0.05)
        assert server.left == [0] and server.quarantined == [("m/1@a", "it kills")]
        server.lines.pop(1).close()
        await asyncio.sleep(0.05)
        assert server.left == [0, 1]  # a worker without a supervisor leaves

    run(test)


def test_nonsense_ends_the_line() -> None:
    ours, theirs = socket.socketpair()
    line = Line(ours)
    theirs.sendall(b"\xff\xff\xff\xff and so on")
    with pytest.raises(Closed):
        line.receive()
