"""A copy of the project to run the pipeline in: real `dvc repro`, small and quick settings."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
NEEDED = (
    "pipeline",
    "stages",
    "serving",
    "recipes",
    "data",
    ".dvc",
    "params.yaml",
    "dvc.yaml",
    ".gitignore",
    ".dvcignore",
)
QUICK = "digits-mlp"


class Project:
    """A folder with the project's code and settings, and ways to run things in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, *command: str, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this environment's programs first on the path."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=280,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{command} left with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    def repro(self, *arguments: str, **env: str) -> str:
        """`dvc repro`; what it printed."""
        done = self.run("dvc", "repro", *arguments, **env)
        return done.stdout + done.stderr

    def environment(self, **env: str) -> dict[str, str]:
        """This process's environment without settings that would lead out of the folder."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("MLFLOW_", "DVC_", "SLIPWAY_T", "GIT_"))
        }
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {"DVC_NO_ANALYTICS": "true", "PYTHONPATH": "", **env}

    def git(self, *arguments: str) -> str:
        """A git command as a fixed author."""
        who = (
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@example.org",
            "-c",
            "commit.gpgsign=false",
        )
        return self.run("git", *who, *arguments).stdout.strip()

    def commit(self, message: str) -> str:
        """Commit everything; the commit's id."""
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD")

    def edit(self, experiment: str, path: str, value: Any) -> None:
        """Change one setting in `params.yaml`: `edit('digits-mlp', 'train.lr', 0.01)`."""
        yaml = YAML()
        settings = yaml.load(self.folder / "params.yaml")
        *steps, last = path.split(".")
        section = settings["experiments"][experiment]
        for step in steps:
            section = section[step]
        section[last] = value
        yaml.dump(settings, self.folder / "params.yaml")

    def keep_only(self, experiment: str) -> None:
        """Leave one experiment, made small enough for a test."""
        yaml = YAML()
        settings = yaml.load(self.folder / "params.yaml")
        settings["experiments"] = {experiment: settings["experiments"][experiment]}
        settings["experiments"][experiment]["train"]["epochs"] = 3
        settings["experiments"][experiment]["model"]["width"] = 32
        yaml.dump(settings, self.folder / "params.yaml")
        graph = yaml.load(self.folder / "dvc.yaml")
        graph["metrics"] = [f"reports/{experiment}/latency.json"]
        yaml.dump(graph, self.folder / "dvc.yaml")

    def copy(self, folder: Path) -> Project:
        """The whole folder, results and caches included, elsewhere."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)


def new_project(folder: Path, *, git: bool = True) -> Project:
    """The project's code and settings in `folder`, committed, with nothing run yet."""
    folder.mkdir(parents=True)
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    project = Project(folder)
    project.keep_only(QUICK)
    if git:
        project.git("init", "-q")
        project.commit("start")
    return project


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of several test processes makes and the others wait for."""
    base = factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = base / name
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = base / f"{name}.draft"
            shutil.rmtree(draft, ignore_errors=True)
            make(draft)
            draft.rename(folder)
    return folder


def through(folder: Path, experiment: str, *stages: str) -> None:
    """Stages of an experiment in this process, which has torch awake; nothing is tracked."""
    from click.testing import CliRunner

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SLIPWAY_TRACKING", "off")
        for stage in stages:
            done = CliRunner().invoke(import_module(f"stages.{stage}").command, [experiment])
            assert not done.exit_code, f"{done.output}\n{done.exception!r}"
