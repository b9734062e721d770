"""The lineup: what all workers serve, every version of every model, as they agreed on it.

The supervisor holds it and gives it to every worker it starts, so it travels as JSON:
`{"single": NAME or null, "versions": [...]}`, each version a `Standing` in the order of names and
numbers. `single` names the model where the path that is served is a bundle and no repository.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from serving.models.layout import Print

Message = dict[str, Any]
READY, UNLOADED, FAILED = "ready", "unloaded", "failed"
Key = tuple[str, int]


@dataclass(frozen=True)
class Standing:
    """How one version stands with all workers.

    `state` is `READY`, `UNLOADED` or `FAILED`, with the reason. Of a bundle that was read, `digest`
    and `mark` say which it is, the latter with its lineage, and `key` is what it is watched under.
    `loaded`, `tried` and `asked` are as in a `Slot`.
    """

    name: str
    version: int
    folder: str
    state: str
    reason: str = ""
    asked: bool | None = None
    digest: str = ""
    mark: str = ""
    key: str = ""
    loaded: Print | None = None
    tried: Print | None = None

    @property
    def place(self) -> Key:
        """What it is found by."""
        return self.name, self.version


Standings = dict[Key, Standing]


def packed(single: str | None, standings: Standings) -> Message:
    """A lineup as it travels."""
    versions = [asdict(standings[place]) for place in sorted(standings)]
    return {"single": single, "versions": versions}


def unpacked(lineup: Message) -> Standings:
    """The versions of a lineup that has travelled."""
    found = [
        Standing(**{**told, "loaded": _print(told["loaded"]), "tried": _print(told["tried"])})
        for told in lineup["versions"]
    ]
    return {standing.place: standing for standing in found}


def _print(told: Any) -> Print | None:
    if told is None:
        return None
    files = tuple((name, size, changed) for name, size, changed in told["files"])
    return Print(tuple(told["identity"]), files)
