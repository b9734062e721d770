"""Every setting of `slipway serve` as Markdown, from the classes that check it."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from serving.config import Settings, Versions

OPTIONS: dict[str, tuple[str | None, str]] = {
    "host": ("http", "host"),
    "port": ("http", "port"),
    "insecure_public": ("http", "insecure_public"),
    "grpc_port": ("grpc", "port"),
    "grpc": ("grpc", "enabled"),
    "access_log": ("http", "access_log"),
    "control_port": ("control", "port"),
    "control_grpc_port": ("control", "grpc_port"),
    "strict_readiness": ("repository", "strict_readiness"),
    "log_format": (None, "log_format"),
    "keys": ("access", "keys_file"),
    "tls_cert": ("tls", "certificate"),
    "tls_key": ("tls", "key"),
    "tls_client_ca": ("tls", "client_ca"),
    "provider": ("runtime", "provider"),
    "workers": (None, "workers"),
    "threads": ("runtime", "intra_threads"),
    "drain": (None, "drain_seconds"),
    "notice": (None, "notice_seconds"),
}
"""Each option of the command: the section and key that it sets."""

HEAD = """# Settings of the server

Everything `slipway serve --config FILE` reads: TOML, a table for each section below. Options of the command
win over the file, and an unknown key is refused. Written by `slipway serve --settings`.

```toml
workers = 2                 # what has no section comes first

[http]
port = 9000

[models.digits-cnn.batching]
rows = 32
```
"""
COLUMNS = ["| setting | type | default | option | meaning |", "| --- | --- | --- | --- | --- |"]
BOUNDS: dict[type, tuple[str, str]] = {
    Ge: ("ge", "{} or more"),
    Gt: ("gt", "more than {}"),
    Le: ("le", "at most {}"),
    Lt: ("lt", "less than {}"),
}
WORDS = {int: "whole number", float: "number", str: "text", bool: "switch", Path: "file"}


def reference() -> str:
    """The whole list as Markdown."""
    lines = [HEAD, "## Without a section", "", *COLUMNS]
    lines += _rows(Settings, "", nested=False)
    for name, section in _sections(Settings):
        if section is None:
            continue
        lines += ["", f"## `[{name}]`", "", " ".join((section.__doc__ or "").split()), "", *COLUMNS]
        lines += _rows(section, f"{name}.")
    return "\n".join(lines) + "\n"


def _sections(settings: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel] | None]]:
    """Each section's name in a file and its class; a section for each name is told as NAME."""
    for name, field in settings.model_fields.items():
        kind: Any = field.annotation
        if get_origin(kind) is dict:
            yield f"{name}.NAME", get_args(kind)[1]
        else:
            yield name, kind if _is_section(kind) else None


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _rows(section: type[BaseModel], prefix: str, nested: bool = True) -> Iterator[str]:
    options = {
        f"{place}.{key}" if place else key: option for option, (place, key) in OPTIONS.items()
    }
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        path = f"{prefix}{name}"
        if field.description and _is_section(kind):
            yield f"| `{path}.*` | as `[{name}]` | | | {field.description} |"
        elif _is_section(kind):
            yield from _rows(kind, f"{path}.") if nested else ()
        elif get_origin(kind) is not dict:
            told = _kind(Annotated[kind, *field.metadata] if field.metadata else kind)
            option = f"`--{options[path].replace('_', '-')}`" if path in options else ""
            default = _plain(field.get_default(call_default_factory=True))
            yield f"| `{path}` | {told} | {default} | {option} | {field.description or ''} |"


def _kind(annotation: Any) -> str:
    """A type with its bounds, in words. Raises `KeyError` for a type that has none here."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation == Versions:
        return "`all`, `latest N`, or list of whole numbers"
    if origin is Annotated:
        bounds = [
            words.format(getattr(bound, name))
            for bound in _flat(parts[1:])
            if type(bound) in BOUNDS
            for name, words in [BOUNDS[type(bound)]]
        ]
        told = _kind(parts[0])
        return ", ".join([told, *bounds])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in parts if part is not type(None))
    if origin is tuple:
        return "list of " + _kind(parts[0])
    return WORDS[annotation]


def _flat(metadata: Any) -> Iterator[Any]:
    """Bounds, also those within a `Field`."""
    for bound in metadata:
        yield from getattr(bound, "metadata", (bound,))


def _plain(value: Any) -> str:
    """A default as TOML has it; what TOML cannot say is left out of a file."""
    return "none" if value is None else f"`{json.dumps(value)}`"
