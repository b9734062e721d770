"""Strict configuration: every setting typed beside its owner, errors that carry the YAML path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json


class ConfigError(ValueError):
    """Settings that cannot be used; each line is `path.to.key: what is wrong`."""


class Section(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Named(Section):
    """Settings of something that is found by its name."""

    name: str


SectionType = TypeVar("SectionType", bound=Section)


def build(section: type[SectionType], values: Any, path: str) -> SectionType:
    """Validate `values` (plain YAML data) as a `section` found at `path`.

    A value is what it is written as: no text is read as a number, and no number as a switch.
    Raises `ConfigError` with one line for each mistake.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected a mapping of settings, got {values!r}")
    try:
        # Strict as JSON is: a list may fill a tuple, which strict Python values may not.
        return section.model_validate_json(to_json(dict(values), fallback=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(section, path, e) for e in error.errors())) from None


def suggestion(wrong: str, known: list[str]) -> str:
    """`, did you mean 'lr'?` where a known name is near, else the known names."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _line(section: type[Section], path: str, error: Any) -> str:
    place = ".".join([path, *(str(step) for step in error["loc"])])
    if error["type"] == "extra_forbidden":
        known = list(_section_at(section, error["loc"][:-1]).model_fields)
        return f"{place}: unknown key{suggestion(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{place}: missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message.removeprefix("Input should be ")
    got = "" if isinstance(error["input"], Mapping) else f", got {error['input']!r}"
    return f"{place}: {'' if error['type'] == 'value_error' else 'expected '}{message}{got}"


def _section_at(section: type[BaseModel], steps: tuple[Any, ...]) -> type[BaseModel]:
    """The class of the nested section that `steps` lead to."""
    named = iter(steps)
    for step in named:
        field = section.model_fields.get(str(step))
        if field is None:
            break
        kind = field.annotation
        if get_origin(kind) is dict:  # sections by name: the next step is a name
            kind = get_args(kind)[1]
            next(named, None)
        if not isinstance(kind, type):
            break
        if issubclass(kind, BaseModel):
            section = kind
    return section
