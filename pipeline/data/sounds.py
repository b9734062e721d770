"""Sounds with a label each, of any rate and length: in folders, by their names, or in a table.

`pipeline/folders/__init__.py` says how folders are read; a tar archive of them will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.decode import DecodeError, DecoderMissing, decode
from pipeline.bundle.decode.sound import RATES, Cut, SoundDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import ConfigError
from pipeline.dataset import RawData
from pipeline.folders import files, labels, source
from pipeline.folders.found import Found, Kind
from pipeline.folders.source import Source
from pipeline.folders.table import Table
from pipeline.frontends.log_mel import Config as LogMel
from pipeline.frontends.log_mel import Settings as LogMelSettings

SUFFIXES = frozenset((".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"))
SOUNDS = Kind("sound", SUFFIXES)


class Config(files.Settings):
    """Where the sounds lie, what of each is kept, and how it becomes a spectrogram."""

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
    title: str = Field("Sounds in folders", description="what the data is, for the model card")

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
    declared = Input(
        name="waveform",
        dtype="int16",
        shape=("batch", *decoder.row),
        decoder=decoder,
        padding=0,
        units=f"level -32768 to 32767, {config.rate} samples a second",
    )
    raw = files.Files(
        found_in,
        SOUNDS,
        look=lambda: scan(config, found_in),
        rows=lambda places: _rows(decoder, found_in, places),
        declared=declared,
    ).load(config)
    return replace(raw, frontend=LogMel(name="log_mel", **config.frontend.model_dump()))


def scan(config: Config, found_in: Source) -> Found:
    """The sounds and their classes, looked at by name only. Raises `DataError`."""
    if config.table.file:
        return labels.by_table(found_in, SOUNDS, config.table)
    if config.label_from:
        return labels.by_name(found_in, SOUNDS, config.label_from)
    return labels.by_folder(found_in, SOUNDS)


def _source(path: Path) -> Source:
    return source.find(path, "a folder with one folder of sounds for each class, or a tar of it")


def _rows(decoder: SoundDecoder, found_in: Source, places: Sequence[str]) -> Iterator[np.ndarray]:
    """The sounds that can be read, filled up to one length. Raises `DataError`."""
    for _, row in files.decoded(found_in, places, lambda payload: _heard(decoder, payload)):
        yield np.pad(row, (0, decoder.longest - len(row)))


def _heard(decoder: SoundDecoder, payload: bytes) -> np.ndarray:
    """int16 `[samples]`. Raises `DecodeError`, for silence too, and `ConfigError` without a decoder."""
    try:
        row = decode(decoder, payload)
    except DecoderMissing as error:
        raise ConfigError(f"data.name: {error}") from error
    if not row.any():
        raise DecodeError("nothing but silence")
    return row
