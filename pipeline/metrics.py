"""Metrics: numpy in, float out. A metric is one function; experiments name it.

Each takes an answer and the target over the same rows. Of classes, `probabilities` float
`[rows, classes]` and `target` int64 `[rows]`; of tags, `logits` float `[rows, labels]` (probabilities near
1 are too coarse to rank or take logarithms of), or bool where it is decided which labels hold, and
`target` bool `[rows, labels]`; of numbers, `prediction` and `target` float `[rows]`.

`@metric` says of which kinds of target it is, which way is better, and how nearly two runtimes must
agree on it:

    equal          it only counts rows
    close          smooth in probabilities
    one row        binned or ranked: within the weight of one row
    in units       as near as their predictions, a tenth of what parity allows these
    in deviations  the same, as a share of the target's deviation
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
Agreement = Literal["equal", "close", "one row", "in units", "in deviations"]
CLOSE = 1e-6


@dataclass(frozen=True)
class Metric:
    """A function with what else must be known of it."""

    function: Score
    of: tuple[Kind, ...]
    better: Better
    agreement: Agreement

    def __call__(self, answer: np.ndarray, target: np.ndarray) -> float:
        return self.function(answer, target)

    def tolerance(self, target: np.ndarray) -> float:
        """How far two runtimes may lie apart over these rows."""
        match self.agreement:
            case "equal":
                return 0.0
            case "close":
                return CLOSE
            case "one row":
                return 1 / len(target)
            case "in units":
                return CLOSE * max(1.0, float(np.abs(target).max()))
        spread = float(target.astype(np.float64).std()) or 1.0
        return 2 * CLOSE * max(1.0, float(np.abs(target).max())) / spread


METRICS: dict[str, Metric] = {}


def metric(*of: Kind, better: Better, agreement: Agreement) -> Callable[[Score], Score]:
    """Enter a function under its own name, for targets of these kinds."""

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


@metric("class", "tags", better="higher", agreement="equal")
def macro_f1(answer: np.ndarray, target: np.ndarray) -> float:
    """Mean over the labels of F1, the harmonic mean of precision and recall."""
    found, either = _hits(answer, target)
    return float((2 * found / np.maximum(either, 1))[either > 0].mean()) if either.any() else 0.0


@metric("tags", better="higher", agreement="equal")
def micro_f1(logits: np.ndarray, target: np.ndarray) -> float:
    """F1 over all decisions at once, so that common labels count for more."""
    found, either = _hits(logits, target)
    return float(2 * found.sum() / max(1, either.sum()))


@metric("tags", better="higher", agreement="equal")
def exact_match(logits: np.ndarray, target: np.ndarray) -> float:
    """Share of rows whose labels are all found and no other."""
    return float((_decided(logits) == target).all(1).mean())


@metric("tags", better="higher", agreement="one row")
def mean_average_precision(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean over the labels of the area under precision against recall, by steps."""
    return _mean(average_precision, logits, target)


@metric("tags", better="higher", agreement="one row")
def roc_auc(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean over the labels of the area under the ROC curve."""
    return _mean(lambda scores, positive: area(*roc(scores, positive)), logits, target)


@metric("class", better="higher", agreement="equal")
def f1(probabilities: np.ndarray, target: np.ndarray) -> float:
    """F1 of the rarest class, usually the one that is looked for."""
    matrix = confusion(probabilities, target)
    rows = matrix.sum(1)
    rare = int(np.where(rows > 0, rows, len(target) + 1).argmin())
    return float(2 * matrix[rare, rare] / max(1, rows[rare] + matrix[:, rare].sum()))


@metric("class", "tags", better="lower", agreement="close")
def log_loss(answer: np.ndarray, target: np.ndarray) -> float:
    """Mean negative log probability of the target, in nats; of tags, over all labels."""
    if target.ndim == 2:
        wrong = np.where(target, -answer.astype(np.float64), answer.astype(np.float64))
        return float(np.logaddexp(0, wrong).mean())
    chosen = answer[np.arange(len(target)), target].astype(np.float64)
    return float(-np.log(np.clip(chosen, 1e-12, 1)).mean())


@metric("class", better="lower", agreement="one row")
def calibration_error(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., 2015): |accuracy - confidence| over 15 equal bins."""
    return float(
        sum(
            weight * abs(right - sure) for weight, sure, right in reliability(probabilities, target)
        )
    )


@metric("number", better="higher", agreement="in deviations")
def r2(prediction: np.ndarray, target: np.ndarray) -> float:
    """Share of the target's variance that is explained: 1 is perfect, 0 no better than the mean."""
    actual = target.astype(np.float64)
    spread = ((actual - actual.mean()) ** 2).sum()
    return float(1 - (_errors(prediction, target) ** 2).sum() / spread) if spread else 0.0


@metric("number", better="lower", agreement="in units")
def rmse(prediction: np.ndarray, target: np.ndarray) -> float:
    """Root of the mean squared error, in the target's units."""
    return float(np.sqrt((_errors(prediction, target) ** 2).mean()))


@metric("number", better="lower", agreement="in units")
def mae(prediction: np.ndarray, target: np.ndarray) -> float:
    """Mean absolute error, in the target's units."""
    return float(np.abs(_errors(prediction, target)).mean())


@metric("number", better="lower", agreement="in units")
def median_absolute_error(prediction: np.ndarray, target: np.ndarray) -> float:
    """Half of the predictions are nearer than this, in the target's units."""
    return float(np.median(np.abs(_errors(prediction, target))))


def check_names(names: Iterable[str], of: Kind | None, path: str) -> None:
    """Raise `ConfigError` for a metric that there is not, or of another kind of target than `of`.

    `path` is where they were named.
    """
    fitting = [name for name, metric in METRICS.items() if of is None or of in metric.of]
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"{path}: no metric named {name!r}{suggestion(name, fitting)}")
        if name not in fitting:
            raise ConfigError(
                f"{path}: {name} judges a {' or '.join(METRICS[name].of)}, and the task teaches a {of}"
                f"{suggestion(name, fitting)}"
            )


def confusion(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Counts int64 `[classes, classes]`: row is the actual class, column the predicted."""
    classes = probabilities.shape[1]
    pairs = target * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under precision against recall, by steps, of one label."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # equal scores are one step
    precision, recall = hits[last] / (last + 1), hits[last] / max(1, hits[-1])
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _decided(answer: np.ndarray) -> np.ndarray:
    return answer if answer.dtype == np.bool_ else answer >= 0


def _hits(answer: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By label: rows found rightly, and rows that have it plus rows said to have it."""
    if target.ndim == 1:
        matrix = confusion(answer, target)
        return matrix.diagonal(), matrix.sum(0) + matrix.sum(1)
    said = _decided(answer)
    return (said & target).sum(0), said.sum(0) + target.sum(0)


def _mean(score: Score, logits: np.ndarray, target: np.ndarray) -> float:
    """A score's mean over the labels that some rows have and some lack; half where there are none."""
    mixed = np.flatnonzero(target.any(0) & ~target.all(0))
    scores = [score(logits[:, label], target[:, label]) for label in mixed]
    return float(np.mean(scores)) if scores else 0.5


def _errors(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    return prediction.astype(np.float64) - target.astype(np.float64)


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
