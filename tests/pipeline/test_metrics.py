"""Every metric against another implementation of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.config import ConfigError
from pipeline.metrics import METRICS


@st.composite
def answers(draw) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities `[rows, classes]`, target `[rows]`), sure or unsure, right or wrong."""
    rows, classes = draw(st.integers(2, 80)), draw(st.integers(2, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = random.integers(0, classes, rows)
    logits = random.normal(0, draw(st.sampled_from([0.1, 1, 5])), (rows, classes))
    logits[np.arange(rows), target] += draw(st.sampled_from([-1, 0, 3]))
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True), target


@given(answers())
def test_accuracies_and_f1_are_scikit_learns(given_answers):
    import warnings

    from sklearn import metrics as reference

    probabilities, target = given_answers
    predicted = probabilities.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted but never the target
        expected = {
            "accuracy": reference.accuracy_score(target, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(target, predicted),
            "macro_f1": reference.f1_score(target, predicted, average="macro", zero_division=0),
        }
    for name, value in expected.items():
        assert METRICS[name](probabilities, target) == pytest.approx(value, abs=1e-12), name


@given(answers())
def test_log_loss_and_confusion_are_scikit_learns(given_answers):
    from sklearn import metrics as reference

    probabilities, target = given_answers
    assume(probabilities.min() > 1e-11)  # below, each clips where it likes
    classes = np.arange(probabilities.shape[1])
    expected = reference.log_loss(target, probabilities, labels=classes)
    assert METRICS["log_loss"](probabilities, target) == pytest.approx(expected, rel=1e-9)
    matrix = reference.confusion_matrix(target, probabilities.argmax(1), labels=classes)
    np.testing.assert_array_equal(metrics.confusion(probabilities, target), matrix)


def test_a_wrong_certainty_costs_much_but_not_everything():
    sure = np.array([[1.0, 0.0]])
    assert METRICS["log_loss"](sure, np.array([1])) == pytest.approx(-math.log(1e-12))
    assert METRICS["log_loss"](sure, np.array([0])) == 0


@given(
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=60),
    seed=st.integers(0, 2**32),
)
def test_roc_and_its_area_are_scikit_learns_with_ties(scores, seed):
    from sklearn import metrics as reference

    positive = np.random.default_rng(seed).random(len(scores)) < 0.4
    positive[:2] = True, False
    false, true = metrics.roc(np.array(scores), positive)
    assert metrics.area(false, true) == pytest.approx(
        reference.roc_auc_score(positive, scores), abs=1e-12
    )
    expected = reference.roc_curve(positive, scores, drop_intermediate=False)
    points = set(zip(expected[0], expected[1], strict=True))
    assert set(zip(false, true, strict=True)) <= points
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def plain_calibration_error(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Bin by bin, row by row."""
    total = 0.0
    for low in range(15):
        inside = [
            (max(row), int(np.argmax(row)) == label)
            for row, label in zip(probabilities.tolist(), target, strict=True)
            if low / 15 <= max(row) < (low + 1) / 15 or (low == 14 and max(row) == 1)
        ]
        if inside:
            sure = sum(s for s, _ in inside) / len(inside)
            right = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(target) * abs(sure - right)
    return total


@given(answers())
def test_calibration_error_is_the_textbooks(given_answers):
    expected = plain_calibration_error(*given_answers)
    assert METRICS["calibration_error"](*given_answers) == pytest.approx(expected, abs=1e-9)


def test_certain_and_right_is_calibrated():
    assert METRICS["calibration_error"](np.eye(4), np.arange(4)) == 0
    assert METRICS["calibration_error"](np.eye(4), (np.arange(4) + 1) % 4) == 1


@given(answers())
def test_float32_answers_score_nearly_the_same(given_answers):
    probabilities, target = given_answers
    for name in ("log_loss", "calibration_error"):
        close = METRICS[name](probabilities.astype(np.float32), target)
        assert close == pytest.approx(
            METRICS[name](probabilities, target), abs=1e-4 + 1 / len(target)
        )


def test_every_metric_says_which_way_is_better_and_how_far_two_runtimes_may_part():
    right = np.eye(3)
    wrong = np.roll(right, 1, axis=1)
    cases = {
        "class": (right, wrong, np.arange(3)),
        "tags": (20 * right - 10, 20 * wrong - 10, right == 1),
        "number": (np.arange(3.0), np.arange(3.0)[::-1], np.arange(3.0)),
    }
    for name, metric in METRICS.items():
        sign = 1 if metric.better == "higher" else -1
        for kind in metric.of:
            good, bad, target = cases[kind]
            assert sign * metric(good, target) > sign * metric(bad, target), name
            assert metric.tolerance(target) >= 0
            assert isinstance(metric(good, target), float) and metric.function.__doc__
    assert METRICS["accuracy"].tolerance(np.zeros(100, int)) == 0
    assert METRICS["calibration_error"].tolerance(np.zeros(100, int)) == 0.01


def test_an_unknown_metric_is_refused_with_its_place():
    with pytest.raises(
        ConfigError, match=r"x\.metrics: no metric named 'acuracy', did you mean 'accuracy'"
    ):
        metrics.check_names(["log_loss", "acuracy"], "class", "x.metrics")
