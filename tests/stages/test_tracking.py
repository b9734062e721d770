"""Pipeline states into a real MLflow: one run each, whatever happens on the way."""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError
from stages import projecting
from stages.commands.init import command as init
from stages.commands.summary import command as summary
from stages.entry import StageError
from stages.layout import Layout, write_atomically
from stages.live import LiveCurves
from stages.tracking import state as states
from stages.tracking import unchanged
from stages.tracking.address import Address, AddressError, address, locked
from stages.tracking.facts import flat_params, numbers
from stages.tracking.presence import gone
from tests.stages.states import EPOCHS, EXPERIMENT, State, new_state, runs

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9"

TRAIN = """
import sys, time
from stages.live import LiveCurves
from pipeline import prepared
from stages.params import load
experiment = load()["digits-mlp"]
data = prepared.digest(prepared.read_manifest(__import__("pathlib").Path("build/digits-mlp/data")))
began = time.monotonic()
curves = LiveCurves(experiment.name, experiment.train_key(data), experiment.resolved())
for epoch in range(1, int(sys.argv[1]) + 1):
    curves.log({"epoch": epoch, "lr": epoch / 1000, "train_loss": 1 / (epoch + 1)})
print(f"{time.monotonic() - began:.3f}", flush=True)
sys.stdin.readline()
curves.close()
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A state that was tracked once. Tests that change it take a copy."""
    state = new_state(tmp_path_factory.mktemp("tracking") / "project")
    done = state.track()
    assert done.returncode == 0, done.stderr
    assert "(new)" in done.stdout and done.stderr == ""
    return state


@pytest.fixture
def state(tracked: State, tmp_path: Path) -> State:
    """A copy of it: another place, to which the database must find its way."""
    shutil.copytree(tracked.folder, tmp_path / "project")
    return State(tmp_path / "project")


def wait_for(condition: Callable[[], Any], seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing happened")


def test_run_says_what_the_files_say(tracked: State) -> None:
    (run,) = tracked.runs()
    assert run["status"] == "FINISHED"
    assert run["pipeline.state"] == "tracked"
    assert run["experiment"] == EXPERIMENT
    assert run["bundle"] == tracked.digest
    assert run["name"] == f"{EXPERIMENT}-{run['pipeline.key'][:7]}"
    assert "| test.accuracy | 0.91 |" in run["mlflow.note.content"]
    assert not {"tracker.place", "tracker.began"} & run.keys()
    assert tracked.points(run["id"], "train_loss") == [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4)]
    assert tracked.points(run["id"], "test.accuracy") == [(0, 0.91)]
    with sqlite3.connect(tracked.folder / "mlflow.db") as database:
        (first,) = database.execute("SELECT key FROM latest_metrics ORDER BY rowid").fetchone()
    assert first == "test.accuracy", "what MLflow's page of comparison opens on"
    assert tracked.points(run["id"], "latency.batch_1_p50_ms") == [(0, 0.5)]
    with sqlite3.connect(tracked.folder / "mlflow.db") as database:
        params = dict(database.execute("SELECT key, value FROM params"))
        datasets = database.execute("SELECT name, dataset_profile FROM datasets").fetchall()
    assert params["data.name"] == "digits" and float(params["train.lr"]) > 0
    assert datasets[0][0] == "digits" and json.loads(datasets[0][1])["train"] > 0
    kept = tracked.folder / "mlartifacts" / run["id"] / "artifacts"
    assert (kept / "dvc.lock").is_file() and (kept / "reports/pictures/curves.svg").is_file()


def test_model_folder_holds_the_bundle_byte_for_byte(tracked: State) -> None:
    (run,) = tracked.runs()
    stored = tracked.folder / "mlartifacts" / "models" / run["model.id"] / "artifacts"
    bundle = tracked.folder / "bundles" / EXPERIMENT
    for file in bundle.iterdir():
        assert (stored / file.name).read_bytes() == file.read_bytes(), file.name
    assert not list(stored.glob("*.data"))
    assert json.loads((stored / "lineage.json").read_text()) == tracked.lineage
    card = (stored / "MLmodel").read_text()
    assert '"name": "image"' in card and "[-1, 8, 8, 1]" in card


def test_lineage_names_run_and_no_git(tracked: State) -> None:
    (run,) = tracked.runs()
    lineage = tracked.lineage
    assert lineage["git"] is None
    assert lineage["bundle"] == tracked.digest
    assert list(lineage["dvc"]["data_md5"]) == ["data/builtin"]  # and no folder of code
    assert lineage["mlflow"]["run_id"] == run["id"]
    assert lineage["mlflow"]["model_id"] == run["model.id"]


def woken_by(run: subprocess.CompletedProcess[str]) -> set[str]:
    """The modules that a run under `-X importtime` imported."""
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}


def test_nothing_changed_wakes_nothing_and_restores_the_lineage(tracked: State) -> None:
    path = tracked.folder / "bundles" / f"{EXPERIMENT}.lineage.json"
    before = path.read_bytes()
    path.unlink()
    done = tracked.run("-X", "importtime", "-m", "stages.track", EXPERIMENT)
    woken = woken_by(done)
    assert "(there already)" in done.stdout and "pydantic" in woken
    assert not woken & {"torch", "mlflow", "onnx", "onnxruntime", "pandas", "sklearn", "requests"}
    assert path.read_bytes() == before
    assert len(tracked.runs()) == 1


def test_a_stamp_of_another_shape_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    where, layout = address(), Layout("nothing")
    for torn in ("[]", "null", "3", "{}", "{"):
        path = projecting._stamp(where, "key")
        write_atomically(path, torn.encode())
        assert projecting._stamped(where, "key", layout) is None


def test_a_state_told_once_is_told_again_by_the_standard_library(state: State) -> None:
    first = state.run("-m", "stages.track", EXPERIMENT)
    again = state.run("-X", "importtime", "-m", "stages.track", EXPERIMENT)
    assert again.stdout == first.stdout and "(there already)" in again.stdout
    assert not woken_by(again) & {"numpy", "pydantic", "click", "ruamel.yaml", "subprocess"}


def test_whatever_the_stage_looks_at_wakes_it(state: State) -> None:
    """Each file, the settings among them, and the wish to track nothing."""
    state.track()

    def told() -> bool:
        with contextlib.chdir(state.folder), pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            return unchanged.told(EXPERIMENT)

    assert told()
    for name in (
        "dvc.lock",
        "params.yaml",
        f"bundles/{EXPERIMENT}/manifest.json",
        f"bundles/{EXPERIMENT}.lineage.json",
        f"reports/{EXPERIMENT}/latency.json",
    ):
        path = state.folder / name
        before = path.read_bytes()
        path.write_bytes(before.replace(b"  lr: 0.002", b"  lr: 0.003") + b" ")
        assert not told(), name
        path.write_bytes(before)
        assert told(), name
    assert (
        "not tracked" in state.run("-m", "stages.track", EXPERIMENT, SLIPWAY_TRACKING="off").stdout
    )


def test_another_state_another_run_and_back(state: State) -> None:
    old = state.runs()[0]["id"]
    state.become(2)
    assert "(new)" in state.track().stdout
    new = state.runs()[1]
    assert (state.folder / "mlartifacts" / new["id"]).is_dir(), "artifacts follow a copied project"
    state.become(1)
    for stamp in (state.folder / ".dvc/tmp/track").iterdir():
        stamp.unlink()
    done = state.track()
    assert "(there already)" in done.stdout and old in done.stdout
    assert len(state.runs()) == 2
    assert len(state.points(old, "train_loss")) == EPOCHS


def test_later_measurement_becomes_the_next_point(state: State) -> None:
    (run,) = state.runs()
    state.measure(0.7)
    for _ in range(2):
        assert "(there already)" in state.track().stdout
    assert state.points(run["id"], "latency.batch_1_p50_ms") == [(0, 0.5), (1, 0.7)]


def test_live_run_is_adopted_without_doubling_its_curves(state: State) -> None:
    state.become(3)
    process = state.start("-c", TRAIN, "2")
    live = wait_for(lambda: [r for r in state.runs() if r.get("pipeline.state") == "live"])[0]
    assert process.communicate("end\n", timeout=60)[1] == ""
    assert state.runs()[-1]["status"] == "RUNNING"
    assert len(state.points(live["id"], "train_loss")) == 2
    assert "(begun by its training)" in state.track().stdout
    adopted = state.runs()[-1]
    assert adopted["id"] == live["id"] and adopted["status"] == "FINISHED"
    for metric in ("train_loss", "lr", "validation_accuracy"):
        assert [step for step, _ in state.points(live["id"], metric)] == [1, 2, 3], metric


def test_killed_training_leaves_a_killed_run_and_no_child(state: State) -> None:
    state.become(3)
    process = state.start("-c", TRAIN, "1")
    run = wait_for(lambda: [r for r in state.runs() if r.get("pipeline.state") == "live"])[0]
    wait_for(lambda: state.points(run["id"], "train_loss"))
    process.kill()
    process.communicate(timeout=20)  # ends only once the child has closed its end of stderr
    wait_for(lambda: state.runs()[-1]["status"] == "KILLED")
    assert "(new)" in state.track().stdout


def test_a_killed_training_makes_way_for_the_one_that_went_on(state: State) -> None:
    state.become(3)
    process = state.start("-c", TRAIN, "1")
    killed = wait_for(lambda: [r for r in state.runs() if r.get("pipeline.state") == "live"])[0]
    wait_for(lambda: state.points(killed["id"], "train_loss"))
    process.kill()
    process.communicate(timeout=20)
    wait_for(lambda: state.runs()[-1]["status"] == "KILLED")
    # A resumed training tells all its epochs again.
    process = state.start("-c", TRAIN, str(EPOCHS))
    wait_for(lambda: [r for r in state.runs() if r.get("pipeline.state") == "live"])
    assert process.communicate("end\n", timeout=60)[1] == ""
    assert [run["status"] for run in state.runs()][1:] == ["KILLED", "RUNNING"]
    assert "(begun by its training)" in state.track().stdout
    first, finished = state.runs()
    assert first["pipeline.state"] == "tracked" and finished["status"] == "FINISHED"
    assert [step for step, _ in state.points(finished["id"], "train_loss")] == [1, 2, 3]
    (put_away,) = [run for run in state.runs(deleted=True) if run["stage"] == "deleted"]
    assert (put_away["id"], put_away["status"]) == (killed["id"], "KILLED")


def test_live_curves_never_wait(state: State) -> None:
    done = state.run("-c", TRAIN, "3000", MLFLOW_TRACKING_URI=NOBODY)
    assert done.returncode == 0
    assert float(done.stdout) < 1.5
    assert len(done.stderr.splitlines()) <= 1
    off = state.run("-c", TRAIN, "3", SLIPWAY_TRACKING="off")
    assert (off.returncode, off.stderr) == (0, "")
    assert len(state.runs()) == 1


def test_killed_tracker_is_made_up_for(state: State) -> None:
    state.become(4)
    process = state.start("-m", "stages.track", EXPERIMENT)
    half = wait_for(lambda: [r for r in state.runs() if r.get("pipeline.state") == "writing"])[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "(new)" in state.track().stdout
    assert [run["pipeline.state"] for run in state.runs()] == ["tracked", "tracked"]
    gone = [run for run in state.runs(deleted=True) if run["stage"] == "deleted"]
    assert [(run["id"], run["status"]) for run in gone] == [(half["id"], "KILLED")]


def test_two_trackers_and_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    state = new_state(tmp_path / "project")
    together = [state.start("-m", "stages.track", EXPERIMENT) for _ in range(2)]
    said = [process.communicate(timeout=100) for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    assert sorted(out.partition("(")[2].partition(")")[0] for out, _ in said) == [
        "new",
        "there already",
    ]
    assert [err for _, err in said] == ["", ""]
    assert len(state.runs(deleted=True)) == 1


def test_a_run_deleted_in_mlflow_is_tracked_again(state: State) -> None:
    from mlflow import MlflowClient

    (run,) = state.runs()
    client = MlflowClient(f"sqlite:///{state.folder}/mlflow.db")
    assert "(there already)" in state.track().stdout
    client.delete_experiment(client.get_experiment_by_name("slipway").experiment_id)
    assert state.runs() == []
    assert "(there already)" in state.track().stdout
    assert [back["id"] for back in state.runs()] == [run["id"]]
    client.delete_run(run["id"])
    assert "(new)" in state.track().stdout
    (again,) = state.runs()
    assert again["id"] != run["id"] and again["pipeline.state"] == "tracked"
    assert state.lineage["mlflow"]["run_id"] == again["id"]
    done = state.track()
    assert "(there already)" in done.stdout and again["id"] in done.stdout


def test_a_run_deleted_on_a_server_is_tracked_again(mlflow_server: Any, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    state = new_state(tmp_path / "project", 8)
    state.env["MLFLOW_TRACKING_URI"] = mlflow_server.uri
    assert "(new)" in state.track().stdout
    first = state.lineage["mlflow"]["run_id"]
    woken = state.run("-X", "importtime", "-m", "stages.track", EXPERIMENT)
    assert f"{first} (there already)" in woken.stdout
    assert not re.search(r"\| +(mlflow|requests|torch)\n", woken.stderr)
    MlflowClient(mlflow_server.uri).delete_run(first)
    assert "(new)" in state.track().stdout
    assert state.lineage["mlflow"]["run_id"] != first


@pytest.mark.parametrize("answer", ["silence", "nobody", b"HTTP/1.1 401 X\r\n\r\n", b"junk\r\n"])
def test_a_server_that_does_not_say_so_has_lost_nothing(
    state: State, answer: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        uri = f"http://127.0.0.1:{door.getsockname()[1]}"
        if answer == "nobody":
            door.close()

        def serve() -> None:
            with contextlib.suppress(OSError):
                client, _ = door.accept()
                with client:
                    client.recv(1 << 16)
                    if isinstance(answer, bytes):
                        client.sendall(answer)
                    else:
                        time.sleep(3)

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        began = time.monotonic()
        assert not gone(Address(uri, "slipway", None, state.folder), "0" * 32)
        assert time.monotonic() - began < 2.5


def ruined(path: Path, how: str) -> str:
    """Harm a database; what is then to be told of it."""
    payload = bytearray(path.read_bytes())
    if how == "cut":
        payload = payload[: len(payload) // 2]
    elif how == "scratched":
        payload[4096 * 3 : 4096 * 30] = bytes(4096 * 27)
    elif how == "without a schema":
        payload[100:3000] = b"\x55" * 2900
    elif how == "text":
        payload = bytearray(b"not a database at all")
    path.write_bytes(payload)
    return "not an SQLite database" if how == "text" else "is damaged ("


@pytest.mark.parametrize("how", ["cut", "scratched", "without a schema", "text"])
def test_a_damaged_database_is_told_at_once(state: State, how: str) -> None:
    told = ruined(state.folder / "mlflow.db", how)
    done = state.run("-X", "importtime", "-m", "stages.track", EXPERIMENT)
    (line,) = [text for text in done.stderr.splitlines() if not text.startswith("import time:")]
    assert (done.returncode, done.stdout) == (0, "")
    assert told in line and "mlflow.db" in line and "dvc repro" in line
    assert not re.search(r"\| +(mlflow|sqlalchemy)\n", done.stderr), "MLflow would try for seconds"
    process = state.start("-c", TRAIN, "2")
    told_live = process.communicate("end\n", timeout=60)[1]
    assert process.returncode == 0 and "no live curves" in told_live and told in told_live
    if how == "text":  # from here on they are the same
        (state.folder / "mlflow.db").unlink()
        assert "(new)" in state.track().stdout


def without_roots_pass() -> None:
    """For a child that root starts: file permissions hold for it as for everybody."""
    drop, dac_override = 24, 1  # <linux/prctl.h>, <linux/capability.h>
    ctypes.CDLL(None).prctl(drop, dac_override, 0, 0, 0)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_database_that_cannot_be_written_is_told_at_once(state: State, what: str) -> None:
    state.become(9)
    kept = state.folder / "kept"
    kept.mkdir()
    (state.folder / "mlflow.db").rename(kept / "mlflow.db")
    (kept / "mlflow.db.lock").touch()
    (kept / "mlflow.db" if what == "file" else kept).chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stages.track", EXPERIMENT],
        cwd=state.folder,
        env=state.environment(MLFLOW_TRACKING_URI="sqlite:///kept/mlflow.db"),
        preexec_fn=without_roots_pass,
        capture_output=True,
        text=True,
        check=False,
    )
    kept.chmod(0o755)
    (line,) = [text for text in done.stderr.splitlines() if not text.startswith("import time:")]
    assert (done.returncode, done.stdout) == (0, "")
    assert "cannot be written: " in line and "nothing else is lost" in line
    assert not re.search(r"\| +(mlflow|sqlalchemy)\n", done.stderr), "MLflow would try for seconds"


def test_a_database_that_is_held_is_waited_for(state: State) -> None:
    """Another process that writes for a moment is no damage, and no reason to forget a run."""
    assert "(there already)" in state.track().stdout
    database = sqlite3.connect(state.folder / "mlflow.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        woken = state.run("-X", "importtime", "-m", "stages.track", EXPERIMENT)
        assert "(there already)" in woken.stdout and not re.search(r"\| +mlflow\n", woken.stderr)
        Address(f"sqlite:///{state.folder}/mlflow.db", "slipway", None, state.folder).check()
    finally:
        database.close()


def test_two_machines_at_once_leave_one_run(mlflow_server: Any, tmp_path: Path) -> None:
    one, other = new_state(tmp_path / "one", 7), new_state(tmp_path / "other", 7)
    together = [
        project.start("-m", "stages.track", EXPERIMENT, MLFLOW_TRACKING_URI=mlflow_server.uri)
        for project in (one, other)
    ]
    said = [process.communicate(timeout=100) for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    key = states.pipeline_key(states.section(EXPERIMENT, one.folder / "dvc.lock"))
    ours = [r for r in runs(mlflow_server.database) if r.get("pipeline.key") == key]
    assert [run["pipeline.state"] for run in ours] == ["tracked"]


def test_server_that_is_down_costs_a_warning(state: State) -> None:
    state.become(5)
    began = time.monotonic()
    done = state.run("-m", "stages.track", EXPERIMENT, MLFLOW_TRACKING_URI=NOBODY)
    assert time.monotonic() - began < 10  # alone 2 s
    assert done.returncode == 0 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert NOBODY in line and "dvc repro" in line
    lineage = state.lineage
    assert lineage["bundle"] == state.digest and lineage["mlflow"] is None
    assert "(new)" in state.track().stdout
    lineage = state.lineage
    assert lineage["mlflow"]["run_id"] == state.runs()[-1]["id"]


def test_required_and_off_and_a_typo(state: State) -> None:
    state.become(5)
    done = state.track(MLFLOW_TRACKING_URI=NOBODY, SLIPWAY_TRACKING="required")
    assert done.returncode == 1 and "Traceback" not in done.stderr and NOBODY in done.stderr
    done = state.track(SLIPWAY_TRACKING="off")
    assert done.returncode == 0 and len(state.runs()) == 1
    done = state.track(SLIPWAY_TRACKING="of")
    assert done.returncode == 2 and "best-effort" in done.stderr


def test_a_typo_is_told_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_TRACKING", "nonsense")
    with pytest.raises(ConfigError, match="off, best-effort, required, got 'nonsense'"):
        LiveCurves(EXPERIMENT, "key", {})


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///", "is a folder"),
        ("sqlite:///bundles", "is a folder"),
        ("sqlite:///params.yaml", "not an SQLite database"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("http://[::1", "not a URL"),
        ("http://127.0.0.1:port", "not a URL"),
    ],
)
def test_an_address_that_cannot_be_costs_a_warning(state: State, uri: str, reason: str) -> None:
    began = time.monotonic()
    done = state.track(MLFLOW_TRACKING_URI=uri)
    assert time.monotonic() - began < 20
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert "not tracked" in line and reason in line
    assert state.lineage["mlflow"] is None
    required = state.track(MLFLOW_TRACKING_URI=uri, SLIPWAY_TRACKING="required")
    assert required.returncode == 1 and reason in required.stderr


def test_no_password_is_shown_and_a_databases_folder_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@[::1")
    assert address().shown == "http://[::1"
    with pytest.raises(AddressError, match="not a URL"), locked(address()):
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///new/runs.db")
    with locked(address()):
        assert (tmp_path / "new").is_dir()


def test_torn_reports(state: State) -> None:
    state.become(6)
    reports = state.folder / "reports" / EXPERIMENT
    (reports / "latency.json").write_text("{")
    done = state.track(SLIPWAY_TRACKING="off")
    assert done.returncode == 0, done.stderr
    for torn in ("{", "[]"):
        (reports / "metrics.json").write_text(torn)
        done = state.track()
        assert done.returncode == 1 and "metrics.json" in done.stderr
        assert "Traceback" not in done.stderr


def test_summary_outside_a_project_and_an_experiment_without_a_name(
    state: State, tmp_path: Path
) -> None:
    done = State(tmp_path).here(summary)
    assert done.returncode == 2 and "params.yaml" in done.stderr
    done = state.here(init, "--recipe", "digits", "--name", "")
    assert done.returncode == 2 and "--name" in done.stderr


def test_key_follows_results_and_not_sizes_or_timings(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    State(tmp_path).lock(1)
    text = path.read_text()

    def key(changed: str) -> str:
        path.write_text(changed)
        return states.pipeline_key(states.section(EXPERIMENT, path))

    first = key(text)
    assert key(text.replace("size: 3", "size: 4")) == first
    assert key(text.replace("stages.benchmark", "stages.bench")) == first
    assert key(text.replace("experiments.other.train", "experiments.other.model")) == first
    assert key(text.replace("lr: 0.002", "lr: 0.003")) != first
    assert key(text.replace("stages.verify digits-mlp", "stages.verify digits-mlp -v")) != first
    with pytest.raises(StageError, match="verify@digits-mlp"):
        key(text.replace("verify@digits-mlp", "verify@digits-cnn"))


def test_address_is_absolute_and_the_parent_projects(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as within `dvc exp run --queue`
    assert address().uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert address().artifacts == tmp_path / "mlartifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/all.db")
    assert address().uri == f"sqlite:///{tmp_path}/runs/all.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@ml.example.com/")
    assert address().shown == "https://ml.example.com/" and address().artifacts is None


def test_flattening() -> None:
    settings = {"train": {"lr": 1e-3, "betas": [0.9, 0.99]}, "metrics": ["accuracy"], "no": False}
    assert flat_params(settings) == {
        "train.lr": "0.001",
        "train.betas": "[0.9, 0.99]",
        "metrics": '["accuracy"]',
        "no": "false",
    }
    report = {"test": {"F1 (macro)": 1, "ok": True, "list": [1]}, "parity": {"rows": 3}}
    assert dict(numbers(report)) == {"test.F1 _macro_": 1.0}


def test_no_op_takes_little_processor_time(tracked: State) -> None:
    measure = (
        "import resource, subprocess, sys;"
        f"subprocess.run([sys.executable, '-m', 'stages.track', '{EXPERIMENT}'], check=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(used.ru_utime + used.ru_stime)"
    )
    seconds = min(float(tracked.run("-c", measure).stdout.split()[-1]) for _ in range(3))
    assert seconds < 0.5, f"{seconds:.2f} s; on an idle machine 0.1 s"


def test_the_ends_of_an_interval_are_metrics_and_its_words_are_none() -> None:
    from stages.tracking.facts import finals

    report = {
        "test": {"r2": 0.8},
        "interval": "r2 0.79 to 0.82",
        "intervals": {"r2": [0.79, 0.82]},
    }
    assert finals(report, {}) == {
        "test.r2": 0.8,
        "interval.r2.low": 0.79,
        "interval.r2.high": 0.82,
    }
    assert finals({"test": {"r2": 0.8}, "intervals": [1]}, {}) == {"test.r2": 0.8}
