"""What the tasks teach, ship and write: a number, several labels, and classes that count differently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline import plugins
from pipeline.config import ConfigError
from pipeline.metrics import METRICS
from pipeline.prepared import Rows
from pipeline.target import Target

RANDOM = np.random.default_rng(0)
NUMBER = Target(kind="number", mean=2e5, std=1e5, units="dollars")
TAGS = Target(kind="tags", labels=tuple("abc"), rows=(5, 10, 20))
CLASSES = Target(kind="class", labels=tuple("abc"), rows=(10, 20, 70))


def task(name: str, target: Target, **settings: Any) -> Any:
    module = plugins.load("task", name, "task.name")
    return module.Task(module.Config(name=name, **settings), target, ())


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
def test_what_stopping_looks_at_is_what_a_regression_is_taught(loss):
    taught = task("regression", NUMBER, loss=loss, huber_delta=0.7)
    actual = RANDOM.uniform(0, 5e5, 50).astype(np.float32)
    standard = torch.randn(50, 1)
    answers = {"prediction": (standard[:, 0] * 1e5 + 2e5).numpy()}
    expected = float(taught.loss(standard, torch.from_numpy(actual)))
    assert taught.plain_loss(answers, actual) == pytest.approx(expected, rel=1e-5)


def test_a_regression_answers_in_the_targets_units():
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1, 1))

        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            return self.one.expand(len(raw), 1)

    taught = task("regression", NUMBER)
    (answer,) = taught.deployable(Constant())(torch.zeros(4, 2))
    assert answer.tolist() == [3e5] * 4
    (output,) = taught.declared()
    assert (output.name, output.shape, output.units) == ("prediction", ("batch",), "dollars")
    # Where nothing was said of them, no answer speaks of units.
    assert task("regression", NUMBER.model_copy(update={"units": ""})).declared()[0].units == ""


def test_metrics_of_numbers_are_scikit_learns():
    from sklearn import metrics as reference

    actual, said = RANDOM.normal(5e5, 1e5, (2, 200)).astype(np.float32)
    for name, expected in (
        ("r2", reference.r2_score(actual, said)),
        ("rmse", reference.root_mean_squared_error(actual, said)),
        ("mae", reference.mean_absolute_error(actual, said)),
        ("median_absolute_error", reference.median_absolute_error(actual, said)),
    ):
        assert METRICS[name](said, actual) == pytest.approx(expected, rel=1e-6), name
    # What parity may let pass in a prediction, a tenth of it in its metrics.
    assert METRICS["rmse"].tolerance(actual) == pytest.approx(1e-6 * actual.max(), rel=1e-6)
    assert METRICS["r2"].tolerance(actual) < 1e-4


def test_metrics_of_tags_are_scikit_learns_at_the_threshold():
    from sklearn import metrics as reference

    actual = RANDOM.random((200, 3)) < 0.3
    logits = (RANDOM.normal(0, 1, (200, 3)) + 2 * actual).round(1).astype(np.float32)  # with ties
    probabilities = 1 / (1 + np.exp(-logits))
    taught = task("multilabel", TAGS, threshold=0.4)
    names = ["macro_f1", "micro_f1", "exact_match", "mean_average_precision", "roc_auc", "log_loss"]
    answers = {"logits": logits, "probabilities": probabilities}
    scores = taught.scores(answers, actual, names)
    held = probabilities >= 0.4
    expected = (
        reference.f1_score(actual, held, average="macro"),
        reference.f1_score(actual, held, average="micro"),
        reference.accuracy_score(actual, held),
        reference.average_precision_score(actual, logits),
        reference.roc_auc_score(actual, logits),
        np.mean([reference.log_loss(actual[:, i], probabilities[:, i]) for i in range(3)]),
    )
    assert list(scores.values()) == pytest.approx(expected, rel=1e-6)
    assert taught.declared()[1].threshold == 0.4
    table = taught.tables(answers, actual)["labels"]
    assert [row["f1"] for row in table] == pytest.approx(
        list(reference.f1_score(actual, held, average=None))
    )
    assert {"labels.svg", "roc.svg"} == set(taught.pictures(answers, Rows({}, actual)))


def test_positive_weights_count_a_label_more():
    logits, rows = torch.zeros(1, 3), torch.tensor([[True, False, False]])
    plain = float(task("multilabel", TAGS).loss(logits, rows))
    more = float(task("multilabel", TAGS, positive_weights={"a": 4.0}).loss(logits, rows))
    assert more == pytest.approx(plain * 2)
    assert plain == pytest.approx(float(np.log(2)))


def test_balanced_classes_count_the_same_and_focal_turns_to_what_is_hard():
    logits, rows = torch.tensor([[3.0, 0.0, 0.0]] * 2), torch.tensor([0, 2])
    balanced = task("classification", CLASSES, class_weights="balanced")
    named = task("classification", CLASSES, class_weights={"a": 7.0})
    wanted = torch.nn.functional.cross_entropy(logits, rows, weight=torch.tensor([7.0, 1.0, 1.0]))
    assert float(named.loss(logits, rows)) == pytest.approx(float(wanted))
    assert float(balanced.loss(logits, rows)) == pytest.approx(float(wanted))  # 100/30 : 100/210
    plain, focal = (
        float(task("classification", CLASSES, loss=loss).loss(logits[:1], rows[:1]))
        for loss in ("cross_entropy", "focal")
    )
    sure = float(logits[0].softmax(0)[0])
    assert focal == pytest.approx(plain * (1 - sure) ** 2)


@pytest.mark.parametrize(
    ("name", "target", "settings", "told"),
    [
        ("regression", CLASSES, {}, "teaches a number, and the data's target is a class"),
        ("multilabel", TAGS, {"positive_weights": {"d": 2.0}}, "positive_weights.d: no such label"),
        ("multilabel", TAGS, {"positive_weights": {"a": 0.0}}, "expected a number greater than 0"),
        (
            "classification",
            CLASSES,
            {"class_weights": {"A": 2.0}},
            "class_weights.A: no such label",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(name, target, settings, told):
    with pytest.raises(ConfigError) as caught:
        task(name, target, **settings)
    assert told in str(caught.value)


def test_pictures_and_tables_of_a_regression_hold_rows_of_the_whole_range():
    taught = task("regression", NUMBER)
    actual = np.arange(5000, dtype=np.float32)
    answers = {"prediction": actual + 1}
    rows = taught.tables(answers, actual)["residuals"]
    assert len(rows) == 2000 and {row["residual"] for row in rows} == {1.0}
    drawn = taught.pictures(answers, Rows({}, actual))
    assert drawn == taught.pictures(answers, Rows({}, actual))
    assert set(drawn) == {"predictions.png", "residuals.png"}


def test_each_task_says_which_answers_are_looked_into_and_what_speaks_for_them():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 5.0]])
    sure = logits.softmax(1).numpy()
    taught = task("classification", CLASSES)
    wrong, right = taught.cases({"probabilities": sure}, np.array([1, 2]))
    assert (wrong.row, wrong.output, wrong.right) == (0, 0, False)
    assert wrong.told == "b \u2192 a, p = 0.67" and right.told == "c \u2192 c, p = 0.99"
    odds = sure[:, 0] / (1 - sure[:, 0])
    assert taught.strength(logits, 0).numpy() == pytest.approx(np.log(odds), abs=1e-5)
    assert taught.strength(logits + 7, 0).numpy() == pytest.approx(np.log(odds), abs=1e-5)

    taught = task("multilabel", TAGS)
    held = np.array([[False, True, True], [False, False, True]])
    wrong, right = taught.cases({"probabilities": torch.sigmoid(logits).numpy()}, held)
    assert wrong.told == "b + c \u2192 a, p = 0.88" and right.output == 2 and right.right
    assert torch.equal(taught.strength(logits, 1), logits[:, 1])

    taught = task("regression", NUMBER)
    actual = np.arange(40, dtype=np.float32)
    said = actual + np.where(actual == 7, -20, actual % 4 / 10).astype(np.float32)
    cases = taught.cases({"prediction": said}, actual)
    assert cases[0].row == 7 and cases[0].told == "actual 7 \u2192 predicted -13"
    assert [case.row for case in cases if case.right] == [0, 12, 20, 32]
    assert taught.strength(torch.zeros(2, 1), 0).tolist() == pytest.approx([NUMBER.mean] * 2)
    assert taught.mistakes({"prediction": said}, Rows({}, actual)) == []
