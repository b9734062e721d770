"""Pictures in one folder per class, of any size, with or without a ready split.

    cats/1.jpg  dogs/2.png  ...                     dealt into train, validation and test
    train/cats/1.jpg  test/cats/7.jpg  ...          a given split; what is missing is dealt

A split's folder may be called train or training; val, valid, validation or dev; test or testing. A
class holds every picture below its folder. What counts as a picture is told by its suffix; anything
else, and what begins with a dot or an operating system left behind, is ignored and counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.decode import DecodeError, decode
from pipeline.bundle.decode.image import Fit, ImageDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.dataset import DataError, Encoded, RawData, Split, Stream, counted, listed

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
NETPBM = (".pbm", ".pgm", ".pnm", ".ppm")
SUFFIXES = frozenset((*JPEG, *NETPBM, ".bmp", ".dib", ".gif", ".png", ".webp"))
LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})
PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
MAX_BYTES = 1 << 28
"""Largest file that is read; a larger one is no picture of a size that is decoded."""


class Config(Section):
    """Where the pictures lie, and the one size that they are brought to."""

    name: str
    path: str = Field(description="the folder of the folders of classes, or of the split's")
    height: int = Field(ge=4, le=4096, description="pixels; every picture is brought to it")
    width: int = Field(ge=4, le=4096, description="pixels; every picture is brought to it")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: RGB")
    fit: Fit = Fit()
    test_files: tuple[str, ...] = Field(
        (),
        description="patterns (`9.*`, `street-*`) of file names that are the test set, "
        "where no folder is",
    )
    title: str = Field("Pictures in folders", description="what the data is, for the model card")
    licence: str = Field("not stated", description="under what terms, for the model card")
    split: Split = Split()

    @model_validator(mode="after")
    def _room(self) -> Config:
        if 2 * self.fit.margin >= min(self.height, self.width):
            raise ValueError(f"fit.margin: {self.fit.margin} pixels on each side leave nothing")
        return self


@dataclass
class Found:
    """What lies in a folder: pictures by their path below it, and what was passed over."""

    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """'train', 'validation', 'test', or '' where the folder says nothing."""
    classes: tuple[str, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    """How many files were passed over, by suffix or kind."""

    def passed_over(self) -> str:
        """`3 files ignored: 2 .txt, 1 hidden`, or nothing."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.ignored.most_common(5))
        return f"{counted(self.ignored.total(), 'file')} ignored: {kinds}" if kinds else ""


def look(config: Config, root: Path) -> None:
    """Raises `DataError` listing what is wrong with the folder, told from its names alone."""
    scan(root / config.path)


def load(config: Config, root: Path) -> RawData:
    """Every picture of the folder: `image` uint8 `[rows, height, width, channels]`, streamed.

    Raises `DataError` that lists what is wrong with the folder by file. What is wrong inside the
    files is listed by the stream, once it has tried them all.
    """
    found = scan(root / config.path)
    parts = np.array(found.parts)
    test = parts == "test"
    if config.test_files:
        test = _matching(found, config.test_files)
    if found.passed_over():
        print(f"{config.path}: {found.passed_over()}", flush=True)
    decoder = ImageDecoder(
        height=config.height,
        width=config.width,
        channels=config.channels,
        **config.fit.model_dump(),
    )
    numbers = {label: number for number, label in enumerate(found.classes)}
    return RawData(
        rows=Encoded.one(
            Input(
                name="image",
                dtype="uint8",
                shape=("batch", *decoder.row),
                decoder=decoder,
                units="grey level 0-255" if config.channels == 1 else "RGB level 0-255",
            ),
            Stream(len(found.files), lambda: _rows(decoder, root / config.path, found)),
        ),
        target=np.array([numbers[label] for label in found.labels], np.int64),
        labels=found.classes,
        given_test=test if test.any() else None,
        given_validation=(parts == "validation") if "validation" in found.parts else None,
        files=tuple(found.files),
        source={"title": config.title, "licence": config.licence},
    )


def scan(folder: Path) -> Found:
    """The classes and pictures of a folder, looked at by name only. Raises `DataError`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with one folder of pictures for each class")
    found, mistakes = Found(), []
    inside = _folders(folder)
    parts = {path: PARTS.get(path.name.lower()) for path in inside}
    # A class may be called 'train' (beside 'bus'); a split holds folders only.
    split = bool(inside) and all(parts.values())
    if split and not any(_folders(path) for path in inside):
        split = False
    loose = [p.name for p in folder.iterdir() if p.is_file() and _kind(p) == "picture"]
    if not inside:
        raise DataError(
            f"{folder}: no folders of classes, but {counted(len(loose), 'picture')} directly in it; "
            "put each picture into a folder named after its class"
        )
    for path in sorted(inside, key=_natural):
        if split:
            part = parts[path] or ""
            mistakes += [
                f"{path.name}/{p.name}: a picture outside any class"
                for p in sorted(path.iterdir(), key=_natural)
                if p.is_file() and _kind(p) == "picture"
            ]
            for label in sorted(_folders(path), key=_natural):
                mistakes += _gather(found, folder, label, part)
        else:
            mistakes += _gather(found, folder, path, "")
    mistakes += [f"{name}: a picture outside any class" for name in sorted(loose)]
    for path in folder.iterdir():
        if path.is_file() and _kind(path) != "picture":
            found.ignored[_kind(path)] += 1
    found.classes = tuple(sorted(set(found.labels), key=lambda label: _natural(Path(label))))
    if split:
        mistakes += _one_sided(found)
    if not mistakes and len(found.classes) < 2:
        mistakes.append(f"one class only ({', '.join(found.classes)}); two are the least to tell")
    if mistakes:
        note = f" ({found.passed_over()})" if found.ignored else ""
        raise listed(mistakes, f"{folder}: mistakes in the folder{note}")
    return found


def _gather(found: Found, root: Path, folder: Path, part: str) -> list[str]:
    """Add a class's pictures to `found`; what is wrong with it."""
    mistakes, before = [], len(found.files)
    other: Counter[str] = Counter()
    for here, folders, names in os.walk(folder):
        kept = [name for name in folders if _kind(Path(name)) not in ("hidden", "litter")]
        found.ignored["hidden or litter folders"] += len(folders) - len(kept)
        folders[:] = sorted(kept)
        for name in sorted(names, key=lambda name: _natural(Path(name))):
            path = Path(here, name)
            if (kind := _kind(path)) != "picture":
                other[kind] += 1
                continue
            place = path.relative_to(root).as_posix()
            if not _is_text(place):
                mistakes.append(f"{place!r}: a file name that is no UTF-8")
                continue
            found.files.append(place)
            found.labels.append(folder.name)
            found.parts.append(part)
    found.ignored += other
    if len(found.files) == before:
        kinds = ", ".join(f"{count} {kind}" for kind, count in other.most_common(3))
        here = folder.relative_to(root).as_posix()
        mistakes.append(
            f"{here}/: a class without pictures" + (f" ({kinds} ignored)" if kinds else "")
        )
    return mistakes


def _one_sided(found: Found) -> list[str]:
    """Classes that a given part lacks, and a split without anything to train on."""
    by_part: dict[str, set[str]] = {}
    for label, part in zip(found.labels, found.parts, strict=True):
        by_part.setdefault(part, set()).add(label)
    if "train" not in by_part:
        return [f"there is {' and '.join(sorted(by_part)) or 'nothing'}, but no train folder"]
    return [
        f"{label}: in {' and '.join(sorted(p for p in by_part if label in by_part[p]))} only, "
        f"not in {part}"
        for part in by_part
        for label in found.classes
        if label not in by_part[part]
    ]


def _matching(found: Found, patterns: tuple[str, ...]) -> np.ndarray:
    """Which files are the test set by their names. Raises `DataError` where that cannot be."""
    if "test" in found.parts:
        raise DataError(
            "data.test_files: the folder has a test set of its own; take one of them away"
        )
    idle = [p for p in patterns if not any(fnmatchcase(Path(f).name, p) for f in found.files)]
    if idle:
        raise DataError(f"data.test_files: no file is called {', '.join(idle)}")
    return np.array(
        [any(fnmatchcase(Path(file).name, p) for p in patterns) for file in found.files]
    )


def _rows(decoder: ImageDecoder, folder: Path, found: Found) -> Iterator[np.ndarray]:
    mistakes, empty = [], []
    for file in found.files:
        path = folder / file
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise DecodeError(f"{size} bytes; at most {MAX_BYTES} are read")
            row = decode(decoder, path.read_bytes())
            if row.max() == row.min():
                empty.append(file)
            yield row
        except (DecodeError, OSError) as error:
            mistakes.append(f"{file}: {error}")
    if mistakes:
        raise listed(mistakes, f"{folder}: files that cannot be read; mend or remove them")
    if len(empty) > 1:
        print(
            f"warning: {folder}: {len(empty)} pictures show nothing once they are read ({empty[0]}, ...), "
            "so they are all alike. What is transparent counts as black, on which dark strokes are lost: "
            "save such pictures on white",
            flush=True,
        )


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and _kind(p) not in ("hidden", "litter")]


def _kind(path: Path) -> str:
    """'picture', 'hidden', 'litter', or the suffix of anything else."""
    if path.name.startswith("."):
        return "hidden"
    if path.name.lower() in LITTER:
        return "litter"
    suffix = path.suffix.lower()
    return "picture" if suffix in SUFFIXES else suffix or "without a suffix"


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """`s2` before `s10`."""
    steps = re.split(r"([0-9]+)", path.name.lower())
    return [(0, int(s), "") if s.isdigit() else (1, 0, s) for s in steps], path.name


def _is_text(name: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in name)
