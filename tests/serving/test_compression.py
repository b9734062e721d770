"""gzip and deflate without a server: what is read, what is refused, and within what memory."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.doors.http.compression import (
    MAX_MEMBERS,
    Inflation,
    accepted,
    coding,
    deflated,
    worthwhile,
)
from serving.errors import InvalidRequest, TooLarge, UnsupportedMedia

ROOT = Path(__file__).parents[2]
LIMIT = 1 << 20
TEXT = b'{"inputs": []}' * 20_000


def inflated(body: bytes, name: str = "gzip", limit: int = LIMIT) -> bytes:
    found = Inflation(body, name, limit).run()
    assert found is not None
    return found


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("", "identity"),
        ("identity", "identity"),
        ("gzip", "gzip"),
        (" GZip ", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
    ],
)
def test_codings(header: str, name: str) -> None:
    assert coding(header) == name


@pytest.mark.parametrize("header", ["br", "zstd", "compress", "gzip, gzip", "gzip,deflate", "g"])
def test_other_codings_and_several_are_refused(header: str) -> None:
    with pytest.raises(UnsupportedMedia, match="expected gzip, deflate or identity, got"):
        coding(header)


@given(st.binary(max_size=5000), st.integers(1, 9))
def test_there_and_back(data: bytes, level: int) -> None:
    for name in ("gzip", "deflate"):
        parts = [data[:100], memoryview(data)[100:]]
        assert inflated(b"".join(deflated(parts, name, level)), name) == data
    assert inflated(gzip.compress(data)) == data
    assert inflated(zlib.compress(data), "deflate") == data
    assert inflated(raw_deflate(data), "deflate") == data


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_no_bytes_break_it(data: bytes, name: str) -> None:
    try:
        inflated(data, name)
    except (InvalidRequest, TooLarge):
        return


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 100 * LIMIT])
def test_the_limit_is_exact(size: int) -> None:
    for body, name in (
        (gzip.compress(bytes(size)), "gzip"),
        (zlib.compress(bytes(size)), "deflate"),
        (raw_deflate(bytes(size)), "deflate"),
    ):
        if size <= LIMIT:
            assert len(inflated(body, name)) == size
        else:
            with pytest.raises(TooLarge, match=f"at most {LIMIT} bytes are accepted once"):
                inflated(body, name)


def test_several_gzip_streams_are_one_body() -> None:
    body = gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c" * 100_000)
    assert inflated(body) == b"ab" + b"c" * 100_000
    with pytest.raises(TooLarge):
        inflated(gzip.compress(bytes(LIMIT)) + gzip.compress(b"c"))


def test_empty_streams_do_not_go_on_for_ever() -> None:
    assert inflated(gzip.compress(b"") * MAX_MEMBERS) == b""
    with pytest.raises(InvalidRequest, match="more than 256 gzip streams"):
        inflated(gzip.compress(b"") * (MAX_MEMBERS + 1))


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_what_is_cut_off_is_refused_at_every_length(name: str) -> None:
    body = b"".join(deflated([TEXT[:500]], name, 6))
    for length in range(len(body)):
        with pytest.raises(InvalidRequest, match=r"cut off|not deflate"):
            inflated(body[:length], name)
    with pytest.raises(InvalidRequest, match="cut off"):
        inflated(gzip.compress(b"a") + gzip.compress(b"b")[:-1])


@pytest.mark.parametrize("rest", [b"\0", b"{}", b"\0" * 1000])
def test_what_follows_is_refused(rest: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"not gzip|cut off"):
        inflated(gzip.compress(TEXT) + rest)
    for body in (zlib.compress(TEXT), raw_deflate(TEXT)):
        with pytest.raises(InvalidRequest, match="followed by something else"):
            inflated(body + rest, "deflate")


def test_a_wrong_checksum_is_refused() -> None:
    body = bytearray(gzip.compress(TEXT))
    body[-5] ^= 1
    with pytest.raises(InvalidRequest, match="not gzip data"):
        inflated(bytes(body))


def test_plain_json_is_not_gzip() -> None:
    for name in ("gzip", "deflate"):
        with pytest.raises(InvalidRequest, match=f"not {name} data"):
            inflated(TEXT, name)


def test_large_bodies_come_in_steps() -> None:
    work = Inflation(gzip.compress(TEXT), "gzip", LIMIT)
    assert work.run(1000) is None
    assert work.run(1000) is None
    assert work.run() == TEXT
    assert Inflation(gzip.compress(TEXT), "gzip", LIMIT).run(len(TEXT) + 1) == TEXT


def test_a_bomb_is_refused_within_its_bounds() -> None:
    """A GB out of a MB: in a process of its own, whose memory is then known."""
    program = """
import time, zlib
from serving.doors.http.compression import Inflation
from serving.errors import TooLarge
from tests.memory import peak_bytes
stream = zlib.compressobj(9, wbits=31)
zeros = bytes(1 << 20)
bomb = b"".join(stream.compress(zeros) for _ in range(1 << 10)) + stream.flush()
assert 1_000_000 < len(bomb) < 1_100_000
before = peak_bytes()
limit = 4 << 20
start = time.process_time()
try:
    Inflation(bomb, "gzip", limit).run()
except TooLarge:
    grown = peak_bytes() - before
    print(grown - limit, time.process_time() - start)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    over, seconds = map(float, done.stdout.split())
    assert over < 8 << 20
    assert seconds < 3


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0", "identity"),
        ("*", "gzip"),
        ("*;q=0", "identity"),
        ("gzip;q=0, *", "deflate"),
        ("br, zstd", "identity"),
        ("br, gzip;q=0.1", "gzip"),
        ("identity, gzip;q=0.5", "identity"),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("gzip ; Q = 0.5 , deflate ; q=0.6", "deflate"),
        ("gzip;q=nan", "identity"),
        ("gzip;q=-1", "identity"),
        ("gzip;q=2", "identity"),
        ("gzip;q=", "identity"),
        (",,;;,", "identity"),
        ("gzip" + ", br" * 1000, "identity"),
    ],
)
def test_what_an_answer_travels_as(header: str, chosen: str) -> None:
    assert accepted(header) == chosen


def test_noise_is_not_worth_it() -> None:
    noise = np.random.default_rng(0).normal(size=50_000).astype("f4")
    assert not worthwhile([b"{}", memoryview(noise.tobytes())], 1)
    assert worthwhile([b"{}", TEXT], 1)
    assert worthwhile([memoryview(np.zeros((1000, 1000), "f4").data)], 1)
