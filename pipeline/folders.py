"""Files with labels: in a folder for each class, by their names, or by a table; on disk or in a tar.

    cats/1.jpg  dogs/2.png  ...                     dealt into train, validation and test
    train/cats/1.jpg  test/cats/7.jpg  ...          a given split; what is missing is dealt

A split's folder may be called train or training; val, valid, validation or dev; test or testing. A
class holds every file below its folder. What counts is told by the suffix; anything else, and what
begins with a dot or an operating system left behind, is ignored and counted.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import Field

from pipeline.config import Section
from pipeline.dataset import DataError, Faults, counted, listed

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
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
MAX_BYTES = 1 << 28
"""Largest file that is read; a larger one is nothing of a size that is decoded."""

LABEL = "{label}"


class Table(Section):
    """A CSV or TSV that names files and their labels, in place of folders of classes."""

    file: str = Field("", description="below `path`, with a header; empty: there is none")
    path: str = Field("path", description="its column of files, as seen from where it lies")
    label: str = Field("label", description="its column of labels")
    split: str = Field(
        "", description="its column of train, validation and test; empty: there is none"
    )


@dataclass(frozen=True)
class Kind:
    """Which files count, and what they are called."""

    noun: str
    suffixes: frozenset[str]

    def of(self, name: str) -> str:
        """The noun, 'hidden', 'litter', or the suffix of anything else."""
        if name.startswith("."):
            return "hidden"
        if name.lower() in LITTER:
            return "litter"
        suffix = PurePosixPath(name).suffix.lower()
        return self.noun if suffix in self.suffixes else suffix or "without a suffix"


@dataclass
class Found:
    """The files that count, by their path below the data's, and what was passed over."""

    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """'train', 'validation', 'test', or '' where nothing says."""
    classes: tuple[str, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    """How many files were passed over, by suffix or kind."""

    def passed_over(self) -> str:
        """`3 files ignored: 2 .txt, 1 hidden`, or nothing."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.ignored.most_common(5))
        return f"{counted(self.ignored.total(), 'file')} ignored: {kinds}" if kinds else ""

    def target(self) -> np.ndarray:
        """int64 `[rows]`: the number of each file's class."""
        numbers = {label: number for number, label in enumerate(self.classes)}
        return np.array([numbers[label] for label in self.labels], np.int64)

    def given(self, part: str, patterns: tuple[str, ...] = ()) -> np.ndarray | None:
        """bool `[rows]`: which files are a part by where they lie, or by their names.

        None where neither says. Raises `DataError` where both do, or a pattern fits no file.
        """
        if not patterns:
            return np.array(self.parts) == part if part in self.parts else None
        if part in self.parts:
            raise DataError(
                f"data.{part}_files: the data has a {part} set of its own; take one of them away"
            )
        idle = [p for p in patterns if not any(_fits(f, p) for f in self.files)]
        if idle:
            raise DataError(f"data.{part}_files: no file is called {', '.join(idle)}")
        return np.array([any(_fits(file, p) for p in patterns) for file in self.files])


@dataclass
class Source:
    """The names below a folder or in a tar archive, which need not be unpacked: nothing is read yet.

    `folders[place]` and `files[place]` are the names in a folder, in the order people count; the top's
    place is ''. `aside[place]` counts the folders that are hidden or litter.
    """

    path: Path
    folders: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    aside: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], bytes]]:
        """What reads a file by its place. It raises `OSError`, for more than `MAX_BYTES` too."""
        if self.path.is_dir():
            yield self._from_folder
            return
        with tarfile.open(self.path, "r:") as archive:
            members = {str(PurePosixPath(member.name)): member for member in archive}
            yield lambda place: _from_archive(archive, members, place)

    def read(self, place: str) -> bytes:
        """One file. Raises `OSError`."""
        with self.opened() as read:
            return read(place)

    def below(self, place: str) -> Iterator[str]:
        """The place of every file in a folder and in those in it, hidden ones and litter left out."""
        for name in self.files[place]:
            yield _join(place, name)
        for name in self.folders[place]:
            yield from self.below(_join(place, name))

    def _from_folder(self, place: str) -> bytes:
        path = self.path / place
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a device or a pipe never ends
            raise OSError("no regular file")
        _check_size(found.st_size)
        return path.read_bytes()


def source(path: Path, expected: str) -> Source:
    """What lies below a folder or in a tar. Raises `DataError`; `expected` says what it should be."""
    if path.is_dir():
        found = _of_folder(path)
        _check_unpacked(found)
        return found
    if path.is_file() and tarfile.is_tarfile(path):
        return _of_archive(path)
    raise DataError(f"{path}: expected {expected}")


def looked_through(
    look: Callable[[], Found],
    read: Callable[[Sequence[str]], Iterator[np.ndarray]],
    found_in: Source,
    kind: Kind,
) -> Found:
    """What `look` finds by the names alone.

    Where it raises `DataError` every file of the kind is read as well, so that one error tells of the
    names and of what is inside: who mends a folder wants to do it once.
    """
    try:
        return look()
    except DataError as error:
        faults = Faults()
        faults.note(error)
        with faults.noted():
            places = [p for p in found_in.below("") if kind.of(PurePosixPath(p).name) == kind.noun]
            deque(read([place for place in places if _is_text(place)]), 0)
        faults.settle()
        raise


def scan(found_in: Source, kind: Kind) -> Found:
    """Classes by folder, looked at by name only. Raises `DataError`."""
    found, mistakes = Found(), []
    top = _top(found_in)
    inside = found_in.folders[top]
    parts = {name: PARTS.get(name.lower()) for name in inside}
    # A class may be called 'train' (beside 'bus'); a split holds folders only.
    split = bool(inside) and all(parts.values())
    if split and not any(found_in.folders[_join(top, name)] for name in inside):
        split = False
    if not split:
        _check_no_split(found_in, kind, parts)
    loose = [name for name in found_in.files[top] if kind.of(name) == kind.noun]
    if not inside:
        raise DataError(
            f"{found_in.path}: no folders of classes, but "
            f"{counted(len(loose), kind.noun)} directly in it; "
            f"put each {kind.noun} into a folder named after its class"
        )
    for name in inside:
        place = _join(top, name)
        if split:
            mistakes += [
                f"{place}/{file}: a {kind.noun} outside any class"
                for file in found_in.files[place]
                if kind.of(file) == kind.noun
            ]
            for label in found_in.folders[place]:
                mistakes += _gather(found, found_in, kind, _join(place, label), parts[name] or "")
        else:
            mistakes += _gather(found, found_in, kind, place, "")
    mistakes += [f"{_join(top, name)}: a {kind.noun} outside any class" for name in sorted(loose)]
    found.ignored += Counter(k for n in found_in.files[top] if (k := kind.of(n)) != kind.noun)
    return _checked(found, found_in, mistakes)


def _check_no_split(found_in: Source, kind: Kind, parts: Mapping[str, str | None]) -> None:
    """Raise `DataError` for folders called train and test: they would be taught as two classes."""
    given = {part for part in parts.values() if part}
    if "train" not in given or len(given) < 2:
        return
    named = " and ".join(f"{name}/" for name, part in parts.items() if part)
    others = [f"{name}/: beside {named}" for name, part in parts.items() if not part]
    mistakes = others or [f"{name}/: {kind.noun}s outside any class" for name in parts]
    raise listed(
        mistakes,
        f"{found_in.path}: {named} are called as a split is, whose folders hold one folder for each "
        "class, and stand alone; mend that, or call them otherwise",
    )


def by_name(found_in: Source, kind: Kind, pattern: str) -> Found:
    """Classes by the files' names: `{label}_*` is what stands before the first `_`.

    Folders say nothing, save a split's. Raises `DataError`.
    """
    if pattern.count(LABEL) != 1:
        raise DataError(f"data.label_from: expected one {LABEL} in the pattern, got {pattern!r}")
    steps = {LABEL: "(.+?)", "*": ".*", "?": "."}
    fits = re.compile(
        "".join(
            steps.get(step) or re.escape(step) for step in re.split(r"(\{label\}|\*|\?)", pattern)
        )
    )
    found, mistakes = Found(), []
    top = _top(found_in)
    inside = found_in.folders[top]
    split = bool(inside) and all(name.lower() in PARTS for name in inside)
    for place in found_in.below(top):
        name = PurePosixPath(place).name
        if (what := kind.of(name)) != kind.noun:
            found.ignored[what] += 1
        elif not _is_text(place):
            mistakes.append(f"{place!r}: a file name that is no UTF-8")
        elif (match := fits.fullmatch(name)) is None:
            mistakes.append(f"{place}: the name does not fit data.label_from {pattern!r}")
        else:
            first = PurePosixPath(place).relative_to(top).parts[0]
            found.files.append(place)
            found.labels.append(match[1])
            found.parts.append(PARTS.get(first.lower(), "") if split else "")
    if not found.files and not mistakes:
        mistakes.append(f"no {kind.noun}s in it")
    return _checked(found, found_in, mistakes)


def by_table(found_in: Source, kind: Kind, table: Table) -> Found:
    """Classes by a CSV or TSV beside the files. Raises `DataError` that lists lines."""
    header, lines = read_table(found_in, table.file)
    wanted = [name for name in (table.path, table.label, table.split) if name]
    for name in wanted:
        if name not in header:
            raise DataError(
                f"{found_in.path / table.file}: no column {name!r}, but {', '.join(header)}; say which "
                "under data.table"
            )
    found, mistakes, seen = Found(), [], dict[str, int]()
    beside = PurePosixPath(table.file).parent
    known = set(found_in.below(""))
    for number, values in lines:
        line = f"{table.file} line {number}"
        if len(values) != len(header):
            mistakes.append(f"{line}: {len(values)} columns, the header has {len(header)}")
            continue
        row = dict(zip(header, values, strict=True))
        place = (
            os.path.normpath(beside / row[table.path].strip()) if row[table.path].strip() else ""
        )
        said = row[table.split].strip().lower() if table.split else ""
        if not place or not row[table.label].strip():
            mistakes.append(f"{line}: without a {'label' if place else 'file'}")
        elif place not in known:
            mistakes.append(f"{line}: there is no {row[table.path]}")
        elif kind.of(PurePosixPath(place).name) != kind.noun:
            mistakes.append(f"{line}: {row[table.path]} is no {kind.noun} by its suffix")
        elif place in seen:
            mistakes.append(f"{line}: {row[table.path]} stands in line {seen[place]} already")
        elif table.split and said not in PARTS:
            mistakes.append(f"{line}: split {said!r}; expected train, validation or test")
        else:
            seen[place] = number
            found.files.append(place)
            found.labels.append(row[table.label].strip())
            found.parts.append(PARTS.get(said, ""))
    unnamed = sum(kind.of(PurePosixPath(place).name) == kind.noun for place in known) - len(seen)
    if unnamed > 0:
        found.ignored[f"{kind.noun}s that the table does not name"] = unnamed
    return _checked(found, found_in, mistakes)


def read_table(found_in: Source, file: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """A table's header, and its rows with the lines that they end on. Raises `DataError`."""
    try:
        text = found_in.read(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{found_in.path / file}: cannot be read: {error}") from error
    first = text.partition("\n")[0]
    separator = max(",\t;", key=first.count)
    rows = _cells(found_in.path / file, text, separator)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    return header, ((number, values) for number, values in rows if values)


def _cells(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Every row with the line that it ends on. Raises `DataError` naming the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    begins = 1
    try:
        for values in reader:
            yield reader.line_num, values
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: line {begins}: {error}; a quote that is never closed takes in what follows, "
            "or this is no table"
        ) from None


def sampler(found_in: Source, found: Found) -> Callable[[int], tuple[str, bytes]]:
    """What gives a row's own file: (suffix, bytes)."""
    return lambda row: (PurePosixPath(found.files[row]).suffix, found_in.read(found.files[row]))


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """`s2` before `s10`."""
    steps = re.split(r"([0-9]+)", name.lower())
    return [(0, int(s), "") if s.isdigit() else (1, 0, s) for s in steps], name


def _gather(found: Found, found_in: Source, kind: Kind, folder: str, part: str) -> list[str]:
    """Add a class's files to `found`; what is wrong with it."""
    mistakes, before = [], len(found.files)
    other: Counter[str] = Counter()
    for place in found_in.below(folder):
        if (what := kind.of(PurePosixPath(place).name)) != kind.noun:
            other[what] += 1
        elif not _is_text(place):
            mistakes.append(f"{place!r}: a file name that is no UTF-8")
        else:
            found.files.append(place)
            found.labels.append(PurePosixPath(folder).name)
            found.parts.append(part)
    found.ignored += other
    found.ignored["hidden or litter folders"] += sum(
        count for place, count in found_in.aside.items() if f"{place}/".startswith(f"{folder}/")
    )
    if len(found.files) == before:
        kinds = ", ".join(f"{count} {what}" for what, count in other.most_common(3))
        mistakes.append(
            f"{folder}/: a class without {kind.noun}s" + (f" ({kinds} ignored)" if kinds else "")
        )
    return mistakes


def _checked(found: Found, found_in: Source, mistakes: list[str]) -> Found:
    """The same with its classes. Raises `DataError` that lists what is wrong."""
    found.classes = tuple(sorted(set(found.labels), key=natural))
    if any(found.parts):
        mistakes = [*mistakes, *_one_sided(found)]
    if not mistakes and len(found.classes) < 2:
        mistakes = [f"one class only ({', '.join(found.classes)}); two are the least to tell"]
    if mistakes:
        note = f" ({found.passed_over()})" if found.ignored else ""
        raise listed(mistakes, f"{found_in.path}: mistakes in the folder{note}")
    return found


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


def _of_folder(path: Path) -> Source:
    found = Source(path)

    def walk(place: str, depth: int) -> None:
        folders, files = [], []
        for entry in os.scandir(path / place):
            if not _is_folder(entry, depth):
                files.append(entry.name)
            elif _passed_over(entry.name):
                found.aside[place] += 1
            else:
                folders.append(entry.name)
        found.folders[place] = sorted(folders, key=natural)
        found.files[place] = sorted(files, key=natural)
        for name in folders:
            walk(_join(place, name), depth + 1)

    walk("", 0)
    return found


def _is_folder(entry: os.DirEntry[str], depth: int) -> bool:
    """Whether to look into it: a class may be a link, and deeper ones could lead round in a circle."""
    try:
        return entry.is_dir(follow_symlinks=depth < 2)
    except OSError:  # a link to itself
        return False


def _check_unpacked(found_in: Source) -> None:
    """Raise `DataError` for a folder of nothing but an archive, which is likely the data."""
    files = [name for name in found_in.files[""] if not name.startswith(".")]
    if found_in.folders[""] or len(files) != 1 or not files[0].lower().endswith(ARCHIVES):
        return
    archive = found_in.path / files[0]
    raise DataError(
        f"{found_in.path}: nothing but {files[0]}; "
        + (
            f"give the archive itself, {archive}"
            if archive.suffix.lower() == ".tar"
            else "unpack it, or decompress it (gunzip) and give the .tar itself"
        )
    )


def _of_archive(path: Path) -> Source:
    found = Source(path, {"": []}, {"": []})
    try:
        with tarfile.open(path, "r:") as archive:
            places = [m.name for m in archive if m.isfile()]
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: not a plain tar archive ({error}); decompress it (gunzip), or unpack it"
        ) from error
    outside = [
        f"{place}: leads out of the archive"
        for place in places
        if place.startswith("/") or ".." in PurePosixPath(place).parts
    ]
    if outside:
        raise listed(outside, f"{path}: members that belong nowhere in it; pack it anew")
    for place in dict.fromkeys(places):
        steps = PurePosixPath(place).parts
        if not any(_passed_over(step) for step in steps[:-1]):
            for depth in range(1, len(steps)):
                outer, inner = "/".join(steps[: depth - 1]), "/".join(steps[:depth])
                if inner not in found.folders:
                    found.folders[outer].append(steps[depth - 1])
                    found.folders[inner], found.files[inner] = [], []
            found.files["/".join(steps[:-1])].append(steps[-1])
    for names in (*found.folders.values(), *found.files.values()):
        names.sort(key=natural)
    return found


def _top(found_in: Source) -> str:
    """Where the data begins: an archive usually holds one folder, and all in it."""
    top = ""
    while (
        not found_in.path.is_dir() and len(found_in.folders[top]) == 1 and not found_in.files[top]
    ):
        top = _join(top, found_in.folders[top][0])
    return top


def _from_archive(
    archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], place: str
) -> bytes:
    try:
        member = members[place]
        _check_size(member.size)
        file = archive.extractfile(member)
        payload = file.read() if file else b""
    except (KeyError, tarfile.TarError) as error:
        raise OSError(f"not in the archive, or damaged: {error}") from error
    if len(payload) != member.size:
        raise OSError("cut short: the archive ends within it")
    return payload


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"{size} bytes; at most {MAX_BYTES} are read")


def _fits(file: str, pattern: str) -> bool:
    """By the file's name, or by its whole path where the pattern has steps."""
    return fnmatchcase(file if "/" in pattern else PurePosixPath(file).name, pattern)


def _passed_over(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in LITTER


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _is_text(name: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in name)
