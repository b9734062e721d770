"""A bundle that is not byte for byte what was written is refused, and the file is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.bundle.manifest import MANIFEST, BundleError, canonical_json, read

FILES = ("card.md", "golden.npz", "model.onnx", MANIFEST)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def refused(folder: Path, *told: str) -> None:
    with pytest.raises(BundleError) as error:
        read(folder)
    for part in told:
        assert part in str(error.value)


def test_whole_to_begin_with(copy: Path, bundle: Path) -> None:
    assert read(copy).digest == read(bundle).digest


@pytest.mark.parametrize("name", FILES[:-1])
def test_every_flipped_bit(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        refused(copy, name)
    path.write_bytes(whole)
    read(copy)


def test_every_flipped_bit_of_the_manifest(copy: Path) -> None:
    """Refused, or by its digest another bundle: nothing says which digit of a metric is right."""
    path, before = copy / MANIFEST, read(copy).digest
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            assert read(copy).digest != before
        except BundleError as error:
            assert str(copy) in str(error)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_what_is_appended(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:length])
        refused(copy, name)
    path.write_bytes(whole + b"\n")
    refused(copy, name)


def test_swapped_files(copy: Path) -> None:
    (copy / "card.md").rename(copy / "x")
    (copy / "golden.npz").rename(copy / "card.md")
    (copy / "x").rename(copy / "golden.npz")
    refused(copy, "card.md", "bytes")


@pytest.mark.parametrize("name", FILES)
def test_missing(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, name)


def linked(copy: Path, link: Callable[[Path, Path], None]) -> None:
    moved = copy.parent / "model.onnx"
    (copy / "model.onnx").rename(moved)
    link(moved, copy / "model.onnx")


def test_links_pipes_and_folders(copy: Path) -> None:
    linked(copy, lambda target, at: at.symlink_to(target))
    refused(copy, "model.onnx", "regular file")
    (copy / "model.onnx").unlink()
    os.mkfifo(copy / "model.onnx")
    refused(copy, "model.onnx", "regular file")
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").mkdir()
    refused(copy, "model.onnx", "regular file")


@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "model.onnx.data", "MODEL.ONNX"])
def test_unlisted(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"")
    refused(copy, name, "not listed")


def test_lineage_alone_may_be_unlisted(copy: Path) -> None:
    digest = read(copy).digest
    (copy / "lineage.json").write_text('{"git_commit": "abc"}')
    found = read(copy)
    assert found.digest == digest and found.lineage == {"git_commit": "abc"}
    (copy / "lineage.json").write_text("[]")
    refused(copy, "lineage.json")
    (copy / "lineage.json").unlink()
    (copy / "lineage.json").symlink_to("/etc/passwd")
    refused(copy, "lineage.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.pop("task"), "task"),
        (lambda m: m.update(schema_version=2), "schema version 2"),
        (lambda m: m.update(schema_version=True), "schema version True"),
        (lambda m: m.update(name="../up"), "name"),
        (lambda m: m["inputs"][0].update(dtype="complex64"), "complex64"),
        (lambda m: m["inputs"][0].update(colour="red"), "colour"),
        (lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "size": 1}}), "../x"),
        (lambda m: m["files"].update({"a/b": {"sha256": "0" * 64, "size": 1}}), "a/b"),
        (lambda m: m["files"]["model.onnx"].update(size=5), "model.onnx"),
        (lambda m: m["files"]["model.onnx"].update(sha256="0" * 64), "SHA-256"),
        (lambda m: m["files"].pop("card.md"), "card.md"),
        (lambda m: m["files"].update({"CARD.md": m["files"]["card.md"]}), "case"),
        (lambda m: m["metrics"].update(accuracy="high"), "accuracy"),
    ],
)  # fmt: skip
def test_edited_manifests(
    copy: Path, change: Callable[[dict[str, object]], None], told: str
) -> None:
    manifest = json.loads((copy / MANIFEST).read_bytes())
    change(manifest)
    (copy / MANIFEST).write_bytes(canonical_json(manifest))
    refused(copy, str(copy), told)


def test_edited_without_a_trace_is_still_another_bundle(copy: Path) -> None:
    before = read(copy).digest
    manifest = json.loads((copy / MANIFEST).read_bytes())
    manifest["metrics"]["accuracy"] = 0.5
    (copy / MANIFEST).write_bytes(canonical_json(manifest))
    assert read(copy).digest != before


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"name": "digits-test"', b'"name": "digits-test", "name": "other"', "given twice"),
        (b'"accuracy": 1.0', b'"accuracy": NaN', MANIFEST),
        (b"\n", b"\n\n", "canonical"),
        (b'"task": "classification"', b'"task": "\xff"', "not JSON"),
    ],
)
def test_manifests_that_read_in_two_ways(copy: Path, old: bytes, new: bytes, told: str) -> None:
    whole = (copy / MANIFEST).read_bytes()
    assert old in whole
    (copy / MANIFEST).write_bytes(whole.replace(old, new, 1))
    refused(copy, MANIFEST, told)


def test_nested_without_end(copy: Path) -> None:
    (copy / MANIFEST).write_bytes(b"[" * 200_000)
    refused(copy, MANIFEST)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere")
    refused(tmp_path, MANIFEST)
