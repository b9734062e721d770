"""`slipway init` on a file of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config import ConfigError
from pipeline.dataset import DataError
from stages.proposals import Hints, propose
from stages.proposals.texts import passes

WORDS = [
    "the",
    "film",
    "was",
    "long",
    "and",
    "I",
    "did",
    "not",
    "find",
    "it",
    "good",
    "at",
    "all",
    "but",
    "others",
    "may",
]


def file(path: Path, quotes: str = '"', encoding: str = "utf-8", short: bool = False) -> Path:
    lines = ["id,kind,verdict,words"]
    for number in range(240):
        text = "short" if short else " ".join(WORDS[number % 5 :][: 4 + number % 9])
        verdict = "yes" if number % 8 == 0 else "no"
        lines.append(f"{number},k{number % 3},{verdict},{quotes}café {text} {number}{quotes}")
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def proposed(path: Path, **hints: str) -> dict[str, Any]:
    sections: dict[str, Any] = YAML(typ="safe").load(propose(path, Hints(**hints)).text)
    return sections


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1252"])
def test_columns_and_encoding_are_seen(tmp_path, encoding):
    data = proposed(file(tmp_path / "films.csv", encoding=encoding), text="words")["data"]
    assert (data["name"], data["text"], data["encoding"]) == ("texts", "words", encoding)
    assert data["label"] == "verdict" and data["quoting"] is True
    assert data["longest"] in range(16, 40)


def test_quotes_that_never_close_are_text(tmp_path):
    path = file(tmp_path / "films.csv")
    path.write_text(path.read_text().replace('9"', '"quoted 9'))
    assert proposed(path, text="words")["data"]["quoting"] is False


def test_a_person_chooses_otherwise(tmp_path):
    path = file(tmp_path / "films.csv", short=True)
    sections = proposed(path, text="words", target="kind")
    assert (sections["data"]["text"], sections["data"]["label"]) == ("words", "kind")
    assert "f1" not in sections["metrics"]
    with pytest.raises(ConfigError, match="--text: no column 'word', did you mean 'words'"):
        proposed(path, text="word")
    with pytest.raises(ConfigError, match="--task: 'regression' is not for texts"):
        proposed(path, text="words", task="regression")
    with pytest.raises(DataError, match=r"label 'k0' has 1 rows|label"):
        proposed(path, text="words", target="id")


def test_the_rarer_of_two_labels_has_a_figure_of_its_own(tmp_path):
    assert "f1" in proposed(file(tmp_path / "films.csv"), text="words")["metrics"]


def test_texts_and_labels_alone_need_no_word_more(tmp_path):
    path = file(tmp_path / "films.csv")
    path.write_text("\n".join(line.split(",", 2)[2] for line in path.read_text().splitlines()))
    data = proposed(path)["data"]
    assert (data["name"], data["text"], data["label"]) == ("texts", "words", "verdict")


@pytest.mark.parametrize("rows", [20, 2000, 20_000, 60_000, 200_000])
@pytest.mark.parametrize("usual", [15.0, 60.0, 300.0])
def test_a_training_fits_into_five_minutes(rows, usual):
    longest, epochs, seconds = passes(rows, usual, 256)
    assert epochs >= 1 and 16 <= longest <= 256 and seconds <= 150
    if rows <= 2000 and usual <= 60:
        assert longest == 256 and epochs >= 8
