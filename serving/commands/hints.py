"""What a person should be told about the picture they sent, beside the answer."""

from __future__ import annotations

import numpy as np

from pipeline.bundle.decode import MIN_CONTRAST, DecodeError, Decoder, decode, looks_inverted

VIEW = 128
"""Pixels across in which a picture is looked at: a stroke too thin for the model still shows."""


def hint(decoder: Decoder, payload: bytes, *, invert: bool) -> str | None:
    """Why the answer about this picture is likely worthless, and what to try; none where it is not.

    A guess, never acted on. `invert` is what the picture was decoded with.
    """
    try:
        return _of_picture(decoder, payload, invert)
    except DecodeError:
        return None


def _of_picture(decoder: Decoder, payload: bytes, invert: bool) -> str | None:
    whole = decoder.model_copy(
        # Stretched and untrimmed: the picture's own levels, none of those it is padded with.
        update={"trim": False, "margin": 0, "fit": "stretch", "height": VIEW, "width": VIEW}
    )
    seen = decode(whole, payload, invert=invert)
    if _flat(seen):
        told = f"nothing is drawn: as it was read, the picture is {_level(seen)} all over"
        other = "leave out --invert" if invert else "try --invert (dark strokes on light)"
        if not _flat(decode(whole, payload, invert=not invert)):
            return f"{told}; {other}: then something shows"
        return f"{told}, with --invert and without; the answer means nothing, try another picture"
    if _flat(decode(decoder, payload, invert=invert)):
        return (
            f"nothing of the drawing is left at the model's {decoder.width}x{decoder.height} "
            "pixels; cut the picture to what is drawn, or draw with thicker strokes"
        )
    if not invert and looks_inverted(decoder, payload):
        return "the picture looks dark on light, and the model learned light on dark; try --invert"
    return None


def _flat(row: np.ndarray) -> bool:
    return int(row.max()) - int(row.min()) < MIN_CONTRAST


def _level(row: np.ndarray) -> str:
    """'black (level 0)': what an even picture looks like."""
    level = round(float(row.mean()))
    name = "black" if level < MIN_CONTRAST else "white" if level > 255 - MIN_CONTRAST else "grey"
    return f"{name} (level {level} of 255)"
