"""How a repository changes while it serves: load, unload, follow the folder.

A change reads and proves the new bundle in a thread, beside what serves, and then moves one
pointer on the event loop. So a change that fails touches nothing, and no request sees half of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from serving.errors import ModelRefused, NotFound, NotReady
from serving.freed import release_memory
from serving.layout import VERSION, Folders, chosen, look, passed_over, wanted
from serving.model import Model
from serving.repository import MAX_TOLD, Repository, Slot, State, no_version
from serving.telemetry import log

IDLE_SECONDS = 0.005
"""Between two looks at whether a model that leaves still has requests."""

GONE_SECONDS = 1.0
"""How long a version must be missing: who replaces a folder by renames has it away for a moment."""

Given = TypeVar("Given")
Answer = TypeVar("Answer")


class Changes:
    """Changes of one repository, one after the other. Belongs to the event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "changes")
        self._leavers: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> bool:
        """Whether a change has not ended yet."""
        return self._turn.locked()

    async def load(self, name: str, version: str | None = None) -> list[Slot]:
        """Bring a model, or one version of it, to what its folder holds; the versions that serve.

        What serves and is unchanged is left alone. A changed bundle is proven beside the old one,
        which answers until the new one does. Raises `NotFound`, `NotReady` while starting or
        leaving, and `ModelRefused` with the reason of each version that failed.
        """
        async with self._turn:
            self._check_open()
            folders = (await self._aside(_folders, self._repository)).get(name, {})
            if not folders:
                raise NotFound(f"no model named {name[:MAX_TOLD]!r} in the repository's folder")
            if version is None:
                for slot in self._known(name).values():
                    slot.asked = None
                return await self._follow(name, folders, again=True)
            number = int(version) if VERSION.fullmatch(version) else 0
            if number not in folders:
                raise no_version(name, version, folders)
            failure = await self._renew(name, number, folders[number], again=True)
            slot = self._known(name)[number]
            slot.asked = True
            if failure:
                raise ModelRefused(failure)
            return [slot]

    async def unload(self, name: str, version: str | None = None) -> list[Slot]:
        """Let go of a model, or of one version, once what is in flight was answered; those left.

        It stays away until it is loaded by name. Raises `NotFound`, and `NotReady` while starting
        or leaving.
        """
        async with self._turn:
            self._check_open()
            repository = self._repository
            slots = (
                list(repository.of(name).values())
                if version is None
                else [repository.numbered(name, version)]
            )
            for slot in slots:
                slot.asked = False
            await asyncio.gather(*(self._retire(slot, "unloaded by request") for slot in slots))
            return [slot for slot in repository.of(name).values() if slot.state is State.READY]

    async def refresh(self) -> None:
        """Follow the folder: load what is new or changed, let go of what is gone.

        What failed is tried again once its files change; what was unloaded by name stays away. A
        folder that cannot be read, or holds nothing any more, changes nothing.
        """
        async with self._turn:
            if self._repository.leaving or not self._repository.started:
                return
            try:
                found = await self._aside(_folders, self._repository)
                if self._gone(found):
                    await asyncio.sleep(GONE_SECONDS)
                    found = await self._aside(_folders, self._repository)
            except ModelRefused as error:
                log("error", "the repository cannot be read", reason=str(error))
                return
            if not found:
                if self._repository.names():
                    log("error", "the repository holds nothing any more; what serves goes on")
                return
            for name in sorted(found):
                try:
                    await self._follow(name, found[name], again=False)
                except ModelRefused:
                    continue  # logged when it happened, and told by the index
            for slot in self._gone(found):
                await self._retire(slot, "its folder is gone")
                self._repository.drop(slot)

    def close(self) -> None:
        """Let the thread end; what leaves may finish."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for leaver in self._leavers:
            leaver.cancel()

    def _check_open(self) -> None:
        if self._repository.leaving or not self._repository.started:
            raise NotReady("the server is starting or leaving; nothing can be changed now")

    def _known(self, name: str) -> dict[int, Slot]:
        return self._repository.of(name) if name in self._repository.names() else {}

    def _gone(self, found: Folders) -> list[Slot]:
        return [s for s in self._repository.slots() if s.version not in found.get(s.name, {})]

    async def _follow(self, name: str, folders: dict[int, Path], again: bool) -> list[Slot]:
        """Have those versions of a model serve that are wanted; the rest goes once they do.

        Wanted are those that the policy chooses, more those loaded and less those unloaded by
        request. Raises `ModelRefused` naming the versions that failed.
        """
        policy = self._repository.settings.versions_of(name)
        asked = {number: slot.asked for number, slot in self._known(name).items()}
        order = [n for n in chosen(policy, folders.keys()) if asked.get(n) is not False]
        need = wanted(policy, len(order))
        kept: set[int] = set()
        failures: list[str] = []
        for number in order + [n for n in folders if asked.get(n) and n not in order]:
            if len(kept) >= need and not asked.get(number):
                continue
            failure = await self._renew(name, number, folders[number], again)
            if failure:
                failures.append(failure)
            if self._known(name)[number].state is State.READY:
                kept.add(number)
        for number in sorted(folders.keys() - self._known(name).keys()):
            self._repository.put(
                Slot(name, number, folders[number], State.UNLOADED, passed_over(policy))
            )
        if kept:  # else whoever serves is the last of its name
            for number, slot in self._known(name).items():
                if number not in kept and slot.asked is None and slot.state is State.READY:
                    self._let_go(slot, passed_over(policy))
        if failures:
            raise ModelRefused("\n".join(failures))
        return [slot for slot in self._known(name).values() if slot.state is State.READY]

    async def _renew(self, name: str, number: int, folder: Path, again: bool) -> str:
        """Have a version serve what its folder holds; why it does not, where it fails to.

        Unless `again`, a folder that failed and looks as it did is passed over in silence.
        """
        seen = await self._aside(look, folder)
        old = self._known(name).get(number)
        serving = old if old and old.state is State.READY else None
        if serving and seen and serving.loaded and seen.identity == serving.loaded.identity:
            serving.reason, serving.tried = "", seen
            return ""
        if old and old.state in (State.READY, State.FAILED) and old.tried == seen and not again:
            return ""
        fresh = Slot(name, number, folder, asked=old.asked if old else None)
        if serving:
            serving.reason = "serves while the bundle now in its place is proven"
        else:
            self._repository.put(fresh)
            if old and old.doubted:
                self._let_go(old, "replaced, as it failed its self-test")
        await self._aside(self._repository.prove, fresh)
        if fresh.model is None:
            if not serving:
                return f"version {number}: {fresh.reason}"
            serving.tried = fresh.tried
            serving.reason = f"serves still: the bundle now in its place failed: {fresh.reason}"
            return f"version {number}, which goes on as it was: {fresh.reason}"
        if self._repository.leaving:
            fresh.state = State.DRAINING
        self._repository.put(fresh)
        log(
            "info",
            "model loaded",
            model=name,
            version=number,
            bundle=fresh.model.bundle.digest,
            replaced=serving.model.bundle.digest if serving and serving.model else None,
        )
        if serving:
            self._let_go(serving, "replaced")
        return ""

    def _let_go(self, slot: Slot, reason: str) -> None:
        """Retire a version, with nobody waiting for it."""
        leaver = asyncio.ensure_future(self._retire(slot, reason))
        self._leavers.add(leaver)
        leaver.add_done_callback(self._leavers.discard)

    async def _retire(self, slot: Slot, reason: str) -> None:
        """Take no more requests, answer those in flight, free the model."""
        slot.reason = reason
        if slot.doubted:
            slot.model, slot.doubted = slot.doubted, None
        if slot.model is None:
            slot.state = State.UNLOADED
            return
        slot.state = State.UNLOADING
        loop = asyncio.get_running_loop()
        end = loop.time() + self._repository.settings.drain_seconds
        while slot.model.busy and loop.time() < end:
            await asyncio.sleep(IDLE_SECONDS)
        if slot.model.busy:
            log(
                "warning", "unloaded with requests in flight", model=slot.name, version=slot.version
            )
        leaving, slot.model = [slot.model], None
        slot.state = State.UNLOADED
        await self._aside(_free, leaving)
        log("info", "model unloaded", model=slot.name, version=slot.version, reason=reason)

    async def _aside(self, work: Callable[[Given], Answer], given: Given) -> Answer:
        """Do what takes time in the thread of changes, while the loop goes on answering."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, given)


def _folders(repository: Repository) -> Folders:
    return repository.layout.versions()


def _free(leaving: list[Model]) -> None:
    """Let a model go here, where it holds up nobody, and hand its memory back to the system."""
    model = leaving.pop()
    model.close()
    del model
    release_memory()
