"""MLflow's pages on this project's runs: `make ui`.

The server and `dvc repro` may use the database at the same time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import click

from stages.entry import fail
from stages.tracking.address import AddressError, address, locked

START = 60
"""Seconds that the server has to answer for the first time."""


@click.command("ui")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def command(port: int) -> None:
    """Show this project's runs in a browser, on this machine alone."""
    where = address()
    try:
        where.check()
    except (AddressError, OSError) as error:
        fail(f"MLFLOW_TRACKING_URI is {where.shown}: {error}", 2)
    if where.database is None:
        fail(f"runs go to {where.shown} (MLFLOW_TRACKING_URI); open that in a browser", 2)
    with socket.socket() as door:
        # As the server will: a port that somebody has just left is free.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("127.0.0.1", port))
        except OSError as error:
            fail(f"port {port}: {error.strerror}; try --port {port % 65535 + 1}", 1)
    from stages.tracking import server, view

    with locked(where):
        way = server.connect(where)
        shared = view.share(way)
    arguments = ["--backend-store-uri", where.uri, "--artifacts-destination", str(where.artifacts)]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--uvicorn-opts", "--log-level warning"]
    # The job runner is for judging language models: processes that nobody here has work for.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    mlflow = [sys.executable, "-m", "mlflow", "server", *arguments]
    # The server is a process that starts another: one group, which is ended as one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with subprocess.Popen(mlflow, env={**os.environ, **quiet}, start_new_session=True) as process:
        try:
            if _answers(f"http://127.0.0.1:{port}/health", process):
                # Without the last part MLflow opens its side for language models.
                page = f"experiments/{way.experiment_id}/runs?workflowType=machine_learning{shared}"
                print(f"MLflow: http://127.0.0.1:{port}/#/{page}  (Ctrl-C ends it)", flush=True)
            sys.exit(process.wait())
        except KeyboardInterrupt:
            sys.exit(0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(START * 5):
        if process.poll() is not None:
            return False
        try:
            opener.open(url, timeout=2).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


if __name__ == "__main__":
    command()
