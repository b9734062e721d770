"""Which rows are looked into: the worst mistakes, and right answers of every sort."""

from __future__ import annotations

import numpy as np

CASES, WRONG = 8, 4


def chosen(right: np.ndarray, sure: np.ndarray, sort: np.ndarray) -> list[int]:
    """Rows, the wrong ones first, each surest first; of the right ones, the surest of each sort.

    All are `[rows]`: whether the answer is right, how sure it is, and a number for its sort. Where there
    are more sorts than places, they are taken evenly.
    """
    wrong = np.flatnonzero(~right)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")][:WRONG]
    good = np.flatnonzero(right)
    good = good[np.lexsort((good, -sure[good], sort[good]))]
    # A row's place among those of its sort: 0 the surest.
    first = np.searchsorted(sort[good], sort[good])
    place = np.arange(len(good)) - first
    good = good[np.argsort(place, kind="stable")]
    places, sorts = CASES - len(wrong), int((place == 0).sum())
    if sorts > places:
        good = good[np.linspace(0, sorts - 1, places).round().astype(int)]
    return [*wrong.tolist(), *good[:places].tolist()]


def number(value: float) -> str:
    """A number as people write it, to about three digits."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
