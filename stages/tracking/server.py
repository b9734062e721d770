"""The way to an MLflow server or database, opened safely and given up on quickly."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from stages.tracking.address import SQLITE, Address

FIRST_ANSWER = 4
"""Seconds that a server has for its first answer, and a port to open."""

# Once it has answered, a server may be slow: it hands big files on to another store.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}

# Where MLflow's database keeps paths of artifacts.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)

# The first makes MLflow's pages open as those of trained models rather than of chat bots.
ABOUT = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "One run per pipeline state of `dvc repro`. Tick two and press Compare.",
}


class Unreachable(RuntimeError):
    """There is nobody at the address."""


@dataclass(frozen=True)
class Server:
    """An open way to an MLflow server and the experiment that holds our runs."""

    client: MlflowClient
    experiment_id: str
    where: Address


def connect(where: Address) -> Server:
    """Open the way, making database and experiment where they are missing.

    Hold `address.locked` meanwhile. Raises `Unreachable`, or whatever MLflow does.
    """
    warnings.filterwarnings("ignore")
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _knock(where)
    _make_database(where)
    # `mlflow.onnx` and the artifact repositories take the address from here alone.
    mlflow.set_tracking_uri(where.uri)
    client = MlflowClient(where.uri)
    with _impatience():
        experiment = client.get_experiment_by_name(where.experiment)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    if experiment is None:
        experiment = _make_experiment(client, where)
    elif _follow_move(where, experiment.artifact_location):
        experiment = client.get_experiment(experiment.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return Server(client, experiment.experiment_id, where)


def _knock(where: Address) -> None:
    """Ask the port before MLflow does, which would not give up for minutes."""
    parts = urlsplit(where.uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        parts.hostname
    ):
        return
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection((parts.hostname, port), timeout=FIRST_ANSWER).close()
    except OSError as error:
        raise Unreachable(str(error.strerror or error)) from None


@contextmanager
def _impatience() -> Iterator[None]:
    """MLflow's patience for the first answer, unless the user has set it."""
    ours = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(FIRST_ANSWER),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _make_database(where: Address) -> None:
    """A new SQLite file appears whole: one whose making was killed could never be opened again."""
    if where.database is None or where.database.exists():
        return
    where.database.parent.mkdir(parents=True, exist_ok=True)
    draft = where.database.with_name(f"{where.database.name}.draft")
    draft.unlink(missing_ok=True)
    MlflowClient(f"{SQLITE}{draft}").search_experiments(max_results=1)
    draft.rename(where.database)


def _follow_move(where: Address, location: str) -> bool:
    """Whether a project's folder was moved or copied: then its database learns the new place.

    MLflow keeps absolute paths of artifacts, so it would go on reading and writing the old folder.
    """
    if where.database is None or where.artifacts is None or not location.startswith("file:"):
        return False
    old, new = location.rstrip("/"), where.artifacts.as_uri()
    if old == new or not old.endswith(f"/{where.artifacts.name}"):
        return False
    with closing(sqlite3.connect(where.database)) as database, database:
        for table, column in PLACES:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column} || '/', 1, ?) = ? || '/'",
                (new, len(old) + 1, len(old) + 1, old),
            )
    return True


def _make_experiment(client: MlflowClient, where: Address) -> Experiment:
    location = where.artifacts.as_uri() if where.artifacts else None
    try:
        client.create_experiment(where.experiment, artifact_location=location, tags=ABOUT)
    except MlflowException:
        # Another machine may have made it in the meantime.
        if client.get_experiment_by_name(where.experiment) is None:
            raise
    experiment = client.get_experiment_by_name(where.experiment)
    assert experiment is not None
    return experiment
