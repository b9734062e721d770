"""Metrics: numpy in, float out. A metric is one function; experiments name it.

Each takes an answer and the target over the same rows. Of classes, `probabilities` float
`[rows, classes]` and `target` int64 `[rows]`. `@metric` says of which kind of target it is, which way
is better, and how nearly two runtimes must agree on it: a metric that only counts rows must be equal,
a smooth one close, a binned one within the weight of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.config import ConfigError, suggestion
from pipeline.target import Kind

CALIBRATION_BINS = 15


Score = Callable[[np.ndarray, np.ndarray], float]
Better = Literal["higher", "lower"]
Agreement = Literal["equal", "close", "one row"]


@dataclass(frozen=True)
class Metric:
    """A function with what else must be known of it."""

    function: Score
    of: Kind
    better: Better
    agreement: Agreement

    def __call__(self, answer: np.ndarray, target: np.ndarray) -> float:
        return self.function(answer, target)

    def tolerance(self, rows: int) -> float:
        """How far two runtimes may lie apart over `rows` rows."""
        return {"equal": 0.0, "close": 1e-6, "one row": 1 / rows}[self.agreement]


METRICS: dict[str, Metric] = {}


def metric(of: Kind, better: Better, agreement: Agreement) -> Callable[[Score], Score]:
    """Enter a function under its own name."""

    def enter(function: Score) -> Score:
        METRICS[function.__name__] = Metric(function, of, better, agreement)
        return function

    return enter


@metric("class", better="higher", agreement="equal")
def accuracy(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Share of rows whose likeliest class is the target."""
    return float((probabilities.argmax(1) == target).mean())


@metric("class", better="higher", agreement="equal")
def balanced_accuracy(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Mean over the classes of the share of their rows found (recall)."""
    matrix = confusion(probabilities, target)
    present = matrix.sum(1) > 0
    return float((matrix.diagonal()[present] / matrix.sum(1)[present]).mean())


@metric("class", better="higher", agreement="equal")
def macro_f1(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Mean over the classes of F1, the harmonic mean of precision and recall."""
    matrix = confusion(probabilities, target)
    either = matrix.sum(0) + matrix.sum(1)
    return float((2 * matrix.diagonal() / np.maximum(either, 1))[either > 0].mean())


@metric("class", better="lower", agreement="close")
def log_loss(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Mean negative log probability of the target, in nats; clipped at 1e-12."""
    chosen = probabilities[np.arange(len(target)), target].astype(np.float64)
    return float(-np.log(np.clip(chosen, 1e-12, 1)).mean())


@metric("class", better="lower", agreement="one row")
def calibration_error(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., 2015): |accuracy - confidence| over 15 equal bins."""
    return float(
        sum(
            weight * abs(right - sure) for weight, sure, right in reliability(probabilities, target)
        )
    )


def check_names(names: Iterable[str], of: Kind | None, path: str) -> None:
    """Raise `ConfigError` for a metric that there is not, or of another kind of target than `of`.

    `path` is where they were named.
    """
    fitting = [name for name, metric in METRICS.items() if of in (None, metric.of)]
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"{path}: no metric named {name!r}{suggestion(name, fitting)}")
        if name not in fitting:
            raise ConfigError(
                f"{path}: {name} judges a {METRICS[name].of}, and the task teaches a {of}"
                f"{suggestion(name, fitting)}"
            )


def confusion(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Counts int64 `[classes, classes]`: row is the actual class, column the predicted."""
    classes = probabilities.shape[1]
    pairs = target * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def reliability(probabilities: np.ndarray, target: np.ndarray) -> list[tuple[float, float, float]]:
    """By bin of confidence: (share of rows, mean confidence, accuracy); empty bins left out."""
    sure = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == target
    bins = np.minimum((sure * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        (float(inside.mean()), float(sure[inside].mean()), float(right[inside].mean()))
        for b in range(CALIBRATION_BINS)
        if (inside := bins == b).any()
    ]


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate `[points]` from (0, 0) to (1, 1): the corners of the curve."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    misses = np.cumsum(~positive[order])
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits, misses = np.concatenate([[0], hits[last]]), np.concatenate([[0], misses[last]])
    # A point between two others on one straight line tells nothing.
    turn = np.diff(hits)[:-1] * np.diff(misses)[1:] != np.diff(hits)[1:] * np.diff(misses)[:-1]
    corner = np.concatenate([[True], turn, [True]])[: len(hits)]
    return misses[corner] / max(1, (~positive).sum()), hits[corner] / max(1, positive.sum())


def area(false: np.ndarray, true: np.ndarray) -> float:
    """Area under a ROC curve, by trapezoids."""
    return float(np.trapezoid(true, false))
