"""Raw bytes to arrays: what a graph cannot hold, written once for training and serving.

Data preparation and the server both call `decode` with the decoder recorded beside the data, so a
file is brought to the model's input in one way only. A decoder is data (it travels in the bundle's
manifest). The folder is the registry: a file's name is its decoders' `kind`. It offers

    Settings(DecoderSettings)                           what a decoder of the kind records
    decode(decoder, payload, files, invert) -> row      without the batch axis
    encode(decoder, row, files) -> (suffix, bytes)      a file that decodes to the row
    named(decoder, row, files) -> [(name, places)]      what its places are called, where they have names
    hint(decoder, payload, files, invert) -> str | None what a person should be told, if anything
    drawn(decoder, row, files) -> levels | str          the row as a person sees it, where it shows
    check(decoder, files)                               raises for files it cannot work with, if any
    MEDIA, EXAMPLE                                      types of content, and a file's name

and imports its library on use, so that a server loads no more than its models need.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Union

import numpy as np
from pydantic import Field

from pipeline.bundle.decode._settings import DecodeError, DecoderMissing, DecoderSettings

__all__ = [
    "MEDIA",
    "DecodeError",
    "Decoder",
    "DecoderMissing",
    "DecoderSettings",
    "check",
    "decode",
    "drawn",
    "encode",
    "example",
    "hint",
    "media",
    "named",
]

NO_FILES: Mapping[str, bytes] = {}

_KINDS: dict[str, ModuleType] = {
    found.name: importlib.import_module(f"{__name__}.{found.name}")
    for found in pkgutil.iter_modules(__path__)
    if not found.name.startswith("_")
}

MEDIA: tuple[str, ...] = tuple(
    dict.fromkeys(begin for kind in _KINDS.values() for begin in kind.MEDIA)
)
"""How the types of content that files are sent with begin, `image/` among them."""

if TYPE_CHECKING:
    Decoder = DecoderSettings
elif len(_KINDS) == 1:
    Decoder = next(iter(_KINDS.values())).Settings
else:
    Decoder = Annotated[
        Union[tuple(kind.Settings for kind in _KINDS.values())],  # noqa: UP007  (kinds found at run time)
        Field(discriminator="kind"),
    ]


def decode(
    decoder: Decoder,
    payload: bytes,
    files: Mapping[str, bytes] = NO_FILES,
    *,
    invert: bool = False,
) -> np.ndarray:
    """One file's bytes to one row of the model's input, without the batch axis.

    `files` are the bundle's, where a decoder reads one (a tokenizer). `invert` says that a picture
    is dark on light. Raises `DecodeError` where the bytes are no file the decoder reads, and
    `DecoderMissing` where this machine could read none.
    """
    row: np.ndarray = _KINDS[decoder.kind].decode(decoder, payload, files, invert)
    return row


def check(decoder: Decoder, files: Mapping[str, bytes]) -> None:
    """Look at what a decoder reads of a bundle before it is needed.

    Raises `DecodeError` where it is damaged or another model's, and `DecoderMissing` where this
    machine could read no such files.
    """
    if examine := getattr(_KINDS[decoder.kind], "check", None):
        examine(decoder, files)


def encode(
    decoder: Decoder, row: np.ndarray, files: Mapping[str, bytes] = NO_FILES
) -> tuple[str, bytes]:
    """One row back to a file that `decode` returns unchanged: (suffix, bytes)."""
    suffix, payload = _KINDS[decoder.kind].encode(decoder, row, files)
    return suffix, payload


def hint(
    decoder: Decoder,
    payload: bytes,
    files: Mapping[str, bytes] = NO_FILES,
    *,
    invert: bool = False,
) -> str | None:
    """Why the answer about this file is likely worthless, and what to try; None where it is not.

    A guess, never acted on.
    """
    try:
        told: str | None = _KINDS[decoder.kind].hint(decoder, payload, files, invert)
    except (DecodeError, DecoderMissing):
        return None
    return told


def drawn(
    decoder: Decoder, row: np.ndarray, files: Mapping[str, bytes] = NO_FILES
) -> np.ndarray | str | None:
    """One row as a person sees it: uint8 `[height, width]` or `[height, width, 3]`, or a text.

    None where it does not show by itself, as a part of a table's row.
    """
    show = getattr(_KINDS[decoder.kind], "drawn", None)
    return None if show is None else show(decoder, row, files)


def named(
    decoder: Decoder, row: np.ndarray, files: Mapping[str, bytes] = NO_FILES
) -> list[tuple[str, int]]:
    """What the places of a row are called, in its order: words, or columns with their values.

    Each with how many places it takes. None where places have no names, as in a picture.
    """
    tell = getattr(_KINDS[decoder.kind], "named", None)
    return [] if tell is None else tell(decoder, row, files)


def example(decoder: Decoder) -> str:
    """What a file for the decoder may be called, as documentation has it."""
    name: str = _KINDS[decoder.kind].EXAMPLE
    return name


def media(decoder: Decoder) -> list[str]:
    """The types of content that such a file is sent with, `image/*`."""
    begins: tuple[str, ...] = _KINDS[decoder.kind].MEDIA
    return [f"{begin}*" if begin.endswith("/") else begin for begin in begins]
