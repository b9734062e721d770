"""How a change of models is made in all workers or in none: the supervisor's part.

One change after the other, each in three steps. One worker *plans* it: it reads the folder, proves
what is new, puts it on the shelf and proposes a lineup. All workers *prepare* it: they load and
prove the same bundles beside what serves. Once every one of them has, the lineup is the proposed
one, and all *commit* it: they move their pointers. If one cannot, or dies, they commit the plan's
other lineup, the one there was with a word on what failed, and whoever asked is told why.

A worker takes part once it was told the lineup, which is when it has loaded. One that starts
meanwhile is told whichever holds when it has loaded, and one that does not do as it committed is
replaced: so no worker goes on with another lineup than the rest.

Messages are answered with `{"answer": ...}`, or with `{"error": text, "failure": name}`. No clock, no
process: lines go in, messages go out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serving.telemetry import log
from serving.workers.channel import Line, Message

DIED = {"error": "the worker died of it, or meanwhile", "failure": "NotReady"}
REFRESH = {"do": "refresh"}


@dataclass
class Change:
    """One change on its way: who asked under which number, what, and who has to answer yet."""

    asker: int | None
    asked: int
    message: Message
    step: str = ""
    number: int = 0
    missing: set[int] = field(default_factory=set)
    failure: Message | None = None
    plan: dict[str, Any] = field(default_factory=dict)


class Consent:
    """The lineup, the workers that were told it, and the changes of it, one after the other.

    `replace(worker)` is called for one that did not do as it committed.
    """

    def __init__(self, replace: Callable[[int], None]) -> None:
        self.lineup: Message | None = None
        self._changed = False
        self._replace = replace
        self._lines: dict[int, Line] = {}
        self._waiting: deque[Change] = deque()
        self._now: Change | None = None
        self._numbers = itertools.count(1)

    @property
    def idle(self) -> bool:
        """Whether no change is on its way."""
        return self._now is None and not self._waiting

    def loaded(self, worker: int, line: Line, lineup: Message, found: bool) -> None:
        """A worker has loaded `lineup`, which it `found` in the folder, or was given.

        The first one's is everybody's, with what later ones found and it could not load. The worker
        is told what holds.
        """
        if self.lineup is None:
            self.lineup = lineup
        elif found and not self._changed:
            better = {_place(told): told for told in lineup["versions"] if told["state"] == "ready"}
            for standing in self.lineup["versions"]:
                if standing["state"] == "failed":
                    standing |= better.get(_place(standing), {})
        line.send({"kind": "lineup", "lineup": self.lineup})
        self._lines[worker] = line

    def ask(self, worker: int, message: Message) -> None:
        """A worker was asked for a change."""
        self._waiting.append(Change(worker, message["id"], message["message"]))
        self._next()

    def refresh(self) -> None:
        """Have a worker look at the folder."""
        self._waiting.append(Change(None, 0, REFRESH))
        self._next()

    def quarantined(self, key: str, reason: str) -> None:
        """A model is not to be loaded again: what is watched under `key` has failed."""
        for standing in (self.lineup or {"versions": []})["versions"]:
            if standing["key"] == key:
                standing |= {"state": "failed", "reason": reason}
                self._changed = True

    def reply(self, worker: int, message: Message) -> None:
        """A worker's answer to a step."""
        if self._now and message["id"] == self._now.number:
            self._answered(worker, message)

    def died(self, worker: int) -> None:
        """A worker is gone, and does nothing any more."""
        self._lines.pop(worker, None)
        if self._now and worker in self._now.missing:
            self._answered(worker, DIED)

    def _next(self) -> None:
        while self._now is None and self._waiting:
            change = self._waiting.popleft()
            if not self._lines or (change.asker is not None and change.asker not in self._lines):
                continue  # nobody can do it, or nobody waits for it any more
            # Not the one who asked, if it can be helped: a model that kills whoever loads it would
            # take the answer along.
            planner = min(self._lines.keys() - {change.asker} or self._lines)
            self._now = change
            self._send("plan", {"change": change.message, "lineup": self.lineup}, {planner})

    def _send(self, step: str, message: Message, workers: set[int] | None = None) -> None:
        """Have workers, all unless told which, take a step, and wait for their answers."""
        change = self._now
        assert change
        change.step, change.number = step, next(self._numbers)
        change.missing = workers or set(self._lines)
        for worker in sorted(change.missing):
            do = {**message, "do": step}
            self._lines[worker].send({"kind": "do", "id": change.number, "message": do})
        if not change.missing:
            self._step_done(change)

    def _answered(self, worker: int, answer: Message) -> None:
        change = self._now
        assert change
        change.missing.discard(worker)
        if answer.get("error"):
            if change.step == "commit":
                self._astray(worker, answer["error"])
            elif change.failure is None:
                told = answer["error"]
                if change.step == "prepare" or answer is DIED:
                    told = f"worker {worker}: {told}"
                change.failure = {"error": told, "failure": answer["failure"]}
        elif change.step == "plan":
            change.plan = answer["answer"]
        if not change.missing:
            self._step_done(change)

    def _step_done(self, change: Change) -> None:
        """All have answered: the next step, or the end."""
        plan, failure = change.plan, change.failure
        if change.step == "commit":
            self._end(change, failure or plan)
        elif change.step == "plan" and failure:
            self._end(change, failure)
        elif change.step == "plan" and plan["lineup"] is None:
            self._end(change, plan)
        elif change.step == "plan" and plan["fresh"]:
            self._send("prepare", {"lineup": plan["lineup"], "fresh": plan["fresh"]})
        else:
            if failure:
                log("error", "models were not changed", change=change.message, why=failure["error"])
            self.lineup, self._changed = plan["otherwise" if failure else "lineup"], True
            self._send("commit", {"lineup": self.lineup})

    def _end(self, change: Change, answer: Message) -> None:
        self._now = None
        if change.asker is not None and change.asker in self._lines:
            told: Message = {k: answer[k] for k in ("answer", "error", "failure") if k in answer}
            self._lines[change.asker].send({"kind": "answer", "id": change.asked, **told})
        self._next()

    def _astray(self, worker: int, error: str) -> None:
        """A worker has agreed to a change and not made it."""
        if worker in self._lines:  # else it is dead, and its successor will be told
            log("error", "a worker did not change with the rest", worker=worker, why=error)
            self._replace(worker)


def _place(standing: Message) -> tuple[str, int]:
    return standing["name"], standing["version"]
