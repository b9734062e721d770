"""Handwritten digits: the 1,797 pictures of 8x8 grey levels that scikit-learn carries.

Source: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI
Machine Learning Repository, CC BY 4.0): 32x32 bitmaps of strokes that fill the frame, counted in
4x4 blocks, so 0 to 16. A box filter is that same count, which is how any other picture is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from pipeline.bundle.decode import ImageDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.prepared import RawData, Split


class Config(Section):
    """Nothing is downloaded; `path` only keeps every experiment the same shape."""

    name: str
    path: str = Field(description="what DVC watches: `data/builtin`")
    split: Split = Split()


def load(config: Config, root: Path) -> RawData:
    """All 1,797 rows: `image` uint8 `[1797, 8, 8, 1]`, strokes bright on black, labels '0' to '9'."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    decoder = ImageDecoder(height=8, width=8, channels=1, fit="pad", filter="box", trim=True)
    return RawData(
        inputs=(
            Input(
                name="image",
                dtype="uint8",
                shape=("batch", 8, 8, 1),
                decoder=decoder,
                units="grey level 0-255, strokes bright on black",
            ),
        ),
        arrays={"image": image},
        target=digits.target.astype(np.int64),
        labels=tuple("0123456789"),
        source={
            "title": "Optical Recognition of Handwritten Digits, test part, as carried by scikit-learn",
            "licence": "CC BY 4.0",
        },
    )
