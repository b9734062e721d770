"""Folders to models: which there are, what state each is in, which version answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipeline.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MODEL_NAME,
    BundleError,
    parse,
    read,
)
from pipeline.config import suggestion
from serving.config import Settings
from serving.errors import ModelRefused, NotFound, NotReady
from serving.model import Model, load
from serving.protocol import IndexEntry
from serving.runtime import cuda_advice
from serving.telemetry import log

VERSION = re.compile(r"[1-9][0-9]{0,8}")
MAX_TOLD = 80
"""Characters of a name that are repeated to whoever sent it."""


class State(Enum):
    """Where a version is on its way; the value is what the repository index calls it."""

    LOADING = "loading"
    VERIFYING = "verifying"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


ANSWERING = (State.READY, State.DRAINING)
"""A version on its way out still answers whoever comes."""

INDEX_STATE = {
    State.LOADING: "LOADING",
    State.VERIFYING: "LOADING",
    State.WARMING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.FAILED: "UNAVAILABLE",
}


@dataclass
class Slot:
    """One version of one model: its folder, its state and, once ready, the model.

    In a repository the folder names the model: a bundle may be registered under another name.
    """

    name: str
    version: int
    folder: Path
    state: State = State.LOADING
    reason: str = ""
    model: Model | None = None


class Repository:
    """Every version found under a path. Found at once, loaded by `load_all`."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._settings = settings
        self.single = (path / MANIFEST).is_file()
        self._slots: dict[str, dict[int, Slot]] = {}
        for slot in _bare(path) if self.single else _found(path):
            self._slots.setdefault(slot.name, {})[slot.version] = slot
        if not self._slots:
            raise ModelRefused(
                f"{path}: neither a bundle (no {MANIFEST}) nor a repository "
                f"(<name>/<version>/{MANIFEST})"
            )

    def load_all(self) -> None:
        """Load every version, one after the other. A bad one does not hide the others.

        Raises `ModelRefused` where nothing is left to serve.
        """
        for slot in self.slots():
            self._load(slot)
        if not any(slot.state is State.READY for slot in self.slots()):
            raise ModelRefused("\n".join(f"{slot.folder}: {slot.reason}" for slot in self.slots()))

    def slots(self) -> Iterator[Slot]:
        """Every version, by name and number."""
        for name in sorted(self._slots):
            for version in sorted(self._slots[name]):
                yield self._slots[name][version]

    def names(self) -> list[str]:
        """The models there are, in whatever state."""
        return sorted(self._slots)

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model that answer."""
        slots = self._named(name).values()
        return tuple(str(n) for n in sorted(s.version for s in slots if s.state in ANSWERING))

    def get(self, name: str, version: str | None = None) -> tuple[Slot, Model]:
        """A version that answers: the one asked for, else the newest that does.

        Raises `NotFound` or `NotReady`.
        """
        versions = self._named(name)
        if version is None:
            answering = [number for number, s in versions.items() if s.state in ANSWERING]
            slot = versions[max(answering or versions)]
        else:
            number = int(version) if VERSION.fullmatch(version) else 0
            if number not in versions:
                known = ", ".join(str(v) for v in sorted(versions))
                raise NotFound(
                    f"model {name!r} has no version {version[:MAX_TOLD]!r}; known: {known}"
                )
            slot = versions[number]
        if slot.model is None:
            raise NotReady(
                f"model {name!r} version {slot.version} is {slot.state.value}{_why(slot)}"
            )
        return slot, slot.model

    def ready(self) -> bool:
        """Whether loading is over and something answers.

        A version that failed does not make the others unready: it would take the whole host out
        of a load balancer for one bad model. The index says what failed.
        """
        states = {slot.state for slot in self.slots()}
        return State.READY in states and states <= {State.READY, State.FAILED}

    def index(self, ready_only: bool = False) -> list[IndexEntry]:
        """Every version with its state and, where it failed, the reason."""
        return [
            IndexEntry(slot.name, str(slot.version), INDEX_STATE[slot.state], slot.reason)
            for slot in self.slots()
            if slot.state is State.READY or not ready_only
        ]

    def drain(self) -> None:
        """Mark everything as on its way out; what is in flight still answers."""
        for slot in self.slots():
            if slot.state is State.READY:
                slot.state = State.DRAINING

    def close(self) -> None:
        """Let every model's threads end."""
        for slot in self.slots():
            if slot.model:
                slot.model.close()

    def _named(self, name: str) -> dict[int, Slot]:
        if name not in self._slots:
            told = name[:MAX_TOLD]
            raise NotFound(f"no model named {told!r}{suggestion(told, self.names())}")
        return self._slots[name]

    def _load(self, slot: Slot) -> None:
        def progress(state: str) -> None:
            slot.state = State(state)

        try:
            bundle = read(slot.folder)
            model = load(bundle, self._settings, progress)
        except (BundleError, ModelRefused) as error:
            slot.state, slot.reason = State.FAILED, str(error)
        except Exception as error:  # one model's surprise must not take the others along
            slot.state, slot.reason = State.FAILED, f"{type(error).__name__}: {error}"
        else:
            slot.model = model
            slot.state = State.READY
            self._report_provider(slot, model)
        if slot.state is State.FAILED and not self.single:
            log("error", "model failed", model=slot.name, version=slot.version, reason=slot.reason)

    @staticmethod
    def _report_provider(slot: Slot, model: Model) -> None:
        if model.session.requested == "prefer" and model.session.provider.startswith("CPU"):
            log(
                "warning",
                "no CUDA: serving on the CPU",
                model=slot.name,
                version=slot.version,
                advice=cuda_advice(),
            )


def _bare(folder: Path) -> Iterator[Slot]:
    """A bundle by itself is version 1, by the name in its manifest or, unreadable, its folder's."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            name = parse(file.read(MAX_MANIFEST_BYTES + 1)).name
    except (OSError, BundleError):
        name = folder.resolve().name
    yield Slot(name, 1, folder)


def _found(path: Path) -> Iterator[Slot]:
    """`<name>/<version>/` of a repository, and `<name>/` where a project keeps its bundles bare."""
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read: {error.strerror}") from error
    for folder in folders:
        if not MODEL_NAME.fullmatch(folder.name):
            continue
        if (folder / MANIFEST).is_file():
            yield Slot(folder.name, 1, folder)
            continue
        for version in sorted(folder.iterdir()):
            if VERSION.fullmatch(version.name) and version.is_dir():
                yield Slot(folder.name, int(version.name), version)


def _why(slot: Slot) -> str:
    return f": {slot.reason}" if slot.reason else ""
