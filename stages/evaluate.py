"""Trained weights to test metrics, tables and pictures, through torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.entry import main, stage
from stages.layout import Layout, write_atomically
from stages.params import Experiment

if TYPE_CHECKING:
    from pipeline.network import Network
    from pipeline.prepared import Manifest, Rows
    from pipeline.tasks._shared.contract import Case


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Evaluate EXPERIMENT on its test split."""
    from safetensors.numpy import save_file

    from pipeline import evaluate, pictures, prepared
    from pipeline.bundle.manifest import canonical_json, sha256
    from pipeline.determinism import make_deterministic
    from pipeline.intervals import intervals
    from pipeline.metrics import METRICS
    from pipeline.network import predict
    from pipeline.tables import csv_bytes
    from stages import network as networks

    manifest = prepared.read_manifest(layout.data)
    task = networks.task(experiment, manifest).shipping(experiment.export.part)
    test = prepared.read(layout.data, "test")
    rows = task.questions(test)
    names = tuple(output.name for output in task.declared())
    make_deterministic(0, experiment.train.threads)
    network = networks.trained(experiment, manifest, layout.weights)
    module = task.deployable(network)
    answers = evaluate.answers(lambda raw: predict(module, raw, names), rows)
    # The answers say whose they are: `verify` holds the graph against no others.
    save_file(answers, layout.answers, {"weights": sha256(layout.weights.read_bytes())})

    task.study(prepared.read(layout.data, "train"))
    found = task.examine(network, test, experiment.metrics)
    scores = task.scores(answers, rows.target, experiment.metrics) | found.scores
    spread = intervals(
        lambda some, target: task.scores(some, target, experiment.metrics),
        answers,
        rows.target,
        counting={name for name, metric in METRICS.items() if metric.agreement == "equal"},
    )
    write_atomically(layout.metrics, canonical_json(report(scores, spread)))

    tables = task.tables(answers, rows.target) | found.tables
    tables["mistakes"] = task.mistakes(answers, rows)
    drawn = task.pictures(answers, rows) | found.pictures
    drawn["curves.svg"] = pictures.curves(layout.history.read_text())
    if cases := task.cases(answers, rows.target):
        looked = _looked(experiment, layout, manifest, task, network, rows, cases)
        tables["attributions"], drawn["attributions.png"] = looked
    layout.tables.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if table:
            write_atomically(layout.tables / f"{name}.csv", csv_bytes(table))
    for name, payload in drawn.items():
        write_atomically(layout.pictures / name, payload)
    print(
        f"test, {len(rows)} rows: "
        + "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    )


def _looked(
    experiment: Experiment,
    layout: Layout,
    manifest: Manifest,
    task: Any,
    network: Network,
    rows: Rows,
    cases: Sequence[Case],
) -> tuple[list[dict[str, Any]], bytes]:
    """What decided these answers: a table, and a PNG."""
    from pipeline import attribution

    files = {name: (layout.data / name).read_bytes() for name in manifest.files}
    looked = attribution.looked(
        network, manifest, task.strength, rows, cases, files, experiment.train.batch_size
    )
    return attribution.table(looked, rows.name), attribution.picture(looked, rows.name)


def report(
    scores: Mapping[str, float], spread: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """What `dvc metrics show` has of a result: every figure, and the interval of the first in words.

    It passes over lists, so the other intervals crowd nothing.
    """
    from pipeline.evaluate import significant

    told = [
        f"{name} {spread[name][0]:g} to {spread[name][1]:g}" for name in scores if name in spread
    ]
    return {
        "test": {name: significant(value) for name, value in scores.items()},
        "interval": told[0] if told else "none",
        "intervals": {name: list(ends) for name, ends in spread.items()},
    }


if __name__ == "__main__":
    main(command)
