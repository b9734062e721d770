"""`slipway init`: an experiment into `params.yaml`, from a recipe or from a look at your data."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click

from pipeline import plugins
from pipeline.bundle.manifest import MODEL_NAME
from pipeline.config import ConfigError, build, suggestion
from pipeline.dataset import DataError
from stages.editing import add, dump, end_of_heading, round_trip
from stages.entry import fail
from stages.params import PARAMS, read
from stages.proposals import Hints, propose

RECIPES = Path("recipes")
GIT_PATIENCE = 20
"""Seconds in which git has said whether it knows a folder."""


@click.command(name="init")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--recipe", help="A file of recipes/, without '.yaml', in place of SOURCE.")
@click.option("--name", help="The experiment's name; SOURCE's or the recipe's by default.")
@click.option("--target", help="Of a table: the column to learn, or several, with commas between.")
@click.option("--task", help="What to learn, a file of pipeline/tasks; the data tells by default.")
@click.option("--text", help="Of a table: the column of texts to read.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="With --recipe: your folder of data, in place of the recipe's.",
)
def command(
    source: Path | None,
    recipe: str | None,
    name: str | None,
    target: str | None,
    task: str | None,
    text: str | None,
    data: Path | None,
) -> None:
    """Add an experiment to params.yaml: one that suits the data in SOURCE, or a ready-made one."""
    try:
        if source is not None and recipe is None and data is None:
            source = from_project(source)
            added = _look_at(source, name, Hints(target, task, text))
        elif recipe is not None and source is None and target is task is text is None:
            data = data and from_project(data)
            added = _from_recipe(recipe, name, data)
        else:
            raise ConfigError(
                "init: give either a folder or file of data, or --recipe NAME [--data PATH]"
            )
    except ConfigError as error:
        fail(str(error), 2)
    except (DataError, OSError) as error:
        fail(str(error), 1)
    if (own := source or data) and own.is_absolute():
        click.echo(
            f"  {own} lies outside the project: this works here alone, and the path goes into params.yaml "
            "and the bundle; copy the data into the project to share either"
        )
    if own and unknown_to_queue(own):
        click.echo(
            f"  git does not know {own}: before `dvc exp run --queue` or `--temp`, "
            f"`dvc add {own} && git add {own}.dvc`; or give them `-C {own}`"
        )
    click.echo(f"added experiments.{added}; next: dvc repro track@{added}")


def from_project(path: Path) -> Path:
    """`path` as `params.yaml` has it: seen from the project's folder, whole where it lies elsewhere.

    A queued experiment runs in a copy of the project, from which `../pictures` leads nowhere.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100  # a link keeps its own name
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole


def unknown_to_queue(path: Path) -> bool:
    """Whether the copy of the project that a queued experiment runs in will lack `path`."""
    if path.is_absolute():
        return False
    try:
        known = subprocess.run(
            ["git", "ls-files", "--", str(path), f"{path}.dvc"],
            capture_output=True,
            timeout=GIT_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False  # without git there is no queue
    return not known.stdout


def _look_at(source: Path, name: str | None, hints: Hints) -> str:
    """Add the experiment proposed for the data at `source`, and say what it is."""
    if name is None:
        whole = source.resolve()
        stem = whole.name.partition(".")[0] if whole.is_file() else whole.name
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:64] or "data"
    _check_name(name)
    proposal = propose(source, hints)
    added = add(name, proposal.text)
    for line in proposal.chosen:
        click.echo(f"  {line}")
    click.echo(
        f"  to choose otherwise: edit experiments.{added} in params.yaml (docs/settings.md lists every "
        "setting), or add another with --name"
    )
    for line in proposal.warnings:
        click.secho(f"  warning: {line}", fg="yellow")
    return added


def _from_recipe(recipe: str, name: str | None, data: Path | None) -> str:
    name = recipe if name is None else name
    _check_name(name)
    entry = entry_of(recipe, data)
    if data is not None:
        _check_data(entry["data"], recipe)
    text = dump(entry).decode()
    if data is not None:
        text = text[end_of_heading(text) :]  # the heading tells of the recipe's own data
    added = add(name, text)
    if data is not None:
        click.echo(
            "  your own data: say what it is under data.title and data.licence; a small data set "
            "wants more train.epochs"
        )
    return added


def _check_data(settings: Any, recipe: str) -> None:
    """Raises `DataError` where a look tells that the files are none of those the recipe reads."""
    module = plugins.load("data", settings["name"], f"recipes/{recipe}.yaml: data.name")
    if look := getattr(module, "look", None):
        look(build(module.Config, settings, "data"), Path())


def _check_name(name: str) -> None:
    """Raises `ConfigError` where there can be no experiment of that name, or is one already."""
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"--name: 1 to 64 letters, digits, '-' or '_', got {name!r}")
    experiments = read(PARAMS).get("experiments") or {}
    if not isinstance(experiments, dict):
        raise ConfigError(f"experiments: expected a mapping of experiments, got {experiments!r}")
    if name in experiments:
        raise ConfigError(f"experiments.{name}: already there; choose another --name")


def entry_of(recipe: str, data: Path | None) -> Any:
    """A recipe's sections, reading `data` where it is given. Raises `ConfigError`."""
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if not known:
        raise ConfigError(f"{RECIPES}/: no recipes; run this in the project's folder")
    if recipe not in known:
        raise ConfigError(f"recipes/: no {recipe!r}{suggestion(recipe, known)}")
    entry = round_trip().load(RECIPES / f"{recipe}.yaml")
    if data is None and "url" not in entry["data"] and not Path(entry["data"]["path"]).exists():
        raise ConfigError(
            f"recipes/{recipe}.yaml reads {entry['data']['path']}, which is not here; its first lines "
            "say where to get it. Put it there, or say where it is with --data"
        )
    if data is not None:
        if not data.exists():
            raise ConfigError(f"--data: {data} does not exist")
        entry["data"]["path"] = str(data)
        for key in ("url", "sha256"):
            entry["data"].pop(key, None)
        # The recipe tells of its own data; of yours only you can.
        entry["data"].update(title=f"data of {data}", licence="not stated")
    return entry
