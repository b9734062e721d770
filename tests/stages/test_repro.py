"""`dvc repro` for real: what runs again, and what MLflow then holds."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.project import QUICK, Project, new_project

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9"
"""A tracking server that is down."""


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "project")


@dataclass(frozen=True)
class Retrained:
    """A project, and what its latest training told."""

    project: Project
    output: str


@pytest.fixture(scope="module")
def retrained(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Retrained:
    """Another learning rate, trained and committed while no tracking server answered, tracked later.

    Tests copy it; none changes it.
    """
    project = finished.copy(tmp_path_factory.mktemp("retrained") / "project")
    project.edit(QUICK, "train.lr", 0.01)
    output = project.repro(MLFLOW_TRACKING_URI=NOBODY)
    assert len(runs(project)) == 1
    assert ran(project.repro()) == {"track"}
    project.commit("another learning rate")
    return Retrained(project, output)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same project run from nothing without git, in another folder under another name."""
    folder = tmp_path_factory.mktemp("elsewhere") / "under another name"
    project = new_project(folder, git=False)
    project.run("dvc", "config", "--local", "core.no_scm", "true")
    project.repro()
    return project


def ran(output: str) -> set[str]:
    """The stages that `dvc repro` really ran."""
    return {name.split("@")[0] for name in re.findall(r"Running stage '([^']+)'", output)}


def runs(project: Project) -> list[dict[str, str]]:
    """Tags of every finished MLflow run, read from the database itself."""
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        found = database.execute(
            "SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'active' AND status = 'FINISHED'"
        ).fetchall()
        return [
            {"id": run, "name": name}
            | dict(
                database.execute(
                    "SELECT key, value FROM tags WHERE run_uuid = ?", (run,)
                ).fetchall()
            )
            for run, name in found
        ]


def points(project: Project, run: str, metric: str) -> int:
    """How many points a metric's curve holds."""
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        query = "SELECT count(*) FROM metrics WHERE run_uuid = ? AND key = ?"
        return database.execute(query, (run, metric)).fetchone()[0]


def bundle_digest(project: Project) -> str:
    return hashlib.sha256(
        (project.folder / "bundles" / QUICK / "manifest.json").read_bytes()
    ).hexdigest()


def test_first_run_leaves_bundle_reports_and_one_run(finished: Project) -> None:
    (run,) = runs(finished)
    assert run["bundle"] == bundle_digest(finished)
    assert points(finished, run["id"], "train_loss") == 3
    reports = finished.folder / "reports" / QUICK
    assert json.loads((reports / "metrics.json").read_text())["test"]["accuracy"] > 0.5
    assert (reports / "samples" / "7.png").is_file()
    assert (reports / "pictures" / "attributions.png").is_file()
    assert json.loads((reports / "latency.json").read_text())["bundles"] == [run["bundle"]]


def test_second_run_only_tracks_and_wakes_neither_torch_nor_mlflow(project: Project) -> None:
    assert ran(project.repro()) == {"track"}
    assert len(runs(project)) == 1
    assert project.git("status", "--porcelain") == ""
    told = project.run(sys.executable, "-X", "importtime", "-m", "stages.track", QUICK).stderr
    woken = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "stages.tracking.unchanged" in woken
    assert not woken & {"torch", "mlflow", "onnx", "onnxruntime", "numpy", "pydantic"}


def test_an_experiment_of_another_metric_only_evaluates_and_is_tracked_under_its_name(
    project: Project,
) -> None:
    change = f"experiments.{QUICK}.metrics=[accuracy,macro_f1]"
    output = project.run("dvc", "exp", "run", "-n", "fewer", "-S", change).stdout
    assert "evaluate" in ran(output) and not ran(output) & {"prepare", "train"}
    found = runs(project)
    assert len(found) == 2 and any("fewer" in run["name"] for run in found)
    assert len({run["train.key"] for run in found}) == 1
    assert {points(project, run["id"], "train_loss") for run in found} == {3}


def test_a_fine_tuning_follows_the_weights_it_starts_from(project: Project) -> None:
    yaml, path = YAML(), project.folder / "params.yaml"
    settings = yaml.load(path)
    tuned = copy.deepcopy(settings["experiments"][QUICK])
    tuned["model"] |= {"init_from": f"build/{QUICK}/weights.safetensors", "freeze": ["body.[01].*"]}
    settings["experiments"]["tuned"] = tuned
    yaml.dump(settings, path)
    output = project.repro("verify@tuned", SLIPWAY_TRACKING="off")
    assert f"train@{QUICK}" not in re.findall(r"Running stage '([^']+)'", output)
    assert "proven" in output and "frozen: body.0.weight, body.0.bias\n" in output
    card = (project.folder / "bundles" / "tuned" / "card.md").read_text()
    assert f"Started from 8 tensors of build/{QUICK}/weights.safetensors" in card
    project.edit(QUICK, "train.epochs", 1)
    output = project.repro("train@tuned", SLIPWAY_TRACKING="off")
    again = re.findall(r"Running stage '([^']+)'", output)
    assert again == [f"train@{QUICK}", "train@tuned"]


def test_learning_rate_there_and_back_restores_from_the_cache(
    finished: Project, retrained: Retrained, tmp_path: Path
) -> None:
    assert "train" in ran(retrained.output)
    project = retrained.project.copy(tmp_path / "project")
    before = {run["id"] for run in runs(project)}
    assert len(before) == 2 and runs(finished)[0]["id"] in before
    project.edit(QUICK, "train.lr", 0.002)
    assert not ran(project.repro()) & {"prepare", "train", "evaluate", "export", "verify"}
    assert (project.folder / "dvc.lock").read_bytes() == (finished.folder / "dvc.lock").read_bytes()
    assert {run["id"] for run in runs(project)} == before


def test_an_old_commit_finds_its_old_run(
    finished: Project, retrained: Retrained, tmp_path: Path
) -> None:
    project = retrained.project.copy(tmp_path / "project")
    (first,) = runs(finished)
    project.git("checkout", "-q", "HEAD~1")
    project.run("dvc", "checkout", "-q")
    assert ran(project.repro()) <= {"track", "benchmark"}
    assert len(runs(project)) == 2
    lineage = json.loads((project.folder / "bundles" / f"{QUICK}.lineage.json").read_text())
    assert first["id"] in json.dumps(lineage)


def test_queued_experiments_share_the_projects_database(project: Project) -> None:
    for name, change in (("train", "train.epochs=1"), ("metric", "metrics=[accuracy]")):
        changed = f"experiments.{QUICK}.{change}"
        project.run("dvc", "exp", "run", "--queue", "-n", f"queued-{name}", "-S", changed)
    project.run("dvc", "exp", "run", "--run-all")
    names = {run["name"] for run in runs(project)}
    assert len(names) == 3 and sum("queued-" in name for name in names) == 2


def test_training_survives_a_dead_server_and_is_filled_in_later(retrained: Retrained) -> None:
    assert {"train", "verify", "track"} <= ran(retrained.output)
    assert f"not tracked: {NOBODY}" in retrained.output
    assert (retrained.project.folder / "bundles" / QUICK / "manifest.json").is_file()
    assert {
        points(retrained.project, run["id"], "train_loss") for run in runs(retrained.project)
    } == {3}


def test_works_without_git(elsewhere: Project) -> None:
    (run,) = runs(elsewhere)
    assert run["bundle"] == bundle_digest(elsewhere)


def test_two_folders_hold_the_same_lock_and_reports(finished: Project, elsewhere: Project) -> None:
    kept = finished.git("ls-files", "-z").strip("\0").split("\0")
    assert {"dvc.lock", f"reports/{QUICK}/metrics.json"} <= set(kept)
    for name in kept:
        if name.endswith(f"{QUICK}/.gitignore"):  # which DVC writes for git alone
            continue
        assert (elsewhere.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    assert bundle_digest(elsewhere) == bundle_digest(finished)


def test_a_fresh_clone_fills_a_new_server_from_files_alone(
    finished: Project, tmp_path: Path
) -> None:
    clone = Project(tmp_path / "clone")
    finished.run("git", "clone", "-q", str(finished.folder), str(clone.folder))
    clone.run("dvc", "remote", "add", "-d", "-q", "--local", "store", str(tmp_path / "store"))
    finished_copy = finished.copy(tmp_path / "origin")
    finished_copy.run(
        "dvc", "remote", "add", "-d", "-q", "--local", "store", str(tmp_path / "store")
    )
    finished_copy.run("dvc", "push", "-q")
    clone.run("dvc", "pull", "-q")
    assert not ran(clone.repro()) & {"prepare", "train", "evaluate", "export", "verify"}
    (run,) = runs(clone)
    assert points(clone, run["id"], "train_loss") == 3 and run["bundle"] == bundle_digest(finished)


def test_a_failed_proof_leaves_no_bundle(project: Project) -> None:
    """The graph answers otherwise than torch did: `verify` fails, and no bundle is left to serve."""
    answers = project.folder / "build" / QUICK / "answers.safetensors"
    damaged = bytearray(answers.read_bytes())
    damaged[-1] ^= 0x40
    answers.unlink()
    answers.write_bytes(damaged)
    done = project.run("dvc", "repro", "-s", f"verify@{QUICK}", check=False)
    assert done.returncode != 0
    assert "does not answer as the trained network does" in done.stderr
    assert not (project.folder / "bundles" / QUICK).exists()


def test_a_typo_stops_at_the_start(project: Project) -> None:
    text = (project.folder / "params.yaml").read_text()
    (project.folder / "params.yaml").write_text(text.replace("      lr:", "      lrr:", 1))
    done = project.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert f"experiments.{QUICK}.train.lrr: unknown key, did you mean 'lr'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_training_of_one_experiment_is_refused(project: Project) -> None:
    """As after a killed `dvc repro`, whose stage lives on."""
    project.edit(QUICK, "train.epochs", 100000)
    command = [sys.executable, "-m", "stages.train", QUICK]
    environment = project.environment(SLIPWAY_TRACKING="off")
    with subprocess.Popen(
        command, cwd=project.folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        while not first.stdout.readline().startswith("epoch"):
            pass
        second = project.run(*command, check=False, SLIPWAY_TRACKING="off")
        first.kill()
    assert second.returncode == 1
    assert f"process {first.pid} is still at work here" in second.stderr
    assert "Traceback" not in second.stderr
