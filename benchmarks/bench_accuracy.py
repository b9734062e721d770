"""Mean test accuracy of experiments over training seeds, on the one fixed test split.

    python benchmarks/bench_accuracy.py [EXPERIMENT ...] [--seeds 5] [--params FILE]

Trains each experiment of `params.yaml` anew for every seed; nothing of the project's results is
touched. Choices were made by cross-validation inside the training and validation rows; the test
split is only read here and by `evaluate`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import click
import numpy as np

from pipeline import evaluate, prepared
from pipeline.network import predict
from stages import network as networks
from stages.params import Experiment, load
from stages.train import train


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seeds", default=5, show_default=True)
@click.option("--params", default="params.yaml", type=click.Path(path_type=Path), show_default=True)
def main(names: tuple[str, ...], seeds: int, params: Path) -> None:
    """Print each seed's test accuracy and their mean."""
    for name, experiment in load(params).items():
        if not names or name in names:
            found = accuracies(experiment, seeds)
            told = " ".join(f"{value:.4f}" for value in found)
            print(f"{name}: mean {np.mean(found):.4f} over {seeds} seeds ({told})", flush=True)


def accuracies(experiment: Experiment, seeds: int) -> list[float]:
    """Test accuracy by seed, 1 to `seeds`."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        config = experiment.data.config
        raw = experiment.data.module.load(config, Path())
        data = Path(scratch, "data")
        manifest = prepared.prepare(config.name, raw, config.split, data)
        rows = prepared.read(data, "test")
        for seed in range(1, seeds + 1):
            seeded = dataclasses.replace(
                experiment, train=experiment.train.model_copy(update={"seed": seed})
            )
            network, _ = train(seeded, data, Path(scratch, str(seed)), str(seed), lambda line: None)
            task = networks.task(experiment, manifest)
            module = task.deployable(network)
            names = tuple(output.name for output in task.declared())
            answers = evaluate.answers(lambda raw, m=module, n=names: predict(m, raw, n), rows)
            found.append(task.scores(answers, np.asarray(rows.target), ["accuracy"])["accuracy"])
    return found


if __name__ == "__main__":
    main()
