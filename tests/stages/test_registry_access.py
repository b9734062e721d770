"""A registry that asks who is there: by user and password, or by token."""

from __future__ import annotations

import base64
import importlib.util
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.bundle.manifest import read
from stages.commands.register import command as register
from stages.tracking.address import Address
from stages.tracking.presence import gone
from tests.stages.conftest import MlflowServer, serving
from tests.stages.states import EXPERIMENT, State, new_state

pytestmark = pytest.mark.slow

SOURCE = f"models:/{EXPERIMENT}@champion"
USER, PASSWORD, TOKEN = "hosts", "p@ss/word:1 ü", "secret-token"
NAMED = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
BASIC = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
BEARER = f"Bearer {TOKEN}"


@contextmanager
def guarded(server: MlflowServer, wanted: str) -> Iterator[str]:
    """A proxy before the server that passes on only requests with this `Authorization`."""
    port = int(server.uri.rpartition(":")[2])
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def serve(client: socket.socket) -> None:
        with client:
            request = b""
            while b"\r\n\r\n" not in request:
                request += client.recv(1 << 16)
            headers = [line.partition(": ") for line in request.decode("latin-1").split("\r\n")]
            if [value for name, _, value in headers if name.lower() == "authorization"] != [wanted]:
                client.sendall(refusal)
                return
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                upstream.sendall(request)
                while chunk := upstream.recv(1 << 16):
                    client.sendall(chunk)

    def accept() -> None:
        while True:
            try:
                client, _ = door.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}"


@pytest.fixture(scope="module")
def project(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> State:
    """A project whose bundle is registered on an open server."""
    state = new_state(tmp_path_factory.mktemp("access") / "project", seed=31)
    done = state.here(register, EXPERIMENT, MLFLOW_TRACKING_URI=mlflow_server.uri)
    assert done.returncode == 0, done.stderr
    return state


@pytest.mark.parametrize(
    ("wanted", "given", "in_uri"),
    [
        (BASIC, NAMED, ""),
        (BASIC, {}, "hosts:p%40ss%2Fword%3A1%20%C3%BC@"),
        (BASIC, {**NAMED, "MLFLOW_TRACKING_TOKEN": TOKEN}, "someone:else@"),
        (BEARER, {"MLFLOW_TRACKING_TOKEN": TOKEN}, ""),
    ],
    ids=["variables", "in the address", "variables before the address", "token"],
)
def test_pull_says_who_it_is(
    project: State,
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    given: dict[str, str],
    in_uri: str,
) -> None:
    with guarded(mlflow_server, wanted) as uri:
        address = uri.replace("//", f"//{in_uri}")
        done = project.run(
            *("-m", "serving.commands.pull", SOURCE, "--to", str(tmp_path)),
            MLFLOW_TRACKING_URI=address,
            **given,
        )
        assert done.returncode == 0, done.stderr
        # So does the look whether a run is still there.
        for name in (*NAMED, "MLFLOW_TRACKING_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        where = Address(address, "slipway", None, tmp_path)
        if given:
            assert not gone(where, "0" * 32), "a refusal says nothing of the run"
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert gone(where, "0" * 32)
    (pulled,) = (tmp_path / EXPERIMENT).iterdir()
    assert read(pulled).digest == project.digest


@pytest.mark.parametrize(
    "given",
    [{}, {**NAMED, "MLFLOW_TRACKING_PASSWORD": "wrong"}, {"MLFLOW_TRACKING_TOKEN": "wrong"}],
    ids=["nothing", "wrong password", "wrong token"],
)
def test_a_refusal_names_the_variables_and_no_secret(
    project: State, mlflow_server: MlflowServer, tmp_path: Path, given: dict[str, str]
) -> None:
    with guarded(mlflow_server, BASIC) as uri:
        done = project.run(
            *("-m", "serving.commands.pull", SOURCE, "--to", str(tmp_path)),
            MLFLOW_TRACKING_URI=uri,
            **given,
        )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "HTTP 401" in line
    assert "MLFLOW_TRACKING_USERNAME" in line and "MLFLOW_TRACKING_TOKEN" in line
    assert "wrong" not in line
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.skipif(
    importlib.util.find_spec("flask_wtf") is None,
    reason="MLflow's own accounts need Flask-WTF: pip install 'mlflow[auth]'",
)
def test_with_mlflows_own_accounts(project: State, tmp_path: Path) -> None:
    """`mlflow server --app-name basic-auth`: registered, pulled, looked after, and refused."""
    admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "not the shipped one"}
    folder = tmp_path / "server"
    folder.mkdir()
    secret = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test",
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin["MLFLOW_TRACKING_PASSWORD"],
    }
    with serving(folder, "--app-name", "basic-auth", **secret) as server:
        state = State(shutil.copytree(project.folder, tmp_path / "project"))
        state.env = {"MLFLOW_TRACKING_URI": server.uri}
        stranger = state.here(register, EXPERIMENT)
        assert stranger.returncode == 1 and "Traceback" not in stranger.stderr
        done = state.here(register, EXPERIMENT, **admin)
        assert done.returncode == 0, done.stderr
        assert "(there already)" in state.track(**admin).stdout
        pull = ("-m", "serving.commands.pull", SOURCE, "--to", str(tmp_path / "repository"))
        refused = state.run(*pull)
        assert refused.returncode == 1 and "MLFLOW_TRACKING_USERNAME" in refused.stderr
        wrong = state.run(*pull, **admin | {"MLFLOW_TRACKING_PASSWORD": "password4321"})
        assert wrong.returncode == 1 and "HTTP 401" in wrong.stderr
        pulled = state.run(*pull, **admin)
        assert pulled.returncode == 0, pulled.stderr
    assert read(tmp_path / "repository" / EXPERIMENT / "1").digest == project.digest
