"""Small experiments over the digits, read from a file and trained as the stages do it."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.params import Experiment, load

if TYPE_CHECKING:
    from pipeline.network import Network
    from pipeline.prepared import Manifest
    from pipeline.start import Notes
    from pipeline.train import Progress

SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "path": "data/builtin"},
    "model": {"name": "mlp", "depth": 1, "width": 16},
    "task": {"name": "classification"},
    "train": {"lr": 0.01, "epochs": 2, "batch_size": 64, "seed": 1, "device": "cpu"},
    "metrics": ["accuracy", "log_loss"],
    "export": {},
}
NAME = "small"


def settings(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`SETTINGS` with changes by dotted path: `{"train.epochs": 3}`."""
    changed = copy.deepcopy(SETTINGS)
    for path, value in (changes or {}).items():
        *steps, last = path.split(".")
        section = changed
        for step in steps:
            section = section.setdefault(step, {})
        section[last] = value
    return changed


def experiment(changes: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment that a `params.yaml` with these settings holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_text(json.dumps({"experiments": {NAME: settings(changes)}}))  # JSON is YAML
        return load(path)[NAME]


@dataclass
class Trained:
    """What a training leaves."""

    experiment: Experiment
    manifest: Manifest
    network: Network
    notes: Notes
    progress: Progress
    checkpoints: Path
    logged: list[dict[str, float]] = field(default_factory=list)

    @property
    def weights(self) -> bytes:
        """Every number of the network, as bytes."""
        state = self.network.state_dict()
        return b"".join(state[name].cpu().numpy().tobytes() for name in sorted(state))


def train(
    data: Path,
    checkpoints: Path,
    changes: Mapping[str, Any] | None = None,
    key: str = "key",
    log: Callable[[dict[str, float]], None] = lambda line: None,
) -> Trained:
    """Train on a prepared folder through the train stage's own function."""
    from pipeline import prepared
    from stages.train import train as run

    chosen, logged = experiment(changes), []

    def keep(line: dict[str, float]) -> None:
        logged.append(line)
        log(line)

    network, notes, progress = run(chosen, data, checkpoints, key, keep)
    manifest = prepared.read_manifest(data)
    return Trained(chosen, manifest, network, notes, progress, checkpoints, logged)
