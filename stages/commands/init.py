"""`slipway init`: a ready-made experiment into `params.yaml`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click

from pipeline.bundle.manifest import MODEL_NAME
from pipeline.config import ConfigError, suggestion
from stages.entry import fail
from stages.layout import Layout, write_atomically
from stages.params import PARAMS, load

RECIPES = Path("recipes")
GRAPH = Path("dvc.yaml")


@click.command(name="init")
@click.option("--recipe", required=True, help="A file of recipes/, without '.yaml'.")
@click.option("--name", help="The experiment's name; the recipe's by default.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Your folder of data, in place of the recipe's."
)
def command(recipe: str, name: str | None, data: Path | None) -> None:
    """Add a ready-made experiment to params.yaml."""
    try:
        added = add(recipe, recipe if name is None else name, data)
    except ConfigError as error:
        fail(str(error), 2)
    click.echo(f"added experiments.{added}; next: dvc repro track@{added}")
    if data is not None:
        click.echo(
            "  your own data: say what it is under data.title and data.licence; a small data set "
            "wants more train.epochs"
        )


def add(recipe: str, name: str, data: Path | None) -> str:
    """Add a recipe as experiment `name`, keeping the files' comments. Raises `ConfigError`."""
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"--name: 1 to 64 letters, digits, '-' or '_', got {name!r}")
    entry = entry_of(recipe, data)
    before = PARAMS.read_bytes()
    params = _yaml().load(before.decode())
    if name in params["experiments"]:
        raise ConfigError(f"experiments.{name}: already there; choose another --name")
    params["experiments"][name] = entry
    write_atomically(PARAMS, _dump(params))
    try:
        load()
    except ConfigError:
        write_atomically(PARAMS, before)
        raise
    graph = _yaml().load(GRAPH)
    graph.setdefault("metrics", []).append(str(Layout(name).latency))
    write_atomically(GRAPH, _dump(graph))
    return name


def entry_of(recipe: str, data: Path | None) -> Any:
    """A recipe's sections, reading `data` where it is given. Raises `ConfigError`."""
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if recipe not in known:
        raise ConfigError(f"recipes/: no {recipe!r}{suggestion(recipe, known)}")
    entry = _yaml().load(RECIPES / f"{recipe}.yaml")
    if data is not None:
        if not data.exists():
            raise ConfigError(f"--data: {data} does not exist")
        entry["data"]["path"] = str(data)
        for key in ("url", "sha256"):
            entry["data"].pop(key, None)
        # The recipe tells of its own data; of yours only you can.
        entry["data"].update(title=f"data of {data}", licence="not stated")
    return entry


def write_params(path: Path, experiments: dict[str, Any]) -> None:
    """A `params.yaml` that holds just these experiments."""
    write_atomically(path, _dump({"experiments": experiments}))


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml


def _dump(document: Any) -> bytes:
    text = io.BytesIO()
    _yaml().dump(document, text)
    return text.getvalue()
