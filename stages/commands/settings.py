"""`slipway settings`: every setting of `params.yaml`, from the classes that check it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline import export, metrics, plugins, train
from pipeline.start import Start


@click.command(name="settings")
def command() -> None:
    """List every setting an experiment can have, as Markdown."""
    click.echo(reference(), nl=False)


def reference() -> str:
    """The whole list as Markdown."""
    lines = [
        "# Settings",
        "",
        "Every setting of an experiment in `params.yaml`. Written by `slipway settings`.",
        "",
    ]
    for kind in ("data", "model", "task"):
        for name in plugins.names(kind):
            module = plugins.load(kind, name, kind)
            lines += _section(f"`{kind}` with `name: {name}`", module.Config)
            lines += _of_its_own(module.Task) if kind == "task" else []
        lines += _section("`model`, whatever its name", Start) if kind == "model" else []
    lines += _section("`train`", train.Config)
    lines += [
        "## `metrics`",
        "",
        "A list of any of these; the validation and test splits are scored with them.",
        "",
    ]
    lines += ["| metric | meaning |", "| --- | --- |"]
    lines += [
        f"| `{name}` | {_first_line(metric.function)} |" for name, metric in metrics.METRICS.items()
    ]
    lines += ["", *_section("`export`", export.Config)]
    return "\n".join(lines).rstrip() + "\n"


def _of_its_own(task: Any) -> list[str]:
    """What a task brings for other sections: its measures and its parts."""
    lines = []
    if task.measures:
        lines += ["Its `metrics`, in place of those below:", "", "| metric | meaning |"]
        lines += ["| --- | --- |"]
        lines += [f"| `{name}` | {measure.meaning} |" for name, measure in task.measures.items()]
        lines += [""]
    if task.parts:
        lines += [f"Its `export.part`: {', '.join(f'`{part}`' for part in task.parts)}.", ""]
    return lines


def _section(title: str, section: type[BaseModel]) -> list[str]:
    rows = [
        f"| `{path}` | {kind} | {default} | {about} |"
        for path, kind, default, about in _fields(section)
    ]
    return [
        f"## {title}",
        "",
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from _fields(nested, f"{prefix}{name}.")
        elif not (name == "name" and field.is_required()):
            default = (
                "needed"
                if field.is_required()
                else f"`{_plain(field.get_default(call_default_factory=True))}`"
            )
            yield (
                f"{prefix}{name}",
                _kind(nested) + _bounds(field),
                default,
                field.description or "",
            )


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation))
    if annotation is type(None):
        return "`null`"
    if get_origin(annotation) is tuple:
        return "list of " + _kind(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return "mapping"
    return {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}[annotation]


def _bounds(field: FieldInfo) -> str:
    told = []
    for bound in field.metadata:
        if isinstance(bound, Ge):
            told.append(f"{bound.ge} or more")
        elif isinstance(bound, Gt):
            told.append(f"more than {bound.gt}")
        elif isinstance(bound, Le):
            told.append(f"at most {bound.le}")
        elif isinstance(bound, Lt):
            told.append(f"less than {bound.lt}")
    return f", {', '.join(told)}" if told else ""


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else str(value)


def _first_line(function: Any) -> str:
    return " ".join((function.__doc__ or "").split()).replace("|", "\\|")
