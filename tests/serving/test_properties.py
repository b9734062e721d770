"""What metadata tells of a bundle's lineage, whatever that holds."""

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
        ({"a": [1, "ä"]}, None),
        (2**70, None),
        ("https://tracking.internal:5000", None),
        ("\ud800", None),
        (float("nan"), None),
    ],
    ids=repr,
)
def test_lineage_is_ids_and_digests_and_no_address(bundle: Path, value: Any, told: str) -> None:
    lineage = {
        "git": {"commit": "abc", "dirty": True},
        "mlflow": {"run_id": value, "server": "https://tracking.internal:5000"},
        "dvc": {"data_md5": {"data/of/a/customer": "84f6646fcf0a3f85f6bf3307c8762bfc"}},
        "data_sha256": "d" * 64,
        "weights_sha256": [],
        "\ud800": 1,
    }
    model = load(replace(read(bundle), lineage=lineage), Settings())
    try:
        plane = DataPlane(cast(Repository, One(model)))
        properties = plane.metadata("digits-test", None).properties
    finally:
        model.close()
    assert (
        properties["bundle_name"] == "digits-test" and properties["bundle"] == read(bundle).digest
    )
    found = {key: told for key, told in properties.items() if key.startswith("lineage.")}
    expected = {"git_commit": "abc", "git_dirty": "true", "data_sha256": "d" * 64, "run_id": told}
    assert found == {f"lineage.{key}": value for key, value in expected.items() if value}
    text = orjson.dumps(dict(properties))
    assert b"internal" not in text and b"customer" not in text
