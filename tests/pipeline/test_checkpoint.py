"""Weights and training state on disk: the same bytes for the same numbers, whole or absent."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors import SafetensorError

from pipeline.checkpoint import load_state, load_weights, save_state, save_weights

WEIGHTS = {"b": torch.randn(3, 4), "a": torch.arange(5), "c": torch.randn(4, 3).T}


def test_weights_come_back(tmp_path):
    save_weights(tmp_path / "new" / "w.safetensors", WEIGHTS)
    read = load_weights(tmp_path / "new" / "w.safetensors")
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in WEIGHTS.items())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_the_same_weights_are_the_same_bytes(tmp_path):
    save_weights(tmp_path / "one", WEIGHTS)
    save_weights(tmp_path / "two", {name: WEIGHTS[name] for name in sorted(WEIGHTS)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_state_comes_back(tmp_path):
    state = {"weights": WEIGHTS, "list": [{"a": 1.5}], "flag": True, "text": "x"}
    save_state(tmp_path / "s.pt", state)
    read = load_state(tmp_path / "s.pt")
    assert read is not None and read["list"] == state["list"] and read["flag"] is True
    assert torch.equal(read["weights"]["b"], WEIGHTS["b"])


def test_no_file_is_no_state(tmp_path):
    assert load_state(tmp_path / "none.pt") is None


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save_state(tmp_path / "s.pt", {"old": 1})
    with pytest.raises(Exception, match="pickle"):
        save_state(tmp_path / "s.pt", {"weights": torch.zeros(9), "new": lambda: None})
    assert load_state(tmp_path / "s.pt") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s.pt"]


def test_a_reader_finds_a_whole_file_whenever_it_looks(tmp_path):
    path, done = tmp_path / "s.pt", threading.Event()

    def write() -> None:
        for turn in range(40):
            save_state(path, {"turn": turn, "weights": torch.full((500_000,), turn)})
        done.set()

    save_state(path, {"turn": 0, "weights": torch.zeros(500_000)})
    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    while not done.is_set():
        state = load_state(path)
        assert state is not None and (state["weights"] == state["turn"]).all()
        looks += 1
    writer.join()
    assert looks > 3


def test_damaged_weights_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(SafetensorError, match=r"w\.safetensors: damaged .*; run `dvc repro`"):
            load_weights(path)
