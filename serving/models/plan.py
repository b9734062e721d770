"""A change of what all workers serve, planned by one of them: the folder read, what is new proven."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from serving.errors import ModelRefused, NotFound
from serving.models.layout import VERSION, Folders, chosen, look, passed_over, wanted
from serving.models.lineup import FAILED, READY, UNLOADED, Key, Message, Standing, Standings, packed
from serving.models.repository import MAX_TOLD, Repository, no_version
from serving.models.slot import Slot, State
from serving.telemetry import log

GONE_SECONDS = 1.0
"""How long a version must be missing: who replaces a folder by renames has it away for a moment."""

STILL = "serves still: the bundle now in its place"
NOT_BY_ALL = "could not be loaded by all workers; the server's log says why"

Given = TypeVar("Given")
Answer = TypeVar("Answer")


class Aside(Protocol):
    """Does what takes time in a thread, while the loop goes on answering."""

    def __call__(self, work: Callable[[Given], Answer], given: Given) -> Awaitable[Answer]: ...


class Plan:
    """The lineup as it was, and what is to become of it.

    `proven` are the versions that this worker has loaded meanwhile, which nothing points at yet.
    """

    def __init__(self, repository: Repository, before: Standings, aside: Aside) -> None:
        self._repository = repository
        self._aside = aside
        self._before = before
        self._after = dict(before)
        self._fresh: set[Key] = set()
        self.proven: dict[Key, Slot] = {}

    async def load(self, name: str, version: str | None) -> Message:
        """Bring a model, or one version of it, to what its folder holds.

        Raises `NotFound`. What cannot be loaded is told in the answer, beside what can.
        """
        folders = (await self._aside(_folders, self._repository)).get(name, {})
        if not folders:
            raise NotFound(f"no model named {name[:MAX_TOLD]!r} in the repository's folder")
        if version is None:
            for number, old in self._known(name).items():
                self._after[name, number] = replace(old, asked=None)
            failure = await self._follow(name, folders, again=True)
        else:
            number = int(version) if VERSION.fullmatch(version) else 0
            if number not in folders:
                raise no_version(name, version, folders)
            failure = await self._renew(name, number, folders[number], again=True)
            self._after[name, number] = replace(self._after[name, number], asked=True)
        # Also where nothing changed: a worker that lost a model is to have it again.
        served = [s for s in self._serving(name) if version in (None, str(s.version))]
        self._fresh |= {standing.place for standing in served}
        if failure:
            failure += self._nonetheless(name)
            return self._told({"error": failure, "failure": ModelRefused.__name__})
        return self._told(_answer(name, served))

    def unload(self, name: str, version: str | None) -> Message:
        """Let go of a model, or of one version; why one had failed is still told.

        Raises `NotFound`.
        """
        known = self._known(name)
        if version is None:
            numbers = list(self._repository.of(name))
        else:
            numbers = [self._repository.numbered(name, version).version]
        for number in numbers:
            old = known.get(number)
            if old and (old.state, old.asked) != (UNLOADED, False):
                fault = f"; it had failed: {old.reason}" if old.state == FAILED else ""
                self._let_go(old, f"unloaded by request{fault}", asked=False)
        return self._told(_answer(name, self._serving(name)))

    async def refresh(self) -> Message:
        """Follow the folder: load what is new or changed, let go of what is gone.

        What failed is tried again once its files change; what was unloaded by name stays away. A
        folder that cannot be read, or holds nothing any more, changes nothing.
        """
        try:
            found = await self._aside(_folders, self._repository)
            if self._gone(found):
                await asyncio.sleep(GONE_SECONDS)
                found = await self._aside(_folders, self._repository)
        except ModelRefused as error:
            log("error", "the repository cannot be read", reason=str(error))
            return self._told({})
        if not found:
            if self._before:
                log("error", "the repository holds nothing any more; what serves goes on")
            return self._told({})
        for name in sorted(found):
            await self._follow(name, found[name], again=False)  # what fails, the index tells
        for place in self._gone(found):
            del self._after[place]
        self._fresh |= self.proven.keys()
        return self._told({})

    def _told(self, outcome: dict[str, Any]) -> Message:
        """What is proposed; see `two_phase_commit.py`."""
        single = self._repository.layout.single
        if self._after == self._before and not self._fresh:
            return {"lineup": None, **outcome}
        return {
            "lineup": packed(single, self._after),
            "otherwise": packed(single, self._otherwise()),
            "fresh": sorted(self._fresh),
            **outcome,
        }

    def _otherwise(self) -> Standings:
        """The lineup as it was, saying what was tried in vain."""
        standings = dict(self._before)
        for place in self.proven:
            tried, old = self._after[place], self._before.get(place)
            if old and old.state == READY:
                standings[place] = replace(old, tried=tried.tried, reason=f"{STILL} {NOT_BY_ALL}")
            else:
                standings[place] = replace(tried, state=FAILED, reason=NOT_BY_ALL)
        return standings

    def _known(self, name: str) -> dict[int, Standing]:
        return {number: s for (known, number), s in self._after.items() if known == name}

    def _serving(self, name: str) -> list[Standing]:
        known = self._known(name)
        return [known[number] for number in sorted(known) if known[number].state == READY]

    def _nonetheless(self, name: str) -> str:
        """What a load that failed in part has loaded, a line."""
        loaded = ", ".join(str(number) for number in sorted(n for _, n in self.proven))
        serving = ", ".join(str(standing.version) for standing in self._serving(name))
        return f"\nloaded nonetheless: {loaded}; serving now: {serving}" if loaded else ""

    def _gone(self, found: Folders) -> list[Key]:
        return [(name, n) for name, n in self._after if n not in found.get(name, {})]

    def _let_go(self, old: Standing, reason: str, asked: bool | None = None) -> None:
        self._after[old.place] = replace(old, state=UNLOADED, reason=reason, asked=asked)

    async def _follow(self, name: str, folders: dict[int, Path], again: bool) -> str:
        """Have those versions of a model serve that are wanted; the rest goes once they do.

        Wanted are those that the policy chooses, more those loaded and less those unloaded by
        request. Returns why versions failed, a line each.
        """
        policy = self._repository.settings.versions_of(name)
        asked = {number: old.asked for number, old in self._known(name).items()}
        order = [n for n in chosen(policy, folders.keys()) if asked.get(n) is not False]
        need = wanted(policy, len(order))
        kept: set[int] = set()
        failures: list[str] = []
        for number in order + [n for n in folders if asked.get(n) and n not in order]:
            if len(kept) >= need and not asked.get(number):
                continue
            if failure := await self._renew(name, number, folders[number], again):
                failures.append(failure)
            if self._after[name, number].state == READY:
                kept.add(number)
        for number in sorted(folders.keys() - self._known(name).keys()):
            self._after[name, number] = Standing(
                name, number, str(folders[number]), UNLOADED, passed_over(policy)
            )
        if kept:  # else whoever serves is the last of its name
            for old in self._serving(name):
                if old.version not in kept and old.asked is None:
                    self._let_go(old, passed_over(policy))
        return "\n".join(failures)

    async def _renew(self, name: str, number: int, folder: Path, again: bool) -> str:
        """Have a version serve what its folder holds; why it does not, where it fails to.

        Unless `again`, a folder that failed and looks as it did is passed over in silence.
        """
        place = name, number
        seen = await self._aside(look, folder)
        old = self._after.get(place)
        serving = old if old and old.state == READY else None
        if serving and seen and serving.loaded and seen.identity == serving.loaded.identity:
            self._after[place] = replace(serving, reason="", tried=seen)
            return ""
        if old and old.state in (READY, FAILED) and old.tried == seen and not again:
            return ""
        fresh = Slot(name, number, folder, asked=old.asked if old else None)
        await self._aside(self._repository.loader.prove, fresh)
        if fresh.state is State.READY:
            self._after[place] = fresh.standing()
            self.proven[place] = fresh
            return ""
        if serving is None:
            self._after[place] = fresh.standing()
            return f"version {number}: {fresh.reason}"
        reason = f"{STILL} failed: {fresh.reason}"
        self._after[place] = replace(serving, tried=fresh.tried, reason=reason)
        return f"version {number}, which goes on as it was: {fresh.reason}"


def _answer(name: str, serving: list[Standing]) -> dict[str, Any]:
    versions = [{"version": str(s.version), "bundle": s.digest} for s in serving]
    return {"answer": {"name": name, "versions": versions}}


def _folders(repository: Repository) -> Folders:
    return repository.layout.versions()
