"""Pictures in one folder per class, of any size, with or without a ready split.

`pipeline/folders.py` says how the folders are read; a tar archive of them will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline import folders
from pipeline.bundle.decode import DecodeError, decode
from pipeline.bundle.decode.image import Fit, ImageDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.dataset import Encoded, RawData, Split, Stream, listed
from pipeline.folders import Found, Kind, Source

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
NETPBM = (".pbm", ".pgm", ".pnm", ".ppm")
SUFFIXES = frozenset((*JPEG, *NETPBM, ".bmp", ".dib", ".gif", ".png", ".webp"))
PICTURES = Kind("picture", SUFFIXES)


class Config(Section):
    """Where the pictures lie, and the one size that they are brought to."""

    name: str
    path: str = Field(
        description="the folder, or tar, of the folders of classes, or of the split's"
    )
    height: int = Field(ge=4, le=4096, description="pixels; every picture is brought to it")
    width: int = Field(ge=4, le=4096, description="pixels; every picture is brought to it")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: RGB")
    fit: Fit = Fit()
    test_files: tuple[str, ...] = Field(
        (),
        description="patterns (`9.*`, `street-*`) of file names that are the test set, "
        "where no folder is",
    )
    validation_files: tuple[str, ...] = Field((), description="the same for the validation set")
    title: str = Field("Pictures in folders", description="what the data is, for the model card")
    licence: str = Field("not stated", description="under what terms, for the model card")
    split: Split = Split()

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
    found = folders.looked_through(
        lambda: folders.scan(found_in, PICTURES),
        lambda files: _rows(decoder, found_in, files),
        found_in,
        PICTURES,
    )
    if found.passed_over():
        print(f"{config.path}: {found.passed_over()}", flush=True)
    return RawData(
        rows=Encoded.one(
            Input(
                name="image",
                dtype="uint8",
                shape=("batch", *decoder.row),
                decoder=decoder,
                units="grey level 0-255" if config.channels == 1 else "RGB level 0-255",
            ),
            Stream(len(found.files), lambda: _rows(decoder, found_in, found.files)),
        ),
        target=found.target(),
        labels=found.classes,
        given_test=found.given("test", config.test_files),
        given_validation=found.given("validation", config.validation_files),
        files=tuple(found.files),
        sample=folders.sampler(found_in, found),
        source={"title": config.title, "licence": config.licence},
    )


def scan(path: Path) -> Found:
    """The classes and pictures below a folder, looked at by name only. Raises `DataError`."""
    return folders.scan(_source(path), PICTURES)


def _source(path: Path) -> Source:
    return folders.source(
        path, "a folder with one folder of pictures for each class, or a tar of it"
    )


def _rows(decoder: ImageDecoder, found_in: Source, files: Sequence[str]) -> Iterator[np.ndarray]:
    mistakes, empty = [], []
    with found_in.opened() as read:
        for file in files:
            try:
                row = decode(decoder, read(file))
                if row.max() == row.min():
                    empty.append(file)
                yield row
            except (DecodeError, OSError) as error:
                mistakes.append(f"{file}: {error}")
    if mistakes:
        raise listed(mistakes, f"{found_in.path}: files that cannot be read; mend or remove them")
    if len(empty) > 1:
        print(
            f"warning: {found_in.path}: {len(empty)} pictures show nothing once they are read ({empty[0]}, "
            "...), so they are all alike. What is transparent counts as black, on which dark strokes are "
            "lost: save such pictures on white",
            flush=True,
        )
