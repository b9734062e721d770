"""Bodies without an end, in chunks: refused at the limit, and nothing of them is kept."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.endurance.conftest import Start
from tests.endurance.figures import report
from tests.endurance.hostile import INFER
from tests.endurance.resources import Held, held
from tests.endurance.scale import sized
from tests.serving.live import Live

pytestmark = pytest.mark.slow

BODIES = sized(10, 100)
GROWTH = 1 << 20
"""Bytes that all of them together may leave behind."""

SECONDS = 10.0
"""How long it may take until memory is given back."""

CHUNK = b"%x\r\n%b\r\n" % (1 << 18, b"x" * (1 << 18))


def refusal(server: Live) -> bytes:
    """What the server says to chunks without an end, once it has had enough."""
    with server.socket() as sock:
        with suppress(ConnectionError):
            sock.sendall(INFER + b"Transfer-Encoding: chunked\r\n\r\n")
            while not select.select([sock], [], [], 0)[0]:
                sock.sendall(CHUNK)  # once refused, the server reads on into the void for a while
        return sock.recv(1 << 16)


def settled(server: Live, below: int) -> Held:
    """What the server holds once it has given memory back, or when that takes too long."""
    end = time.monotonic() + SECONDS
    while (now := held(server.process.pid)).memory > below and time.monotonic() < end:
        time.sleep(0.1)
    return now


def test_chunks_without_end(start: Start, models: Path) -> None:
    server = start(models)
    fresh = held(server.process.pid)
    refusal(server)
    before = settled(server, fresh.memory + GROWTH)
    most = before.memory
    for _ in range(BODIES):
        answer = refusal(server)
        assert answer.startswith(b"HTTP/1.1 413 "), answer
        assert b"67108864" in answer
        most = max(most, held(server.process.pid).memory)
    after = settled(server, before.memory + GROWTH // 4)
    report(
        "oversized chunked bodies",
        bodies=BODIES,
        growth_kib=(after.memory - before.memory) / 1024,
        memory_mib=after.memory / (1 << 20),
        most_mib=most / (1 << 20),
        descriptors=f"{before.descriptors} to {after.descriptors}",
    )
    assert after.memory - before.memory < GROWTH
    assert after.memory - fresh.memory < 2 * GROWTH, "nor did the first one stay"
    assert after.descriptors <= before.descriptors + 1
