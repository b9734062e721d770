"""Texts to ids, by the tokenizer of a bundle: what is refused, and what is told."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline import tokens
from pipeline.bundle.decode import DecodeError, decode, encode, hint
from pipeline.bundle.decode.text import MAX_BYTES, MAX_TOKENIZER, TOKENIZER, TextDecoder, opened
from pipeline.tokens import Vocabulary

TEXTS = ["A good film, a good day!", "a bad film", "bad day", "ﬁne film"]


def files(**settings: object) -> dict[str, bytes]:
    return {TOKENIZER: tokens.trained(TEXTS, Vocabulary(least=1, **settings))}


def decoder(found: dict[str, bytes], longest: int = 50) -> TextDecoder:
    return TextDecoder(longest=longest, vocabulary=tokens.places(found[TOKENIZER]))


WORDS = files()
READER = decoder(WORDS)


def words(payload: bytes) -> list[str]:
    return encode(READER, decode(READER, payload, WORDS), WORDS)[1].decode().split()


def test_the_commonest_tokens_have_the_first_places():
    vocabulary = json.loads(WORDS[TOKENIZER])["model"]["vocab"]
    assert sorted(vocabulary, key=vocabulary.__getitem__)[:6] == [
        *tokens.PLACES,
        *("a", "film", "bad", "day"),
    ]
    assert tokens.trained(TEXTS, Vocabulary(least=1)) == WORDS[TOKENIZER]
    few = json.loads(tokens.trained(TEXTS, Vocabulary(least=2, most=4)))["model"]["vocab"]
    assert list(few) == [*tokens.PLACES, "a", "film"]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"A GOOD  film,\n", ["a", "good", "film", ","]),
        (b"\xef\xbb\xbfgood", ["good"]),
        (b"fine", ["fine"]),  # as the ligature that it was taught in
        (b"[padding] good", ["\ufffd", "\ufffd", "\ufffd", "good"]),
        (b"good " * 100, ["good"] * 50),
    ],
)
def test_a_text_becomes_the_words_it_is_made_of(payload, expected):
    assert words(payload) == expected


@pytest.mark.parametrize("kind", ["words", "bpe", "wordpiece"])
def test_a_long_text_is_the_same_in_pieces(kind):
    found = files(kind=kind)
    whole = decoder(found, longest=65536)
    for text in (
        "a good\tfilm, \u00a0bad day!\r\n" * 900,
        "good" * 3000,
        " " * 9000 + "bad",
        "e\u0301 " * 5000,
    ):
        expected = opened(found[TOKENIZER]).encode(text, add_special_tokens=False).ids
        assert decode(whole, text.encode(), found).tolist() == expected
        few = decoder(found, longest=7)
        assert decode(few, text.encode(), found).tolist() == expected[:7]


def test_a_text_of_nothing_is_one_place_of_padding():
    assert decode(READER, b" \n", WORDS).tolist() == [0]


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"good \xe9t\xe9", r"not UTF-8 text: byte 0xe9 at place 5"),
        ("good".encode("utf-16"), r"text in UTF-16, by its first bytes"),
        (b"go\0od", r"not a text: NUL at character 2"),
        (b"a" * (MAX_BYTES + 1), rf"text of {MAX_BYTES + 1} bytes; at most {MAX_BYTES}"),
    ],
)
def test_what_is_no_text_is_refused_by_name(payload, told):
    with pytest.raises(DecodeError, match=told):
        decode(READER, payload, WORDS)


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"a good film", None),
        (b"  ", "no word in the text"),
        ("Отличный фильм".encode(), "no word of the text is known"),
        (b"good " * 60, "only the first 50 of the text's 60 tokens"),
        (b"\xff", None),
    ],
)
def test_a_person_is_told_why_an_answer_is_worth_little(payload, told):
    said = hint(READER, payload, WORDS)
    assert said is None if told is None else told in said


@pytest.mark.parametrize(("kind", "text"), [("bpe", b"goodfilm"), ("wordpiece", b"good film")])
def test_parts_of_words_reach_words_never_seen(kind, text):
    found = files(kind=kind)
    ids = decode(decoder(found), text, found)
    assert len(ids) > 1 and (ids > 1).all()
    assert decode(decoder(found), b"[padding]", found).all()


def test_a_vocabulary_larger_than_the_networks_asks_for_no_place_beyond_it():
    small = TextDecoder(longest=50, vocabulary=3)
    assert decode(small, b"a good film", WORDS).tolist() == [2, 1, 1]


def changed(**parts: object) -> bytes:
    return json.dumps(json.loads(WORDS[TOKENIZER]) | parts).encode()


SLOW = {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        b" " * (MAX_TOKENIZER + 1),
        changed(pre_tokenizer=SLOW),
        changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SLOW]}),
        changed(normalizer={"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}),
        changed(added_tokens=[{"id": 0, "content": "good"}]),
        changed(model={"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}),
        changed(padding={"strategy": {"Fixed": 1 << 40}}),
        changed(post_processor={"type": "ByteLevel"}),
    ],
)
def test_a_tokenizer_that_is_none_of_ours_is_refused(content):
    with pytest.raises(DecodeError, match=r"tokenizer\.json"):
        decode(READER, b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", {TOKENIZER: content})


def test_many_threads_read_with_one_tokenizer():
    payloads = [f"good film {'day ' * n}".encode() for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda payload: decode(READER, payload, WORDS), payloads))
    assert [len(ids) for ids in found] == [n + 2 for n in range(40)]
    assert all(ids.dtype == np.int64 for ids in found)
