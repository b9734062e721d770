"""Long lists read piece by piece say what they say read whole, or are refused like them."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from pipeline.bundle.tensors import BY_PROTOCOL
from serving.codecs import codec_json, long_lists
from serving.errors import InvalidRequest

SHAPES = [(60,), (1, 60), (60, 1), (3, 4, 5), (1, 1, 60, 1), (60, 1, 1)]
MUTATIONS = 6000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is long, and a piece is some numbers."""
    monkeypatch.setattr(codec_json, "LONG_BYTES", 0)
    monkeypatch.setattr(long_lists, "PIECE_BYTES", 90)
    monkeypatch.setattr(long_lists, "COUNTED_BYTES", 10)


def body(array: np.ndarray, datatype: str, flat: bool, indent: int | None = None) -> bytes:
    data = (array.reshape(-1) if flat else array).tolist()
    item = {"name": "x", "shape": array.shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [item, item | {"name": "y"}]}, indent=indent).encode()


def values(datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.default_rng(5)
    kind = BY_PROTOCOL[datatype].numpy
    if kind.kind == "f":
        return draw.normal(size=shape).astype(kind)
    return draw.integers(0, 2 if kind.kind == "b" else 200, shape).astype(kind)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("datatype", ["UINT8", "INT64", "UINT64", "FP16", "FP32", "FP64", "BOOL"])
def test_arrays_come_out_alike(datatype: str) -> None:
    for shape in SHAPES:
        array = values(datatype, shape)
        for flat, indent in ((True, None), (False, None), (False, 1)):
            request = codec_json.decode(body(array, datatype, flat, indent), "")
            for tensor in request.inputs:
                assert tensor.array.dtype == array.dtype
                assert np.array_equal(tensor.array, array), (shape, flat, indent)


def test_long_lists_are_not_read_whole(small: None) -> None:
    read = long_lists.loads(body(values("FP32", (3, 4, 5)), "FP32", flat=False))
    assert all(isinstance(item["data"], long_lists.LongList) for item in read["inputs"])


def damaged(text: bytes, chance: random.Random) -> bytes:
    found = bytearray(text)
    for _ in range(chance.randint(1, 2)):
        place = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[place] = chance.choice(b'[],0123456789.-eE "{}tn')
            case 1:
                del found[place : place + chance.randint(1, 4)]
            case 2:
                extra = (
                    b"[",
                    b"]",
                    b",",
                    b"[]",
                    b"],[",
                    b",,",
                    b"[1]",
                    b" ",
                    b"null",
                    b"true",
                    b"1e",
                )
                found[place:place] = chance.choice(
                    (*extra, b'"a"', b"{}", b"9" * 30, b"-1", b"300")
                )
            case _:
                other = chance.randrange(len(found))
                found[place], found[other] = found[other], found[place]
    return bytes(found)


def told(text: bytes) -> Any:
    """The arrays, or none where the request is refused."""
    try:
        return [tensor.array.tolist() for tensor in codec_json.decode(text, "").inputs]
    except InvalidRequest:
        return None


def test_what_is_damaged_is_refused_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    texts = [
        damaged(body(values(datatype, shape), datatype, flat), chance)
        for shape in SHAPES
        for datatype in ("UINT8", "FP32", "BOOL")
        for flat in (True, False)
        for _ in range(MUTATIONS // 36)
    ]
    whole = [told(text) for text in texts]
    monkeypatch.setattr(codec_json, "LONG_BYTES", 0)
    monkeypatch.setattr(long_lists, "PIECE_BYTES", 90)
    for text, expected in zip(texts, whole, strict=True):
        assert told(text) == expected, text
    refused = sum(expected is None for expected in whole)
    assert MUTATIONS / 10 < refused < len(whole) * 0.99


def request_of(data: str, shape: list[int], more: str = "") -> bytes:
    item = {"name": "x", "shape": shape, "datatype": "UINT8"}
    return f'{{"inputs": [{json.dumps(item)[:-1]}, "data": {data}}}]{more}}}'.encode()


def grouped(*sizes: int) -> str:
    """60 numbers in lists of these sizes."""
    numbers = iter(range(60))
    return json.dumps([[next(numbers) for _ in range(size)] for size in sizes])


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (grouped(19, 21, 20), [3, 20]),
        (grouped(20, 20, 20).replace("[0, 1,", "[[0, 1],"), [3, 20]),
        (grouped(*[1] * 60).replace("[7]", "7"), [60, 1]),
        (grouped(*[1] * 60).replace("[7], [8]", "[[7]], 8"), [60, 1]),
        (grouped(60)[1:-2] + ",]", [61]),
        (grouped(60)[1:-1].replace(" 31,", " 31,,"), [61]),
        (grouped(20, 20, 20).replace("], [", "],, ["), [3, 20]),
        (grouped(20, 20, 20).replace("], [", "][", 1), [3, 20]),
    ],
    ids=["uneven", "deeper", "shallower", "both", "at the end", "twice", "between", "none"],
)
@pytest.mark.usefixtures("small")
def test_every_bracket_and_comma_counts(data: str, shape: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        codec_json.decode(request_of(data, shape), "")


@pytest.mark.usefixtures("small")
def test_long_lists_that_nobody_asks_for() -> None:
    """They mean nothing, wherever they are, and have to be JSON."""
    flat = grouped(60)[1:-1]
    for more in (', "other": {"data": %s}', ', "outputs": [{"name": "y", "data": %s}]'):
        fine = codec_json.decode(request_of(flat, [60], more % flat), "")
        assert fine.inputs[0].array.tolist() == list(range(60))
        far = flat[:-1] + "," + " " * 80 + "]"
        for wrong in (flat.replace(" 31,", ","), far, flat.replace(", 31", " 31")):
            with pytest.raises(InvalidRequest):
                codec_json.decode(request_of(flat, [60], more % wrong), "")
    twice = request_of(f'{flat}, "data": {grouped(60)}', [1, 60])
    assert codec_json.decode(twice, "").inputs[0].array.tolist() == [list(range(60))]


@pytest.mark.usefixtures("small")
def test_a_refusal_says_what_was_expected() -> None:
    with pytest.raises(InvalidRequest, match='expected whole numbers within UINT8, got "a"'):
        codec_json.decode(request_of(grouped(20, 20, 20).replace("[40", '["a"'), [3, 20]), "")
    array = values("UINT8", (3, 4, 5))
    for text, expected in (
        (body(array, "UINT8", True).replace(b"[3, 4, 5]", b"[3, 4, 6]"), "expected 72 values"),
        (body(array.reshape(3, 20), "UINT8", False).replace(b"[3, 20]", b"[4, 15]"), "nested"),
        (body(array.astype(float) + 0.5, "UINT8", True), "whole numbers within UINT8"),
        (body(array.astype(int) + 256, "UINT8", True), "from 0 to 255"),
    ):
        with pytest.raises(InvalidRequest, match=f"input 'x'.*{expected}"):
            codec_json.decode(text, "")
