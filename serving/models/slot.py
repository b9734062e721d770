"""A slot: one version of one model in this worker, with its folder, its state and its model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from serving.inference.model import Model
from serving.models.layout import Print
from serving.models.lineup import FAILED, READY, UNLOADED, Standing


class State(Enum):
    """Where a version is on its way."""

    LOADING = "loading"
    VERIFYING = "verifying"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


ANSWERING = (State.READY, State.DRAINING)
"""A version that leaves with the whole server still answers whoever comes."""

INDEX_STATE = {
    State.LOADING: "LOADING",
    State.VERIFYING: "LOADING",
    State.WARMING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.UNLOADING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
}


TOLD = ("name", "version", "reason", "asked", "digest", "mark", "key", "loaded", "tried")
"""What a slot and a standing have in common, but for its folder and state."""

STANDS = {READY: State.LOADING, UNLOADED: State.UNLOADED, FAILED: State.FAILED}


@dataclass(eq=False)
class Slot:
    """One version of one model: its folder, its state and, once ready, the model.

    In a repository the folder names the model: a bundle may be registered under another name.
    `loaded` is what the folder looked like when the model was read, `tried` when it was last
    tried. `asked` is true once this very version was loaded by request, false once it was
    unloaded; then the policy has no say. `doubted` is the model while it fails its self-test: it
    gets no requests, and may come back.
    Of a bundle that was read, `digest` and `mark` say which it is, the latter with its lineage, and
    `key` tells this version with this content apart from all others.
    """

    name: str
    version: int
    folder: Path
    state: State = State.LOADING
    reason: str = ""
    model: Model | None = None
    loaded: Print | None = None
    tried: Print | None = None
    asked: bool | None = None
    doubted: Model | None = None
    digest: str = ""
    mark: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        self.text = str(self.version)

    @classmethod
    def of(cls, standing: Standing) -> Slot:
        """A version as it stands with all workers; one that serves is to be restored here."""
        told = {name: getattr(standing, name) for name in TOLD}
        return cls(folder=Path(standing.folder), state=STANDS[standing.state], **told)

    def standing(self) -> Standing:
        """How this version stands, for all workers to know."""
        told = {name: getattr(self, name) for name in TOLD}
        state = {State.READY: READY, State.FAILED: FAILED}.get(self.state, UNLOADED)
        return Standing(folder=str(self.folder), state=state, **told)
