"""The bundle's manifest: one canonical form, and no changed or half-written bundle is read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bundle import manifest as bundle
from pipeline.bundle.decode.image import ImageDecoder
from pipeline.bundle.manifest import (
    BundleError,
    FileEntry,
    Gate,
    Golden,
    Input,
    Manifest,
    Output,
    Parity,
    Variant,
)
from pipeline.bundle.tensors import BY_NUMPY
from tests.manifests import sound_manifest

FILES = {"model.onnx": b"graph", "golden.npz": b"rows", "card.md": b"# card"}

words = st.text(max_size=12)
names = st.text(min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
by_name = st.dictionaries(names, numbers, max_size=3)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
shapes = st.lists(st.integers(1, 999) | names, max_size=3).map(lambda rest: ("batch", *rest))
dtypes = st.sampled_from(sorted(BY_NUMPY))
decoders = st.none() | st.builds(
    ImageDecoder,
    height=st.integers(20, 99),
    width=st.integers(20, 99),
    channels=st.sampled_from([1, 3]),
    trim=st.booleans(),
    margin=st.integers(0, 9),
)
labels = st.none() | st.lists(names, min_size=1, max_size=4, unique=True).map(tuple)


@st.composite
def sound_inputs(draw: st.DrawFn) -> Input:
    decoder = draw(decoders)
    shape = ("batch", *decoder.row) if decoder else draw(shapes)
    return Input(
        name=draw(names), dtype=draw(dtypes), shape=shape, decoder=decoder, units=draw(words)
    )


@st.composite
def sound_outputs(draw: st.DrawFn) -> Output:
    told = draw(labels)
    shape = (*draw(shapes), len(told)) if told else draw(shapes)
    return Output(name=draw(names), dtype=draw(dtypes), shape=shape, labels=told, units=draw(words))


@st.composite
def sound_gates(draw: st.DrawFn) -> Gate:
    measured, limit = draw(numbers), draw(numbers)
    rule = draw(st.sampled_from(["at most", "at least"]))
    held = measured <= limit if rule == "at most" else measured >= limit
    passed = held and draw(st.booleans())
    return Gate(name=draw(words), measured=measured, limit=limit, rule=rule, passed=passed)


inputs, outputs, gates = sound_inputs(), sound_outputs(), sound_gates()
parities = st.builds(
    Parity,
    rows=st.integers(1, 10**9),
    batch_sizes=st.lists(st.integers(1, 99)).map(tuple),
    max_abs_difference=by_name,
    tolerance=by_name,
    argmax_agreement=st.none() | numbers,
    ties=st.none() | st.integers(0),
    metrics_torch=by_name,
    metrics_onnx=by_name,
)


@st.composite
def sound_variants(draw: st.DrawFn) -> Variant:
    tried = tuple(draw(st.lists(gates, max_size=2)))
    return Variant(
        file="model.onnx",
        precision=draw(st.sampled_from(["fp32", "fp16", "int8"])),
        opset=draw(st.integers(1, 30)),
        admitted=bool(tried) and all(gate.passed for gate in tried),
        gates=tried,
        parity=draw(parities),
    )


variants = sound_variants()
manifests = st.builds(
    Manifest,
    name=st.from_regex(bundle.MODEL_NAME, fullmatch=True),
    task=words,
    inputs=st.lists(inputs, min_size=1, max_size=2).map(tuple),
    outputs=st.lists(outputs, min_size=1, max_size=2).map(tuple),
    variants=st.dictionaries(words, variants, min_size=1, max_size=2),
    metrics=by_name,
    golden=st.builds(
        Golden, file=st.just("golden.npz"), rows=st.integers(1, 64), tolerance=by_name
    ),
    profile=st.none(),
    card=st.just("card.md"),
    experiment=st.dictionaries(words, plain, max_size=3),
    versions=st.dictionaries(words, words, max_size=3),
    files=st.just(bundle.entries(FILES)),
)


def sound() -> Manifest:
    """A small manifest over `FILES`."""
    tensor = {"name": "x", "dtype": "float32", "shape": ("batch", 2), "units": "none"}
    return sound_manifest(FILES, (Input(**tensor),), (Output(**tensor),), name="m")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle.write(tmp_path / "m", sound(), FILES)
    return tmp_path / "m"


def rewrite(folder: Path, change) -> None:
    """Change the manifest's JSON and write it back in canonical form."""
    path = folder / bundle.MANIFEST
    raw = json.loads(path.read_bytes())
    change(raw)
    path.write_bytes(bundle.canonical_json(raw))


@given(manifest=manifests)
def test_what_is_written_canonically_is_read_back(manifest):
    payload = bundle.canonical(manifest)
    assert bundle.parse(payload) == manifest
    assert bundle.canonical(bundle.parse(payload)) == payload


@given(manifest=manifests)
def test_any_other_form_is_refused(manifest):
    raw = json.loads(bundle.canonical(manifest))
    for other in (
        json.dumps(raw).encode(),
        bundle.canonical(manifest).rstrip(b"\n"),
        b" " + bundle.canonical(manifest),
    ):
        with pytest.raises(BundleError, match="not in canonical form"):
            bundle.parse(other)


def test_a_bundle_is_read_as_written(folder):
    read = bundle.read(folder)
    assert read.manifest == sound() and dict(read.contents) == FILES and read.lineage is None
    assert read.digest == bundle.sha256((folder / "manifest.json").read_bytes())


TAMPERING = {
    "a changed byte": (
        lambda f: (f / "model.onnx").write_bytes(b"grapH"),
        "model.onnx: expected SHA-256",
    ),
    "a cut file": (
        lambda f: (f / "golden.npz").write_bytes(b"row"),
        "golden.npz: expected 4 bytes, got 3",
    ),
    "a longer file": (
        lambda f: (f / "golden.npz").write_bytes(b"rows and more"),
        "golden.npz: expected 4 bytes, got 5",
    ),
    "a missing file": (lambda f: (f / "card.md").unlink(), "card.md: listed in .* but missing"),
    "one file more": (lambda f: (f / "more.txt").write_text(""), "more.txt: not listed"),
    "a folder": (lambda f: (f / "more").mkdir(), "more: not a regular file"),
    "a pipe": (lambda f: os.mkfifo(f / "more"), "more: not a regular file"),
    "a link": (
        lambda f: (
            (f / "card.md").rename(f.parent / "card"),
            (f / "card.md").symlink_to("../card"),
        ),
        "card.md: not a regular file",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: not JSON"),
    "a key given twice": (
        lambda f: (f / "manifest.json").write_text('{"name": 1, "name": 2}'),
        "manifest.json: .*'name' is given twice",
    ),
    "another schema": (
        lambda f: rewrite(f, lambda raw: raw.update(schema_version=2)),
        "manifest.json: schema version 2; this Slipway reads 1",
    ),
    "an unknown field": (
        lambda f: rewrite(f, lambda raw: raw.update(extra=1)),
        "manifest.json: extra: ",
    ),
    "a missing field": (lambda f: rewrite(f, lambda raw: raw.pop("task")), "manifest.json: task: "),
    "a field of another type": (
        lambda f: rewrite(f, lambda raw: raw["golden"].update(rows="many")),
        r"manifest.json: golden\.rows: ",
    ),
    "a path for a name": (
        lambda f: rewrite(f, lambda raw: raw["files"].update({"../x": raw["files"]["card.md"]})),
        "manifest.json: .*'../x' is not a file name",
    ),
    "a file that is not listed": (
        lambda f: rewrite(f, lambda raw: raw.update(card="other.md")),
        "manifest.json: .*'other.md' is referred to but not listed",
    ),
    "an unknown dtype": (
        lambda f: rewrite(f, lambda raw: raw["inputs"][0].update(dtype="float8")),
        r"manifest.json: inputs\.0: .*float8",
    ),
    "a fixed first axis": (
        lambda f: rewrite(f, lambda raw: raw["inputs"][0].update(shape=[3, 2])),
        "manifest.json: .*must be 'batch'",
    ),
    "spaces": (
        lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes() + b" "),
        "manifest.json: not in canonical form",
    ),
    "no folder": (lambda f: f.rename(f.parent / "gone"), "m: not a bundle folder"),
}


@pytest.mark.parametrize("change", TAMPERING)
def test_tampering_is_refused_by_name(folder, change):
    tamper, why = TAMPERING[change]
    tamper(folder)
    with pytest.raises(BundleError, match=why):
        bundle.read(folder)


def test_lineage_is_tolerated_inside_or_beside(folder):
    digest = bundle.read(folder).digest
    beside = folder.parent / "m.lineage.json"
    beside.write_text('{"commit": "a"}')
    assert bundle.read(folder).lineage == {"commit": "a"}
    (folder / "lineage.json").write_text('{"commit": "b"}')
    assert bundle.read(folder).lineage == {"commit": "b"}
    assert bundle.read(folder).digest == digest
    (folder / "lineage.json").write_text("[]")
    with pytest.raises(BundleError, match=r"lineage\.json: expected an object"):
        bundle.read(folder)


@pytest.mark.parametrize(
    "contents",
    [
        {**FILES, "model.onnx": b"other"},
        {**FILES, "more.txt": b""},
        {"model.onnx": b"graph"},
    ],
)
def test_write_refuses_what_the_manifest_does_not_list(tmp_path, contents):
    with pytest.raises(BundleError, match="does not list exactly the files given"):
        bundle.write(tmp_path / "m", sound(), contents)
    assert not list(tmp_path.iterdir())


def test_write_puts_a_bundle_in_place_of_another(folder):
    (folder / "stray").write_bytes(b"of the former one")
    bundle.write(folder, sound(), FILES)
    assert dict(bundle.read(folder).contents) == FILES
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_write_that_fails_leaves_the_former_bundle(folder, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        bundle.write(folder, sound(), FILES)
    assert dict(bundle.read(folder).contents) == FILES
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


GATE = {"name": "g", "measured": 2.0, "limit": 1.0, "rule": "at most", "passed": False}


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: Gate(**{**GATE, "passed": True}), "did not pass"),
        (lambda: admitted(gates=()), "not every gate passed"),
        (lambda: admitted(gates=(Gate(**GATE),)), "not every gate passed"),
        (lambda: labelled(("a", "b", "a")), "given twice"),
        (lambda: labelled(("a", "b")), "2 labels"),
        (lambda: labelled(("a", "b", "\ud800")), "expected 1 to 128 characters"),
        (
            lambda: Input(
                name="x",
                dtype="uint8",
                shape=("batch", 9, 9, 1),
                decoder=ImageDecoder(height=8, width=8),
                units="",
            ),
            "the decoder gives",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(build, why):
    with pytest.raises(ValueError, match=why):
        build()


def admitted(gates: tuple[Gate, ...]) -> Variant:
    variant = sound().variants["fp32"].model_dump() | {"admitted": True, "gates": gates}
    return Variant(**variant)


def labelled(labels: tuple[str, ...]) -> Output:
    return Output(name="x", dtype="float32", shape=("batch", 3), labels=labels, units="")


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.bundle import manifest
from tests.pipeline.bundle.test_manifest import FILES, sound

left = int(sys.argv[2])

def sync(descriptor):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = sync
manifest.write(Path(sys.argv[1]), sound(), FILES)
"""


@pytest.mark.parametrize("synced", range(len(FILES) + 1))
def test_a_killed_write_leaves_no_half_bundle(tmp_path, synced):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "m"), str(synced)],
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    bundle.write(tmp_path / "m", sound(), FILES)
    assert bundle.read(tmp_path / "m").manifest == sound()


def test_a_file_entry_is_a_hash_and_a_size():
    assert bundle.entries({"a": b""}) == {"a": FileEntry(sha256=bundle.sha256(b""), size=0)}
