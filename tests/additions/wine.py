"""Wine: 178 wines of three growers and thirteen measurements of each, as scikit-learn carries them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from pipeline.bundle.decode.numeric import NumericDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.dataset import Encoded, RawData, Split
from pipeline.frontends import columns


class Config(Section):
    """Nothing is downloaded."""

    name: str
    path: str = Field(description="what DVC watches: `data/builtin`")
    split: Split = Split()


def load(config: Config, root: Path) -> RawData:
    """All rows: `numeric` float32 `[178, 13]`, labels by grower."""
    from sklearn.datasets import load_wine

    wine = load_wine()
    decoder = NumericDecoder(columns=tuple(wine.feature_names))
    numeric = Input(
        name="numeric",
        dtype="float32",
        shape=("batch", *decoder.row),
        decoder=decoder,
        units="measurements of a wine",
    )
    return RawData(
        rows=Encoded.one(numeric, wine.data.astype(np.float32)),
        target=wine.target.astype(np.int64),
        labels=tuple(f"grower {number + 1}" for number in range(3)),
        frontend=columns.Config(name="columns"),
        source={"title": "Wine recognition (UCI)", "licence": "CC BY 4.0"},
    )
