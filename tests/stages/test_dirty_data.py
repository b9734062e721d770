"""Dirty data, kind by kind: the stage refuses it by file or row before anything is trained.

`DIRT` is the list that docs/own-data.md gives; each entry spoils a sound set of its kind of data and says
what the message has to name. What was prepared before stays as it was.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from pipeline.folders.source import MAX_BYTES
from stages import prepare
from tests.pipeline import test_idx, test_pictures, test_sounds, test_texts
from tests.project import ROOT

OWN_DATA = ROOT / "docs" / "own-data.md"
Spoil = Callable[[Path], object]

SETTINGS: dict[str, dict[str, Any]] = {
    "pictures": {"path": "set", "height": 8, "width": 8},
    "sounds": {"path": "set", "rate": 8000, "cut": {"seconds": 0.1}},
    "texts": {"path": "set.csv"},
    "table": {"path": "set.csv", "target": "y"},
    "idx": {"path": "set", "title": "t", "licence": "none", "labels": ["0", "1", "2"]},
}


@dataclass(frozen=True)
class Dirt:
    """One kind of dirt: what it is called in the docs, what makes it, and what is told of it."""

    kind: str
    data: str
    spoil: Spoil
    told: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def sound_set(kind: str, root: Path) -> None:
    """Data of one kind with nothing wrong, at `root`/set."""
    if kind == "pictures":
        test_pictures.classes(root / "set")
    elif kind == "sounds":
        test_sounds.classes(root / "set")
    elif kind == "texts":
        test_texts.write(root / "set.csv", test_texts.rows(40))
    elif kind == "table":
        rows = (f"{i * 1.5},{'pqr'[i % 3]},{i * i % 17 + 0.5}" for i in range(40))
        (root / "set.csv").write_text("\n".join(["a,b,y", *rows, ""]))
    else:
        test_idx.write_set(root / "set")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def appended(content: str | bytes) -> Spoil:
    """What adds lines to the file."""
    added = content.encode() if isinstance(content, str) else content
    return lambda root: write(root / "set.csv", (root / "set.csv").read_bytes() + added)


def replaced(content: str | bytes) -> Spoil:
    """What puts another file in the file's place."""
    instead = content.encode() if isinstance(content, str) else content
    return lambda root: write(root / "set.csv", instead)


def shorter(file: str, by: int) -> Spoil:
    """What takes the end off a file."""
    return lambda root: write(root / file, (root / file).read_bytes()[:-by])


def heard(file: str, samples: np.ndarray, rate: int = 8000, **options: Any) -> Spoil:
    return lambda root: soundfile.write(root / "set" / file, samples, rate, **options)


def film(root: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (0, 90, 180)]
    frames[0].save(root / "set" / "a" / "film.gif", save_all=True, append_images=frames[1:])


def given_split(root: Path) -> None:
    for label in "ab":
        shutil.move(root / "set" / label, root / "set" / "train" / label)
    test_pictures.classes(root / "set" / "test", seed=5000, count=4)


def shared(root: Path) -> None:
    given_split(root)
    shutil.copy(root / "set" / "train" / "a" / "4.png", root / "set" / "test" / "a" / "copy.png")


def one_sided(root: Path) -> None:
    given_split(root)
    test_pictures.picture(root / "set" / "test" / "zebra" / "1.png", 9)


def of_one_row(root: Path) -> None:
    test_pictures.picture(root / "set" / "zebra" / "1.png", 777)


def linked_round(root: Path) -> None:
    (root / "set" / "a" / "loop.png").symlink_to("loop.png")
    (root / "set" / "round").symlink_to("round")


def endless(root: Path) -> None:
    (root / "set" / "a" / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "set" / "b" / "pipe.png")


def nameless(root: Path) -> None:
    path = os.fsencode(root / "set" / "a") + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write((root / "set" / "a" / "1.png").read_bytes())


def packed(*names: str, mode: Any = "w") -> Spoil:
    """A tar in place of the folder, with further members."""

    def spoil(root: Path) -> None:
        content = (root / "set" / "a" / "1.png").read_bytes()
        with tarfile.open(root / "set.tar", mode) as archive:
            archive.add(root / "set", arcname="set")
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    return spoil


def huge(root: Path) -> None:
    with open(root / "set" / "a" / "huge.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)


def listed(*lines: str) -> Spoil:
    """A table of the sounds, and lines of it that are wrong."""

    def spoil(root: Path) -> None:
        files = sorted((root / "set").rglob("*.wav"))
        good = [f"{p.relative_to(root / 'set')},{p.parent.name}" for p in files]
        write(root / "set" / "list.csv", "\n".join(["path,label", *good, *lines, ""]).encode())
        write(root / "outside.wav", files[0].read_bytes())

    return spoil


def parquet(root: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as files

    table = pa.table({"a": list(range(40)), "y": [[i, i + 1] for i in range(40)]})
    files.write_table(table, root / "set.parquet")


TAR = {"path": "set.tar"}
LIST = {"table": {"file": "list.csv"}}
DIRT = [
    Dirt(
        "no picture", "pictures", lambda r: write(r / "set/a/0.png", b"no"), ("a/0.png: not a r",)
    ),
    Dirt(
        "a picture cut short", "pictures", shorter("set/b/3.png", 200), ("b/3.png: not a readable",)
    ),
    Dirt(
        "a picture bomb",
        "pictures",
        lambda r: Image.new("1", (8000, 8000)).save(r / "set/a/large.png"),
        ("a/large.png: picture of 8000x8000 pixels; at most 50000000",),
    ),
    Dirt("a huge file", "pictures", huge, ("a/huge.jpg: 268435457 bytes; at most",)),
    Dirt("a film", "pictures", film, ("a/film.gif: picture with 3 frames",)),
    Dirt(
        "an empty class", "pictures", lambda r: (r / "set/c").mkdir(), ("c/: a class without pict",)
    ),
    Dirt(
        "one class alone",
        "pictures",
        lambda r: shutil.rmtree(r / "set/b"),
        ("one class only (a)",),
    ),
    Dirt("a class too small to deal", "pictures", of_one_row, ("validation data: zebra",)),
    Dirt(
        "outside any class",
        "pictures",
        lambda r: test_pictures.picture(r / "set/stray.png", 1),
        ("stray.png: a picture outside any class",),
    ),
    Dirt(
        "equal rows, other labels",
        "pictures",
        lambda r: shutil.copy(r / "set/a/4.png", r / "set/b/copy.png"),
        ("identical rows have different labels", "a/4.png (a) and b/copy.png (b)"),
    ),
    Dirt(
        "sets that share rows",
        "pictures",
        shared,
        ("test/a/copy.png (test) and train/a/4.png (tr",),
    ),
    Dirt(
        "a class that one set lacks", "pictures", one_sided, ("zebra: in test only, not in train",)
    ),
    Dirt("links that lead round", "pictures", linked_round, ("a/loop.png: ", "symbolic links")),
    Dirt(
        "no regular file", "pictures", endless, ("a/zero.png: no regular", "b/pipe.png: no regular")
    ),
    Dirt(
        "a name that is no text",
        "pictures",
        nameless,
        ("a/caf\\udce9.png': a file name that is no",),
    ),
    Dirt(
        "an archive that leads outside",
        "pictures",
        packed("set/a/../../../x.png", "/b/y.png"),
        ("set/a/../../../x.png: leads out of the archive", "/b/y.png: leads out of the archive"),
        TAR,
    ),
    Dirt("a packed archive", "pictures", packed(mode="w:gz"), ("set.tar: not a plain tar",), TAR),
    Dirt(
        "no archive",
        "pictures",
        lambda r: write(r / "set.tar", b"PK\3\4"),
        ("set.tar: expected a",),
        TAR,
    ),
    Dirt(
        "a sound cut short",
        "sounds",
        shorter("set/low/3.wav", 200),
        ("low/3.wav: sound cut short",),
    ),
    Dirt(
        "another file by a sound's name",
        "sounds",
        lambda r: write(r / "set/low/4.wav", b"%PDF-1.4 and so on"),
        ("low/4.wav: not a readable sound",),
    ),
    Dirt(
        "samples that are no number",
        "sounds",
        heard("high/n.wav", np.array([0, np.nan]), subtype="FLOAT"),
        ("high/n.wav: sound whose sample 1 is no finite number",),
    ),
    Dirt(
        "nothing but silence",
        "sounds",
        heard("high/s.wav", np.zeros(900)),
        ("high/s.wav: nothing but",),
    ),
    Dirt(
        "a sound too long",
        "sounds",
        heard("low/l.flac", np.zeros(301 * 1000), 1000),
        ("low/l.flac: sound of 301 s (301000 samples); at most 300 s",),
    ),
    Dirt(
        "too many channels",
        "sounds",
        heard("low/c.wav", np.zeros((90, 17))),
        ("low/c.wav: sound of 17 channels; at most 16",),
    ),
    Dirt(
        "a rate that nobody hears",
        "sounds",
        heard("low/r.wav", np.ones(90), 500),
        ("low/r.wav: sound of 500 samples a second; expected 1000 to 384000",),
    ),
    Dirt(
        "a table of files that are not there",
        "sounds",
        listed("none.wav,low", "../outside.wav,low", "low/1.wav,", "low/1.wav,high", "low/2.wav"),
        tuple(
            f"list.csv line {line}"
            for line in (
                "22: there is no none.wav",
                "23: there is no ../outside.wav",
                "24: without a label",
                "25: low/1.wav stands in line",
                "26: 1 columns",
            )
        ),
        LIST,
    ),
    Dirt(
        "an open quote in a table of files",
        "sounds",
        listed('"low/1.wav,low', *["low/2.wav,low"] * 10_000),
        ("list.csv: line 22: field larger than field limit",),
        LIST,
    ),
    Dirt(
        "a column that is missing",
        "texts",
        replaced("text,kind\na,b\nc,d\n"),
        ("set.csv: no column 'label'",),
    ),
    Dirt(
        "a column named twice",
        "texts",
        replaced("text,text,label\na,b,x\nc,d,y\n"),
        ("twice: 'text'",),
    ),
    Dirt("a text of nothing", "texts", appended(",good\n"), ("line 42: no text",)),
    Dirt("a row without a label", "texts", appended("fine,\n"), ("line 42: no label",)),
    Dirt(
        "NUL in a text",
        "texts",
        appended("a\0b,good\n"),
        ("line 42: not a text: NUL at character 1",),
    ),
    Dirt(
        "another encoding",
        "texts",
        appended(b"caf\xe9,good\nfine,good\nd\xe9j\xe0,bad\n"),
        ("not utf-8", "line 42: byte 0xe9", "line 44: byte 0xe9"),
    ),
    Dirt(
        "rows of another length",
        "texts",
        appended("a,b,c\nd\n"),
        ("line 42: 3 columns", "43: 1 col"),
    ),
    Dirt("a quote that never closes", "texts", appended('"fine,good\nbad,bad\n'), ("line 42: ",)),
    Dirt(
        "one label alone",
        "texts",
        replaced("text,label\na,x\nb,x\n"),
        ("label is 'x' in every row",),
    ),
    Dirt(
        "equal texts, other labels",
        "texts",
        appended("Twice told,good\nTwice told,bad\n"),
        ("line 42 (good) and line 43 (bad)",),
    ),
    Dirt(
        "a table of other lengths",
        "table",
        appended("1,2\n3,x,4,5\n"),
        ("row 42: 2 values", "row 43: 4"),
    ),
    Dirt(
        "a table's column named twice", "table", replaced("a,a,y\n1,2,3\n"), ("named twice: 'a'",)
    ),
    Dirt(
        "rows without a target",
        "table",
        appended("1,p,\n2,q,NaN\n" + "3,r,\n" * 30),
        ("row 42: no y", "row 43: no y", "row 61: no y", "and 12 more"),
    ),
    Dirt(
        "infinite numbers",
        "table",
        appended("inf,p,3\n1e39,p,4\n"),
        ("row 42: a is 'inf'", "row 43: a"),
    ),
    Dirt("no number", "table", appended("abc,p,3\n1,p,3\n"), ("row 42: a is 'abc'",)),
    Dirt("a target that is no number", "table", appended("1,p,x\n"), ("row 42: y is 'x'",)),
    Dirt(
        "one target for all",
        "table",
        replaced("a,y\n" + "".join(f"{i},7.5\n" for i in range(40))),
        ("y is 7.5 in every row",),
    ),
    Dirt(
        "the target over again",
        "table",
        replaced("a,b,y\n" + "".join(f"{i / 2},{i * i % 11},{2 * i + 0.2}\n" for i in range(40))),
        ("a: tells the target of every row",),
    ),
    Dirt(
        "too few rows",
        "table",
        replaced("a,b,y\n1.5,p,2.5\n2.5,q,3.25\n0.5,r,7.5\n"),
        ("no row for the validation data",),
    ),
    Dirt(
        "a table in UTF-16",
        "table",
        replaced("a,y\n1,2\n".encode("utf-16")),
        ("not UTF-8", "line 1:"),
    ),
    Dirt(
        "a table of nothing", "table", replaced("a,b,y\n"), ("set.csv: no rows below the header",)
    ),
    Dirt(
        "a nested target",
        "table",
        parquet,
        ("set.parquet: y: values of type list<",),
        {"path": "set.parquet"},
    ),
    Dirt(
        "no Parquet",
        "table",
        lambda r: write(r / "set.parquet", b"PAR1 and no more"),
        ("set.parquet: not a Parquet file",),
        {"path": "set.parquet"},
    ),
    Dirt(
        "a damaged gzip",
        "table",
        lambda r: write(r / "set.csv.gz", gzip.compress((r / "set.csv").read_bytes())[:-9]),
        ("set.csv.gz: cannot be read: Truncated", "pack it anew"),
        {"path": "set.csv.gz"},
    ),
    Dirt(
        "a line without end",
        "table",
        replaced("a" * 300_000),
        ("set.csv: line 1: field larger than field limit",),
    ),
    Dirt(
        "labels out of range",
        "idx",
        lambda r: None,
        ("labels out of range, expected 0 to 1", "row "),
        {"labels": ["0", "1"]},
    ),
    Dirt("idx files cut short", "idx", shorter("set/train-images-idx3-ubyte", 9), ("cut short",)),
]


@pytest.fixture(scope="module")
def sound_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of each kind that nothing is wrong with."""
    root = tmp_path_factory.mktemp("sets")
    for kind in SETTINGS:
        (root / kind).mkdir()
        sound_set(kind, root / kind)
    return root


def stage(root: Path, data: str, settings: dict[str, Any]) -> Any:
    """The stage over these settings, in `root`."""
    experiment = {
        "data": {"name": data, **SETTINGS[data], **settings},
        "model": {"name": "mlp"},
        "task": {"name": "regression" if data == "table" else "classification"},
        "train": {"lr": 0.1, "epochs": 1, "batch_size": 8, "seed": 0},
        "metrics": ["r2" if data == "table" else "accuracy"],
        "export": {"opset": 20},
    }
    YAML().dump({"experiments": {"dirty": experiment}}, root / "params.yaml")
    return CliRunner().invoke(prepare.command, ["dirty"])


@pytest.mark.parametrize("dirt", DIRT, ids=lambda dirt: dirt.kind.replace(" ", "-"))
def test_dirt_is_refused_by_name_before_any_training(
    dirt: Dirt, sound_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sound_sets / dirt.data, tmp_path, dirs_exist_ok=True)
    before = {"train.safetensors": b"of before", "manifest.json": b"of before"}
    for name, content in before.items():
        write(tmp_path / "build" / "dirty" / "data" / name, content)
    monkeypatch.chdir(tmp_path)
    dirt.spoil(tmp_path)
    done = stage(tmp_path, dirt.data, dirt.settings)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    for part in dirt.told:
        assert part in done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines) and len(lines) <= 22
    kept = tmp_path / "build" / "dirty" / "data"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("data", SETTINGS)
def test_without_dirt_it_is_prepared(
    data: str, sound_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sound_sets / data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    done = stage(tmp_path, data, {})
    assert done.exit_code == 0, done.output


def test_the_page_names_every_kind_and_no_other() -> None:
    table = OWN_DATA.read_text().partition("## Dirty data")[2].partition("\n## ")[0]
    told = {
        data.strip(): {kind.strip() for kind in kinds.split(";")}
        for data, kinds in re.findall(r"^\| ([a-z]+) \| (.*) \|$", table, re.M)
        if data != "data"
    }
    listed: dict[str, set[str]] = {}
    for dirt in DIRT:
        listed.setdefault(dirt.data, set()).add(dirt.kind)
    assert told == listed
    assert len(DIRT) == sum(map(len, told.values())) >= 15
