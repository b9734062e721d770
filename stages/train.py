"""Prepared data to weights and learning curves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.entry import StageError, exclusive, main, stage
from stages.layout import Layout, write_atomically
from stages.params import Experiment, load, maker

if TYPE_CHECKING:
    from torch import nn

    from pipeline.network import Network
    from pipeline.start import Notes
    from pipeline.train import Progress


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Train EXPERIMENT."""
    from pipeline import prepared
    from pipeline.checkpoint import save_weights
    from pipeline.tables import csv_bytes
    from stages.live import LiveCurves

    _check_first_weights(experiment)
    key = experiment.train_key(prepared.digest(prepared.read_manifest(layout.data)))
    curves = LiveCurves(experiment.name, key, experiment.resolved())
    try:
        with exclusive(layout.checkpoints):
            network, notes, progress = train(
                experiment, layout.data, layout.checkpoints, resume_key(key), curves.log
            )
    finally:
        curves.close()
    save_weights(layout.weights, network.state_dict(), notes.packed())
    write_atomically(layout.history, csv_bytes(progress.history))


def _check_first_weights(experiment: Experiment) -> None:
    """Raises `StageError` where the weights to start from are not there, with how to get them."""
    path = experiment.start.path
    if path is None or path.is_file():
        return
    base = maker(path, load())
    way = (
        f"{base} makes them: run `dvc repro train@{experiment.name}`" if base else "put them there"
    )
    raise StageError(f"{path}: no weights to start from (model.init_from); {way}")


def resume_key(train_key: str) -> str:
    """What must be the same for a training to go on: settings, data, torch, and our own code."""
    import torch

    import pipeline

    content = hashlib.sha256(f"{train_key} {torch.__version__}".encode())
    for path in sorted(Path(pipeline.__path__[0]).rglob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()


def train(
    experiment: Experiment,
    data: Path,
    checkpoints: Path,
    key: str,
    log: Callable[[dict[str, float]], None],
) -> tuple[Network, Notes, Progress]:
    """Train on the prepared folder `data`, going on from `checkpoints` where its key is `key`."""
    from pipeline import prepared, start
    from pipeline import train as loop
    from pipeline.checkpoint import load_weights
    from pipeline.determinism import make_deterministic
    from stages import network as networks

    config = experiment.train
    manifest = prepared.read_manifest(data)
    device = loop.choose_device(config.device)
    make_deterministic(config.seed, config.threads)
    task = networks.task(experiment, manifest)
    network = networks.fresh(experiment, manifest)
    notes = start.numbered(manifest.inputs, manifest.files)
    if path := experiment.start.path:
        other = networks.resized(experiment, manifest)
        origin = start.begin(network, other, notes, path, load_weights(path), experiment.start)
        print(f"starting from {origin.told()}", flush=True)
        notes = replace(notes, origin=origin)
    network.to(device)
    watched = sorted({*task.watched, config.early_stopping.metric} - {"loss"})

    def score(module: nn.Module, rows: prepared.Rows) -> dict[str, float]:
        figures: dict[str, float] = task.validate(module.eval(), rows, watched)
        return figures

    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"training {experiment.name} on {device}: {count} weights", flush=True)
    rows = prepared.read(data, "train")
    task.study(rows)
    progress = loop.fit(
        network,
        config,
        rows,
        prepared.read(data, "validation"),
        players=task.players(network),
        turns=task.turns,
        score=score,
        better={"loss": "lower", **{name: task.better(name) for name in watched}},
        log=log,
        folder=checkpoints,
        key=key,
    )
    return network, notes, progress


if __name__ == "__main__":
    main(command)
