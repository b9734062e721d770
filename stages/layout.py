"""Where an experiment's files lie, relative to the project's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The files of one experiment. `dvc.yaml` names the same paths; a test holds the two together."""

    experiment: str

    @property
    def build(self) -> Path:
        return Path("build", self.experiment)

    @property
    def reports(self) -> Path:
        return Path("reports", self.experiment)

    @property
    def data(self) -> Path:
        return self.build / "data"

    @property
    def samples(self) -> Path:
        return self.reports / "samples"

    @property
    def checkpoints(self) -> Path:
        """Unknown to DVC, which deletes a stage's outputs before it runs: a resume needs them."""
        return self.build / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.build / "weights.safetensors"

    @property
    def history(self) -> Path:
        return self.reports / "history.csv"

    @property
    def answers(self) -> Path:
        return self.build / "answers.safetensors"

    @property
    def metrics(self) -> Path:
        return self.reports / "metrics.json"

    @property
    def tables(self) -> Path:
        return self.reports / "tables"

    @property
    def pictures(self) -> Path:
        return self.reports / "pictures"

    @property
    def graph(self) -> Path:
        return self.build / "model.onnx"

    @property
    def golden(self) -> Path:
        return self.build / "golden.npz"

    @property
    def bundle(self) -> Path:
        return Path("bundles", self.experiment)

    @property
    def lineage(self) -> Path:
        return Path("bundles", f"{self.experiment}.lineage.json")

    @property
    def parity(self) -> Path:
        return self.reports / "parity.json"

    @property
    def latency(self) -> Path:
        return self.reports / "latency.json"

    @property
    def example(self) -> Path:
        """A file to ask the bundle about: a sample that is there, else words for one."""
        samples = sorted(self.samples.glob("*"))
        seven = [path for path in samples if path.stem == "7"]
        return next(iter(seven or samples), Path("YOUR-FILE"))


def write_atomically(path: Path, payload: bytes) -> None:
    """Whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(payload)
    draft.replace(path)
