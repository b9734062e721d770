"""`params.yaml` and `dvc.yaml` with an experiment more or less, everything else as it was, to the byte."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config import ConfigError, suggestion
from stages.layout import Layout, write_atomically
from stages.params import PARAMS, load, maker, read

if TYPE_CHECKING:
    from pipeline.tasks._shared.contract import Plot

GRAPH = Path("dvc.yaml")
LISTS = ("plots", "metrics")
"""Keys of `dvc.yaml` that list files of single experiments."""

INDENT = 2
"""Spaces by which the shipped `params.yaml` sets one level off from another."""


def add(name: str, text: str) -> str:
    """Add sections of YAML as experiment `name`; what the files hold stays as it is, to the byte.

    Whatever is raised, nothing is changed; `ConfigError` where the files are not as they were.
    """
    _read_graph()
    experiments = read(PARAMS).get("experiments") or {}
    before = PARAMS.read_bytes()
    wanted = {"experiments": {**experiments, name: plain(text)}}
    write_atomically(PARAMS, _with_experiment(before.decode(), name, text, wanted))
    try:
        plotted = load()[name].task.module.Task.plots
        write_atomically(GRAPH, _with_lines(GRAPH.read_text(), name, plotted))
    except BaseException:  # half an experiment is worse than none, whatever it was
        write_atomically(PARAMS, before)
        raise
    return name


def remove(name: str) -> None:
    """Take out what `add` put in, everything else as it was, to the byte. Raises `ConfigError`."""
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


def _read_graph() -> dict[str, Any]:
    """`dvc.yaml` as plain data. Raises `ConfigError` where it is missing or not laid out as shipped."""
    graph = read(GRAPH)
    for key in LISTS:
        if not isinstance(graph.get(key, []), list):
            raise ConfigError(f"{GRAPH}: {key}: expected a list of files, got {graph[key]!r}")
    return graph


def listed_in_graph() -> set[str]:
    """The experiments whose files end `dvc.yaml`. Raises `ConfigError` where it is not as it was."""
    graph = _read_graph()
    return {
        parts[1]
        for key in LISTS
        for item in graph.get(key) or ()
        if len(parts := Path(_path(item)).parts) > 2 and parts[0] == "reports"
    }


def _path(item: Any) -> str:
    """The file that an item of the lists is about: a text, or the only key of a mapping."""
    return str(next(iter(item), "")) if isinstance(item, dict) else str(item)


def _with_experiment(before: str, name: str, text: str, wanted: dict[str, Any]) -> bytes:
    """`params.yaml` with the experiment below the others, as a person would have written it.

    A file that is laid out otherwise (flow style, other keys below) is written anew.
    """
    split = end_of_heading(text)
    entry = indent(f"{text[:split]}{name}:\n{indent(text[split:], ' ' * INDENT)}", " " * INDENT)
    # As DVC would write it: then `dvc exp run -S` changes the one line that it sets.
    entry = dump(round_trip().load(f"experiments:\n{entry}")).decode().partition("\n")[2]
    written = f"{before.rstrip()}\n\n{entry}"
    if _reads_as(written, wanted):
        return written.encode()
    document = round_trip().load(before)
    document["experiments"] = document.get("experiments") or {}
    document["experiments"][name] = round_trip().load(text)
    return dump(document)


def _with_lines(before: str, name: str, plotted: Mapping[str, Plot]) -> bytes:
    """`dvc.yaml` with what `dvc plots` and `dvc metrics` show of it, in the lists at the file's end."""
    layout = Layout(name)
    plots = {
        str(layout.tables / f"{table}.csv"): {
            "title": f"{plot.title}, {name}",
            "template": plot.template,
            "x": plot.x,
            "y": plot.y,
        }
        for table, plot in plotted.items()
    }
    latency = str(layout.latency)
    graph = _graph_yaml().load(before)
    graph.setdefault("plots", []).extend({path: plot} for path, plot in plots.items())
    graph.setdefault("metrics", []).append(latency)
    head, list_of_metrics, tail = before.rpartition("\n\n")  # a comment and `metrics:` end the file
    drawn = "".join(
        f"  - {path}:\n" + "".join(f"      {key}: {value}\n" for key, value in plot.items())
        for path, plot in plots.items()
    )
    written = f"{head}\n{drawn}\n{tail.rstrip()}\n  - {latency}\n"
    whole = dump(graph, _graph_yaml())
    if list_of_metrics and _reads_as(written, plain(whole.decode())):
        return written.encode()
    return whole


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
        if _reads_as(written, wanted):
            return written.encode()
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
    graph = _graph_yaml().load(before)
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
    written, whole = "".join(lines), dump(graph, _graph_yaml())
    return written.encode() if _reads_as(written, plain(whole.decode())) else whole


def end_of_heading(text: str) -> int:
    """Where a recipe's settings begin, below the comment on its top."""
    lines = text.splitlines(keepends=True)
    return sum(len(line) for line in takewhile(lambda line: line[0] in "#\n", lines))


def write_params(path: Path, experiments: dict[str, Any]) -> None:
    """A `params.yaml` that holds just these experiments."""
    write_atomically(path, dump({"experiments": experiments}))


def _reads_as(text: str, wanted: Any) -> bool:
    """Whether a text is YAML for this plain data."""
    try:
        return bool(plain(text) == wanted)
    except YAMLError:
        return False


def plain(text: str) -> Any:
    """YAML as plain Python data."""
    return YAML(typ="safe", pure=True).load(text)


def round_trip() -> YAML:
    """The style in which DVC writes `params.yaml` anew when an experiment sets a value."""
    yaml = YAML()
    yaml.default_flow_style = False
    return yaml


def _graph_yaml() -> YAML:
    """The style of the shipped `dvc.yaml`, which DVC leaves alone."""
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml


def dump(document: Any, yaml: YAML | None = None) -> bytes:
    """A document as YAML, in the style of `round_trip` unless told otherwise."""
    text = io.BytesIO()
    (yaml or round_trip()).dump(document, text)
    return text.getvalue()
