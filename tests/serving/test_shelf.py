"""The bundles kept for workers that come later: in a file, by mark, whatever dies meanwhile."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bundle.manifest import Bundle, BundleError, read
from serving.models.shelf import PAGE, Shelf, mark_of
from serving.system.anonymous_files import in_memory, on_disk
from tests.serving.bundles import digits_graph, make_bundle

FILES = ("model.onnx", "golden.npz")


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    for seed in range(3):
        make_bundle(tmp_path / str(seed), digits_graph(seed))
    return [read(tmp_path / str(seed)) for seed in range(3)]


def used(file: int) -> int:
    return os.fstat(file).st_blocks * 512


@pytest.mark.parametrize("kind", [in_memory, on_disk])
def test_what_was_put_is_had_by_whoever_has_the_file(kind, bundles: list[Bundle]) -> None:
    file = kind("test")
    first, second = Shelf(file), Shelf(file)
    with_lineage = replace(bundles[0], lineage={"git_commit": "abc"})
    for bundle in (*bundles, with_lineage, bundles[0]):
        first.put(bundle, FILES)
    for bundle in (*bundles, with_lineage):
        found = second.get(mark_of(bundle))
        assert found and found.digest == bundle.digest and found.lineage == bundle.lineage
        assert found.contents == {name: bundle.contents[name] for name in FILES}
    assert second.get("0" * 64) is None
    size = os.fstat(file).st_size
    first.put(bundles[1], FILES)
    assert os.fstat(file).st_size == size


def test_room_is_given_back_and_used_again(bundles: list[Bundle]) -> None:
    file = on_disk("test")
    shelf = Shelf(file)
    for bundle in bundles:
        shelf.put(bundle, FILES)
    size, full = os.fstat(file).st_size, used(file)
    shelf.keep_only({mark_of(bundles[1])})
    assert used(file) < full and os.fstat(file).st_size < size
    assert shelf.get(mark_of(bundles[0])) is None and shelf.get(mark_of(bundles[1]))
    for bundle in bundles:
        shelf.put(bundle, FILES)
        assert shelf.get(mark_of(bundle))
    assert os.fstat(file).st_size == size
    shelf.keep_only(())
    assert os.fstat(file).st_size == 0


def test_what_was_half_written_is_room(bundles: list[Bundle], monkeypatch) -> None:
    file = on_disk("test")
    shelf = Shelf(file)
    shelf.put(bundles[0], FILES)
    whole, wrote = Shelf._write, []

    def broken(self: Shelf, start: int, parts: list[bytes]) -> None:
        wrote.append(start)
        if len(wrote) == 2:
            whole(self, start, [parts[0][:5]])
            raise OSError("no space left on device")
        whole(self, start, parts)

    monkeypatch.setattr(Shelf, "_write", broken)
    with pytest.raises(OSError, match="no space"):
        shelf.put(bundles[1], FILES)
    monkeypatch.setattr(Shelf, "_write", whole)
    assert shelf.get(mark_of(bundles[1])) is None and shelf.get(mark_of(bundles[0]))
    shelf.put(bundles[2], FILES)
    assert shelf.get(mark_of(bundles[2])) and shelf.get(mark_of(bundles[0]))


def test_what_has_changed_is_not_given_out(bundles: list[Bundle]) -> None:
    file = on_disk("test")
    shelf = Shelf(file)
    shelf.put(bundles[0], FILES)
    for place in (PAGE, PAGE + 20, PAGE + 2000, os.fstat(file).st_size - 100):
        before = os.pread(file, 1, place)
        os.pwrite(file, bytes([before[0] ^ 1]), place)
        with pytest.raises(BundleError, match="kept"):
            shelf.get(mark_of(bundles[0]))
        os.pwrite(file, before, place)
    assert shelf.get(mark_of(bundles[0]))
