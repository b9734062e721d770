"""Where runs go: which server, which database, which MLflow experiment. Free of mlflow."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

EXPERIMENT = "slipway"
SQLITE = "sqlite:///"
SQLITE_BEGINS = b"SQLite format 3\0"
READ_THROUGH = 256 << 20
"""Bytes up to which a database is read through before it is used: half a second."""


class AddressError(ValueError):
    """`MLFLOW_TRACKING_URI` names nothing that could keep runs; the message says why."""


@dataclass(frozen=True)
class Address:
    """An MLflow server, or the database of a project that has none.

    `uri` is absolute: `dvc exp run --queue` works in a folder that is deleted afterwards, and
    MLflow would resolve its default there. `artifacts` is set where no server chooses the place.
    """

    uri: str
    experiment: str
    artifacts: Path | None
    home: Path

    @property
    def database(self) -> Path | None:
        """The SQLite file, where the address is one."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    @property
    def shown(self) -> str:
        """The URI without a password in it, even where it is malformed."""
        return re.sub(r"(?<=://)[^/?#]*@", "", self.uri)

    @property
    def identity(self) -> str:
        """Changes with the server, the MLflow experiment, and the database file itself.

        The inode tells a database that was deleted and made again from the one a stamp speaks of.
        """
        inode = ""
        if self.database is not None:
            inode = str(self.database.stat().st_ino) if self.database.exists() else "none"
        return hashlib.sha256(f"{self.uri}\0{self.experiment}\0{inode}".encode()).hexdigest()[:16]

    @property
    def notes(self) -> Path:
        """The folder of local stamps and locks, shared by a project's experiment folders."""
        return self.home / ".dvc" / "tmp" / "track"

    def check(self) -> None:
        """What can be known before MLflow, which would try a bad file again for minutes.

        Raises `AddressError`, or `OSError` where a file cannot be read.
        """
        if self.database is None:
            if self.uri.startswith("sqlite:"):
                raise AddressError(f"a database in memory keeps nothing; expected {SQLITE}FILE")
            try:
                urlsplit(self.uri).port  # noqa: B018  (raises where it is no number)
            except ValueError as error:
                raise AddressError(f"not a URL: {error}") from None
        elif self.database.name == ":memory:":
            raise AddressError(f"a database in memory keeps nothing; expected {SQLITE}FILE")
        elif self.database.is_dir():
            raise AddressError(f"{self.database} is a folder; expected {SQLITE}FILE")
        elif self.database.exists():
            with self.database.open("rb") as file:
                begins = file.read(len(SQLITE_BEGINS))
            if begins not in (b"", SQLITE_BEGINS):
                raise AddressError(f"{self.database} is not an SQLite database")
            _probe(self.database)


def _probe(path: Path) -> None:
    """Read a database through and begin to write in it. Raises `AddressError`.

    One that another process holds for the moment is sound as far as anybody can tell.
    """
    import sqlite3
    from contextlib import closing

    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=1)) as database:
            if path.stat().st_size <= READ_THROUGH:
                (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(" ".join(found.split()))
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE slipway_probe (level)")
            database.rollback()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise AddressError(f"{path} cannot be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise AddressError(
            f"{path} is damaged ({error}); move it away, and what is tracked next begins a new one"
        ) from None


def home() -> Path:
    """The project's folder; within DVC's experiments, the one they were started from."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def address() -> Address:
    """`MLFLOW_TRACKING_URI`, else the project's own `mlflow.db` with `mlartifacts/` beside it.

    Nothing is checked yet: that is for whoever wants to write, and `locked` does it.
    """
    project = home()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{project / 'mlflow.db'}"
    artifacts: Path | None = project / "mlartifacts"
    if uri.startswith(SQLITE):
        database = project / uri.removeprefix(SQLITE)
        uri, artifacts = f"{SQLITE}{database}", database.parent / "mlartifacts"
    elif "://" not in uri or uri.partition("://")[0].lower() in ("http", "https", "databricks"):
        artifacts = None
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    return Address(uri, name, artifacts, project)


@contextmanager
def locked(where: Address) -> Iterator[None]:
    """One tracker of this database, or of this project, at a time; a dead one holds nothing.

    MLflow's first opening of a database is not safe against another one. Raises what
    `Address.check` does.
    """
    where.check()
    path = where.notes / "lock"
    if where.database is not None:
        path = where.database.with_name(f"{where.database.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
