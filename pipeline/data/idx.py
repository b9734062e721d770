"""Pictures in the four idx files of the MNIST family, from a folder or by URL.

The format (LeCun, Cortes, Burges): two zero bytes, a type byte (8: uint8), the number of axes, the
length of each axis as big-endian uint32, then the data. Files may be gzipped.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.decode.image import Fit, ImageDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import ConfigError, Section
from pipeline.dataset import DataError, Encoded, RawData, Split

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Config(Section):
    """`path` is the folder of the four files. With `url`, they are fetched from there instead
    (`url` + '/' + file name) and checked against `sha256`; `path` then names any tracked file."""

    name: str
    path: str = Field(description="the folder of the four files; with url: `data/builtin`")
    url: str | None = Field(None, description="where to fetch the four files instead")
    sha256: dict[str, str] = Field(
        {}, description="file name as fetched -> SHA-256; needed with url"
    )
    labels: tuple[str, ...] = Field(
        tuple("0123456789"), description="names of the classes, in the order of their numbers"
    )
    fit: Fit = Fit()
    title: str = Field(description="what the data is, for the model card")
    licence: str = Field(description="under what terms it may be used, for the model card")
    split: Split = Split()

    @model_validator(mode="after")
    def _checksums(self) -> Config:
        if self.url is not None:
            missing = [n for n in FILES if n not in self.sha256 and f"{n}.gz" not in self.sha256]
            if missing:
                raise ValueError(f"with 'url', 'sha256' must list {missing[0]} or {missing[0]}.gz")
        return self


def look(config: Config, root: Path) -> None:
    """Raises `DataError` where the four files are not there."""
    if not config.url:
        find(root / config.path)


def load(config: Config, root: Path) -> RawData:
    """Both parts together, the second marked as the given test set.

    `image` is uint8 `[rows, height, width, 1]`. Raises `DataError` naming the file, or
    `ConfigError` where `fit` asks for more than the pictures hold.
    """
    files = _fetch(config) if config.url else find(root / config.path)
    train, test = read(files[0], axes=3), read(files[2], axes=3)
    train_label, test_label = read(files[1], axes=1), read(files[3], axes=1)
    for images, labels, at in ((train, train_label, 0), (test, test_label, 2)):
        if len(images) != len(labels):
            raise DataError(
                f"{files[at]}: {len(images)} pictures, but {files[at + 1]}: {len(labels)} labels"
            )
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{files[2]}: pictures of {test.shape[1:]}, but training has {train.shape[1:]}"
        )
    height, width = train.shape[1:]
    if 2 * config.fit.margin >= min(height, width):
        raise ConfigError(
            f"data.fit.margin: {config.fit.margin} pixels on each side leave nothing of "
            f"pictures of {height}x{width} ({files[0]})"
        )
    decoder = ImageDecoder(height=height, width=width, channels=1, **config.fit.model_dump())
    return RawData(
        rows=Encoded.one(
            Input(
                name="image",
                dtype="uint8",
                shape=("batch", height, width, 1),
                decoder=decoder,
                units="grey level 0-255",
            ),
            np.concatenate([train, test])[..., None],
        ),
        target=np.concatenate([train_label, test_label]).astype(np.int64),
        labels=config.labels,
        given_test=np.arange(len(train) + len(test)) >= len(train),
        source={"title": config.title, "licence": config.licence},
    )


def read(path: Path, axes: int) -> np.ndarray:
    """One idx file as uint8 with `axes` axes. Raises `DataError` for anything else."""
    try:
        payload = path.read_bytes()
        if payload[:2] == b"\x1f\x8b":
            payload = gzip.decompress(payload)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(payload) < 4 or payload[:3] != b"\0\0\x08":
        raise DataError(
            f"{path}: not an idx file of unsigned bytes (first bytes {payload[:4].hex()})"
        )
    if payload[3] != axes:
        raise DataError(f"{path}: expected {axes} axes, got {payload[3]}")
    start = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(payload[4:start].ljust(4 * axes, b"\0"), ">u4"))
    expected = start + math.prod(shape)
    if len(payload) != expected:
        raise DataError(
            f"{path}: {shape} takes {expected} bytes, got {len(payload)}: cut short or damaged"
        )
    return np.frombuffer(payload, np.uint8, offset=start).reshape(shape)


def find(folder: Path) -> list[Path]:
    """The four files, in the order of `FILES`. Raises `DataError` naming one that is missing."""
    found = []
    for name in FILES:
        near = [folder / name, folder / f"{name}.gz"]
        path = next((p for p in near if p.is_file()), None)
        if path is None:
            raise DataError(f"{folder}: expected {name} or {name}.gz; found neither")
        found.append(path)
    return found


def _fetch(config: Config) -> list[Path]:
    import pooch

    assert config.url is not None
    found = []
    for name in FILES:
        remote = name if name in config.sha256 else f"{name}.gz"
        try:
            local = pooch.retrieve(
                url=f"{config.url.rstrip('/')}/{remote}",
                known_hash=f"sha256:{config.sha256[remote]}",
                path=pooch.os_cache("slipway"),
                progressbar=True,
            )
        except (ValueError, OSError) as error:
            raise DataError(f"{config.url}/{remote}: {error}") from error
        found.append(Path(local))
    return found
