"""Supervisor and workers talking: real sockets, the supervisor's part driven by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serving.errors import ModelRefused
from serving.workers.channel import Channel, Closed, Line, Message
from serving.workers.two_phase_commit import Consent


def lineup(key: str, state: str, reason: str = "") -> Message:
    told = {"name": "m", "version": 1, "key": key, "state": state, "reason": reason}
    return {"single": None, "versions": [told]}


BEFORE, AFTER = lineup("m/1@a", "ready"), lineup("m/1@b", "ready")
FAILED = lineup("m/1@a", "ready", "not by all")
PLAN = {
    "lineup": AFTER,
    "otherwise": FAILED,
    "fresh": [["m", 1]],
    "answer": {"name": "m"},
}
LOAD = {"do": "load", "model": "m", "version": None}


class Worker:
    """A channel whose handlers note what they are told; `fails` names the steps that raise."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock)
        self.told: list[tuple[str, Any]] = []
        self.fails: set[str] = set()
        self.stays: asyncio.Event | None = None
        self.plan: Message = PLAN
        for step in ("plan", "prepare", "commit"):
            self.channel.on(step, self.step)

    async def step(self, message: Message) -> Message | None:
        step = message["do"]
        self.told.append((step, message["lineup"]))
        if self.stays and step == "prepare":
            await self.stays.wait()
        if step in self.fails:
            raise ModelRefused(f"cannot {step}")
        return self.plan if step == "plan" else None

    @property
    def steps(self) -> list[str]:
        return [step for step, _ in self.told]


class Server:
    """Some workers on this loop, and the supervisor's ends of their lines."""

    def __init__(self, count: int = 2) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.lines = {n: Line(pair[0]) for n, pair in enumerate(pairs)}
        self.workers = [Worker(pair[1]) for pair in pairs]
        self.replaced: list[int] = []
        self.consent = Consent(self.replaced.append)
        self.left: list[int] = []
        self.quarantined: list[tuple[str, str]] = []
        self.ready: list[int] = []
        for n, worker in enumerate(self.workers):
            worker.channel.open(
                lambda n=n: self.left.append(n),
                lambda key, reason: self.quarantined.append((key, reason)),
            )

    async def begin(self, *numbers: int) -> None:
        """Have workers load what there was, and be ready."""
        for n in numbers:
            assert await self.workers[n].channel.agree(BEFORE) == self.consent.lineup
            self.workers[n].channel.ready([])

    async def supervise(self) -> None:
        """What the supervisor does with messages, for as long as the test runs."""
        while True:
            for n, line in list(self.lines.items()):
                line.flush()
                try:
                    messages = line.receive()
                except Closed:
                    continue
                for message in messages:
                    match message["kind"]:
                        case "loaded":
                            self.consent.loaded(n, line, message["lineup"], True)
                        case "ask":
                            self.consent.ask(n, message)
                        case "reply":
                            self.consent.reply(n, message)
                        case "ready":
                            self.ready.append(n)
            await asyncio.sleep(0.001)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():
                await asyncio.sleep(0.001)


def run(test: Callable[[Server], Awaitable[None]], count: int = 2) -> None:
    async def whole() -> None:
        server = Server(count)
        supervising = asyncio.ensure_future(server.supervise())
        await asyncio.wait_for(test(server), 10)
        assert not supervising.done(), supervising.exception()
        supervising.cancel()

    asyncio.run(whole())


def test_one_plans_all_prepare_and_all_commit() -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        answer = await server.workers[0].channel.ask(LOAD)
        assert answer["answer"] == {"name": "m"} and "error" not in answer
        first, second = server.workers
        assert second.told == [("plan", BEFORE), ("prepare", AFTER), ("commit", AFTER)]
        assert first.told == [("prepare", AFTER), ("commit", AFTER)]
        assert server.consent.lineup == AFTER and server.consent.idle

    run(test)


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_cannot_prepare_leaves_all_as_they_were(failing: int) -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        server.workers[failing].fails.add("prepare")
        answer = await server.workers[0].channel.ask(LOAD)
        assert answer["error"] == f"worker {failing}: cannot prepare"
        assert answer["failure"] == "ModelRefused"
        for worker in server.workers:
            assert worker.told[-1] == ("commit", FAILED)
        assert server.consent.lineup == FAILED and not server.replaced

    run(test)


def test_one_that_dies_meanwhile_leaves_all_as_they_were() -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        server.workers[1].stays = asyncio.Event()
        asking = asyncio.ensure_future(server.workers[0].channel.ask(LOAD))
        await server.until(lambda: "prepare" in server.workers[1].steps)
        server.consent.died(1)
        answer = await asking
        assert answer["error"].startswith("worker 1: the worker died")
        assert server.workers[0].told[-1] == ("commit", FAILED)
        assert server.consent.lineup == FAILED

    run(test)


def test_one_that_dies_planning_costs_nothing_else() -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        server.workers[1].channel.on("plan", lambda message: asyncio.sleep(60))
        asking = asyncio.ensure_future(server.workers[0].channel.ask(LOAD))
        await asyncio.sleep(0.05)
        server.consent.died(1)
        assert "the worker died" in (await asking)["error"]
        assert server.workers[0].told == [] and server.consent.lineup == BEFORE

    run(test)


def test_one_that_dies_committing_changes_with_the_rest() -> None:
    """Its successor is given the lineup that holds by then."""

    async def test(server: Server) -> None:
        await server.begin(0, 1)
        server.workers[1].channel.on("commit", lambda message: asyncio.sleep(60))
        asking = asyncio.ensure_future(server.workers[0].channel.ask(LOAD))
        await server.until(lambda: "commit" in server.workers[0].steps)
        server.consent.died(1)
        assert (await asking)["answer"] == {"name": "m"}
        assert server.consent.lineup == AFTER and not server.replaced

    run(test)


def test_one_that_does_not_commit_is_replaced() -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        server.workers[1].fails.add("commit")
        assert (await server.workers[0].channel.ask(LOAD))["answer"] == {"name": "m"}
        assert server.replaced == [1] and server.consent.lineup == AFTER

    run(test)


def test_one_that_starts_meanwhile_is_told_what_holds() -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        server.workers[0].stays = asyncio.Event()
        asking = asyncio.ensure_future(server.workers[0].channel.ask(LOAD))
        await server.until(lambda: "prepare" in server.workers[0].steps)
        late = server.workers[2]
        assert await late.channel.agree(BEFORE) == BEFORE
        server.workers[0].stays.set()
        await asyncio.sleep(0.05)
        assert not late.told  # not before it is ready
        late.channel.ready([])
        assert (await asking)["answer"] == {"name": "m"}
        assert late.told == [("commit", AFTER)]

    run(test, count=3)


def test_the_first_lineup_is_everybodys() -> None:
    async def test(server: Server) -> None:
        assert await server.workers[1].channel.agree(AFTER) == AFTER
        assert await server.workers[0].channel.agree(BEFORE) == AFTER

    run(test)


def test_what_the_first_could_not_load_another_can() -> None:
    """Until something changes: what failed then, failed for all."""

    async def test(server: Server) -> None:
        poor = lineup("m/1@b", "failed", "no memory")
        assert await server.workers[0].channel.agree(poor) == poor
        assert await server.workers[1].channel.agree(AFTER) == AFTER
        server.consent.quarantined("m/1@b", "it kills")
        (standing,) = (await server.workers[2].channel.agree(AFTER))["versions"]
        assert standing["state"] == "failed"

    run(test, count=3)


def test_nothing_to_do_is_an_answer_and_nothing_fresh_is_not_prepared() -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        for worker in server.workers:
            worker.plan = {"lineup": None, "answer": {"name": "same"}}
        assert (await server.workers[0].channel.ask(LOAD))["answer"] == {"name": "same"}
        assert server.workers[0].told == []
        for worker in server.workers:
            worker.plan = {**PLAN, "fresh": []}
        server.consent.refresh()
        await server.until(lambda: server.consent.lineup == AFTER and server.consent.idle)
        assert server.workers[1].steps == ["plan", "commit"]

    run(test)


def test_changes_are_made_one_after_the_other() -> None:
    async def test(server: Server) -> None:
        await server.begin(0, 1)
        asked = (server.workers[n % 2].channel.ask(LOAD) for n in range(6))
        answers = await asyncio.gather(*asked)
        assert all(answer["answer"] == {"name": "m"} for answer in answers)
        for worker in server.workers:
            steps = [step for step in worker.steps if step != "plan"]
            assert steps == ["prepare", "commit"] * 6

    run(test)


def test_whom_nobody_waits_for_and_who_asks_alone() -> None:
    async def test(server: Server) -> None:
        await server.begin(0)
        server.consent.ask(1, {"id": 1, "message": LOAD})  # it died before it was told anything
        assert server.consent.idle
        big = {"name": "x" * 3_000_000}  # more than a socket takes at once
        server.workers[0].plan = {**PLAN, "answer": big}
        assert (await server.workers[0].channel.ask(LOAD))["answer"] == big
        assert server.workers[0].steps == ["plan", "prepare", "commit"]
        starting = await server.workers[1].channel.ask(LOAD)
        assert "starting" in starting["error"] and starting["failure"] == "NotReady"

    run(test)


def test_a_quarantined_model_has_failed_for_those_that_come_later() -> None:
    async def test(server: Server) -> None:
        await server.begin(0)
        server.consent.quarantined("m/1@a", "it kills")
        (standing,) = (await server.workers[1].channel.agree(AFTER))["versions"]
        assert (standing["state"], standing["reason"]) == ("failed", "it kills")

    run(test)


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
