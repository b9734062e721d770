"""The packed file: the library's bytes, written a slice at a time."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline import packed


@pytest.mark.parametrize("slice_bytes", [1, 7, 1 << 23])
def test_the_bytes_are_the_librarys(tmp_path, monkeypatch, slice_bytes):
    monkeypatch.setattr(packed, "SLICE", slice_bytes)
    random = np.random.default_rng(0)
    arrays = {
        "z": random.integers(0, 256, (9, 3, 2), np.uint8),
        "wave": random.integers(-9, 9, (9, 5)).astype(np.int16),
        "flag": random.integers(0, 2, 9).astype(bool),
        "numeric": random.random((9, 4), np.float32),
        "größe": random.integers(0, 9, (9, 2)),
        "target": np.arange(9),
    }
    rows = np.array([1, 2, 5, 8])
    chosen = {name: np.ascontiguousarray(array[rows]) for name, array in arrays.items()}
    packed.write(tmp_path / "ours", arrays, rows)
    save_file(chosen, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, array in load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(packed.read(tmp_path / "ours")[name], array)


def test_the_digest_follows_content_and_names_alone(tmp_path, monkeypatch):
    image, rows = np.arange(60, dtype=np.uint8).reshape(20, 3), np.arange(20)
    told = packed.write(tmp_path / "one", {"image": image}, rows)
    monkeypatch.setattr(packed, "SLICE", 5)
    assert packed.write(tmp_path / "two", {"image": image}, rows) == told
    assert packed.write(tmp_path / "three", {"picture": image}, rows) != told
    assert packed.write(tmp_path / "four", {"image": image}, rows[::-1]) != told


@pytest.mark.parametrize("cut", [1, 8, 40])
def test_a_file_cut_short_is_told(tmp_path, cut):
    packed.write(tmp_path / "file", {"a": np.arange(9)}, np.arange(9))
    payload = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(payload[:-cut])
    with pytest.raises(packed.PackedError, match="damaged"):
        packed.read(tmp_path / "file")
