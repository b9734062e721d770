"""Handwritten digits: the 1,797 pictures of 8x8 grey levels that scikit-learn carries.

Source: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI
Machine Learning Repository, CC BY 4.0): 32x32 bitmaps of strokes that fill the frame, counted in
4x4 blocks, so 0 to 16. A box filter is that same count, which is how any other picture is read.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np
from pydantic import Field

from pipeline.bundle.decode.image import ImageDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.dataset import DataError, Encoded, RawData, Split

SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


class Config(Section):
    """Nothing is downloaded; `path` only keeps every experiment the same shape."""

    name: str
    path: str = Field(description="what DVC watches: `data/builtin`")
    split: Split = Split()


def load(config: Config, root: Path) -> RawData:
    """All 1,797 rows: `image` uint8 `[1797, 8, 8, 1]`, strokes bright on black, labels '0' to '9'."""
    table = np.loadtxt(
        _file(), delimiter=",", dtype=np.uint8
    )  # 64 counts and the digit, a row each
    counts = table[:, :-1].reshape(-1, 8, 8, 1)
    image = np.round(counts * (255 / 16)).astype(np.uint8)
    decoder = ImageDecoder(height=8, width=8, channels=1, fit="pad", filter="box", trim=True)
    return RawData(
        rows=Encoded.one(
            Input(
                name="image",
                dtype="uint8",
                shape=("batch", 8, 8, 1),
                decoder=decoder,
                units="grey level 0-255, strokes bright on black",
            ),
            image,
        ),
        target=table[:, -1].astype(np.int64),
        labels=tuple("0123456789"),
        source={
            "title": "Optical Recognition of Handwritten Digits, test part, as carried by scikit-learn",
            "licence": "CC BY 4.0",
        },
    )


def _file() -> Path:
    """The table as scikit-learn installs it; found without waking scikit-learn, which takes seconds.

    Raises `DataError` where it is missing or another one.
    """
    found = [f for f in metadata.files("scikit-learn") or () if f.name == "digits.csv.gz"]
    path = Path(str(found[0].locate())) if found else None
    if path is None or not path.is_file():
        raise DataError(
            "digits: the installed scikit-learn lacks digits.csv.gz; install it anew: "
            "pip install --force-reinstall scikit-learn"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise DataError(
            f"digits: {path} is another table than expected: SHA-256 {digest}, expected {SHA256}; "
            "install scikit-learn anew, in a version that pyproject.toml allows"
        )
    return path
