"""`slipway key`: a new API key, shown once; the server's file keeps only its hash."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import click

from pipeline.config import ConfigError
from serving.commands.folders import fail
from serving.doors.access import (
    MAX_FILE_BYTES,
    NAME,
    PREFIX,
    Key,
    Scope,
    check_owner,
    generated,
    parse,
)


@click.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    required=True,
    help="What the key opens; give it once for each.",
)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("keys.txt"),
    show_default=True,
    help="The server's keys file; made, for this user alone, where there is none.",
)
def command(name: str, scopes: tuple[str, ...], path: Path) -> None:
    """Make an API key called NAME: print it, this once, and add its hash to a keys file.

    `slipway serve --keys FILE` reads the file, and reads it again when it changes: to revoke a key,
    delete its line.
    """
    if not NAME.fullmatch(name) or name.startswith(PREFIX):
        raise click.BadParameter(
            f"expected 1 to 64 letters, digits and . _ @ -, got {name!r}", param_hint="NAME"
        )
    text, key = generated(name, [Scope(scope) for scope in scopes])
    try:
        append(path, key)
    except ConfigError as error:
        fail(error)
    except OSError as error:
        fail(f"{path}: cannot be written: {error.strerror}")
    click.echo(text)
    if sys.stdout.isatty():
        click.echo("Keep it now: it cannot be shown again.", err=True)


def append(path: Path, key: Key) -> None:
    """Add a key's line to a file that is sound with it. Raises `ConfigError` or `OSError`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
        check_owner(path, os.fstat(file.fileno()))
        fcntl.flock(file, fcntl.LOCK_EX)  # two of these at once
        before = file.read(MAX_FILE_BYTES).decode(errors="replace")
        line = f"{key.line()}\n"
        if before and not before.endswith("\n"):
            line = "\n" + line
        parse(before + line, str(path))
        file.write(line.encode())
        os.fsync(file.fileno())
