"""What the training data and the answers look like in numbers, for a server to notice drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.prepared import Rows

BINS = 32


def profile(
    train: Rows, labels: tuple[str, ...], answers: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Histograms of each input over the training split, and of the answers over the test split.

    `counts[i]` counts what lies in `edges[i] <= x < edges[i + 1]` (the last bin holds its end too).
    """
    return {
        "schema_version": 1,
        "inputs": {name: _histogram(array) for name, array in train.arrays.items()},
        "targets": {
            "labels": list(labels),
            "counts": np.bincount(train.target, minlength=len(labels)).tolist(),
        },
        "predictions": {
            "labels": list(labels),
            "counts": np.bincount(
                answers["probabilities"].argmax(1), minlength=len(labels)
            ).tolist(),
            "confidence": _counts(answers["probabilities"].max(1), np.linspace(0, 1, BINS + 1)),
        },
    }


def _histogram(array: np.ndarray) -> dict[str, list[float]]:
    """Over a fixed range for uint8, else over the range seen; a slice of rows at a time."""
    if array.dtype == np.uint8:
        edges = np.linspace(0, 256, BINS + 1)
    else:
        edges = np.linspace(float(array.min()), float(array.max()), BINS + 1)
    counts = np.zeros(BINS, np.int64)
    for start in range(0, len(array), 1024):
        counts += np.histogram(array[start : start + 1024], edges)[0]
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _counts(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    return {"edges": edges.tolist(), "counts": np.histogram(values, edges)[0].tolist()}
