"""What the training data and the answers look like in numbers, for a server to notice drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline import target
from pipeline.prepared import Rows
from pipeline.target import Target

BINS = 32


def profile(
    train: Rows, taught: Target, answers: Mapping[str, np.ndarray], threshold: float = 0.5
) -> dict[str, Any]:
    """Histograms of each input over the training split, and of the answers over the test split.

    `threshold` is the probability from which a tag holds.
    `counts[i]` counts what lies in `edges[i] <= x < edges[i + 1]` (the last bin holds its end too).
    """
    return {
        "schema_version": 1,
        "inputs": {name: _histogram(array) for name, array in train.arrays.items()},
        "targets": _targets(train.target, taught),
        "predictions": _predictions(taught, answers, threshold),
    }


def _targets(values: np.ndarray, taught: Target) -> dict[str, Any]:
    if taught.kind == "number":
        return _histogram(values)
    return {"labels": list(taught.labels), "counts": list(target.counts(values, taught.labels))}


def _predictions(
    taught: Target, answers: Mapping[str, np.ndarray], threshold: float
) -> dict[str, Any]:
    """Of probabilities how often each label is the answer, and how sure; else of every output."""
    if "probabilities" not in answers:
        return {name: _histogram(answer) for name, answer in answers.items()}
    probabilities = answers["probabilities"]
    said = np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(1)]
    if taught.kind == "tags":
        said = probabilities >= np.float32(threshold)
    sure = np.where(said, probabilities, 1 - probabilities).max(1)
    if taught.kind == "class":
        sure = probabilities.max(1)
    return {
        "labels": list(taught.labels),
        "counts": said.sum(0).tolist(),
        "confidence": _counts(sure, np.linspace(0, 1, BINS + 1)),
    }


def _histogram(array: np.ndarray) -> dict[str, list[float]]:
    """Over a fixed range for uint8, else over the range seen; a slice of rows at a time.

    What is no number (NaN, a gap) is not counted.
    """
    if array.dtype == np.uint8:
        edges = np.linspace(0, 256, BINS + 1)
    else:
        known = (float(np.nanmin(array)), float(np.nanmax(array)))
        edges = np.linspace(*(known if np.isfinite(known).all() else (0.0, 1.0)), BINS + 1)
    counts = np.zeros(BINS, np.int64)
    for start in range(0, len(array), 1024):
        part = array[start : start + 1024]
        counts += np.histogram(part[~np.isnan(part)] if part.dtype.kind == "f" else part, edges)[0]
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _counts(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    return {"edges": edges.tolist(), "counts": np.histogram(values, edges)[0].tolist()}
