"""Thousands of damaged requests beside a good client: nothing ends, hangs, or answers wrongly."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.endurance.conftest import Known, Start
from tests.endurance.hostile import grammatical, mutations
from tests.endurance.scale import sized
from tests.endurance.steady import IDLE_SECONDS, RATE, GoodClient, idle, unharmed
from tests.serving.live import Live

pytestmark = pytest.mark.slow

REQUESTS = sized(500, 10_000)
CONNECTIONS = 16
WAITS = 0.5
DEADLINE = 5.0
"""Seconds after which a connection counts as hung; what the server allows itself is `WAITS`."""

IMPATIENT = (
    f"[http]\nheader_seconds = {WAITS}\nbody_seconds = {WAITS}\nidle_seconds = {WAITS}\n"
    f"write_seconds = {WAITS}\n"
)
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(.*?)\r\n\r\n", re.S)


def judged(sent: bytes, answer: bytes, statuses: Counter[int]) -> None:
    """Count the statuses; fail for one that says the server is at fault."""
    for code, head in ANSWER.findall(answer):
        status = int(code)
        statuses[status] += 1
        told = (sent, answer[:2000])
        if status == 503:
            assert b"Retry-After" in head, told
        # 501 says that a part of the protocol, asked for by name, is not offered: no failure.
        assert status < 500 or status in (501, 503), told


async def sent_all(port: int, requests: Iterable[bytes]) -> tuple[Counter[int], int, float]:
    """(statuses, connections that hung, the longest in seconds) of one request a connection."""
    statuses: Counter[int] = Counter()
    hung, longest = 0, 0.0
    waiting = iter(requests)

    async def send_some() -> None:
        nonlocal hung, longest
        for request in waiting:
            began = time.monotonic()
            try:
                answer = await asyncio.wait_for(exchange(port, request), DEADLINE)
            except TimeoutError:
                hung += 1
                print("hung:", request)
                continue
            longest = max(longest, time.monotonic() - began)
            judged(request, answer, statuses)

    await asyncio.gather(*(send_some() for _ in range(CONNECTIONS)))
    return statuses, hung, longest


async def exchange(port: int, request: bytes) -> bytes:
    """Everything the server says until it closes; it is not told that no more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(request)
        while part := await reader.read(1 << 16):
            answer += part
    except ConnectionError:  # it closed while something was still on its way
        pass
    finally:
        writer.transport.abort()
    return answer


def exchanged(sock: socket.socket, request: bytes) -> bytes:
    """Everything the server says; it is told that no more comes. Raises `TimeoutError`."""
    answer = b""
    try:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
    except TimeoutError:
        raise
    except OSError:  # it has refused and closed already
        pass
    with suppress(ConnectionError):
        while part := sock.recv(1 << 16):
            answer += part
    return answer


def test_damaged_bytes(start: Start, models: Path, known: Callable[[Live], Known]) -> None:
    server = start(models, settings=IMPATIENT.replace("idle_seconds = 0.5", "idle_seconds = 0.3"))
    good = known(server)
    before = idle(server.port, good.request, good.answer, RATE, IDLE_SECONDS)
    with GoodClient(server.port, good.request, good.answer, RATE) as client:
        began = time.monotonic()
        statuses, hung, longest = asyncio.run(
            sent_all(server.port, mutations(REQUESTS // 2, seed=3))
        )
        took = time.monotonic() - began
    unharmed(
        before,
        client.stretch,
        "fuzz: damaged bytes",
        requests=REQUESTS // 2,
        hung=hung,
        longest_s=longest,
        a_second=REQUESTS / 2 / took,
        statuses=dict(sorted(statuses.items())),
    )
    assert hung == 0
    assert statuses[200] and statuses[400] and statuses[408]


@pytest.mark.timeout(900)
def test_grammatical_requests(start: Start, models: Path, known: Callable[[Live], Known]) -> None:
    server = start(models, settings=IMPATIENT)
    good = known(server)
    statuses: Counter[int] = Counter()
    sent = Counter[str]()

    @settings(
        max_examples=REQUESTS // 2,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(grammatical())
    def answers_or_closes(request: bytes) -> None:
        sent["requests"] += 1
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
            answer = exchanged(sock, request)
        assert time.monotonic() - began < DEADLINE
        judged(request, answer, statuses)

    before = idle(server.port, good.request, good.answer, RATE, IDLE_SECONDS)
    with GoodClient(server.port, good.request, good.answer, RATE) as client:
        began = time.monotonic()
        answers_or_closes()
        took = time.monotonic() - began
    unharmed(
        before,
        client.stretch,
        "fuzz: by a grammar",
        requests=sent["requests"],
        a_second=sent["requests"] / took,
        statuses=dict(sorted(statuses.items())),
    )
    assert sent["requests"] >= REQUESTS // 2
    assert statuses[200] and statuses[400]
