"""Pictures in one folder per class, of any size, with or without a ready split.

`pipeline/folders/__init__.py` says how the folders are read; a tar archive of them will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.decode import decode
from pipeline.bundle.decode.image import Fit, ImageDecoder
from pipeline.bundle.manifest import Input
from pipeline.dataset import RawData
from pipeline.folders import files, labels, source
from pipeline.folders.found import Found, Kind
from pipeline.folders.source import Source

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
NETPBM = (".pbm", ".pgm", ".pnm", ".ppm")
SUFFIXES = frozenset((*JPEG, *NETPBM, ".bmp", ".dib", ".gif", ".png", ".webp"))
PICTURES = Kind("picture", SUFFIXES)


class Config(files.Settings):
    """Where the pictures lie, and the one size that they are brought to."""

    path: str = Field(
        description="the folder, or tar, of the folders of classes, or of the split's"
    )
    height: int = Field(ge=4, le=4096, description="pixels; every picture is brought to it")
    width: int = Field(ge=4, le=4096, description="pixels; every picture is brought to it")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: RGB")
    fit: Fit = Fit()
    title: str = Field("Pictures in folders", description="what the data is, for the model card")

    @model_validator(mode="after")
    def _room(self) -> Config:
        if 2 * self.fit.margin >= min(self.height, self.width):
            raise ValueError(f"fit.margin: {self.fit.margin} pixels on each side leave nothing")
        return self


def look(config: Config, root: Path) -> None:
    """Raises `DataError` listing what is wrong with the folder, told from its names alone."""
    scan(root / config.path)


def load(config: Config, root: Path) -> RawData:
    """Every picture of the folder: `image` uint8 `[rows, height, width, channels]`, streamed.

    Raises `DataError` that lists what is wrong with the folder by file. What is wrong inside the
    files is listed by the stream, once it has tried them all; at once where the folder is at fault.
    """
    found_in = _source(root / config.path)
    decoder = ImageDecoder(
        height=config.height,
        width=config.width,
        channels=config.channels,
        **config.fit.model_dump(),
    )
    declared = Input(
        name="image",
        dtype="uint8",
        shape=("batch", *decoder.row),
        decoder=decoder,
        units="grey level 0-255" if config.channels == 1 else "RGB level 0-255",
    )
    return files.Files(
        found_in,
        PICTURES,
        look=lambda: labels.by_folder(found_in, PICTURES),
        rows=lambda places: _rows(decoder, found_in, places),
        declared=declared,
    ).load(config)


def scan(path: Path) -> Found:
    """The classes and pictures below a folder, looked at by name only. Raises `DataError`."""
    return labels.by_folder(_source(path), PICTURES)


def _source(path: Path) -> Source:
    return source.find(path, "a folder with one folder of pictures for each class, or a tar of it")


def _rows(decoder: ImageDecoder, found_in: Source, places: Sequence[str]) -> Iterator[np.ndarray]:
    """The pictures that can be read, those that show nothing told. Raises `DataError`."""
    empty = []
    for place, row in files.decoded(found_in, places, lambda payload: decode(decoder, payload)):
        if row.max() == row.min():
            empty.append(place)
        yield row
    if len(empty) > 1:
        print(
            f"warning: {found_in.path}: {len(empty)} pictures show nothing once they are read ({empty[0]}, "
            "...), so they are all alike. What is transparent counts as black, on which dark strokes are "
            "lost: save such pictures on white",
            flush=True,
        )
