"""What is written about a result: tables, pictures, profile and card."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from pipeline import prepared
from pipeline.bundle.manifest import Parity
from pipeline.card import card
from pipeline.evaluate import answers
from pipeline.export import ExportError
from pipeline.network import predict
from pipeline.pictures import curves
from pipeline.prepared import Rows
from pipeline.profile import profile
from pipeline.tables import csv_bytes
from pipeline.target import Target
from stages import network as networks


@pytest.fixture(scope="module")
def scored(digits, trained):
    """(task, answers over the test split, the split)."""
    task = networks.task(trained.experiment, trained.manifest)
    rows, module = prepared.read(digits, "test"), task.deployable(trained.network)
    names = ("logits", "probabilities")
    return task, answers(lambda raw: predict(module, raw, names), rows), rows


def test_tables_agree_with_the_answers(scored):
    task, given, rows = scored
    tables = task.tables(given, rows.target)
    right = [row["actual"] == row["predicted"] for row in tables["confusion"]]
    accuracy = task.scores(given, rows.target, ["accuracy"])["accuracy"]
    assert np.mean(right) == pytest.approx(accuracy)
    assert sum(row["rows"] for row in tables["classes"]) == len(rows)
    for row in tables["classes"]:
        assert row["f1"] == pytest.approx(
            2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
        )
        assert 0.9 < row["roc_auc"] <= 1
    assert {row["label"] for row in tables["roc"]} == set(task.labels)


def test_a_table_is_the_same_bytes_and_reads_back(scored):
    task, given, rows = scored
    table = task.tables(given, rows.target)["classes"]
    payload = csv_bytes(table)
    assert payload == csv_bytes(table) and b"\r" not in payload
    read = list(csv.DictReader(io.StringIO(payload.decode())))
    assert [float(row["recall"]) for row in read] == pytest.approx(
        [row["recall"] for row in table], rel=1e-5
    )


def test_pictures_are_the_same_bytes_and_pictures(scored):
    task, given, rows = scored
    drawn, again = (task.pictures(given, rows) for _ in range(2))
    assert drawn == again
    assert set(drawn) == {"confusion.svg", "roc.svg", "calibration.svg", "mistakes.png"}
    for name, payload in drawn.items():
        if name.endswith(".svg"):
            assert payload.lstrip().startswith(b"<?xml") and b"</svg>" in payload
            assert b"<dc:date>" not in payload
        else:
            assert Image.open(io.BytesIO(payload)).width > 100


def test_curves_are_drawn_from_the_history(trained):
    history = csv_bytes(trained.progress.history).decode()
    assert curves(history) == curves(history)
    assert b"</svg>" in curves(history)


def test_a_profile_counts_every_pixel_and_answer(scored, digits):
    task, given, rows = scored
    train = prepared.read(digits, "train")
    told = profile(train, task.target, given)
    assert sum(told["inputs"]["image"]["counts"]) == train.arrays["image"].size
    edges, counts = told["inputs"]["image"]["edges"], told["inputs"]["image"]["counts"]
    assert edges == list(range(0, 257, 8))
    assert counts[0] == (train.arrays["image"] < 8).sum()
    assert counts[-1] == (train.arrays["image"] >= 248).sum()
    assert told["targets"]["counts"] == np.bincount(train.target).tolist()
    assert sum(told["predictions"]["counts"]) == len(rows)
    assert sum(told["predictions"]["confidence"]["counts"]) == len(rows)


def test_a_profile_counts_tags_from_their_threshold():
    rows = Rows({"x": np.zeros((3, 1), np.float32)}, np.zeros((3, 2), bool))
    answers = {"probabilities": np.float32([[0.3, 0.6], [0.2, 0.9], [0.1, 0.1]])}
    told = profile(rows, Target(kind="tags", labels=("a", "b")), answers, threshold=0.3)
    assert told["predictions"]["counts"] == [1, 2]


def test_a_profile_of_floats_covers_their_range():
    values = np.random.default_rng(0).normal(0, 3, (5000, 2)).astype(np.float32)
    rows = Rows({"x": values}, np.zeros(5000, np.int64))
    told = profile(rows, Target(kind="class", labels=("a",)), {"probabilities": np.ones((4, 1))})[
        "inputs"
    ]["x"]
    assert sum(told["counts"]) == values.size
    assert told["edges"][0] == values.min() and told["edges"][-1] == values.max()


PARITY = Parity(
    rows=10,
    batch_sizes=(64, 7, 1),
    max_abs_difference={"logits": 1e-6},
    tolerance={"logits": 1e-5},
    argmax_agreement=1.0,
    ties=0,
    metrics_torch={},
    metrics_onnx={},
)


def made(scored, trained, manifest) -> str:
    task, _, _ = scored
    settings = trained.experiment.resolved()
    return card(
        "digits",
        manifest,
        manifest.inputs,
        task.declared(),
        settings,
        {"accuracy": 0.9},
        {"accuracy": [0.88, 0.915]},
        PARITY,
        {"torch": "2"},
    )


def test_a_card_states_the_facts(scored, trained):
    text = made(scored, trained, trained.manifest)
    for fact in (
        "# digits",
        "CC BY 4.0",
        "| accuracy | 0.9 | 0.88 to 0.915 |",
        "lr 0.01",
        "torch 2",
        "1e-06",
    ):
        assert fact in text
    assert prepared.digest(trained.manifest) in text


@pytest.mark.parametrize("fact", ["title", "licence"])
def test_a_card_without_a_fact_is_refused(scored, trained, fact):
    source = {key: value for key, value in trained.manifest.source.items() if key != fact}
    manifest = trained.manifest.model_copy(update={"source": source})
    with pytest.raises(ExportError, match=f"'digits' does not state its {fact}"):
        made(scored, trained, manifest)
