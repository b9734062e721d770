"""Is a run that was tracked still there? Asked in milliseconds, and free of mlflow."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

from stages.tracking.address import Address

PATIENCE = 1.0
"""Seconds for a database's lock or a server's answer: where nothing has changed, nobody waits."""


def gone(where: Address, run_id: str) -> bool:
    """Whether the run was deleted, as MLflow's pages do it, or is unknown where it should be.

    Only a clear answer counts: a server that is down, busy or wants another password leaves what
    was noted of the run as it is. A damaged database has lost it.
    """
    if where.database is not None:
        return _gone_from_database(where.database, run_id)
    if where.uri.startswith(("http://", "https://")):
        return _gone_from_server(where.uri, run_id)
    return False


def _gone_from_database(path: Path, run_id: str) -> bool:
    query = "SELECT lifecycle_stage FROM runs WHERE run_uuid = ?"
    try:
        uri = f"{path.as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as database:
            return database.execute(query, (run_id,)).fetchone() != ("active",)
    except sqlite3.OperationalError as error:
        return "locked" not in str(error)
    except sqlite3.DatabaseError:
        return True


def _gone_from_server(uri: str, run_id: str) -> bool:
    # Imported here alone: with a database, nobody waits for TLS and HTTP to be loaded.
    import http.client
    import urllib.error
    import urllib.request

    parts = urlsplit(uri)
    base = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    url = f"{base.rstrip('/')}/api/2.0/mlflow/runs/get?{urlencode({'run_id': run_id})}"
    request = urllib.request.Request(url, headers=_authorisation(parts.username, parts.password))
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return bool(json.load(answer)["run"]["info"]["lifecycle_stage"] == "deleted")
    except urllib.error.HTTPError as error:
        try:
            return bool(json.load(error)["error_code"] == "RESOURCE_DOES_NOT_EXIST")
        except (OSError, ValueError, KeyError, TypeError):
            return False
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return False


def _authorisation(user: str | None, password: str | None) -> dict[str, str]:
    """The header that MLflow's client would send, from its variables or the address."""
    from base64 import b64encode

    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(user or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(password or "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}
