"""`slipway pull`: a bundle from MLflow's registry, or from a folder, into a served repository.

A version that is there stays; a new one is put beside it by rename, whole or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pipeline.bundle.manifest import (
    LINEAGE,
    MANIFEST,
    MODEL_NAME,
    BundleError,
    canonical,
    read,
)
from serving.models.mlflow_registry import PullError, Registry

DRAFT = ".pull-"
LAST = 999_999_999
"""The highest version that a server looks at; see `serving.models.repository`."""


@click.command("pull")
@click.argument("source")
@click.option(
    "--to",
    "repository",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Repository of bundles, made if missing.",
)
def command(source: str, repository: Path) -> None:
    """Fetch the bundle SOURCE and place it as REPOSITORY/NAME/VERSION.

    SOURCE is models:/NAME@ALIAS or models:/NAME/VERSION, from the MLflow server that
    MLFLOW_TRACKING_URI names; or a bundle's folder, or its name in bundles/.
    """
    try:
        print(pull(source, repository))
    except (PullError, BundleError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"error: {repository}: {error.strerror or error}", err=True)
        sys.exit(1)


def pull(source: str, repository: Path) -> str:
    """Place the bundle and say so. Raises `PullError` or `BundleError`, with nothing placed."""
    if (repository / MANIFEST).exists():
        raise PullError(f"{repository}: is a bundle, not a repository of them; choose another --to")
    with _locked(repository):
        if source.startswith("models:/"):
            return _from_registry(source, repository)
        return _from_folder(source, repository)


def _from_folder(source: str, repository: Path) -> str:
    folder = next(
        (f for f in (Path(source), Path("bundles", source)) if (f / MANIFEST).is_file()), None
    )
    if folder is None:
        raise PullError(
            f"{source}: neither a bundle's folder nor the name of one in bundles/; "
            "from a registry it is models:/NAME@ALIAS or models:/NAME/VERSION, "
            "where `slipway register` put it on the machine that trains"
        )
    bundle = read(folder)
    name = bundle.manifest.name
    _refuse_bare(repository / name)
    present = _versions(repository / name)
    if present and _digest(repository / name / str(present[-1])) == bundle.digest:
        return _there_already(repository, name, present[-1], bundle.digest)
    number = _readable(repository / name, (present or [0])[-1] + 1)
    files = {**bundle.contents, MANIFEST: canonical(bundle.manifest)}
    if bundle.lineage is not None:
        files[LINEAGE] = json.dumps(bundle.lineage, sort_keys=True, indent=1).encode() + b"\n"
    with _draft(repository) as draft:
        for file, payload in files.items():
            (draft / file).write_bytes(payload)
        return _place(draft, repository, name, number, bundle.digest)


def _from_registry(source: str, repository: Path) -> str:
    registry = Registry.from_environment()
    version = registry.resolve(source)
    if not MODEL_NAME.fullmatch(version.name):
        raise PullError(
            f"{source}: {version.name!r} cannot be a repository's folder (1 to 64 letters, "
            "digits, '-' or '_'); give it another: slipway register EXPERIMENT --name NAME"
        )
    _refuse_bare(repository / version.name)
    _readable(repository / version.name, version.number)
    present = _versions(repository / version.name)
    if version.number in present:
        there = _digest(repository / version.name / str(version.number))
        if there == version.digest:
            return _there_already(repository, version.name, version.number, version.digest)
        raise PullError(
            f"{repository / version.name / str(version.number)}: holds another bundle "
            f"({there or 'none that can be read'}) than {source} ({version.digest}); "
            "move it away, or pull into another repository"
        )
    with _draft(repository) as draft:
        registry.download(version, draft)
        return _place(draft, repository, version.name, version.number, version.digest)


def _refuse_bare(folder: Path) -> None:
    """A bundle without a version, as in a project's `bundles/`, is no place for another."""
    if (folder / MANIFEST).exists():
        raise PullError(
            f"{folder}: is a bundle itself, which a version inside it would spoil; "
            "choose another --to"
        )


def _readable(folder: Path, number: int) -> int:
    """The version's number, if a server would read it."""
    if not 1 <= number <= LAST:
        raise PullError(f"{folder}: no server reads version {number}; the last is {LAST}")
    return number


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """One pull at a time; what a killed one left behind is cleared away."""
    repository.mkdir(parents=True, exist_ok=True)
    with (repository / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in repository.glob(f"{DRAFT}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _draft(repository: Path) -> Iterator[Path]:
    """A private folder in the repository, passed over by servers for its dot. Gone after use."""
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=repository))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(draft: Path, repository: Path, name: str, version: int, digest: str) -> str:
    """Verify the draft whole, sync it, rename it into place: a server finds all of it or none."""
    bundle = read(draft)
    if bundle.digest != digest:
        raise BundleError(f"{name}: expected bundle {digest}, got {bundle.digest}")
    for path in [*draft.iterdir(), draft]:
        _sync(path)
    place = repository / name / str(version)
    place.parent.mkdir(exist_ok=True)
    draft.chmod(0o755)  # the draft was ours alone; a server may run as another user
    draft.rename(place)
    _sync(place.parent)
    _sync(repository)
    return f"pulled: {place} (bundle {digest[:12]}){_newer(repository, name, version)}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions(folder: Path) -> list[int]:
    """The versions in place, ascending."""
    if not folder.is_dir():
        return []
    return sorted(
        int(entry.name) for entry in folder.iterdir() if re.fullmatch(r"[1-9]\d{0,8}", entry.name)
    )


def _digest(folder: Path) -> str | None:
    """The digest of the whole bundle in a folder, none where there is no such."""
    try:
        return read(folder).digest
    except BundleError:
        return None


def _there_already(repository: Path, name: str, version: int, digest: str) -> str:
    place = repository / name / str(version)
    return f"already there: {place} (bundle {digest[:12]}){_newer(repository, name, version)}"


def _newer(repository: Path, name: str, version: int) -> str:
    """A word of warning where this version is not the one that a server would choose."""
    newest = _versions(repository / name)[-1]
    return (
        ""
        if newest == version
        else f"; version {newest} is newer, and what a server takes by default"
    )


if __name__ == "__main__":
    command()
