"""What is measured of the training rows, a slice of them at a time."""

from __future__ import annotations

import numpy as np

from pipeline import packed
from pipeline.config import Section


class Channel(Section):
    """Mean and standard deviation of one channel over the training split, in the input's units."""

    mean: float
    std: float


Statistics = dict[str, tuple[Channel, ...]]
"""By input."""


LEAST = 1e-37
"""Of a range that means something: by less, a float32 cannot be divided."""


def by_channel(array: np.ndarray, rows: np.ndarray) -> tuple[Channel, ...]:
    """Mean and deviation by last axis over these rows; what is no number (NaN) does not count.

    Of a channel that is one number in all of them the deviation is 0, and not what rounding leaves.
    """
    total, square = np.zeros(array.shape[-1]), np.zeros(array.shape[-1])
    count = np.zeros(array.shape[-1])
    low, high = np.full(array.shape[-1], np.inf), np.full(array.shape[-1], -np.inf)
    for some in packed.slices(rows, 8 * int(np.prod(array.shape[1:]))):
        part = array[some].astype(np.float64).reshape(-1, array.shape[-1])
        known = ~np.isnan(part)
        low = np.fmin(low, np.fmin.reduce(part))
        high = np.fmax(high, np.fmax.reduce(part))
        part = np.where(known, part, 0.0)
        total, square = total + part.sum(0), square + (part**2).sum(0)
        count += known.sum(0)
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
    std[~(high - low > LEAST)] = 0.0
    return tuple(
        Channel(mean=float(f"{m:.9g}"), std=float(f"{s:.9g}"))
        for m, s in zip(mean, std, strict=True)
    )
