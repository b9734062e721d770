"""The worst answers about rows that a person can read, as a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.prepared import Rows

SHOWN = 50
MOST = 500
"""Characters of a row that are shown."""


def table(probabilities: np.ndarray, rows: Rows, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The wrong rows that were surest, as the network read them; none where rows are no texts."""
    target, predicted = np.asarray(rows.target), probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != target)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:SHOWN]
    told = []
    for row in worst:
        text = rows.seen(row)
        if not isinstance(text, str):
            return []
        told.append(
            {
                "actual": labels[target[row]],
                "predicted": labels[predicted[row]],
                "probability": round(float(probabilities[row, predicted[row]]), 4),
                "text": text[:MOST],
            }
        )
    return told
