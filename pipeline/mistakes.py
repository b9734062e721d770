"""The worst answers about rows that a person can read, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.bundle.decode import Decoder, encode

SHOWN = 50
READABLE = ".txt"
MOST = 500
"""Characters of a row that are shown."""


def table(
    probabilities: np.ndarray,
    target: np.ndarray,
    labels: tuple[str, ...],
    rows: np.ndarray,
    decoder: Decoder,
    files: Mapping[str, bytes],
) -> list[dict[str, Any]]:
    """The wrong rows that were surest, as the network read them; none where rows are no texts.

    `rows` are one input's, `[rows, ...]`, and `decoder` what wrote them with a bundle's `files`.
    """
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != target)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:SHOWN]
    told = []
    for row in worst:
        suffix, text = encode(decoder, np.array(rows[row]), files)
        if suffix != READABLE:
            return []
        told.append(
            {
                "actual": labels[target[row]],
                "predicted": labels[predicted[row]],
                "probability": round(float(probabilities[row, predicted[row]]), 4),
                "text": text.decode()[:MOST],
            }
        )
    return told
