"""Sounds with a label each, of any rate and length: in folders, by their names, or in a table.

`pipeline/folders.py` says how folders are read; a tar archive of them will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from pipeline import folders
from pipeline.bundle.decode import DecodeError, DecoderMissing, decode
from pipeline.bundle.decode.sound import RATES, Cut, SoundDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import ConfigError, Section
from pipeline.dataset import Encoded, RawData, Split, Stream, listed
from pipeline.folders import Found, Kind, Source, Table
from pipeline.frontends.log_mel import Config as LogMel
from pipeline.frontends.log_mel import Settings as LogMelSettings

SUFFIXES = frozenset((".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"))
SOUNDS = Kind("sound", SUFFIXES)


class Config(Section):
    """Where the sounds lie, what of each is kept, and how it becomes a spectrogram."""

    name: str
    path: str = Field(
        description="the folder, or tar, of the folders of classes, of the split's, or of the sounds"
    )
    label_from: str = Field(
        "",
        description="pattern of file names that holds the class (`{label}_*`: what stands before the "
        "first `_`), in place of folders of classes",
    )
    table: Table = Table()
    rate: int = Field(
        16_000,
        ge=RATES[0],
        le=RATES[1],
        description="samples a second; every sound is brought to it",
    )
    cut: Cut = Cut()
    frontend: LogMelSettings = LogMelSettings()
    test_files: tuple[str, ...] = Field(
        (),
        description="patterns (`*_theo_*`, `room-3/*`) of file names that are the test set, where "
        "nothing else says",
    )
    validation_files: tuple[str, ...] = Field((), description="the same for the validation set")
    title: str = Field("Sounds in folders", description="what the data is, for the model card")
    licence: str = Field("not stated", description="under what terms, for the model card")
    split: Split = Split()

    @model_validator(mode="after")
    def _one_way(self) -> Config:
        if self.label_from and self.table.file:
            raise ValueError("label_from: the table has the labels; take one of them out")
        return self


def look(config: Config, root: Path) -> None:
    """Raises `DataError` listing what is wrong with the names, told from them alone."""
    scan(config, _source(root / config.path))


def load(config: Config, root: Path) -> RawData:
    """Every sound: `waveform` int16 `[rows, samples]`, streamed, filled up with zeros.

    Raises `DataError` that lists what is wrong with the names. What is wrong inside the files is
    listed by the stream, once it has tried them all; at once where the names are at fault.
    """
    found_in = _source(root / config.path)
    decoder = SoundDecoder(rate=config.rate, **config.cut.model_dump())
    found = folders.looked_through(
        lambda: scan(config, found_in),
        lambda files: _rows(decoder, found_in, files),
        found_in,
        SOUNDS,
    )
    if found.passed_over():
        print(f"{config.path}: {found.passed_over()}", flush=True)
    declared = Input(
        name="waveform",
        dtype="int16",
        shape=("batch", *decoder.row),
        decoder=decoder,
        padding=0,
        units=f"level -32768 to 32767, {config.rate} samples a second",
    )
    return RawData(
        rows=Encoded.one(
            declared, Stream(len(found.files), lambda: _rows(decoder, found_in, found.files))
        ),
        target=found.target(),
        labels=found.classes,
        given_test=found.given("test", config.test_files),
        given_validation=found.given("validation", config.validation_files),
        files=tuple(found.files),
        sample=folders.sampler(found_in, found),
        frontend=LogMel(name="log_mel", **config.frontend.model_dump()),
        source={"title": config.title, "licence": config.licence},
    )


def scan(config: Config, found_in: Source) -> Found:
    """The sounds and their classes, looked at by name only. Raises `DataError`."""
    if config.table.file:
        return folders.by_table(found_in, SOUNDS, config.table)
    if config.label_from:
        return folders.by_name(found_in, SOUNDS, config.label_from)
    return folders.scan(found_in, SOUNDS)


def _source(path: Path) -> Source:
    return folders.source(path, "a folder with one folder of sounds for each class, or a tar of it")


def _rows(decoder: SoundDecoder, found_in: Source, files: Sequence[str]) -> Iterator[np.ndarray]:
    mistakes = []
    with found_in.opened() as read:
        for file in files:
            try:
                row = decode(decoder, read(file))
                if not row.any():
                    raise DecodeError("nothing but silence")
                yield np.pad(row, (0, decoder.longest - len(row)))
            except (DecodeError, OSError) as error:
                mistakes.append(f"{file}: {error}")
            except DecoderMissing as error:
                raise ConfigError(f"data.name: {error}") from error
    if mistakes:
        raise listed(mistakes, f"{found_in.path}: files that cannot be read; mend or remove them")
