"""Sounds in folders, archives and tables: what is read, and what is refused by name."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline import prepared
from pipeline.bundle.decode import decode
from pipeline.config import ConfigError, build
from pipeline.data import sounds
from pipeline.dataset import DataError
from pipeline.prepared import Rows
from pipeline.split import SPLITS

RATE = 8000
HERTZ = {"low": 300, "high": 2000}


def sound(
    path: Path,
    seed: int,
    hertz: float = 440,
    seconds: float = 0.2,
    rate: int = RATE,
    **options: Any,
) -> Path:
    """A tone with some noise, no two seeds alike; its format follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * time) + 0.05 * noise, rate, **options)
    return path


def classes(folder: Path, count: int = 10, seed: int = 0) -> Path:
    for place, (label, hertz) in enumerate(HERTZ.items()):
        for number in range(count):
            sound(folder / label / f"{number}.wav", seed + 1000 * place + number, hertz)
    return folder


def config(**settings: Any) -> sounds.Config:
    given = {"name": "sounds", "path": "set", "rate": RATE, "cut": {"seconds": 0.5}, **settings}
    return build(sounds.Config, given, "data")


def prepare(root: Path, **settings: Any) -> dict[str, Rows]:
    chosen = config(**settings)
    raw = sounds.load(chosen, root)
    prepared.prepare("sounds", raw, chosen.split, root / "out")
    return {part: prepared.read(root / "out", part) for part in SPLITS}


def refusal(root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare(root, **settings)
    return str(caught.value)


def files(root: Path, part: str) -> list[str]:
    return prepared.read_files(root / "out", part) or []


def packed(folder: Path, **options: Any) -> Path:
    """The same in a tar, below one folder."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w", **options) as archive:
        archive.add(folder, arcname=f"./{folder.name}")
    return path


def test_rows_are_what_the_server_decodes_and_batches_end_with_their_longest(tmp_path):
    classes(tmp_path / "set")
    sound(tmp_path / "set" / "low" / "x.flac", 77, seconds=0.1, rate=44100)
    sound(tmp_path / "set" / "high" / "y.ogg", 78, seconds=0.9)
    parts = prepare(tmp_path)
    assert sum(len(rows) for rows in parts.values()) == 22
    manifest = prepared.read_manifest(tmp_path / "out")
    (declared,) = manifest.inputs
    assert declared.shape == ("batch", "samples") and manifest.frontend["name"] == "log_mel"
    for part, rows in parts.items():
        for number, file in enumerate(files(tmp_path, part)):
            row = decode(declared.decoder, (tmp_path / "set" / file).read_bytes())
            np.testing.assert_array_equal(rows.take(slice(number, number + 1))["waveform"][0], row)
            assert rows.seen(number).ndim == 2
    longest = max(r.take(slice(None))["waveform"].shape[1] for r in parts.values())
    assert longest == RATE // 2


def named(folder: Path) -> Path:
    """Ten takes each of two digits by two speakers, all in one folder."""
    for number in range(40):
        digit, speaker, take = number % 2, ("ann", "bo")[number // 2 % 2], number // 4
        sound(folder / f"{digit}_{speaker}_{take}.wav", number)
    return folder


@pytest.mark.parametrize("archive", [False, True])
def test_classes_and_sets_may_be_told_by_names_in_a_folder_or_a_tar(tmp_path, archive):
    path = named(tmp_path / "set")
    path = packed(path) if archive else path
    settings = {"path": path.name, "label_from": "{label}_*", "validation_files": ["*_[78].wav"]}
    parts = prepare(tmp_path, **settings, test_files=["*_9.wav"])
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 28,
        "validation": 8,
        "test": 4,
    }
    assert all(file.endswith("_9.wav") for file in files(tmp_path, "test"))
    raw = sounds.load(config(**settings), tmp_path)
    assert raw.labels == ("0", "1") and raw.sample is not None
    suffix, payload = raw.sample(0)
    assert suffix == ".wav" and payload[:4] == b"RIFF"
    held = prepare(tmp_path, path=path.name, label_from="{label}_*", test_files=["*_bo_*"])
    assert len(held["test"]) == 20


def test_a_tar_of_folders_is_read_as_the_folders_are(tmp_path):
    classes(tmp_path / "set" / "train")
    classes(tmp_path / "set" / "test", count=4, seed=500)
    packed(tmp_path / "set")
    from_folder = sounds.load(config(), tmp_path)
    from_tar = sounds.load(config(path="set.tar"), tmp_path)
    assert from_folder.labels == from_tar.labels == ("high", "low")
    assert [f.removeprefix("set/") for f in from_tar.files] == list(from_folder.files)
    np.testing.assert_array_equal(from_tar.given_test, from_folder.given_test)
    tarfile.open(tmp_path / "set.tgz", "w:gz").close()
    assert "decompress it" in refusal(tmp_path, path="set.tgz")


TABLE = "file,who,digit,split\n" + "".join(
    f"clips/{number}.wav,x,{'ab'[number % 2]},{'train' if number < 16 else 'test'}\n"
    for number in range(20)
)


def table(root: Path, text: str = TABLE, name: str = "list.csv") -> dict[str, Any]:
    for number in range(20):
        sound(root / "set" / "clips" / f"{number}.wav", number)
    (root / "set" / name).write_text(text, "utf-8-sig")
    return {"table": {"file": name, "path": "file", "label": "digit", "split": "split"}}


def test_a_table_names_files_labels_and_sets(tmp_path, capsys):
    settings = table(tmp_path)
    sound(tmp_path / "set" / "unnamed.wav", 99)
    parts = prepare(tmp_path, **settings)
    assert len(parts["test"]) == 4 and len(parts["train"]) + len(parts["validation"]) == 16
    assert "1 sounds that the table does not name" in capsys.readouterr().out
    tabbed = table(tmp_path, TABLE.replace(",", "\t"), "list.tsv")
    assert len(prepare(tmp_path, **tabbed)["test"]) == 4


def test_what_is_wrong_with_a_table_is_listed_by_line(tmp_path):
    lines = TABLE.splitlines()
    lines[1] = "clips/none.wav,x,a,train"
    lines[2] = "clips/1.wav,x,,train"
    lines[3] = "clips/3.wav,x,b,train"
    lines[4] = "../outside.wav,x,b,train"
    lines[5] = "clips/4.wav,x,a,later"
    lines[6] = "clips/5.wav,x"
    lines[7] = "list.csv,x,a,train"
    settings = table(tmp_path, "\n".join(lines))
    (tmp_path / "outside.wav").write_bytes(b"x")
    message = refusal(tmp_path, **settings)
    for told in (
        "line 2: there is no clips/none.wav",
        "line 3: without a label",
        "line 5: there is no ../outside.wav",
        "line 6: split 'later'; expected train, validation or test",
        "line 7: 2 columns, the header has 4",
        "line 8: list.csv is no sound by its suffix",
    ):
        assert f"list.csv {told}" in message
    doubled = table(tmp_path, TABLE + "clips/3.wav,x,b,train\n")
    assert "list.csv line 22: clips/3.wav stands in line 5 already" in refusal(tmp_path, **doubled)
    wrong = {"table": {"file": "list.csv", "path": "sound", "label": "digit"}}
    assert "no column 'sound', but file, who, digit, split" in refusal(tmp_path, **wrong)
    assert "none.csv: cannot be read" in refusal(tmp_path, table={"file": "none.csv"})


def cut_short(folder: Path) -> str:
    path = folder / "low" / "3.wav"
    path.write_bytes(path.read_bytes()[:-200])
    return "low/3.wav: sound cut short: 200 bytes of it are missing at the end"


def no_sound(folder: Path) -> str:
    (folder / "low" / "4.mp3").write_bytes(b"ID3 no more than that")
    return "low/4.mp3: not a readable sound"


def silent(folder: Path) -> str:
    soundfile.write(folder / "high" / "still.wav", np.zeros(900), RATE)
    return "high/still.wav: nothing but silence"


def not_a_number(folder: Path) -> str:
    soundfile.write(folder / "high" / "n.wav", np.array([0, np.nan]), RATE, subtype="FLOAT")
    return "high/n.wav: sound whose sample 1 is no finite number"


def huge(folder: Path) -> str:
    with open(folder / "low" / "huge.wav", "wb") as file:
        file.truncate((1 << 28) + 1)
    return "low/huge.wav: 268435457 bytes; at most 268435456"


def two_labels(folder: Path) -> str:
    (folder / "high" / "copy.wav").write_bytes((folder / "low" / "4.wav").read_bytes())
    return "high/copy.wav (high) and low/4.wav (low)"


def loose(folder: Path) -> str:
    sound(folder / "stray.wav", 5)
    return "stray.wav: a sound outside any class"


def empty_class(folder: Path) -> str:
    (folder / "none").mkdir()
    (folder / "none" / "read.me").write_text("x")
    return "none/: a class without sounds (1 .me ignored)"


@pytest.mark.parametrize(
    "spoil",
    [cut_short, no_sound, silent, not_a_number, huge, two_labels, loose, empty_class],
)
def test_dirty_data_is_refused_by_name(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    classes(tmp_path / "set")
    told = spoil(tmp_path / "set")
    assert told in refusal(tmp_path)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_names_that_do_not_fit_are_listed(tmp_path):
    named(tmp_path / "set")
    sound(tmp_path / "set" / "nine.wav", 1)
    assert "nine.wav: the name does not fit data.label_from '{label}_*'" in refusal(
        tmp_path, label_from="{label}_*"
    )
    assert "expected one {label}" in refusal(tmp_path, label_from="*")
    with pytest.raises(ConfigError, match="the table has the labels"):
        config(label_from="{label}_*", table={"file": "x.csv"})


def test_an_archive_that_ends_too_soon_is_told(tmp_path):
    path = packed(classes(tmp_path / "set"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refusal(tmp_path, path="set.tar")
    assert "set.tar" in message
