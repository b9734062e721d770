"""The folder of bundles: which versions lie in it, which are chosen, whether one has changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle.manifest import (
    LINEAGE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MODEL_NAME,
    BundleError,
    parse,
    sha256,
)
from serving.config import ALL, Versions
from serving.errors import ModelRefused

VERSION = re.compile(r"[1-9][0-9]{0,8}")
Folders = dict[str, dict[int, Path]]
"""Where each version of each model lies."""


@dataclass(frozen=True, slots=True)
class Print:
    """What a version's folder looked like: `identity` its manifest and lineage, `files` all of it.

    A bundle is its manifest, which holds every file's digest; the files' sizes and times only say
    whether one that failed was mended.
    """

    identity: tuple[str, ...]
    files: tuple[tuple[str, int, int], ...]


class Layout:
    """One path, read anew at each question: a bare bundle, or a repository of them.

    `single` is the name that a bare bundle had at first, none for a repository; it stays what it
    was, whatever is put in its place.
    """

    def __init__(self, path: Path, single: str | None) -> None:
        self.path = path
        self.single = single

    @classmethod
    def found(cls, path: Path) -> Layout:
        """What there is at a path."""
        return cls(path, _bare_name(path) if (path / MANIFEST).is_file() else None)

    def versions(self) -> Folders:
        """Every version there is. Raises `ModelRefused` where the folder cannot be read."""
        if self.single is not None:
            return {self.single: {1: self.path}} if (self.path / MANIFEST).is_file() else {}
        found: Folders = {}
        for name, version, folder in _found(self.path):
            found.setdefault(name, {})[version] = folder
        return found


def chosen(policy: Versions, present: Set[int]) -> list[int]:
    """The versions that a policy loads, in the order they are tried.

    Of 'latest N' all are named, newest first: whoever loads them stops after N that serve, so that
    a broken newest version does not leave a model with nothing.
    """
    if policy == ALL:
        return sorted(present)
    if isinstance(policy, str):
        return sorted(present, reverse=True)
    return sorted(present & set(policy))


def wanted(policy: Versions, present: int) -> int:
    """How many of the `chosen` versions are to serve."""
    if isinstance(policy, str) and policy != ALL:
        return min(present, int(policy.split()[1]))
    return present


def passed_over(policy: Versions) -> str:
    """Why a version is not loaded."""
    told = policy if isinstance(policy, str) else ", ".join(map(str, policy))
    return f"not chosen: the versions to load are {told}"


def look(folder: Path) -> Print | None:
    """What a folder looks like now, none where it holds no manifest that can be read."""
    beside = folder.resolve()
    identity, files = [], []
    try:
        for path in (
            folder / MANIFEST,
            folder / LINEAGE,
            beside.with_name(f"{beside.name}.{LINEAGE}"),
        ):
            if path.is_file():
                with path.open("rb") as file:
                    identity.append(sha256(file.read(MAX_MANIFEST_BYTES + 1)))
            elif path.name == MANIFEST:
                return None
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                files.append((entry.name, status.st_size, status.st_mtime_ns))
    except OSError:
        return None
    return Print(tuple(identity), tuple(sorted(files)))


def _bare_name(folder: Path) -> str:
    """A bundle by itself goes by the name in its manifest or, unreadable, its folder's."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return parse(file.read(MAX_MANIFEST_BYTES + 1)).name
    except (OSError, BundleError):
        return folder.resolve().name


def _found(path: Path) -> Iterator[tuple[str, int, Path]]:
    """`<name>/<version>/` of a repository, and `<name>/` where a project keeps its bundles bare."""
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
        for folder in folders:
            if not MODEL_NAME.fullmatch(folder.name):
                continue
            if (folder / MANIFEST).is_file():
                yield folder.name, 1, folder
                continue
            for version in sorted(folder.iterdir()):
                if VERSION.fullmatch(version.name) and version.is_dir():
                    yield folder.name, int(version.name), version
    except OSError as error:
        raise ModelRefused(f"{error.filename or path}: cannot be read: {error.strerror}") from error
