"""Files with a label each as a data set: what every kind of them has in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from pydantic import Field

from pipeline.bundle.decode import DecodeError
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.dataset import DataError, Encoded, Faults, RawData, Split, Stream, listed
from pipeline.folders.found import Found, Kind
from pipeline.folders.source import Source, is_text


class Settings(Section):
    """Where the files lie, and which of them are held back."""

    name: str
    path: str = Field(description="the folder, or tar, of the folders of classes")
    test_files: tuple[str, ...] = Field(
        (),
        description="patterns of file names (`9.*`, `*_theo_*`, `room-3/*`) that are the test set, "
        "where nothing else says",
    )
    validation_files: tuple[str, ...] = Field((), description="the same for the validation set")
    title: str = Field("Labelled files", description="what the data is, for the model card")
    licence: str = Field("not stated", description="under what terms, for the model card")
    split: Split = Split()


@dataclass(frozen=True)
class Files:
    """Files of one kind in a source.

    `look` finds them and their labels by the names alone; `rows` gives, for some of them, each as a
    tensor of the input `declared`, in their order.
    """

    found_in: Source
    kind: Kind
    look: Callable[[], Found]
    rows: Callable[[Sequence[str]], Iterator[np.ndarray]]
    declared: Input

    def load(self, settings: Settings) -> RawData:
        """The labelled files, streamed. Raises `DataError` that lists what is wrong with them."""
        found = self._looked_through()
        if found.passed_over():
            print(f"{settings.path}: {found.passed_over()}", flush=True)
        return RawData(
            rows=Encoded.one(
                self.declared, Stream(len(found.files), lambda: self.rows(found.files))
            ),
            target=found.target(),
            labels=found.classes,
            given_test=found.given("test", settings.test_files),
            given_validation=found.given("validation", settings.validation_files),
            files=tuple(found.files),
            sample=lambda row: self._own_file(found.files[row]),
            source={"title": settings.title, "licence": settings.licence},
        )

    def _looked_through(self) -> Found:
        """What `look` finds.

        Where it raises `DataError` every file of the kind is read as well, so that one error tells of
        the names and of what is inside: who mends a folder wants to do it once.
        """
        try:
            return self.look()
        except DataError as error:
            faults = Faults()
            faults.note(error)
            with faults.noted():
                places = [
                    place
                    for place in self.found_in.below("")
                    if self.kind.of(PurePosixPath(place).name) == self.kind.noun and is_text(place)
                ]
                deque(self.rows(places), 0)
            faults.settle()
            raise

    def _own_file(self, place: str) -> tuple[str, bytes]:
        return PurePosixPath(place).suffix, self.found_in.read(place)


def decoded(
    found_in: Source, files: Sequence[str], decode: Callable[[bytes], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each file that can be read, with what is made of it.

    Raises `DataError` listing the others, once all were tried; `decode` raises `DecodeError`.
    """
    mistakes = []
    with found_in.opened() as read:
        for file in files:
            try:
                row = decode(read(file))
            except (DecodeError, OSError) as error:
                mistakes.append(f"{file}: {error}")
            else:
                yield file, row
    if mistakes:
        raise listed(mistakes, f"{found_in.path}: files that cannot be read; mend or remove them")
