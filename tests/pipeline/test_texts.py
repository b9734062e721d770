"""Texts in a file: what is read, what is refused by line, and what the training rows teach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import prepared
from pipeline.augment import Augment, augmented
from pipeline.bundle.decode import decode
from pipeline.bundle.decode.text import TOKENIZER
from pipeline.config import ConfigError, build
from pipeline.data import texts
from pipeline.dataset import DataError, RawData, Split

KINDS = {"good": "fine lovely bright", "bad": "dull poor grey"}


def rows(count: int = 60) -> list[tuple[str, str]]:
    """Texts that tell their label, each of them once."""
    found = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        word = KINDS[label].split()[number // 2 % 3]
        found.append((f"A {word} film, number{number}!", label))
    return found


def write(path: Path, lines: list[tuple[str, str]], delimiter: str = ",") -> Path:
    quoted = [f'"{text}"{delimiter}{label}' for text, label in lines]
    path.write_text("\n".join([f"text{delimiter}label", *quoted, ""]))
    return path


def load(path: Path, **settings: Any) -> RawData:
    config = build(texts.Config, {"name": "texts", "path": path.name, **settings}, "data")
    return texts.load(config, path.parent)


def test_the_tokenizer_knows_the_training_rows_alone(tmp_path):
    raw = load(write(tmp_path / "films.csv", rows()), vocabulary={"least": 1})
    manifest, chosen = prepared.prepare("texts", raw, Split(), tmp_path / "data")
    known = set(json.loads((tmp_path / "data" / TOKENIZER).read_bytes())["model"]["vocab"])
    assert {f"number{row}" for row in chosen["train"]} <= known
    assert not {f"number{row}" for part in ("validation", "test") for row in chosen[part]} & known
    (declared,) = manifest.inputs
    assert declared.decoder.vocabulary == len(known) and manifest.frontend["name"] == "tokens"

    test = prepared.read(tmp_path / "data", "test")
    files = {TOKENIZER: (tmp_path / "data" / TOKENIZER).read_bytes()}
    for place, row in enumerate(chosen["test"]):
        suffix, payload = raw.sample(int(row))
        assert suffix == ".txt"
        ids = decode(declared.decoder, payload, files)
        taken = test.take(slice(place, place + 1))["token_ids"][0]
        assert ids.tolist() == taken.tolist()


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (b'label\ttext\nham\tI said "no\nspam\t"win\n', {"quoting": False}, 'I said "no'),
        (b'text,label\n"one, ""two""\nthree",ham\nwin,spam\n', {}, 'one, "two"\nthree'),
        ("text;label\ncafé;ham\nwin;spam\n".encode("cp1252"), {"delimiter": "semicolon"}, "café"),
        ("\ufefftext,label\r\ncafé,ham\r\n\r\nwin,spam\r\n".encode(), {}, "café"),
        ("text,label\ncafé,ham\nwin,spam\n".encode("utf-16"), {"encoding": "utf-16"}, "café"),
    ],
)
def test_files_as_they_are_found(tmp_path, content, settings, expected):
    path = tmp_path / ("films.tsv" if b"\t" in content else "films.csv")
    path.write_bytes(content)
    if b"\xe9" in content and b"\0" not in content:
        with pytest.raises(DataError, match=r"line 2: byte 0xe9 at place 3\Z"):
            load(path, **settings)
        settings = settings | {"encoding": "windows-1252"}
    raw = load(path, **settings)
    assert raw.sample(0)[1].decode() == expected
    assert raw.labels == ("ham", "spam") and raw.target.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["", "text,label"], "expected a first row that names the columns"),
        (["text,kind", "a,b"], "no column 'label'"),
        (["text,label", "a,b", "a,b,c", "a"], "line 3: 3 columns\n  line 4: 1 columns"),
        (["text,label", ",good", "fine,"], "line 2: no text\n  line 3: no label"),
        (["text,label", "a\0b,good"], "line 2: not a text: NUL at character 1"),
        (["text,label", "a,good", '"b,good'], "set data.quoting to false"),
        (["text,label", "a,good", "b,good"], "label is 'good' in every row"),
        (["text,label", *(f",{n}" for n in range(30))], "  ... and 10 more"),
    ],
)
def test_what_cannot_be_taught_is_told_by_line(tmp_path, lines, told):
    path = tmp_path / "films.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        load(path)
    assert told in str(caught.value)


def test_one_text_with_two_labels_is_told_by_line(tmp_path):
    raw = load(write(tmp_path / "films.csv", [*rows(), ("A poor film, number3!", "good")]))
    with pytest.raises(DataError, match=r"line \d+ \(bad\) and line 62 \(good\)"):
        prepared.prepare("texts", raw, Split(), tmp_path / "data")


def test_a_column_may_deal_the_rows(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text("text,label,part\na,x,train\nb,y,dev\nc,x,testing\n")
    raw = load(path, split_column="part")
    assert raw.given_validation.tolist() == [False, True, False]
    assert raw.given_test.tolist() == [False, False, True]
    path.write_text("text,label,part\n,x,train\nb,y,later\n")
    with pytest.raises(DataError, match=r"line 2: no text\n(.|\n)*line 3: 'later'"):
        load(path, split_column="part")


def test_labels_that_are_one_number_have_one_order():
    for labels in (["1", "01", "10", "2"], ["2", "10", "01", "1"]):
        assert sorted(labels, key=texts._by_number(labels)) == ["01", "1", "2", "10"]


def test_columns_are_three():
    with pytest.raises(ConfigError, match="expected other columns"):
        build(texts.Config, {"name": "texts", "path": "a", "label": "text"}, "data")


def test_dropped_tokens_become_unknown_and_padding_stays():
    import torch

    torch.manual_seed(0)
    ids = torch.tensor([[5, 6, 7, 0, 0]]).repeat(200, 1)
    changed = augmented({"token_ids": ids}, Augment(drop_tokens=0.3))["token_ids"]
    assert np.isclose((changed[:, :3] == 1).float().mean(), 0.3, atol=0.06)
    assert not changed[:, 3:].any()
    assert torch.equal(changed[changed > 1], ids[changed > 1])
