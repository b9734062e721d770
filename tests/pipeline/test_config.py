"""Strict settings: what is refused, and that the message leads to it."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from pipeline.config import ConfigError, Section, build


class Inner(Section):
    size: int = Field(4, ge=1)
    kind: Literal["round", "square"] = "round"


class Outer(Section):
    rate: float
    on: bool = False
    words: tuple[str, ...] = ()
    inner: Inner = Inner()
    maybe: str | None = None


def test_plain_data_becomes_settings():
    values = {"rate": 1, "words": ["a", "b"], "inner": {"size": 2}}
    assert build(Outer, values, "top") == Outer(rate=1.0, words=("a", "b"), inner=Inner(size=2))


def test_what_was_given_is_known_from_what_was_not():
    built = build(Outer, {"rate": 1, "inner": {"size": 4}}, "top")
    assert built.model_fields_set == {"rate", "inner"}
    assert built.inner.model_fields_set == {"size"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "top.rate: missing"),
        ({"rate": 1, "wrods": []}, "top.wrods: unknown key, did you mean 'words'?"),
        ({"rate": 1, "zzz": 0}, "top.zzz: unknown key; known: inner, maybe, on, rate, words"),
        (
            {"rate": 1, "inner": {"sise": 2}},
            "top.inner.sise: unknown key, did you mean 'size'?",
        ),
        ({"rate": 1, 7: 2}, "top.7: unknown key; known: inner, maybe, on, rate, words"),
        ({"rate": "fast"}, "top.rate: expected a valid number, got 'fast'"),
        ({"rate": "1.5"}, "top.rate: expected a valid number, got '1.5'"),
        ({"rate": True}, "top.rate: expected a valid number, got True"),
        ({"rate": None}, "top.rate: expected a valid number, got None"),
        ({"rate": float("nan")}, "top.rate: expected a finite number, got nan"),
        ({"rate": float("inf")}, "top.rate: expected a finite number, got inf"),
        ({"rate": {"a": 1}}, "top.rate: expected a valid number"),
        ({"rate": 1, "on": 1}, "top.on: expected a valid boolean, got 1"),
        ({"rate": 1, "on": "no"}, "top.on: expected a valid boolean, got 'no'"),
        ({"rate": 1, "words": "ab"}, "top.words: expected a valid array, got 'ab'"),
        ({"rate": 1, "words": [1]}, "top.words.0: expected a valid string, got 1"),
        ({"rate": 1, "inner": 3}, "top.inner: expected an object, got 3"),
        (
            {"rate": 1, "inner": {"size": 0}},
            "top.inner.size: expected greater than or equal to 1, got 0",
        ),
        ({"rate": 1, "inner": {"size": 2.5}}, "top.inner.size: expected a valid integer, got 2.5"),
        (
            {"rate": 1, "inner": {"kind": "oval"}},
            "top.inner.kind: expected 'round' or 'square', got 'oval'",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(values, message):
    with pytest.raises(ConfigError) as caught:
        build(Outer, values, "top")
    assert str(caught.value) == message


def test_every_mistake_has_a_line():
    with pytest.raises(ConfigError) as caught:
        build(Outer, {"rte": 1, "inner": {"size": 0}}, "top")
    lines = str(caught.value).splitlines()
    assert {line.split(":")[0] for line in lines} == {"top.rate", "top.rte", "top.inner.size"}


@pytest.mark.parametrize("values", [None, 3, "text", [1]])
def test_what_is_no_mapping_is_refused(values):
    with pytest.raises(ConfigError, match="top: expected a mapping of settings, got"):
        build(Outer, values, "top")


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        build(Outer, {"rate": 1}, "top").rate = 2
