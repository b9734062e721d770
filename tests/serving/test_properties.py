"""Metadata can always be told, whatever a bundle's lineage holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from pipeline.bundle.manifest import read
from serving.config import Settings
from serving.dataplane import DataPlane
from serving.inference.model import Model, load
from serving.models.repository import Repository


class One:
    """A repository of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def get(self, name: str, version: str | None) -> tuple[None, Model]:
        return None, self._model

    def versions(self, name: str) -> tuple[str, ...]:
        return ("1",)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("abc", "abc"),
        (False, "false"),
        ({"a": [1, "ä"]}, '{"a":[1,"ä"]}'),
        (2**70, str(2**70)),
        ("\ud800", None),
        (["\ud800"], None),
        (float("nan"), None),
        ({"a": float("inf")}, None),
    ],
    ids=repr,
)
def test_lineage_that_cannot_be_written_is_left_out(bundle: Path, value: Any, told: str) -> None:
    found = replace(read(bundle), lineage={"commit": "abc", "odd": value, "\ud800": 1})
    model = load(found, Settings())
    try:
        plane = DataPlane(cast(Repository, One(model)))
        properties = plane.metadata("digits-test", None).properties
    finally:
        model.close()
    assert properties["lineage.commit"] == "abc" and properties["bundle_name"] == "digits-test"
    assert properties.get("lineage.odd") == told
    orjson.dumps(dict(properties))
