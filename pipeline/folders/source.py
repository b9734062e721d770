"""Names below a folder or in a tar archive, and the bytes behind them."""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.dataset import DataError, listed

LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
MAX_BYTES = 1 << 28
"""Largest file that is read; a larger one is nothing of a size that is decoded."""


@dataclass
class Source:
    """The names below a folder or in a tar archive, which need not be unpacked: nothing is read yet.

    `folders[place]` and `files[place]` are the names in a folder, in the order people count; the top's
    place is ''. `aside[place]` counts the folders in it that are hidden or litter.
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
            yield join(place, name)
        for name in self.folders[place]:
            yield from self.below(join(place, name))

    def _from_folder(self, place: str) -> bytes:
        path = self.path / place
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a device or a pipe never ends
            raise OSError("no regular file")
        _refuse_large(found.st_size)
        return path.read_bytes()


def find(path: Path, expected: str) -> Source:
    """What lies below a folder or in a tar. Raises `DataError`; `expected` says what it should be."""
    if path.is_dir():
        found = _in_folder(path)
        _check_unpacked(found)
        return found
    if path.is_file() and tarfile.is_tarfile(path):
        return _in_archive(path)
    raise DataError(f"{path}: expected {expected}")


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """`s2` before `s10`."""
    steps = re.split(r"([0-9]+)", name.lower())
    return [(0, int(s), "") if s.isdigit() else (1, 0, s) for s in steps], name


def _in_folder(path: Path) -> Source:
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
            walk(join(place, name), depth + 1)

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


def _in_archive(path: Path) -> Source:
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


def _from_archive(
    archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], place: str
) -> bytes:
    try:
        member = members[place]
        _refuse_large(member.size)
        file = archive.extractfile(member)
        payload = file.read() if file else b""
    except (KeyError, tarfile.TarError) as error:
        raise OSError(f"not in the archive, or damaged: {error}") from error
    if len(payload) != member.size:
        raise OSError("cut short: the archive ends within it")
    return payload


def _refuse_large(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"{size} bytes; at most {MAX_BYTES} are read")


def _passed_over(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in LITTER


def join(place: str, name: str) -> str:
    """The place of a name in a folder."""
    return f"{place}/{name}" if place else name


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8; Python keeps other bytes as surrogates."""
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in name)
