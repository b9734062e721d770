"""A bundle from the project through MLflow's registry into a served repository."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.bundle.manifest import read
from stages.commands.register import command as register
from tests.stages.conftest import MlflowServer
from tests.stages.states import EXPERIMENT, State, new_state, runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> State:
    """A project whose runs go to the server; its bundle is registered as version 1."""
    state = new_state(tmp_path_factory.mktemp("register") / "project", seed=21)
    state.env["MLFLOW_TRACKING_URI"] = mlflow_server.uri
    done = state.here(register, EXPERIMENT)
    assert done.returncode == 0, done.stderr
    assert f"{EXPERIMENT} version 1 (bundle {state.digest[:12]}) alias champion" in done.stdout
    return state


def pull(state: State, source: str, to: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return state.run("-m", "serving.commands.pull", source, "--to", str(to), **env)


def placed(repository: Path) -> list[str]:
    """What a server would find."""
    return sorted(
        str(path.relative_to(repository))
        for path in repository.glob("*/*")
        if not any(part.startswith(".") for part in path.relative_to(repository).parts)
    )


@contextmanager
def relay(server: MlflowServer, *, stall_at: bytes = b"", drop: int = 0) -> Iterator[str]:
    """A wire to the server that drops its first connections, or falls silent at a request."""
    port = int(server.uri.rpartition(":")[2])
    door = socket.create_server(("127.0.0.1", 0))
    left = [drop]

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as upstream:
            request = client.recv(1 << 16)
            upstream.sendall(request)
            answer = b"".join(iter(lambda: upstream.recv(1 << 16), b""))
            if stall_at and stall_at in request:
                client.sendall(answer[:-100])
                time.sleep(60)
            client.sendall(answer)

    def accept() -> None:
        while True:
            try:
                client, _ = door.accept()
            except OSError:
                return
            if left[0]:
                left[0] -= 1
                client.close()
            else:
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        door.close()


def test_registering_again_moves_only_the_alias(
    project: State, mlflow_server: MlflowServer
) -> None:
    again = project.here(register, EXPERIMENT, "--alias", "candidate")
    assert "version 1" in again.stdout and "there already" in again.stdout
    tracked = [r for r in runs(mlflow_server.database) if r.get("bundle") == project.digest]
    assert len(tracked) == 1


def test_pull_by_alias_is_the_same_bundle(project: State, tmp_path: Path) -> None:
    done = pull(project, f"models:/{EXPERIMENT}@champion", tmp_path)
    assert done.returncode == 0, done.stderr
    bundle = read(tmp_path / EXPERIMENT / "1")
    assert bundle.digest == project.digest
    assert bundle.lineage is not None and bundle.lineage["bundle"] == project.digest
    again = pull(project, f"models:/{EXPERIMENT}/1", tmp_path)
    assert "already there" in again.stdout
    assert placed(tmp_path) == [f"{EXPERIMENT}/1"]
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".pull")]


def test_a_proxy_and_a_dropped_connection_do_not_matter(
    project: State, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    with relay(mlflow_server, drop=2) as uri:
        proxy = "http://127.0.0.1:9"
        done = pull(
            project,
            f"models:/{EXPERIMENT}@champion",
            tmp_path,
            MLFLOW_TRACKING_URI=uri,
            HTTP_PROXY=proxy,
            http_proxy=proxy,
        )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / EXPERIMENT / "1").digest == project.digest


def test_interrupted_pull_places_nothing_and_is_cleared_away(
    project: State, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    source = f"models:/{EXPERIMENT}@champion"
    with relay(mlflow_server, stall_at=b"path=model.onnx") as uri:
        process = project.start(
            *("-m", "serving.commands.pull", source, "--to", str(tmp_path)), MLFLOW_TRACKING_URI=uri
        )
        for _ in range(400):
            if list(tmp_path.glob(".pull-*/model.onnx")):
                break
            time.sleep(0.05)
        process.kill()
        process.communicate()
    assert list(tmp_path.glob(".pull-*")) and placed(tmp_path) == []
    assert pull(project, source, tmp_path).returncode == 0
    assert placed(tmp_path) == [f"{EXPERIMENT}/1"]
    assert not list(tmp_path.glob(".pull-*"))


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json", "card.md"])
def test_what_was_changed_in_the_registry_is_refused(
    project: State, mlflow_server: MlflowServer, tmp_path: Path, file: str
) -> None:
    (run,) = [r for r in runs(mlflow_server.database) if r.get("bundle") == project.digest]
    (stored,) = mlflow_server.folder.rglob(f"models/{run['model.id']}/artifacts/{file}")
    honest = stored.read_bytes()
    stored.write_bytes(honest[:-1] + bytes([honest[-1] ^ 1]))
    try:
        done = pull(project, f"models:/{EXPERIMENT}@champion", tmp_path)
        assert done.returncode == 1 and file in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert placed(tmp_path) == []
        stored.write_bytes(honest + b"more")
        assert pull(project, f"models:/{EXPERIMENT}/1", tmp_path).returncode == 1
        assert placed(tmp_path) == []
        if file == "model.onnx":
            refused = project.here(register, EXPERIMENT, "--alias", "unsound")
            assert refused.returncode == 1 and "SHA-256" in refused.stderr
    finally:
        stored.write_bytes(honest)


def test_next_bundle_next_version_and_the_former_stays(project: State, tmp_path: Path) -> None:
    state = State(shutil.copytree(project.folder, tmp_path / "project"))
    state.env = project.env
    repository = tmp_path / "repository"
    first = state.digest
    assert pull(state, f"models:/{EXPERIMENT}/1", repository).returncode == 0
    state.become(22)
    done = state.here(register, EXPERIMENT, "--alias", "next")
    assert "version 2" in done.stdout and "there already" not in done.stdout
    assert pull(state, f"models:/{EXPERIMENT}@next", repository).returncode == 0
    assert placed(repository) == [f"{EXPERIMENT}/1", f"{EXPERIMENT}/2"]
    digests = [read(repository / EXPERIMENT / version).digest for version in "12"]
    assert digests == [first, state.digest]
    back = pull(state, f"models:/{EXPERIMENT}@champion", repository)
    assert "already there" in back.stdout and "version 2 is newer" in back.stdout


def test_folders_need_no_server(project: State, tmp_path: Path) -> None:
    state = State(shutil.copytree(project.folder, tmp_path / "project"))
    repository = tmp_path / "repository"
    (state.folder / "bundles" / f"{EXPERIMENT}.lineage.json").write_text('{"git": null}')
    assert pull(state, EXPERIMENT, repository).returncode == 0
    assert "already there" in pull(state, f"bundles/{EXPERIMENT}", repository).stdout
    first = json.loads((repository / EXPERIMENT / "1" / "lineage.json").read_text())
    assert first == {"git": None}
    state.become(23)
    assert pull(state, str(state.folder / "bundles" / EXPERIMENT), repository).returncode == 0
    assert placed(repository) == [f"{EXPERIMENT}/1", f"{EXPERIMENT}/2"]
    manifest = (repository / EXPERIMENT / "2" / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == state.digest


def test_a_bare_bundle_is_no_place_for_a_version(project: State, tmp_path: Path) -> None:
    folder = shutil.copytree(project.folder / "bundles" / EXPERIMENT, tmp_path / EXPERIMENT)
    before = sorted(path.name for path in folder.iterdir())
    for source in (str(folder), f"models:/{EXPERIMENT}@champion"):
        done = pull(project, source, tmp_path)
        assert done.returncode == 1 and "is a bundle" in done.stderr, done.stderr
    done = pull(project, str(folder), folder)
    assert done.returncode == 1 and "is a bundle" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before
    assert read(folder).digest == project.digest


def test_a_version_that_no_server_reads_is_refused(project: State, tmp_path: Path) -> None:
    (tmp_path / EXPERIMENT / "999999999").mkdir(parents=True)
    done = pull(project, EXPERIMENT, tmp_path)
    assert done.returncode == 1 and "1000000000" in done.stderr
    assert placed(tmp_path) == [f"{EXPERIMENT}/999999999"]


def test_errors_teach(project: State, tmp_path: Path) -> None:
    unset = pull(project, "models:/m@champion", tmp_path, MLFLOW_TRACKING_URI="")
    assert unset.returncode == 1 and "make ui" in unset.stderr
    for uri in ("http://[::1", "http://127.0.0.1:99999"):
        broken = pull(project, "models:/m@champion", tmp_path, MLFLOW_TRACKING_URI=uri)
        assert broken.returncode == 1 and "not a URL" in broken.stderr, broken.stderr
        assert "Traceback" not in broken.stderr
        unregistered = project.here(register, EXPERIMENT, MLFLOW_TRACKING_URI=uri)
        assert unregistered.returncode == 1 and "not a URL" in unregistered.stderr
    nobody = pull(project, f"models:/{EXPERIMENT}@nobody", tmp_path)
    assert nobody.returncode == 1 and "nobody" in nobody.stderr
    nowhere = pull(project, "no-such-bundle", tmp_path)
    assert nowhere.returncode == 1 and "models:/NAME@ALIAS" in nowhere.stderr
    down = project.here(register, EXPERIMENT, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert down.returncode == 1 and "http://127.0.0.1:9" in down.stderr
    assert placed(tmp_path) == []


def test_pulling_needs_neither_mlflow_nor_the_training_half(project: State, tmp_path: Path) -> None:
    program = (
        "import sys; from serving.commands.pull import pull; from pathlib import Path;"
        f"pull('models:/{EXPERIMENT}@champion', Path({str(tmp_path)!r}));"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    woken = set(project.run("-c", program).stdout.split())
    assert "pydantic" in woken
    assert not woken & {"mlflow", "torch", "dvc", "stages", "onnx", "onnxruntime", "requests"}
