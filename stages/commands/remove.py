"""`slipway remove`: an experiment out of `params.yaml` and `dvc.yaml`; what it made stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from ruamel.yaml.error import YAMLError

from pipeline.config import ConfigError, suggestion
from stages.commands.init import (
    GRAPH,
    INDENT,
    LISTS,
    dump,
    graph_yaml,
    plain,
    read_graph,
    round_trip,
)
from stages.entry import fail
from stages.layout import Layout, write_atomically
from stages.params import PARAMS, maker, read


@click.command(name="remove")
@click.argument("experiment")
def command(experiment: str) -> None:
    """Take EXPERIMENT out of params.yaml and dvc.yaml. No file of its data or results is touched."""
    try:
        remove(experiment)
    except ConfigError as error:
        fail(str(error), 2)
    click.echo(f"removed experiments.{experiment}")
    layout = Layout(experiment)
    made = (layout.build, layout.reports, layout.bundle, layout.lineage)
    if left := [str(path) for path in made if path.exists()]:
        click.echo(f"  its results are left; to delete them: rm -r {' '.join(left)}")
    click.echo(
        "  added again as it was, it comes back from DVC's cache; `dvc gc --workspace` empties that of "
        "all that no file here names"
    )


def remove(name: str) -> None:
    """Take out what `init` put in, everything else as it was, to the byte. Raises `ConfigError`."""
    experiments = read(PARAMS).get("experiments") or {}
    listed = listed_in_graph()
    if not isinstance(experiments, dict) or name not in {*experiments, *listed}:
        known = [str(key) for key in experiments]
        raise ConfigError(f"experiments: no {name!r}{suggestion(name, known)}")
    if list(experiments) == [name]:
        raise ConfigError(
            f"experiments.{name}: the only one, and the pipeline wants one; add another first"
        )
    if beginning := _beginning_from(name, experiments):
        raise ConfigError(
            f"experiments.{name}: {', '.join(beginning)} would have nothing to start from "
            "(model.init_from); remove first, or change, what starts from it"
        )
    if name in experiments:
        wanted = {"experiments": {key: experiments[key] for key in experiments if key != name}}
        write_atomically(PARAMS, _without_experiment(PARAMS.read_text(), name, wanted))
    if name in listed:
        write_atomically(GRAPH, _without_lines(GRAPH.read_text(), name))


def _beginning_from(name: str, experiments: Mapping[Any, Any]) -> list[str]:
    """The other experiments that start from this one's weights, whatever else is wrong with them."""
    found = []
    for other, entry in experiments.items():
        model = entry.get("model") if isinstance(entry, Mapping) else None
        first = model.get("init_from") if isinstance(model, Mapping) else None
        if other != name and isinstance(first, str) and maker(Path(first), [name]):
            found.append(str(other))
    return found


def listed_in_graph() -> set[str]:
    """The experiments whose files end `dvc.yaml`. Raises `ConfigError` where it is not as it was."""
    graph = read_graph()
    return {
        parts[1]
        for key in LISTS
        for item in graph.get(key) or ()
        if len(parts := Path(_path(item)).parts) > 2 and parts[0] == "reports"
    }


def _path(item: Any) -> str:
    """The file that an item of the lists is about: a text, or the only key of a mapping."""
    return str(next(iter(item), "")) if isinstance(item, dict) else str(item)


def _without_experiment(before: str, name: str, wanted: dict[str, Any]) -> bytes:
    """`params.yaml` without the experiment, and without the heading right above it."""
    lines = before.splitlines(keepends=True)
    pad = " " * INDENT
    starts = [i for i, line in enumerate(lines) if re.match(rf"{pad}[^\s#]", line)]
    own = [i for i in starts if re.match(rf"{pad}['\"]?{re.escape(name)}['\"]?\s*:", lines[i])]
    if len(own) == 1:
        following = [i for i in starts if i > own[0]]
        end = _heading(lines, following[0]) if following else len(lines)
        kept = lines[: _heading(lines, own[0])] + lines[end:]
        written = "".join(kept).rstrip() + "\n"
        try:
            if plain(written) == wanted:
                return written.encode()
        except YAMLError:
            pass
    document = round_trip().load(before)
    del document["experiments"][name]
    return dump(document)


def _heading(lines: list[str], key: int) -> int:
    """Where the comment begins that stands on top of a key, else the key's own line."""
    while key and lines[key - 1].lstrip().startswith("#"):
        key -= 1
    return key


def _without_lines(before: str, name: str) -> bytes:
    """`dvc.yaml` without the items of its lists that are the experiment's."""
    graph = graph_yaml().load(before)
    for key in LISTS:
        if key in graph:
            kept = [i for i in graph[key] if Path(_path(i)).parts[:2] != ("reports", name)]
            graph[key] = kept
            if not kept:
                del graph[key]
    lines, inside = [], None
    for line in before.splitlines(keepends=True):
        depth = len(line) - len(line.lstrip())
        if inside is not None and (not line.strip() or depth <= inside):
            inside = None
        if inside is None and re.match(rf"\s*- ['\"]?reports/{re.escape(name)}/", line):
            inside = depth
        if inside is None:
            lines.append(line)
    written, whole = "".join(lines), dump(graph, graph_yaml())
    try:
        if plain(written) == plain(whole.decode()):
            return written.encode()
    except YAMLError:
        pass
    return whole
