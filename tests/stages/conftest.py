"""Real MLflow servers on the loopback; one for all tests of a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class MlflowServer:
    """Where it answers, and what it keeps."""

    uri: str
    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@contextmanager
def serving(folder: Path, *options: str, **env: str) -> Iterator[MlflowServer]:
    """`mlflow server` on a free port, keeping all in `folder`."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    arguments = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    arguments += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1", *options]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), *arguments],
        cwd=folder,
        env=kept | quiet | env,
        stdout=log,
        stderr=log,
    )
    server = MlflowServer(f"http://127.0.0.1:{port}", folder)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(300):
            try:
                opener.open(f"{server.uri}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(20)
        log.close()
