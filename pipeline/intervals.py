"""How far a figure may lie from what more rows of the same kind would give: bootstrap intervals.

The rows are drawn again, with replacement, a few hundred or thousand times (Efron, 1979); of the figures
that come out, the middle 95 % are the interval. The draws follow from a fixed seed. Where every row was
right, every draw is too, which says nothing of other rows: there it is Wilson's interval (1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping

import numpy as np

from pipeline.evaluate import significant

LEVEL = 0.95
DEVIATIONS = 1.959964
"""Of a normal distribution, to either side, for that level."""

FEWEST_DRAWS, MOST_DRAWS = 300, 2000
"""More where they are cheap: few rows make an end of the interval jump by whole rows."""

MOST_VALUES = 50_000_000
"""Numbers read in all draws together. Of more, each of the fewest draws takes fewer rows than there are,
and the interval is narrowed as more rows would narrow it (Bickel, Götze and van Zwet, 1997)."""

Arrays = Mapping[str, np.ndarray]


def intervals(
    score: Callable[[Arrays, np.ndarray], Mapping[str, float]],
    answers: Arrays,
    target: np.ndarray,
    counting: Container[str] = (),
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """(low, high) of each figure that `score` makes of answers and targets `[rows, ...]`.

    Figures named in `counting` only count rows, from 0, none right, to 1, all of them.
    """
    random = np.random.default_rng(seed)
    count = len(target)
    width = max(math.prod(array.shape[1:]) for array in answers.values())
    values = max(1, count * width)
    draws = max(FEWEST_DRAWS, min(MOST_DRAWS, MOST_VALUES // values))
    rows = max(1, min(count, count * MOST_VALUES // (draws * values)))
    drawn = [
        score(_Drawn(answers, chosen), target[chosen])
        for chosen in (random.integers(0, count, rows) for _ in range(draws))
    ]
    whole = score(answers, target)
    return {
        name: _all_alike(figure, count)
        if name in counting and figure in (0.0, 1.0)
        else _middle([d[name] for d in drawn], figure, rows / count)
        for name, figure in whole.items()
    }


def _all_alike(figure: float, rows: int) -> tuple[float, float]:
    """Wilson's interval of a share of 0 or 1."""
    unseen = significant(DEVIATIONS**2 / (rows + DEVIATIONS**2), 4)
    return (1 - unseen, 1.0) if figure else (0.0, unseen)


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
