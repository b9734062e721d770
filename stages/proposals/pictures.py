"""Pictures in one folder per class."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bundle.decode import DecodeError
from pipeline.data import pictures
from pipeline.dataset import listed
from stages import budget
from stages.proposals import Hints, Learning, Proposal, plain, quoted, spread, written
from stages.shares import shares, summary

if TYPE_CHECKING:
    from PIL.Image import Image

READS = "a folder with one folder of pictures for each class"
UNREAD = (
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".svg",
    ".psd",
    ".dng",
    ".cr2",
    ".nef",
)
"""Pictures too, which nothing here decodes."""
LOOKED_AT = 300
"""Pictures whose size is read; the colours of `COLOURS_OF` of them are looked at."""
COLOURS_OF = 40
MAX_LOST = 0.3
"""Share that cutting to the proportions may take from nine in ten pictures; beyond it, they are padded."""
ROTATED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


@dataclass(frozen=True)
class Seen:
    """What a sample of the pictures is like."""

    size: tuple[int, int]
    """Median height and width."""
    one_size: bool
    grey: bool
    lost: float
    """Share that cutting to the median's proportions takes at most from nine in ten."""
    mistakes: tuple[str, ...] = ()
    """What could not be opened, a line at most."""


def propose(source: Path, hints: Hints) -> Proposal | None:
    """Size, colours, network and passes for the folder. Raises `DataError` where it is unusable."""
    if not source.is_dir() or not _holds_pictures(source):
        return None
    found = pictures.scan(source)
    seen = _look(source, spread(found.files, LOOKED_AT))
    dealt, counts = shares(found, "picture")
    channels = 1 if seen.grey else 3
    choice = budget.choose(counts["train"], len(found.classes), _proportions(seen), channels)
    fit = "crop" if seen.lost <= MAX_LOST else "pad"
    sizes = "all" if seen.one_size else "usually"
    original = f"{seen.size[0]}x{seen.size[1]}"
    data = TEXT.format(
        path=quoted(str(source)),
        title=quoted(f"pictures of {source.name or source.resolve().name}"),
        sizes=sizes,
        original=original,
        height=choice.height,
        width=choice.width,
        channels=channels,
        fit=fit,
        validation=dealt["validation"],
        test=dealt["test"],
    )
    learning = Learning(
        choice.epochs,
        choice.batch_size,
        augment=_augment(seen, choice, counts["train"]),
        told=f"  # About {choice.duration} on one thread. More passes, or larger pictures, usually do "
        "better.\n",
    )
    told = (
        summary(found, "picture", counts),
        f"size {choice.height}x{choice.width}, {'grey' if seen.grey else 'RGB'} (they are {sizes} "
        f"{original}; {fit} to fit)",
        f"network {choice.model['name']}, width {choice.model['width']}, "
        f"{choice.epochs} epochs: at most {choice.duration} on one thread",
    )
    unread = [f"{found.ignored[kind]} {kind}" for kind in UNREAD if kind in found.ignored]
    warnings = (
        *([f"left out, as they are not read; convert them: {', '.join(unread)}"] if unread else []),
        *seen.mistakes,
    )
    return Proposal(written(data, choice.model, TASK, learning), told, warnings)


def _augment(seen: Seen, choice: budget.Choice, rows: int) -> str:
    """More of it where there are few rows; mirrored only what has colours, since writing has none."""
    small = rows < budget.SMALL_SET
    return AUGMENT.format(
        crop=max(1, min(choice.height, choice.width) // 10),
        flip=plain(not seen.grey),
        rotate=5 if small else 0,
        scale=0.1 if small else 0,
        colour=0 if seen.grey else 0.2,
    )


def _holds_pictures(source: Path) -> bool:
    """Whether any file below is named as a picture."""
    return any(
        path.suffix.lower() in pictures.SUFFIXES for path in source.rglob("*") if path.is_file()
    )


def _look(source: Path, files: Sequence[str]) -> Seen:
    """Sizes and colours of some pictures. Raises `DataError` where none can be opened."""
    from PIL import Image

    from pipeline.folders.source import Source

    sizes, grey, mistakes = [], True, []
    every = max(1, len(files) // COLOURS_OF)
    with Source(source).opened() as read:
        for number, place in enumerate(files):
            try:
                # Read as the stage reads it: a pipe, or a device, would never end.
                payload = read(place)
                if not payload:
                    raise DecodeError("an empty file")
                with Image.open(io.BytesIO(payload)) as file:
                    turned = file.getexif().get(0x0112) in ROTATED
                    sizes.append((file.width, file.height) if turned else (file.height, file.width))
                    if grey and number % every == 0:
                        grey = _is_grey(file)
            except Exception as error:  # Pillow raises whatever a damaged file makes it raise
                mistakes.append(f"{source / place}: {error}")
    if not sizes:
        raise listed(mistakes, "pictures that cannot be opened")
    tall, wide = np.median(np.array(sizes), axis=0).round().astype(int).tolist()
    ratios = np.array([w / h for h, w in sizes]) / (wide / tall)
    lost = float(np.percentile(1 - np.minimum(ratios, 1 / ratios), 90))
    one_size = Counter(sizes).most_common(1)[0][1] >= 0.95 * len(sizes)
    told = (
        f"the preparation will refuse what cannot be opened, mend or remove: {mistakes[0]}"
        if mistakes
        else ""
    )
    if len(mistakes) > 1:
        told += f", and {len(mistakes) - 1} more of {len(files)} looked at"
    return Seen((tall, wide), one_size, grey, lost, (told,) if told else ())


def _is_grey(file: Image) -> bool:
    """Whether a picture has no colours, in whatever mode it is kept."""
    if file.mode in ("1", "L", "LA", "I", "I;16", "F"):
        return True
    file.draft("RGB", (64, 64))
    small = np.asarray(file.convert("RGB").resize((32, 32)), np.int16)
    return bool(np.ptp(small, axis=2).max() <= 8)  # JPEG's rounding


def _proportions(seen: Seen) -> tuple[int, int]:
    """The size to start from: the pictures' own where all are alike, a square where they differ."""
    tall, wide = seen.size
    if seen.one_size or seen.lost <= 0.05:
        return tall, wide
    side = round(math.sqrt(tall * wide))
    return side, side


TASK = """\
  name: classification
  label_smoothing: 0.05
"""
AUGMENT = """\
    crop: {crop}
    # Only where left and right are alike: never for writing.
    flip: {flip}
    rotate: {rotate}
    scale: {scale}
    brightness: {colour}
    contrast: {colour}
    saturation: {colour}
    erase: 0.1
"""
TEXT = """\
data:
  name: pictures
  path: {path}
  # The one size that every picture is brought to; they are {sizes} {original}.
  height: {height}
  width: {width}
  channels: {channels}
  # How other proportions are met: crop cuts, pad adds black, stretch distorts.
  fit:
    fit: {fit}
    filter: bilinear
  title: {title}
  licence: not stated
  # Of what the folder does not deal out itself.
  split:
    validation: {validation}
    test: {test}
    seed: 0
"""
