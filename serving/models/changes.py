"""How a worker changes what it serves while it serves: plan, prepare, commit; see `two_phase_commit.py`.

What is new is read and proven in a thread, beside what serves; then one pointer moves on the event
loop. So what fails to load touches nothing that serves, and no request sees half of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.errors import ModelRefused, NotReady
from serving.inference.model import Model
from serving.models.lineup import READY, Key, Message, Standing, unpacked
from serving.models.plan import Plan
from serving.models.repository import Repository
from serving.models.slot import Slot, State
from serving.system.malloc import release_memory
from serving.telemetry import log

IDLE_SECONDS = 0.005
"""Between two looks at whether a model that leaves still has requests."""

Given = TypeVar("Given")
Answer = TypeVar("Answer")


class Changes:
    """Changes of one repository, one after the other. Belongs to the event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._thread = ThreadPoolExecutor(1, "changes")
        self._aside_now = 0
        self._prepared: dict[Key, Slot] = {}
        self._leavers: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> bool:
        """Whether the thread is at work."""
        return self._aside_now > 0

    async def plan(self, message: Message) -> Message:
        """Propose the lineup that a change leads to. What is new is prepared here by then.

        Raises `NotFound`, and `NotReady` while starting or leaving.
        """
        self._check_open()
        await self._forget(self._prepared)
        change = message["change"]
        plan = Plan(self._repository, unpacked(message["lineup"]), self._aside)
        self._prepared = plan.proven
        match change["do"]:
            case "load":
                return await plan.load(change["model"], change["version"])
            case "unload":
                return plan.unload(change["model"], change["version"])
        return await plan.refresh()

    async def prepare(self, message: Message) -> None:
        """Load and prove what is `fresh` in a lineup, where it does not serve already.

        Raises `NotReady` while leaving, and `ModelRefused` naming what cannot be loaded.
        """
        self._check_open()
        standings = unpacked(message["lineup"])
        for name, version in message["fresh"]:
            place = name, version
            standing = standings[place]
            if self._serves(standing) or _same(self._prepared.get(place), standing):
                continue
            fresh = Slot.of(standing)
            await self._aside(self._repository.loader.restore, fresh)
            if fresh.model is None:
                raise ModelRefused(f"{name} version {version}: {fresh.reason}")
            self._prepared[place] = fresh

    async def commit(self, message: Message) -> None:
        """Serve what a lineup says, and keep no other bundles."""
        await self.become(message["lineup"])
        standings = unpacked(message["lineup"]).values()
        await self._aside(
            self._repository.loader.sweep, {s.mark for s in standings if s.state == READY}
        )

    async def become(self, lineup: Message) -> None:
        """Serve what a lineup says, and let go of what it does not name.

        Returns once what was unloaded by request has answered what it had in flight.
        """
        standings = unpacked(lineup)
        asked: list[asyncio.Task[None]] = []
        for place, standing in standings.items():
            leaver = await self._bring(place, standing)
            if leaver and standing.asked is False:
                asked.append(leaver)
        for slot in list(self._repository.slots()):
            if (slot.name, slot.version) not in standings:
                self._repository.drop(slot)
                self._let_go(slot, "its folder is gone")
        await self._forget(self._prepared)
        await asyncio.gather(*asked)

    async def alone(self, change: Message) -> Message:
        """Make a change in this worker, with no others to agree."""
        plan = await self.plan({"change": change, "lineup": self._repository.lineup()})
        if plan["lineup"]:
            await self.prepare(plan)
            await self.commit(plan)
        return plan

    def close(self) -> None:
        """Let the thread end; what leaves may finish."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for leaver in self._leavers:
            leaver.cancel()

    def _check_open(self) -> None:
        if self._repository.leaving or not self._repository.started:
            raise NotReady("the server is starting or leaving; nothing can be changed now")

    def _here(self, place: Key) -> Slot | None:
        name, version = place
        return self._repository.of(name).get(version) if name in self._repository.names() else None

    def _serves(self, standing: Standing) -> bool:
        slot = self._here(standing.place)
        return slot is not None and slot.state is State.READY and slot.mark == standing.mark

    async def _bring(self, place: Key, standing: Standing) -> asyncio.Task[None] | None:
        """Have a version be here as it stands with all; what leaves for it, if anything does."""
        old, fresh = self._here(place), self._prepared.pop(place, None)
        if standing.state == READY and not self._serves(standing):
            if not _same(fresh, standing):
                if _same(old, standing):  # lost here, or in quarantine; whoever loads it mends that
                    return None
                fresh = Slot.of(standing)  # this worker was starting when the others prepared it
                await self._aside(self._repository.loader.restore, fresh)
            assert fresh
            return self._swap(old, fresh, standing)
        if fresh:
            await self._forget({place: fresh})
        if old is None or (standing.state != READY and old.model is None and old.doubted is None):
            self._repository.put(Slot.of(standing))
            return None
        for name in ("reason", "asked", "loaded", "tried"):
            setattr(old, name, getattr(standing, name))
        return None if standing.state == READY else self._let_go(old, standing.reason)

    def _swap(self, old: Slot | None, fresh: Slot, standing: Standing) -> asyncio.Task[None] | None:
        """Move the one pointer."""
        fresh.asked = standing.asked
        if self._repository.leaving and fresh.state is State.READY:
            fresh.state = State.DRAINING
        self._repository.put(fresh)
        before = old.model or old.doubted if old else None
        if fresh.model:
            log(
                "info",
                "model loaded",
                model=fresh.name,
                version=fresh.version,
                bundle=fresh.digest,
                replaced=before.bundle.digest if before else None,
            )
        return self._let_go(old, "replaced") if old and before else None

    async def _forget(self, prepared: dict[Key, Slot]) -> None:
        """Free what was prepared and is not wanted."""
        for place in list(prepared):
            slot = prepared.pop(place)
            if slot.model:
                leaving, slot.model = [slot.model], None
                await self._aside(_free, leaving)

    def _let_go(self, slot: Slot, reason: str) -> asyncio.Task[None]:
        """Retire a version; the task is done once it is gone."""
        slot.reason = reason
        slot.state = State.UNLOADING if slot.model or slot.doubted else State.UNLOADED
        leaver = asyncio.ensure_future(self._retire(slot))
        self._leavers.add(leaver)
        leaver.add_done_callback(self._leavers.discard)
        return leaver

    async def _retire(self, slot: Slot) -> None:
        """Take no more requests, answer those in flight, free the model."""
        model = slot.model or slot.doubted
        slot.doubted = None
        if model is None:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._repository.settings.drain_seconds
        while model.busy and loop.time() < end:
            await asyncio.sleep(IDLE_SECONDS)
        if model.busy:
            log(
                "warning", "unloaded with requests in flight", model=slot.name, version=slot.version
            )
        leaving, slot.model = [model], None
        del model
        slot.state = State.UNLOADED
        await self._aside(_free, leaving)
        log("info", "model unloaded", model=slot.name, version=slot.version, reason=slot.reason)

    async def _aside(self, work: Callable[[Given], Answer], given: Given) -> Answer:
        """Do what takes time in the thread of changes, while the loop goes on answering."""
        self._aside_now += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, given)
        finally:
            self._aside_now -= 1


def _same(slot: Slot | None, standing: Standing) -> bool:
    return slot is not None and slot.mark == standing.mark


def _free(leaving: list[Model]) -> None:
    """Let a model go here, where it holds up nobody, and hand its memory back to the system."""
    model = leaving.pop()
    model.close()
    del model
    release_memory()
