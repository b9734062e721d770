"""How far a figure may lie from what more rows of the same kind would give: bootstrap intervals.

The rows are drawn again, with replacement, a few hundred times (Efron, 1979); of the figures that come
out, the middle 95 % are the interval. The draws follow from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from pipeline.evaluate import significant

LEVEL = 0.95
RESAMPLES = 300
MOST_VALUES = 50_000_000
"""Numbers read in all draws together. Of more, each draw takes fewer rows than there are, and the interval
is narrowed as more rows would narrow it (Bickel, Götze and van Zwet, 1997)."""

Arrays = Mapping[str, np.ndarray]


def intervals(
    score: Callable[[Arrays, np.ndarray], Mapping[str, float]],
    answers: Arrays,
    target: np.ndarray,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """(low, high) of each figure that `score` makes of answers and targets `[rows, ...]`."""
    random = np.random.default_rng(seed)
    count = len(target)
    width = max(math.prod(array.shape[1:]) for array in answers.values())
    rows = min(count, max(1, MOST_VALUES // (RESAMPLES * max(1, width))))
    drawn = [
        score(_Drawn(answers, chosen), target[chosen])
        for chosen in (random.integers(0, count, rows) for _ in range(RESAMPLES))
    ]
    whole = score(answers, target)
    return {name: _middle([d[name] for d in drawn], whole[name], rows / count) for name in whole}


def _middle(values: list[float], whole: float, share: float) -> tuple[float, float]:
    """The middle of the figures; of draws of a share of the rows, around the figure of all of them."""
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    if share < 1:
        centre = float(np.mean(values))
        low, high = (whole + math.sqrt(share) * (end - centre) for end in (low, high))
    return significant(float(low), 4), significant(float(high), 4)


class _Drawn(Mapping[str, np.ndarray]):
    """Some rows of the answers, taken when they are asked for and kept: not every output is scored."""

    def __init__(self, answers: Arrays, rows: np.ndarray) -> None:
        self._answers, self._rows = answers, rows
        self._taken: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._taken:
            self._taken[name] = self._answers[name][self._rows]
        return self._taken[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)
