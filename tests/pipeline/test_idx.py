"""The idx reader: what it reads, what it refuses, and what it fetches."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.config import ConfigError, build
from pipeline.data import idx
from pipeline.dataset import DataError

WORDS = {"title": "Made up", "licence": "none", "name": "idx"}
LABELS = tuple("abc")


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    """The idx file of an array of unsigned bytes."""
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, kind, array.ndim)) + shape + array.tobytes()


def pictures(rows: int, seed: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *size), np.uint8)


def write_set(folder: Path, **changed: bytes) -> Path:
    """A whole data set of 30 and 12 pictures; `changed` replaces files by their first word."""
    contents = {
        "train-images-idx3-ubyte": idx_bytes(pictures(30, 0)),
        "train-labels-idx1-ubyte": idx_bytes(np.arange(30, dtype=np.uint8) % 3),
        "t10k-images-idx3-ubyte": idx_bytes(pictures(12, 1)),
        "t10k-labels-idx1-ubyte": idx_bytes(np.arange(12, dtype=np.uint8) % 3),
    }
    contents |= {name.replace("_", "-"): payload for name, payload in changed.items()}
    folder.mkdir(exist_ok=True)
    for name, payload in contents.items():
        (folder / name).write_bytes(payload)
    return folder


def config(path: Path | str = ".", **settings) -> idx.Config:
    return build(idx.Config, {"path": str(path), "labels": LABELS, **WORDS, **settings}, "data")


@given(
    array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3, max_side=7)),
    zipped=st.booleans(),
)
def test_what_is_written_is_read_back(tmp_path_factory, array, zipped):
    path = tmp_path_factory.mktemp("idx") / "file"
    payload = idx_bytes(array)
    path.write_bytes(gzip.compress(payload) if zipped else payload)
    np.testing.assert_array_equal(idx.read(path, array.ndim), array)


SOUND = idx_bytes(pictures(4, 2))


@given(end=st.integers(0, len(SOUND) - 1))
def test_a_truncated_file_is_refused(tmp_path_factory, end):
    refused(tmp_path_factory.mktemp("idx"), SOUND[:end])


@given(end=st.integers(0, len(gzip.compress(SOUND)) - 1))
def test_a_truncated_gzip_is_refused(tmp_path_factory, end):
    refused(tmp_path_factory.mktemp("idx"), gzip.compress(SOUND)[:end])


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "not an idx file"),
        (b"\1" + SOUND[1:], "not an idx file"),
        (idx_bytes(pictures(4, 2), kind=13), "not an idx file"),
        (idx_bytes(np.zeros(4, np.uint8)), "expected 3 axes, got 1"),
        (SOUND + b"\0", "cut short or damaged"),
        # Its lengths multiply to 2 ** 64, which is 0 to 64 bits.
        (b"\0\0\x08\3" + b"\x80\0\0\0" * 2 + b"\0\0\0\4", "cut short or damaged"),
        (gzip.compress(SOUND)[:-4] + b"\0\0\0\0", "cannot be read"),
        (gzip.compress(SOUND) + b"trailing", "cannot be read"),
        (gzip.compress(SOUND)[:12] + b"\xff" * 8 + gzip.compress(SOUND)[20:], "cannot be read"),
    ],
)
def test_damage_is_refused(tmp_path, payload, why):
    refused(tmp_path, payload, why)


def refused(folder: Path, payload: bytes, why: str = ".") -> None:
    path = folder / "some-file"
    path.write_bytes(payload)
    with pytest.raises(DataError, match=why) as caught:
        idx.read(path, axes=3)
    assert str(path) in str(caught.value)


def test_both_parts_are_loaded_and_the_second_is_the_given_test(tmp_path):
    raw = idx.load(config("set"), write_set(tmp_path / "set").parent)
    assert raw.rows.arrays["image"].shape == (42, 6, 5, 1)
    assert raw.given_test.tolist() == [False] * 30 + [True] * 12
    assert raw.target.tolist() == [n % 3 for n in (*range(30), *range(12))]
    np.testing.assert_array_equal(raw.rows.arrays["image"][30:, ..., 0], pictures(12, 1))


def test_pictures_and_labels_must_be_as_many(tmp_path):
    write_set(tmp_path, t10k_labels_idx1_ubyte=idx_bytes(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match=r"t10k-images.*12 pictures.*t10k-labels.*11 labels"):
        idx.load(config(), tmp_path)


def test_both_parts_must_have_one_size(tmp_path):
    write_set(tmp_path, t10k_images_idx3_ubyte=idx_bytes(pictures(12, 1, (5, 5))))
    with pytest.raises(DataError, match=r"t10k-images.*pictures of \(5, 5\)"):
        idx.load(config(), tmp_path)


def test_a_missing_file_is_named(tmp_path):
    (write_set(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="expected t10k-labels-idx1-ubyte or"):
        idx.load(config(), tmp_path)


def test_a_margin_that_leaves_no_picture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.fit\.margin: 3 pixels"):
        idx.load(config(fit={"margin": 3}), write_set(tmp_path))


def test_a_url_needs_every_checksum():
    with pytest.raises(ConfigError, match="'sha256' must list train-images-idx3-ubyte"):
        config(url="http://127.0.0.1/mnist")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[tuple[str, dict[str, str]]]:
    """A whole data set behind a real HTTP server: (address, SHA-256 by file)."""
    folder = write_set(tmp_path / "set")
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", sums
        server.shutdown()


def test_files_are_fetched_and_then_kept(served, tmp_path):
    url, sums = served
    fetched = idx.load(config("nowhere", url=url, sha256=sums), tmp_path)
    np.testing.assert_array_equal(
        fetched.rows.arrays["image"], idx.load(config("set"), tmp_path).rows.arrays["image"]
    )
    for path in (tmp_path / "set").iterdir():
        path.unlink()
    assert len(idx.load(config("nowhere", url=url, sha256=sums), tmp_path).target) == 42


def test_a_wrong_checksum_is_refused(served, tmp_path):
    url, sums = served
    wrong = sums | {"t10k-labels-idx1-ubyte": "0" * 64}
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: .*hash"):
        idx.load(config("nowhere", url=url, sha256=wrong), tmp_path)


def test_a_file_that_is_not_there_is_named(served, tmp_path):
    url, sums = served
    (tmp_path / "set" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: .*404"):
        idx.load(config("nowhere", url=url, sha256=sums), tmp_path)


@pytest.mark.skipif(
    "SLIPWAY_DATA" not in os.environ, reason="SLIPWAY_DATA names no folder of data sets"
)
def test_the_real_mnist():
    raw = idx.load(config("mnist", labels=list("0123456789")), Path(os.environ["SLIPWAY_DATA"]))
    assert raw.rows.arrays["image"].shape == (70000, 28, 28, 1)
    train = np.bincount(raw.target[~raw.given_test]).tolist()
    assert train == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = np.bincount(raw.target[raw.given_test]).tolist()
    assert test == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
