"""Where the commands find a bundle, and how they say that they did not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from pipeline.cli import can_train

PROJECT_BUNDLES = Path("bundles")
"""Where a project keeps what it built, relative to its folder."""


def resolve_bundle(text: str) -> Path:
    """The folder that PATH means: itself, or `bundles/PATH` of the project in this folder.

    A folder with nothing to serve gives way to the bundle of its name.

    Raises `click.UsageError` naming the bundles there are.
    """
    path = Path(text)
    beside = PROJECT_BUNDLES / text
    known_here = len(path.parts) == 1 and beside.is_dir()
    if path.is_dir() and not known_here:
        return path
    if known_here and not path.is_dir():
        return beside
    from pipeline.bundle.manifest import MANIFEST  # brings numpy, which a supervisor does without

    if path.is_dir():  # a folder of data may go by the experiment's name
        serves = (path / MANIFEST).is_file() or any(path.glob(f"*/*/{MANIFEST}"))
        return path if serves or not (beside / MANIFEST).is_file() else beside
    known = sorted(p.parent.name for p in PROJECT_BUNDLES.glob(f"*/{MANIFEST}"))
    hint = f"bundles here: {', '.join(known)}" if known else how_to_get_one()
    if path.exists():
        raise click.UsageError(f"{text}: not a folder; a bundle is a folder with a {MANIFEST}")
    raise click.UsageError(f"{text}: no such folder, and no {beside}; {hint}")


def how_to_get_one() -> str:
    """The way to a bundle from here: a host has none of what builds one."""
    if can_train():
        return "build it in its project: dvc repro"
    return (
        "fetch it from where it was built: slipway pull models:/NAME@ALIAS --to REPOSITORY "
        "(to build one here needs the training half: pip install 'slipway[train]')"
    )


def fail(message: object) -> NoReturn:
    """Say what went wrong, a line each, and leave with exit code 1."""
    for line in str(message).splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(1)
