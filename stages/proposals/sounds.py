"""Sounds in one folder per class, in one folder, or named by a table."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.bundle.decode import DecodeError
from pipeline.bundle.decode.sound import MAX_SECONDS, rate_of, seconds_of
from pipeline.data.sounds import SOUNDS
from pipeline.dataset import DataError, listed
from pipeline.folders import labels, source
from pipeline.folders.found import Found
from pipeline.folders.source import Source
from pipeline.folders.table import Table, read_table
from stages import budget
from stages.proposals import Hints, Learning, Proposal, quoted, spread, written
from stages.shares import shares, summary

READS = "a folder or tar with one folder of sounds for each class; a CSV with a column of sounds"
LOOKED_AT = 300
"""Sounds whose header is read."""

HIGHEST_RATE = 16_000
"""Samples a second that are enough to tell what is said."""

LONGEST = 30.0
"""Seconds that a proposal keeps at most; longer ones are cut."""

LABELS = ("label", "class", "category", "target", "y")
"""What a table's column of labels is usually called."""

WINDOW, HOP = 0.032, 0.016


@dataclass(frozen=True)
class Way:
    """Where the labels are."""

    path: Path
    found: Found
    told: str
    label_from: str = ""
    table: Table = field(default_factory=Table)


def propose(source: Path, hints: Hints) -> Proposal | None:
    """Rate, length, network and passes. Raises `DataError` where the sounds are unusable."""
    if _is_table(source) and not _names_sounds(source):
        return None
    found_in = _source(source)
    if found_in is None:
        return None
    way = _by_table(source, found_in, hints) if _is_table(source) else None
    if way is None and not _holds_sounds(found_in):
        return None
    way = way or _by_folder(source, found_in)
    rates, lengths = _look(found_in, way.found)
    usual = Counter(rates).most_common(1)[0][0]
    rate = min(usual, HIGHEST_RATE)
    seconds = min(LONGEST, math.ceil(10 * float(np.percentile(lengths, 98))) / 10)
    mels = 40 if rate <= 8000 else 64
    segments = 32 if seconds <= 1 else 64 if seconds <= 5 else 128
    dealt, counts = shares(way.found, "sound")
    choice = budget.choose(
        counts["train"],
        len(way.found.classes),
        (mels, segments),
        channels=1,
        resize=False,
        before=_seconds_before(float(np.mean(np.minimum(lengths, seconds))), rate),
    )
    data = TEXT.format(
        path=quoted(str(way.path)),
        where=_where(way),
        title=quoted(f"sounds of {source.name or source.resolve().name}"),
        usual=usual,
        rate=rate,
        longest=f"{max(lengths):.1f}",
        seconds=seconds,
        mels=mels,
        segments=segments,
        validation=dealt["validation"],
        test=dealt["test"],
    )
    learning = Learning(
        choice.epochs,
        choice.batch_size,
        augment=AUGMENT,
        told=f"  # About {choice.duration} on one thread. More passes usually do better.\n",
    )
    cut = sum(length > seconds for length in lengths)
    told = (
        summary(way.found, "sound", counts, f" ({way.told})"),
        f"{rate} samples a second (they usually have {usual}), at most {seconds:g} s of each "
        f"({cut} of {len(lengths)} looked at are longer, and cut)",
        f"network {choice.model['name']}, width {choice.model['width']}, "
        f"{choice.epochs} epochs: at most {choice.duration} on one thread",
        "where somebody speaks or sings in training and test alike, figures flatter: "
        'data.test_files: ["*_NAME_*"] holds one back',
    )
    return Proposal(written(data, choice.model, TASK, learning), told)


def _source(path: Path) -> Source | None:
    """What lies there, or beside a table that does."""
    try:
        return source.find(path.parent if _is_table(path) else path, "sounds")
    except DataError:
        return None


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def _names_sounds(table: Path) -> bool:
    """Whether any of its first rows names a file of sound.

    Asked before anything else: it may lie among a million files, or where some may not be looked at.
    """
    try:
        _, lines = read_table(Source(table.parent), table.name)
        return any(
            SOUNDS.of(PurePosixPath(value.strip()).name) == "sound"
            for (_, values), _ in zip(lines, range(LOOKED_AT), strict=False)
            for value in values
        )
    except DataError:  # another kind of data, which says itself what is wrong
        return False


def _holds_sounds(found_in: Source) -> bool:
    return any(SOUNDS.of(PurePosixPath(place).name) == "sound" for place in found_in.below(""))


def _by_folder(source: Path, found_in: Source) -> Way:
    """Classes by folder; or, where all sounds lie in one, by the beginning of their names."""
    places = [
        PurePosixPath(place)
        for place in found_in.below("")
        if SOUNDS.of(PurePosixPath(place).name) == "sound"
    ]
    if len({place.parent for place in places}) == 1:
        begins = Counter(place.name.partition("_")[0] for place in places if "_" in place.name)
        if begins.total() == len(places) and 2 <= len(begins) <= len(places) / 3:
            pattern = "{label}_*"
            return Way(
                source,
                labels.by_name(found_in, SOUNDS, pattern),
                "by what stands before the first _ of a name: change data.label_from if it is not that",
                label_from=pattern,
            )
    return Way(source, labels.by_folder(found_in, SOUNDS), "by folder")


def _by_table(source: Path, found_in: Source, hints: Hints) -> Way | None:
    """A table with a column of sounds that are there; None for any other."""
    header, lines = read_table(found_in, source.name)
    rows = [values for (_, values), _ in zip(lines, range(LOOKED_AT), strict=False)]
    known = set(found_in.below(""))
    path = next(
        (
            name
            for number, name in enumerate(header)
            if any(len(v) > number and v[number].strip().removeprefix("./") in known for v in rows)
        ),
        None,
    )
    if path is None:
        return None
    others = [name for name in header if name != path]
    split = next((name for name in others if name.lower() in ("split", "set", "part")), "")
    named = [name for name in others if name.lower() in LABELS]
    some = [name for name in others if name != split and _tells(rows, header.index(name))]
    label = hints.target or next(iter(named or some), None)
    if label is None:
        raise DataError(f"{source}: a column of sounds ({path}), but none of labels beside it")
    table = Table(file=source.name, path=path, label=label, split=split)
    found = labels.by_table(found_in, SOUNDS, table)
    return Way(source.parent, found, f"by column {label} of {source.name}", table=table)


def _tells(rows: list[list[str]], column: int) -> bool:
    """Whether a column could be one of labels: several, each more than once."""
    values = Counter(row[column] for row in rows if len(row) > column)
    return len(values) > 1 and len(values) <= values.total() / 2


def _look(found_in: Source, found: Found) -> tuple[list[int], list[float]]:
    """Rates and lengths of some. Raises `DataError` where none can be opened."""
    rates, lengths, mistakes = [], [], []
    with found_in.opened() as read:
        for file in spread(found.files, LOOKED_AT):
            try:
                payload = read(file)
                rates.append(rate_of(payload))
                lengths.append(seconds_of(payload) or MAX_SECONDS)
            except (DecodeError, OSError) as error:
                mistakes.append(f"{file}: {error}")
    if not rates:
        raise listed(mistakes, "sounds that cannot be opened")
    return rates, lengths


def _seconds_before(seconds: float, rate: int) -> float:
    """What a sound's spectrogram and its augmentation take: a product by frame, some changes by sample."""
    frame = WINDOW * rate
    return seconds / HOP * 2 * frame * frame / budget.RATE + 4 * seconds * rate * (
        budget.SECONDS_PER_VALUE
    )


def _where(way: Way) -> str:
    """The settings that say where the labels are, none for folders."""
    if way.label_from:
        return f"  label_from: {quoted(way.label_from)}\n"
    if not way.table.file:
        return ""
    lines = [
        f"    {key}: {quoted(value)}\n" for key, value in way.table.model_dump().items() if value
    ]
    return "  table:\n" + "".join(lines)


TASK = """\
  name: classification
  label_smoothing: 0.05
"""
AUGMENT = """\
    speed: 0.1
    time_shift: 0.1
    time_mask: 0.1
    frequency_mask: 0.1
    noise: 20
    gain: 6
"""
TEXT = """\
data:
  name: sounds
  path: {path}
{where}  # They usually have {usual}; each is brought to this rate.
  rate: {rate}
  # What is longer is cut; the longest looked at has {longest} seconds. A trim of 40 takes silent ends off.
  cut:
    seconds: {seconds}
    keep: start
    trim: 0
  frontend:
    mels: {mels}
    normalise: data
    segments: {segments}
  title: {title}
  licence: not stated
  # Of what is not dealt out already. Sounds of one speaker in two parts flatter the figures:
  # test_files: ["*_NAME_*"] holds somebody back.
  split:
    validation: {validation}
    test: {test}
    seed: 0
"""
