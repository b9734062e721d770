"""What counts as a cliff in `benchmarks/growth.py`, and that its table and picture are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.growth import SERIES, Point, cliff, draw, lines, table

POINT = Point("connections", "binary", 64, 1e4, 1.0, 2.0, 40.0, 50.0, 1.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cpu_us": 59.0}, ""),
        ({"cpu_us": 80.0}, "CPU x2.0"),
        ({"rate": 4e3}, "time x2.5"),
        ({"rate": 4e3, "generator_cores": 1.0}, ""),
        ({"rate": 4e3, "cpu_us": 80.0, "memory_left": 0.01}, ""),
        ({"rate": 4e3, "raw_us": 10.0}, ""),  # it is the model that grew dearer
    ],
)
def test_a_cliff_is_a_unit_that_jumps(change: dict[str, float], told: str) -> None:
    assert cliff(POINT, replace(POINT, at=256, **change)) == told


def test_each_model_more_costs_no_more_than_those_before() -> None:
    one = replace(POINT, series="models", at=1)
    assert cliff(one, replace(one, at=2, pss_mb=100.0, ready_seconds=2.0)) == ""
    assert cliff(one, replace(one, at=2, pss_mb=200.0)) == "memory x2.0"


def test_table_and_picture(tmp_path: Path) -> None:
    points = [
        replace(POINT, series=series, line=line, at=at, cpu_us=40.0 * at, raw_us=raw)
        for series, raw in zip(SERIES, (0, 0, 20, 0), strict=True)
        for line in ("binary", "json")
        for at in (2, 1)
    ]
    assert [point.at for point in lines(points, "payload")["json"]] == [1, 2]
    told = table(points, "payload").splitlines()
    assert len(told) == 6 and told[3].endswith("CPU x2.0 |") and "raw" not in told[0]
    assert "time over raw" in table(points, "size")
    draw(points, tmp_path / "growth.png", "title")
    assert 10_000 < (tmp_path / "growth.png").stat().st_size < 150_000
