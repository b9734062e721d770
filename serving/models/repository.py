"""Folders to models: which there are, what state each is in, which version answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.bundle.manifest import MANIFEST
from pipeline.config import ConfigError, suggestion
from serving.config import Settings
from serving.errors import ModelRefused, NotFound, NotReady
from serving.inference.model import Model
from serving.models.layout import VERSION, Layout, chosen, passed_over, wanted
from serving.models.lineup import Message, packed, unpacked
from serving.models.loader import Loader
from serving.models.shelf import Shelf
from serving.models.slot import ANSWERING, INDEX_STATE, Slot, State
from serving.observability.metrics import Metrics
from serving.protocol import IndexEntry
from serving.telemetry import log
from serving.workers.scoreboard import Watch

MAX_TOLD = 80
"""Characters of a name that are repeated to whoever sent it."""

DEFAULT = " (default_version in the settings)"
"""Beside a version that whoever asked did not name."""


class Repository:
    """Every version found under a path. Found at once, loaded by `load_all`.

    What happens to it later is `changes.py`.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        metrics: Metrics | None = None,
        watch: Watch | None = None,
        shelf: Shelf | None = None,
        lineup: Message | None = None,
    ) -> None:
        """With a `lineup`, of what all workers serve, the folder is not looked at."""
        self._watch = watch or Watch()
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.loader = Loader(settings, self.metrics, self._watch, shelf or Shelf())
        self.layout = Layout(path, lineup["single"]) if lineup else Layout.found(path)
        self.started = False
        self.leaving = False
        self._slots: dict[str, dict[int, Slot]] = {}
        self._told = lineup is not None
        if lineup:
            for standing in unpacked(lineup).values():
                self.put(Slot.of(standing))
        else:
            self._find(path)

    def _find(self, path: Path) -> None:
        """Have a place for every version in the folder. Raises `ModelRefused` or `ConfigError`."""
        settings = self.settings
        for name, folders in self.layout.versions().items():
            for version, folder in folders.items():
                self.put(Slot(name, version, folder))
        if not self._slots and not settings.managed:
            raise ModelRefused(
                f"{path}: neither a bundle (no {MANIFEST}) nor a repository "
                f"(<name>/<version>/{MANIFEST}); to start without a model and load some later, "
                "give --control-port, or repository.poll_seconds in a --config file"
            )
        for name in settings.models:
            if hint := self._misnamed(name):
                if not settings.managed:
                    raise ConfigError(hint)
                log("warning", "settings for a model or version that is not there", hint=hint)

    def _misnamed(self, name: str) -> str:
        """What the settings of a model name that is not in the folder."""
        if name not in self._slots:
            return f"models.{name}: no such model in {self.layout.path}" + suggestion(
                name, self.names()
            )
        default, known = self._named_default(name), self._slots[name]
        if default is None or default in known:
            return ""
        return (
            f"models.{name}.default_version: expected a version in {self.layout.path} "
            f"({_numbers(known)}), got {default}; until it is there, requests that name no version "
            "are answered 404"
        )

    def load_all(self) -> None:
        """Load the chosen versions, one after the other. A bad one does not hide the others.

        Or those of the lineup, where one was given: then what cannot be had is missing here, and
        the rest serves. Raises `ModelRefused` where the folder leaves nothing to serve.
        """
        if self._told:
            for slot in self.slots():
                if slot.state is State.LOADING:
                    self.loader.restore(slot)
            self.started = True
            return
        for name, versions in self._slots.items():
            policy = self.settings.versions_of(name)
            order = chosen(policy, versions.keys())
            need = wanted(policy, len(order))
            for number in order:
                if need:
                    self.loader.prove(versions[number], aloud=self.layout.single is None)
                    need -= versions[number].state is State.READY
            for slot in versions.values():
                if slot.state is State.LOADING:
                    slot.state, slot.reason = State.UNLOADED, passed_over(policy)
        slots = list(self.slots())
        if slots and not any(slot.state is State.READY for slot in slots):
            raise ModelRefused("\n".join(f"{slot.folder}: {slot.reason}" for slot in slots))
        self.started = True

    def lineup(self) -> Message:
        """What this worker serves."""
        return packed(self.layout.single, {(s.name, s.version): s.standing() for s in self.slots()})

    def put(self, slot: Slot) -> None:
        """Have a version stand in its place: the one pointer that a change moves."""
        self._slots.setdefault(slot.name, {})[slot.version] = slot

    def drop(self, slot: Slot) -> None:
        """Forget a version, and the model with its last."""
        versions = self._slots.get(slot.name, {})
        if versions.get(slot.version) is slot:
            del versions[slot.version]
            if not versions:
                del self._slots[slot.name]

    def of(self, name: str) -> dict[int, Slot]:
        """The versions of a model by number, in whatever state. Raises `NotFound`."""
        if name not in self._slots:
            told = name[:MAX_TOLD]
            raise NotFound(f"no model named {told!r}{suggestion(told, self.names())}")
        return self._slots[name]

    def numbered(self, name: str, version: str) -> Slot:
        """A version, in whatever state. Raises `NotFound`."""
        versions = self.of(name)
        number = int(version) if VERSION.fullmatch(version) else 0
        if number not in versions:
            raise no_version(name, version, versions)
        return versions[number]

    def slots(self) -> Iterator[Slot]:
        """Every version, by name and number."""
        for name in sorted(self._slots):
            for version in sorted(self._slots[name]):
                yield self._slots[name][version]

    def _all(self) -> Iterator[Slot]:
        """Every version, in no order."""
        return (slot for versions in self._slots.values() for slot in versions.values())

    def names(self) -> list[str]:
        """The models there are, in whatever state."""
        return sorted(self._slots)

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model that answer."""
        slots = self.of(name).values()
        return tuple(str(n) for n in sorted(s.version for s in slots if s.state in ANSWERING))

    def default(self, name: str) -> Slot:
        """The version that is meant where none is named. Raises `NotFound`."""
        versions = self.of(name)
        default = self._named_default(name)
        if default is not None:
            if default not in versions:
                raise no_version(name, str(default), versions, DEFAULT)
            return versions[default]
        if len(versions) == 1:
            return next(iter(versions.values()))
        answering = [number for number, s in versions.items() if s.state in ANSWERING]
        return versions[max(answering or versions)]

    def _named_default(self, name: str) -> int | None:
        """The default version of the settings, where they have one."""
        settings = self.settings.models.get(name)
        return settings.default_version if settings else None

    def answers(self, slot: Slot) -> bool:
        """Whether requests that name no version go to this one."""
        try:
            return self.default(slot.name) is slot
        except NotFound:  # the default version of the settings is not there
            return False

    def get(self, name: str, version: str | None = None) -> tuple[Slot, Model]:
        """A version that answers: the one asked for, else the default, else the newest that does.

        Raises `NotFound` or `NotReady`.
        """
        slot = self.default(name) if version is None else self.numbered(name, version)
        if slot.state not in (State.UNLOADING, State.UNLOADED) and slot.model is not None:
            return slot, slot.model
        default = DEFAULT if version is None and self._named_default(name) else ""
        told = f"model {name!r} version {slot.version}{default} is"
        if slot.state in (State.UNLOADING, State.UNLOADED):
            raise NotFound(f"{told} not loaded{_why(slot)}")
        raise NotReady(f"{told} {slot.state.value}{_why(slot)}")

    def ready(self) -> bool:
        """Whether the start is over and something answers; strictly, all that is to.

        Unless the settings are strict, a version that failed does not make the others unready: that
        would take the whole host out of a load balancer for one model. The index says what failed.
        """
        if not self.started or self.leaving:
            return False
        if not any(slot.state is State.READY for slot in self._all()):
            return False
        return not (self.settings.repository.strict_readiness and self.missing())

    def missing(self) -> list[Slot]:
        """The versions that are to serve, by policy or by request, and do not."""
        found: list[Slot] = []
        for name, versions in self._slots.items():
            policy = self.settings.versions_of(name)
            order = [n for n in chosen(policy, versions.keys()) if versions[n].asked is not False]
            lacking = [versions[n] for n in order if versions[n].state is not State.READY]
            if len(order) - len(lacking) < wanted(policy, len(order)):
                found += lacking
            asked = (versions[n] for n in versions.keys() - set(order) if versions[n].asked)
            found += [slot for slot in asked if slot.state is not State.READY]
        return found

    def index(self, ready_only: bool = False) -> list[IndexEntry]:
        """Every version with its state and the reason, where there is one to tell."""
        return [
            IndexEntry(slot.name, str(slot.version), INDEX_STATE[slot.state], slot.reason)
            for slot in self.slots()
            if slot.state is State.READY or not ready_only
        ]

    def drain(self) -> None:
        """Mark everything as on its way out; what is in flight still answers."""
        self.leaving = True
        for slot in self.slots():
            if slot.state is State.READY:
                slot.state = State.DRAINING

    def quarantine(self, key: str, reason: str) -> None:
        """Stop serving what killed workers. Its next content, another key, gets another chance."""
        self._watch.quarantined[key] = reason
        for slot in self.slots():
            if slot.key == key:
                model, slot.model, slot.doubted = slot.model or slot.doubted, None, None
                slot.state, slot.reason = State.FAILED, reason
                if model:
                    model.close()

    def close(self) -> None:
        """Let every model's threads end."""
        for slot in self.slots():
            for model in (slot.model, slot.doubted):
                if model:
                    model.close()


def no_version(name: str, version: str, known: Iterable[int], whose: str = "") -> NotFound:
    """The failure of asking for a version that is not there."""
    told = f"{version[:MAX_TOLD]!r}{whose}"
    return NotFound(f"model {name!r} has no version {told}; known: {_numbers(known)}")


def _numbers(versions: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(versions))


def _why(slot: Slot) -> str:
    return f": {slot.reason}" if slot.reason else ""
