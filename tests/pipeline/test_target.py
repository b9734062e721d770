"""What is taught, told by the type of an array, through preparation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import prepared, target
from pipeline.bundle.manifest import Input
from pipeline.dataset import DataError, Encoded, RawData, Split
from pipeline.split import SPLITS

ROWS = 200
IMAGE = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 3, 1), np.uint8)
INPUT = Input(name="image", dtype="uint8", shape=("batch", 4, 3, 1), units="grey")
NUMBERS = np.random.default_rng(1).normal(50, 9, ROWS)
TAGS = np.random.default_rng(2).random((ROWS, 3)) < 0.4


def raw(taught: np.ndarray, labels: tuple[str, ...] = (), image: np.ndarray = IMAGE) -> RawData:
    return RawData(Encoded.one(INPUT, image), taught, labels)


def prepare(data: RawData, folder: Path) -> tuple[prepared.Manifest, dict[str, prepared.Rows]]:
    manifest, chosen = prepared.prepare("noise", data, Split(), folder)
    parts = {part: prepared.read(folder, part) for part in SPLITS}
    assert {part: len(rows) for part, rows in chosen.items()} == manifest.rows
    return manifest, parts


def test_numbers_are_dealt_by_their_size_and_measured_on_the_training_rows(tmp_path):
    manifest, parts = prepare(raw(NUMBERS), tmp_path)
    train = parts["train"].target
    assert manifest.target.kind == "number" and train.dtype == np.float32
    assert manifest.target.mean == pytest.approx(train.mean(), rel=1e-5)
    assert manifest.target.std == pytest.approx(train.std(), rel=1e-5)
    for rows in parts.values():  # each tenth is in each part
        assert np.median(rows.target) == pytest.approx(np.median(NUMBERS), abs=3)
        assert (np.digitize(rows.target, np.quantile(NUMBERS, [0.1, 0.9])) == 2).any()


def test_tags_keep_their_shares(tmp_path):
    manifest, parts = prepare(raw(TAGS, ("a", "b", "c")), tmp_path)
    assert manifest.target.kind == "tags" and parts["test"].target.dtype == bool
    assert manifest.rows_by_label["train"] == tuple(parts["train"].target.sum(0))
    for rows in parts.values():
        np.testing.assert_allclose(rows.target.mean(0), TAGS.mean(0), atol=0.08)


def test_equal_rows_stay_together_whatever_their_numbers(tmp_path):
    image = IMAGE.copy()
    image[100:] = image[:100]
    manifest, parts = prepare(raw(NUMBERS, image=image), tmp_path)
    assert manifest.identical_rows == 100
    seen = [{row.tobytes() for row in rows.arrays["image"]} for rows in parts.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


@pytest.mark.parametrize(
    ("taught", "labels", "why"),
    [
        (
            np.where(np.arange(ROWS) == 7, np.nan, NUMBERS),
            (),
            "1 targets that are no finite number",
        ),
        (TAGS, ("a", "b"), "3 tags a row, but 2 labels"),
        (TAGS & [True, True, False], ("a", "b", "c"), "classes without a row in the whole data: c"),
        (np.array(["x"] * ROWS), ("x",), "the target is .*expected int64"),
        (np.zeros((ROWS, 2)), (), r"the target is float64 \[200, 2\]"),
    ],
)
def test_what_cannot_be_taught_is_refused(tmp_path, taught, labels, why):
    with pytest.raises(DataError, match=why):
        prepare(raw(taught, labels), tmp_path)


def test_what_is_learnt_of_rows_is_learnt_of_the_training_rows(tmp_path):
    seen = []

    def encode(train: np.ndarray) -> Encoded:
        seen.append(train)
        ids = np.zeros((ROWS, 6), np.int64)
        for row in range(ROWS):
            ids[row, : 1 + row % 5] = 1 + row % 5
        declared = Input(
            name="token_ids", dtype="int64", shape=("batch", "tokens"), padding=0, units="id"
        )
        return Encoded((declared,), {"token_ids": ids}, {"words.json": b"{}"})

    data = RawData(
        encode,
        np.arange(ROWS) % 2,
        ("a", "b"),
        identity=[str(row).encode() for row in range(ROWS)],
    )
    manifest, chosen = prepared.prepare("texts", data, Split(), tmp_path)
    np.testing.assert_array_equal(seen[0], chosen["train"])
    assert (tmp_path / "words.json").read_bytes() == b"{}" and set(manifest.files) == {"words.json"}
    rows = prepared.read(tmp_path, "test")
    for row in range(len(rows)):  # no longer than it is
        taken = rows.take(slice(row, row + 1))["token_ids"]
        assert taken.shape == (1, taken[0, 0]) and (taken > 0).all()
    assert rows.take(np.arange(len(rows)))["token_ids"].shape == (len(rows), 5)


def test_strata_of_few_numbers_hold_enough_to_be_dealt():
    assert target.strata(np.array([3.0, 1.0, 2.0])).tolist() == [0, 0, 0]
    few = target.strata(np.arange(40.0)[::-1])
    assert few.tolist() == [part for part in (3, 2, 1, 0) for _ in range(10)]
