"""Scores anything that predicts: a torch module, an ONNX Runtime session, a live server."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.prepared import Rows

Predict = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Raw inputs by name `[batch, ...]` -> outputs by name `[batch, ...]`."""

BATCH = 256


def answers(predict: Predict, rows: Rows, batch: int = BATCH) -> dict[str, np.ndarray]:
    """The outputs over a whole split, `batch` rows at a time, in order."""
    parts = [predict(inputs) for inputs, _ in rows.batches(batch)]
    # In plain order: torch's pictures are seen from the side, and safetensors would write them so.
    return {
        name: np.ascontiguousarray(np.concatenate([part[name] for part in parts]))
        for name in parts[0]
    }


def significant(value: float, digits: int = 6) -> float:
    """Rounded so that a report does not change with the last bits of a CPU's arithmetic."""
    return float(f"{value:.{digits}g}")
