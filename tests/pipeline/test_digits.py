"""The digits that scikit-learn carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data import digits


def test_digits_are_1797_pictures_of_every_label():
    raw = digits.load(digits.Config(name="digits", path="data/builtin"), Path())
    image = raw.rows.arrays["image"]
    assert image.shape == (1797, 8, 8, 1) and image.dtype == np.uint8
    assert image.min() == 0 and image.max() == 255
    assert raw.labels == tuple("0123456789")
    assert np.bincount(raw.target).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert raw.given_test is None
    assert raw.source["title"] and raw.source["licence"] == "CC BY 4.0"


def test_strokes_are_bright_on_black():
    raw = digits.load(digits.Config(name="digits", path="data/builtin"), Path())
    corners = raw.rows.arrays["image"][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < raw.rows.arrays["image"].mean() / 3
