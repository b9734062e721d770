"""Figures of experiments and recipes over training seeds, beside those wanted of them.

    python benchmarks/bench_accuracy.py [EXPERIMENT ...] [--seeds 5]
    python benchmarks/bench_accuracy.py --recipe mnist-cnn --data FOLDER --seeds 1
    python benchmarks/bench_accuracy.py --recipe spam --recipe faces --shared FOLDER --results seen.jsonl
    python benchmarks/bench_accuracy.py --recipe reviews-gru --data FILE --choose --set model.width=64

Trains each experiment of `params.yaml`, or each named recipe (`all`: every one below), anew for every
seed; nothing of the project's results is touched. The validation figure is printed after every
training, and the table of test figures at the end. With --choose the test split is never read: that is
how settings are compared. With --results each training is added to a file of JSON lines as it ends, its
weights are kept beside it, and one with the same settings and seed is not made again: first choose, then
ask for the test figures of the very weights that were chosen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline import evaluate, prepared
from pipeline.checkpoint import save_weights
from pipeline.config import ConfigError
from pipeline.dataset import DataError
from pipeline.network import predict
from stages import network as networks
from stages.commands.init import entry_of
from stages.editing import plain, write_params
from stages.params import Experiment, load
from stages.train import train

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


@dataclasses.dataclass(frozen=True)
class Figure:
    """What a recipe is judged by: a metric, what it must reach, and its data below --shared.

    `variants` are changes of its settings, each trained and told on a line of its own.
    """

    metric: str
    wanted: float | None
    data: str
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})


FIGURES = {
    "spam": Figure("f1", 0.93, "text/sms-spam.tsv"),
    "faces": Figure("accuracy", 0.95, "faces"),
    "houses": Figure("r2", 0.80, "tabular/california-housing.csv"),
    "speech-mlp": Figure("accuracy", 0.90, "spoken-digits/recordings.tar"),
    "speech-cnn": Figure("accuracy", 0.97, "spoken-digits/recordings.tar"),
    "speech-lstm": Figure("accuracy", 0.95, "spoken-digits/recordings.tar"),
    "mnist-mlp": Figure("accuracy", 0.973, "mnist"),
    "reviews-rnn": Figure("accuracy", 0.70, "text/movie-reviews.csv"),
    "reviews-gru": Figure("accuracy", 0.75, "text/movie-reviews.csv"),
    "reviews-lstm": Figure("accuracy", 0.75, "text/movie-reviews.csv"),
    "reviews-transformer": Figure("accuracy", 0.74, "text/movie-reviews.csv"),
    "mnist-cnn-plain": Figure("accuracy", 0.988, "mnist"),
    "mnist-cnn": Figure("accuracy", 0.993, "mnist"),
    "speech-newvoice": Figure(
        "accuracy",
        0.75,
        "spoken-digits/recordings.tar",
        {who: {"data.test_files": [f"*_{who}_*"]} for who in SPEAKERS},
    ),
    "mnist-vae": Figure("bound", None, "mnist"),
    "mnist-gan": Figure("recognised", 0.90, "mnist"),
    "fashion-cnn": Figure("accuracy", 0.92, "fashion-mnist"),
    "cifar-resnet": Figure("accuracy", 0.85, "cifar10/cifar10"),
}
QUICK = {"train.epochs": 1}


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of the table: an experiment that is trained once for every seed."""

    title: str
    experiment: Experiment
    figure: Figure


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seeds", default=5, show_default=True)
@click.option("--recipe", "recipes", multiple=True, help="In place of params.yaml; all: every one.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="The recipes' data.")
@click.option(
    "--shared",
    type=click.Path(path_type=Path, exists=True),
    envvar="SLIPWAY_DATA",
    help="A folder that holds each recipe's data, by the paths of FIGURES; also $SLIPWAY_DATA.",
)
@click.option("--set", "assigned", multiple=True, help="A setting to change, as model.width=64.")
@click.option("--choose", is_flag=True, help="Look at the validation split alone.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines to go on from.")
@click.option(
    "--quick", is_flag=True, help="One seed, one epoch: does each run? Figures mean nothing."
)
def main(
    names: tuple[str, ...],
    seeds: int,
    recipes: tuple[str, ...],
    data: Path | None,
    shared: Path | None,
    assigned: tuple[str, ...],
    choose: bool,
    results: Path | None,
    quick: bool,
) -> None:
    """Print each seed's figure on the validation split, then the table on the test split."""
    changes = {key: plain(value) for key, _, value in (each.partition("=") for each in assigned)}
    changes |= QUICK if quick else {}
    lines = []
    for series in _series(names, recipes, data, shared, changes):
        try:
            done = list(trainings(series, 1 if quick else seeds, choose, results))
        except DataError as error:
            print(f"{series.title}: not trained: {error}", flush=True)
            continue
        lines.append(_line(series, done))
        print(lines[-1], flush=True)
    if len(lines) > 1:
        print("\n".join(["", *lines]))


def _series(
    names: tuple[str, ...],
    recipes: tuple[str, ...],
    data: Path | None,
    shared: Path | None,
    changes: Mapping[str, Any],
) -> Iterator[Series]:
    if not recipes:
        for name, experiment in load().items():
            if not names or name in names:
                yield Series(name, experiment, Figure(experiment.metrics[0], None, ""))
    for recipe in FIGURES if recipes == ("all",) else recipes:
        figure = FIGURES.get(recipe, Figure("accuracy", None, ""))
        own = data or (shared / figure.data if shared else None)
        for variant, varied in figure.variants.items():
            title = f"{recipe} {variant}".strip()
            try:
                yield Series(title, experiment_from(recipe, own, {**varied, **changes}), figure)
            except ConfigError as error:
                print(f"{title}: not trained: {error}", flush=True)


def experiment_from(
    recipe: str, data: Path | None, changes: Mapping[str, Any] | None = None
) -> Experiment:
    """A recipe as `slipway init` would add it, with changes by dotted path."""
    entry = entry_of(recipe, data)
    for path, value in (changes or {}).items():
        *steps, last = path.split(".")
        section = entry
        for step in steps:
            section = section.setdefault(step, {})
        section[last] = value
    with tempfile.TemporaryDirectory() as scratch:
        params = Path(scratch, "params.yaml")
        write_params(params, {recipe: entry})
        return load(params)[recipe]


def trainings(
    series: Series, seeds: int, choose: bool, results: Path | None
) -> Iterator[dict[str, Any]]:
    """One training for each seed from 1 on: its figures, and the CPU seconds that it took."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data")
        for seed in range(1, seeds + 1):
            settings = series.experiment.train.model_copy(update={"seed": seed})
            experiment = dataclasses.replace(series.experiment, train=settings)
            key = _key(experiment)
            line = _known(results).get(key, {"title": series.title, "key": key, "seed": seed})
            if "validation" not in line or not (choose or "test" in line):
                if not data.exists():
                    _prepare(experiment, data)
                kept = (results.parent / "weights" if results else Path(scratch)) / key
                line = _judged(line, experiment, data, kept, choose)
                if results:
                    results.parent.mkdir(parents=True, exist_ok=True)
                    with open(results, "a") as file:
                        file.write(json.dumps(line) + "\n")
            told = line["validation"].get(series.figure.metric)
            print(
                f"{series.title}, seed {seed}: validation {series.figure.metric} {told}", flush=True
            )
            yield line


def _key(experiment: Experiment) -> str:
    """Equal where a training would be: by all settings but where the data lies."""
    settings = experiment.resolved()
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in ("path", "title")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _known(results: Path | None) -> dict[str, dict[str, Any]]:
    """By key, the last line of each training."""
    if results is None or not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["key"]: line for line in lines}


def _prepare(experiment: Experiment, folder: Path) -> None:
    config = experiment.data.config
    prepared.prepare(config.name, experiment.data.module.load(config, Path()), config.split, folder)


def _judged(
    line: dict[str, Any], experiment: Experiment, data: Path, kept: Path, choose: bool
) -> dict[str, Any]:
    """`line` with figures, of the weights in `kept` or else of new ones, which are put there."""
    manifest = prepared.read_manifest(data)
    if (kept / "weights").exists():
        network: Any = networks.trained(experiment, manifest, kept / "weights")
    else:
        began = time.process_time()
        network, _, progress = train(experiment, data, kept, line["key"], lambda each: None)
        line |= {"cpu_s": round(time.process_time() - began, 1), "epoch": progress.best_epoch}
        save_weights(kept / "weights", network.state_dict())
        for checkpoint in kept.glob("*.pt"):
            checkpoint.unlink()
    task = networks.task(experiment, manifest).shipping(experiment.export.part)
    task.study(prepared.read(data, "train"))
    names = tuple(output.name for output in task.declared())
    module = task.deployable(network)
    for part in ("validation",) if choose else ("validation", "test"):
        rows = prepared.read(data, part)
        asked = task.questions(rows)
        answers = evaluate.answers(lambda raw: predict(module, raw, names), asked)
        found = task.examine(network, rows, experiment.metrics)
        line[part] = task.scores(answers, asked.target, experiment.metrics) | found.scores
    return line


def _line(series: Series, done: list[dict[str, Any]]) -> str:
    """One line of the table: what was wanted, and the mean of what was seen with its ends."""
    metric, wanted = series.figure.metric, series.figure.wanted
    told = [series.title, metric, "wanted -" if wanted is None else f"wanted {wanted:g}"]
    for part in ("validation", "test"):
        if values := [each[part][metric] for each in done if part in each]:
            ends = f"({min(values):.4f} to {max(values):.4f})"
            told.append(f"{part} {np.mean(values):.4f} {ends}")
    told.append(f"{len(done)} seeds")
    if spent := [each["cpu_s"] for each in done if "cpu_s" in each]:  # not where weights lay there
        told.append(f"{np.mean(spent):.0f} CPU s each")
    return " | ".join(told)


if __name__ == "__main__":
    main()
