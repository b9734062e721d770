"""Mean test accuracy of experiments over training seeds, on the one fixed test split.

    python benchmarks/bench_accuracy.py [EXPERIMENT ...] [--seeds 5]
    python benchmarks/bench_accuracy.py --recipe mnist-cnn --data FOLDER --seeds 1

Trains each experiment of `params.yaml`, or a recipe, anew for every seed; nothing of the project's
results is touched. Choices were made by cross-validation inside the training and validation rows; the test
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
@click.option("--recipe", help="A recipe in place of params.yaml.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="The recipe's data.")
def main(names: tuple[str, ...], seeds: int, recipe: str | None, data: Path | None) -> None:
    """Print each seed's test accuracy and their mean."""
    known = {recipe: experiment_from(recipe, data)} if recipe else load()
    for name, experiment in known.items():
        if not names or name in names:
            found = accuracies(experiment, seeds)
            told = " ".join(f"{value:.4f}" for value in found)
            print(f"{name}: mean {np.mean(found):.4f} over {seeds} seeds ({told})", flush=True)


def experiment_from(recipe: str, data: Path | None) -> Experiment:
    """A recipe as `slipway init` would add it."""
    from stages.commands.init import entry_of, write_params

    with tempfile.TemporaryDirectory() as scratch:
        params = Path(scratch, "params.yaml")
        write_params(params, {recipe: entry_of(recipe, data)})
        return load(params)[recipe]


def accuracies(experiment: Experiment, seeds: int) -> list[float]:
    """Test accuracy by seed, 1 to `seeds`."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        config = experiment.data.config
        raw = experiment.data.module.load(config, Path())
        data = Path(scratch, "data")
        manifest, _ = prepared.prepare(config.name, raw, config.split, data)
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
