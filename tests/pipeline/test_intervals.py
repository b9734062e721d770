"""Bootstrap intervals: they hold the truth as often as they say, and cost little."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline import intervals as module
from pipeline.intervals import intervals
from pipeline.metrics import METRICS

RANDOM = np.random.default_rng(0)


def score(answers, target):
    return {"accuracy": METRICS["accuracy"](answers["probabilities"], target)}


def answered(rows: int, share: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Answers of which about this share are right."""
    right = RANDOM.random(rows) < share
    return {"probabilities": np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])}, np.zeros(
        rows, int
    )


def test_nineteen_of_twenty_intervals_hold_the_true_figure():
    held = 0
    for _ in range(60):
        low, high = intervals(score, *answered(300, 0.9))["accuracy"]
        held += low <= 0.9 <= high
    assert 50 <= held <= 60


def test_an_interval_follows_from_its_rows_alone():
    answers, target = answered(300, 0.9)
    (low, high), again = (intervals(score, answers, target)["accuracy"] for _ in range(2))
    assert (low, high) == again
    assert low < score(answers, target)["accuracy"] < high
    # Of a share p of n rows the deviation is the root of p (1 - p) / n.
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.09 / 300), rel=0.25)


@pytest.mark.parametrize(("right", "expected"), [(1.0, (0.9591, 1.0)), (0.0, (0.0, 0.0409))])
def test_all_right_is_no_certainty(right, expected):
    """Ninety of ninety: every draw is all right, other rows need not be (Wilson's interval)."""
    answers, target = answered(90, right)
    found = intervals(score, answers, target, counting={"accuracy"})["accuracy"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_few_rows_are_drawn_often_enough():
    """36 of 66 right: with 300 draws the ends were off by two rows."""
    right = np.arange(66) < 36
    answers = {"probabilities": np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])}
    ends = [intervals(score, answers, np.zeros(66, int), seed=n)["accuracy"] for n in range(5)]
    assert np.ptp(ends, axis=0).max() <= 1 / 66 + 1e-3


def test_draws_of_fewer_rows_give_the_same_width(monkeypatch):
    answers, target = answered(4000, 0.9)
    low, high = intervals(score, answers, target)["accuracy"]
    monkeypatch.setattr(module, "MOST_VALUES", module.FEWEST_DRAWS * 2 * 400)
    fewer = intervals(score, answers, target)["accuracy"]
    assert fewer[1] - fewer[0] == pytest.approx(high - low, rel=0.3)
    assert fewer[0] < score(answers, target)["accuracy"] < fewer[1]


def test_the_shipped_experiments_metrics_cost_a_fraction_of_a_second():
    random = np.random.default_rng(0)
    probabilities, target = random.dirichlet(np.ones(10), 359), random.integers(0, 10, 359)
    names = [name for name, metric in METRICS.items() if "class" in metric.of]
    began = time.process_time()
    found = intervals(
        lambda answers, target: {n: METRICS[n](answers["probabilities"], target) for n in names},
        {"probabilities": probabilities},
        target,
    )
    assert time.process_time() - began < 1
    assert set(found) == set(names)
