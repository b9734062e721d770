"""Pictures: a file of any size and mode to the model's pixels."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.bundle.decode._settings import DecodeError, DecoderSettings

if TYPE_CHECKING:
    from PIL.Image import Image

MEDIA = ("image/",)
EXAMPLE = "picture.png"

MAX_PIXELS = 50_000_000
"""Largest picture that is decoded, in pixels: a small file can unfold to gigabytes."""

TRIM_VIEW = 128
"""Pixels across in which `trim` looks for what is drawn."""

MIN_CONTRAST = 16
"""Levels; a picture with less shows nothing that could be trimmed to."""

PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")


HINT_VIEW = 128
"""Pixels across in which a picture is looked at for a hint: a stroke too thin for the model still shows."""


class Fit(BaseModel):
    """How a picture of another size is brought to the model's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: Literal["pad", "stretch", "crop"] = Field(
        "pad", description="how another aspect ratio is met: pad with background, stretch, or crop"
    )
    filter: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="how pixels are weighed when the size changes"
    )
    trim: bool = Field(
        False,
        description="clear the background and cut to what is drawn, light on black, before fitting",
    )
    margin: int = Field(0, ge=0, description="pixels of background kept around, after fitting")


class ImageDecoder(Fit, DecoderSettings):
    """How a picture file becomes `uint8 [height, width, channels]`, 0-255.

    A picture that already has the model's size and mode passes through untouched. Any other is
    turned upright (EXIF), laid on the background, converted to grey or RGB, optionally trimmed to
    what is drawn, fitted, and resized with `filter`. The background is black (0), as in the
    training pictures; `invert` at the call says that the picture at hand is dark on light.
    """

    kind: Literal["image"] = "image"
    height: int = Field(gt=0, le=16384, description="pixels")
    width: int = Field(gt=0, le=16384, description="pixels")
    channels: Literal[1, 3] = 1

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of what it gives: height, width, channels."""
        return self.height, self.width, self.channels

    @model_validator(mode="after")
    def _room(self) -> ImageDecoder:
        if 2 * self.margin >= min(self.height, self.width):
            raise ValueError(
                f"margin: {self.margin} pixels on each side leave nothing of {self.height}x{self.width}"
            )
        return self


Settings = ImageDecoder


@cache
def _our_own_limit() -> None:
    """Have Pillow say nothing of large pictures: `MAX_PIXELS` refuses them, and smaller ones."""
    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def decode(
    decoder: ImageDecoder, payload: bytes, _files: Mapping[str, bytes], invert: bool
) -> np.ndarray:
    """uint8 `[height, width, channels]`. Raises `DecodeError`."""
    return _row(decoder, _opened(payload), invert)


def _opened(payload: bytes) -> Image:
    """The picture, upright. Raises `DecodeError`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    _our_own_limit()
    try:
        with Image.open(io.BytesIO(payload), formats=PICTURE_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DecodeError(
                    f"picture of {file.width}x{file.height} pixels; at most {MAX_PIXELS} are decoded"
                )
            # A telephone's MPO is a JPEG with a preview or a gain map behind the picture itself.
            if (frames := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":
                raise DecodeError(f"picture with {frames} frames; expected one still picture")
            file.load()
            return ImageOps.exif_transpose(file)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(
            f"not a readable picture ({', '.join(PICTURE_FORMATS)}): "
            f"{len(payload)} bytes in none of these formats"
        ) from error
    except Exception as error:  # Pillow's plug-ins raise whatever a damaged file makes them raise
        raise DecodeError(
            f"not a readable picture ({', '.join(PICTURE_FORMATS)}): {error}"
        ) from error


def _row(decoder: ImageDecoder, picture: Image, invert: bool) -> np.ndarray:
    """A picture as the model is given it. Raises `DecodeError`."""
    from PIL import ImageOps

    picture = _flatten(picture, "L" if decoder.channels == 1 else "RGB", background=255 * invert)
    if invert:
        picture = ImageOps.invert(picture)
    if picture.size != (decoder.width, decoder.height):
        picture = _fit(picture, decoder)
    return np.asarray(picture, np.uint8).reshape(decoder.height, decoder.width, decoder.channels)


def encode(
    _decoder: ImageDecoder, row: np.ndarray, _files: Mapping[str, bytes]
) -> tuple[str, bytes]:
    """A PNG of the row."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row).save(buffer, "PNG")
    return ".png", buffer.getvalue()


def drawn(_decoder: ImageDecoder, row: np.ndarray, _files: Mapping[str, bytes]) -> np.ndarray:
    """The picture itself."""
    return row[:, :, 0] if row.shape[2] == 1 else row


def hint(
    decoder: ImageDecoder, payload: bytes, _files: Mapping[str, bytes], invert: bool
) -> str | None:
    """Whether nothing is seen of the picture, or it seems dark on light."""
    whole = decoder.model_copy(
        # Stretched and untrimmed: the picture's own levels, none of those it is padded with.
        update={
            "trim": False,
            "margin": 0,
            "fit": "stretch",
            "height": HINT_VIEW,
            "width": HINT_VIEW,
        }
    )
    picture = _opened(payload)
    seen = _row(whole, picture, invert)
    if _flat(seen):
        told = f"nothing is drawn: as it was read, the picture is {_level(seen)} all over"
        other = "leave out --invert" if invert else "try --invert (dark strokes on light)"
        if not _flat(_row(whole, picture, not invert)):
            return f"{told}; {other}: then something shows"
        return f"{told}, with --invert and without; the answer means nothing, try another picture"
    if _flat(_row(decoder, picture, invert)):
        return (
            f"nothing of the drawing is left at the model's {decoder.width}x{decoder.height} "
            "pixels; cut the picture to what is drawn, or draw with thicker strokes"
        )
    light = decoder.trim and _light_border(decoder, picture, invert)
    # Of a picture with transparency the other way may be no better: what shows through changes, too.
    if light and not (
        _flat(_row(whole, picture, not invert)) or _light_border(decoder, picture, not invert)
    ):
        if invert:
            return "the picture looks light on dark already; leave out --invert"
        return "the picture looks dark on light, and the model learned light on dark; try --invert"
    return None


def looks_inverted(decoder: ImageDecoder, payload: bytes, invert: bool = False) -> bool:
    """Whether a picture, as it is read, seems dark on light.

    Judged by its border. Only `trim` says that a model learned light strokes on black: a border is
    no background in pictures of any other kind, and most of them are light.
    """
    return _light_border(decoder, _opened(payload), invert)


def _light_border(decoder: ImageDecoder, picture: Image, invert: bool) -> bool:
    # Stretched, so that the border is the picture's own and not what it was padded with.
    plain = {"trim": False, "margin": 0, "fit": "stretch"}
    row = _row(decoder.model_copy(update=plain), picture, invert)
    border = np.concatenate(
        [row[0].ravel(), row[-1].ravel(), row[:, 0].ravel(), row[:, -1].ravel()]
    )
    return bool(np.median(border) > 127)


def _flat(row: np.ndarray) -> bool:
    return int(row.max()) - int(row.min()) < MIN_CONTRAST


def _level(row: np.ndarray) -> str:
    """'black (level 0)': what an even picture looks like."""
    level = round(float(row.mean()))
    name = "black" if level < MIN_CONTRAST else "white" if level > 255 - MIN_CONTRAST else "grey"
    return f"{name} (level {level} of 255)"


def _flatten(picture: Image, mode: str, background: int) -> Image:
    """To 8-bit grey or RGB; transparent parts show the background."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_narrow(np.asarray(picture))).convert(mode)
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, (background,) * 3 + (255,))
        picture.alpha_composite(layer)
    return picture if picture.mode == mode else picture.convert(mode)


def _narrow(wide: np.ndarray) -> np.ndarray:
    """16-bit samples to 8 bits, some rows at a time: as floats, a large picture fills the memory."""
    narrow = np.empty(wide.shape, np.uint8)
    for start in range(0, len(wide), 64):
        part = wide[start : start + 64].astype(np.float64)
        if part.size and not (part.min() >= 0 and part.max() <= 65535):  # so, too, with NaN
            raise DecodeError("picture with samples outside 16 bits")
        narrow[start : start + 64] = np.round(part / 257)
    return narrow


def _fit(picture: Image, decoder: ImageDecoder) -> Image:
    from PIL import Image, ImageOps

    if decoder.trim:
        picture = _trim(picture)
    room = (decoder.width - 2 * decoder.margin, decoder.height - 2 * decoder.margin)
    method = Image.Resampling[decoder.filter.upper()]
    if decoder.fit == "stretch":
        picture = picture.resize(room, method)
    elif decoder.fit == "crop":
        picture = ImageOps.fit(picture, room, method)
    else:
        # Padded before it is resized: the exact fraction of a pixel at the edge then survives.
        canvas = _canvas(picture.size, room)
        if (excess := canvas[0] * canvas[1] / MAX_PIXELS) > 1:
            # Long and narrow: a few kilobytes whose canvas would take gigabytes.
            picture = picture.reduce(math.ceil(math.sqrt(excess)))
            canvas = _canvas(picture.size, room)
        padded = Image.new(picture.mode, canvas)
        padded.paste(picture, ((canvas[0] - picture.width) // 2, (canvas[1] - picture.height) // 2))
        picture = padded.resize(room, method)
    if room == (decoder.width, decoder.height):
        return picture
    framed = Image.new(picture.mode, (decoder.width, decoder.height))
    framed.paste(picture, (decoder.margin, decoder.margin))
    return framed


def _trim(picture: Image) -> Image:
    """Cut to what is drawn; grey paper is brought to 0 and its brightest stroke to 255.

    Paper is the level of the border. A photograph's is never black, unevenly lit and grainy: what is
    drawn stands out of it by a tenth of the contrast and by twice what the border itself varies, seen
    from so far (at most `TRIM_VIEW` pixels across) that grain has gone.
    """
    from PIL import Image

    levels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    paper = np.median(border[:: 1 + len(border) // 4096], axis=0)
    contrast = levels.max() - paper.min()
    if contrast < MIN_CONTRAST:
        return picture
    if paper.max() >= MIN_CONTRAST:  # black paper is what was trained on, and stays as it is
        cleared = np.clip((np.arange(256) - paper[:, None]) * (255 / contrast), 0, 255)
        picture = picture.point(cleared.round().astype(int).ravel().tolist())
    # An even border has no grain: then the cut is exact to the pixel.
    step = math.ceil(max(picture.size) / TRIM_VIEW) if np.ptp(border, axis=0).any() else 1
    view = np.asarray(picture.convert("L").reduce(step))
    edge = np.concatenate([view[0], view[-1], view[:, 0], view[:, -1]])
    drawn = Image.fromarray(
        view > max(25, 2 * np.percentile(edge[:: 1 + len(edge) // 4096], 90))
    ).getbbox()
    if drawn is None:
        return picture
    left, top, right, bottom = (step * edge for edge in drawn)
    return picture.crop((left, top, min(right, picture.width), min(bottom, picture.height)))


def _canvas(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """The smallest size with the proportions of `room` that holds `size`."""
    side = max(size[0] / room[0], size[1] / room[1])
    return max(1, round(room[0] * side)), max(1, round(room[1] * side))
