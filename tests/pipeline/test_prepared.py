"""The prepared folder: how rows are dealt out, what is refused, and what reading costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prepared
from pipeline.bundle.manifest import Input
from pipeline.config import ConfigError
from pipeline.dataset import DataError, Encoded, RawData, Split
from pipeline.prepared import Rows
from pipeline.split import SPLITS, assign

LABELS = tuple("abc")


def one(image: np.ndarray) -> Encoded:
    """Pictures of 4 by 3."""
    declared = Input(name="image", dtype="uint8", shape=("batch", 4, 3, 1), units="grey")
    return Encoded.one(declared, image)


def raw_data(rows: int = 120, seed: int = 0, labels: tuple[str, ...] = LABELS) -> RawData:
    """Pictures of noise, no two alike, with labels in turn."""
    image = np.random.default_rng(seed).integers(0, 256, (rows, 4, 3, 1), np.uint8)
    return RawData(one(image), np.arange(rows) % len(labels), labels)


def with_rows(raw: RawData, rows: np.ndarray) -> RawData:
    """The same data set with these rows, in this order; a row may be named twice."""
    image = raw.rows.arrays["image"][rows]
    return replace(raw, rows=Encoded(raw.rows.inputs, {"image": image}), target=raw.target[rows])


def prepare(raw: RawData, folder: Path, **split: float) -> dict[str, Rows]:
    """Prepare and read back every split."""
    prepared.prepare("noise", raw, Split(**split), folder)
    return {part: prepared.read(folder, part) for part in SPLITS}


def contents(rows: Rows) -> set[bytes]:
    return {row.tobytes() for row in rows.arrays["image"]}


def refusal(raw: RawData, folder: Path, **split: float) -> str:
    with pytest.raises(DataError) as caught:
        prepare(raw, folder, **split)
    return str(caught.value)


@given(
    rows=st.integers(60, 400),
    validation=st.floats(0.05, 0.4),
    test=st.floats(0.05, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_shares_hold_in_every_class_to_one_row(rows, validation, test, seed):
    raw = raw_data(rows)
    identity = np.arange(rows, dtype=np.uint64).view(np.uint8).reshape(rows, 8)
    split = Split(validation=validation, test=test, seed=seed)
    member = assign(identity, raw.target, split, None)
    for label in range(3):
        of_class = member[raw.target == label]
        for part, share in (("validation", validation), ("test", test)):
            count = (of_class == SPLITS.index(part)).sum()
            assert abs(count - share * len(of_class)) <= 1


def test_every_row_lands_in_one_split_with_its_label(tmp_path):
    raw = raw_data()
    parts = prepare(raw, tmp_path)
    label = {row.tobytes(): t for row, t in zip(raw.rows.arrays["image"], raw.target, strict=True)}
    seen = [
        (row.tobytes(), target)
        for rows in parts.values()
        for row, target in zip(rows.arrays["image"], rows.target, strict=True)
    ]
    assert len(seen) == len(dict(seen)) == 120
    assert all(label[row] == target for row, target in seen)


@given(order=st.permutations(range(120)))
def test_the_split_does_not_depend_on_the_order_of_the_rows(tmp_path_factory, order):
    raw = raw_data()
    plain = prepare(raw, tmp_path_factory.mktemp("plain"))
    moved = prepare(with_rows(raw, np.array(order)), tmp_path_factory.mktemp("moved"))
    assert all(contents(plain[part]) == contents(moved[part]) for part in SPLITS)


def test_another_seed_is_another_split(tmp_path):
    one, other = prepare(raw_data(), tmp_path / "1"), prepare(raw_data(), tmp_path / "2", seed=1)
    assert contents(one["test"]) != contents(other["test"])


@given(copies=st.lists(st.integers(0, 119), max_size=100))
def test_identical_rows_stay_together_and_are_counted(tmp_path_factory, copies):
    folder = tmp_path_factory.mktemp("copies")
    raw = with_rows(raw_data(), np.array([*range(120), *copies]))
    parts = prepare(raw, folder)
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not contents(parts[one]) & contents(parts[other])
    manifest = prepared.read_manifest(folder)
    assert manifest.identical_rows == len(copies)
    assert sum(manifest.rows.values()) == 120 + len(copies)


def test_identical_rows_with_different_labels_are_refused_by_row(tmp_path):
    raw = with_rows(raw_data(), np.array([*range(120), 7]))
    raw.target[120] = (raw.target[7] + 1) % 3
    message = refusal(raw, tmp_path)
    assert "identical rows have different labels" in message
    assert "row 7 (b) and row 120 (c)" in message


def test_a_given_test_set_is_kept(tmp_path):
    given_test = np.arange(120) >= 90
    parts = prepare(replace(raw_data(), given_test=given_test), tmp_path, validation=0.1)
    np.testing.assert_array_equal(
        parts["test"].arrays["image"], raw_data().rows.arrays["image"][90:]
    )
    assert {part: len(rows) for part, rows in parts.items()} == {
        "train": 81,
        "validation": 9,
        "test": 30,
    }


def test_a_given_test_set_that_shares_rows_is_refused_by_row(tmp_path):
    raw = with_rows(raw_data(), np.array([*range(120), 4]))
    message = refusal(replace(raw, given_test=np.arange(121) >= 100), tmp_path)
    assert "row 4 (train) and row 120 (test)" in message


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused_by_row(tmp_path, label):
    raw = raw_data()
    raw.target[[5, 9]] = label
    message = refusal(raw, tmp_path)
    assert "2 labels out of range, expected 0 to 2" in message
    assert f"row 5 has {label}, row 9 has {label}" in message


def test_a_class_without_rows_is_refused(tmp_path):
    message = refusal(replace(raw_data(), labels=("a", "b", "c", "unseen")), tmp_path)
    assert "classes without a row in the whole data: unseen" in message


def test_a_class_without_rows_in_one_split_is_refused(tmp_path):
    assert "in the validation data: a, b, c" in refusal(raw_data(12), tmp_path, validation=0.1)


def test_shares_that_leave_nothing_to_train_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.split: .* nothing is left to train"):
        prepare(raw_data(), tmp_path, validation=0.5, test=0.5)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"target": np.arange(119) % 3}, "120 rows of 'image' but 119 labels"),
        ({"rows": one(np.zeros((120, 4, 3, 1)))}, "declared uint8 .* loaded float64"),
        ({"rows": one(np.zeros((120, 3, 4, 1), np.uint8))}, "declared .*4, 3, 1"),
        (
            {"rows": one(np.zeros((0, 4, 3, 1), np.uint8)), "target": np.zeros(0, int)},
            "no rows",
        ),
    ],
)
def test_arrays_must_be_as_declared(tmp_path, broken, why):
    with pytest.raises(DataError, match=why):
        prepare(replace(raw_data(), **broken), tmp_path)


def test_statistics_are_the_training_splits(tmp_path):
    train = prepare(raw_data(), tmp_path)["train"]
    (channel,) = prepared.read_manifest(tmp_path).statistics["image"]
    assert channel.mean == pytest.approx(np.mean(train.arrays["image"]))
    assert channel.std == pytest.approx(np.std(train.arrays["image"]))


def test_two_preparations_have_one_digest(tmp_path):
    for name in ("one", "two"):
        prepare(raw_data(), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == ["manifest.json", *(f"{part}.safetensors" for part in sorted(SPLITS))]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (prepared.read_manifest(tmp_path / name) for name in ("one", "two"))
    assert prepared.digest(one) == prepared.digest(two)


@pytest.mark.parametrize("change", [{"seed": 1}, {"test": 0.3}])
def test_another_split_has_another_digest(tmp_path, change):
    prepare(raw_data(), tmp_path / "one")
    prepare(raw_data(), tmp_path / "two", **change)
    one, two = (prepared.read_manifest(tmp_path / name) for name in ("one", "two"))
    assert prepared.digest(one) != prepared.digest(two)


def test_what_is_not_prepared_is_told(tmp_path):
    with pytest.raises(DataError, match="no prepared data; run `dvc repro`"):
        prepared.read_manifest(tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json: no prepared data"):
        prepared.read(tmp_path, "train")


def test_splits_are_mapped_and_what_is_taken_is_a_copy(tmp_path):
    train = prepare(raw_data(), tmp_path)["train"]
    assert isinstance(train.arrays["image"], np.memmap) and isinstance(train.target, np.memmap)
    taken = train.take(slice(0, 5))["image"]
    assert type(taken) is np.ndarray and taken.flags.writeable and taken.base is None


@given(size=st.integers(1, 100))
def test_batches_are_all_rows_in_order(tmp_path_factory, size):
    train = prepare(raw_data(), tmp_path_factory.mktemp("batches"))["train"]
    images, targets = zip(*((b["image"], t) for b, t in train.batches(size)), strict=True)
    assert all(len(batch) == size for batch in images[:-1])
    np.testing.assert_array_equal(np.concatenate(images), train.arrays["image"])
    np.testing.assert_array_equal(np.concatenate(targets), train.target)


MEASURE = """
import sys
from pathlib import Path

import torch

from pipeline import prepared, train

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024

def peak(folder):
    seen = []
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3))

    def turns(network, raw, taught):
        seen.append(anonymous())
        ((_, target),) = taught
        yield "network", torch.nn.functional.cross_entropy(network(*raw), target)

    class Floats(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network

        def forward(self, image):
            return self.body(image.float() / 255)

    floats = Floats()
    train.fit(
        floats,
        train.Config(lr=1e-3, epochs=1, batch_size=50),
        prepared.read(folder, "train"),
        prepared.read(folder, "validation"),
        players={"network": floats},
        turns=turns,
        score=lambda network, rows: {"loss": 0.0},
        better={"loss": "lower"},
        log=lambda line: None,
        folder=folder / "checkpoints",
        key="key",
    )
    return max(seen)

torch.set_num_threads(1)
small, large = (peak(Path(folder)) for folder in sys.argv[1:])
print(small, large)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_training_memory_does_not_grow_with_the_data(tmp_path):
    declared = Input(name="image", dtype="uint8", shape=("batch", 32, 32, 3), units="grey")
    for name, rows in (("small", 1500), ("large", 15000)):  # 4.6 and 46 MB
        image = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), np.uint8)
        raw = RawData(Encoded.one(declared, image), np.arange(rows) % 3, LABELS)
        prepared.prepare(name, raw, Split(validation=0.05, test=0.05), tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    small, large = (int(n) for n in done.stdout.splitlines()[-1].split())
    assert large - small < 12, f"{small} MB with 1,500 rows, {large} MB with 15,000"
