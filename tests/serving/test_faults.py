"""Workers killed, and the server stopped, while clients keep asking: what is lost, and for how long.

The quick form runs with the tests. `make faults` runs the long one (SLIPWAY_KILLS=200
SLIPWAY_STOPS=100) and prints its figures.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.serving.bundles import digits_rows
from tests.serving.live import Live, tensor

KILLS = int(os.environ.get("SLIPWAY_KILLS", "10"))
STOPS = int(os.environ.get("SLIPWAY_STOPS", "5"))
CLIENTS = 4
PAUSE = 0.004
"""Between two requests of a client: about half of what two cores can answer, clients included."""

BACK_SECONDS = 3.0
BODIES = [
    json.dumps({"inputs": [tensor("image", digits_rows(1, seed), "UINT8")]}).encode()
    for seed in range(8)
]
HEAD = b"POST /v2/models/digits-test/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
REQUESTS = [HEAD % len(body) + body for body in BODIES]

Start = Callable[..., Live]


@dataclass
class Counts:
    """What the clients met. `lost` are connections that broke before the answer was whole."""

    answered: int = 0
    lost: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0


def answer(sock: socket.socket) -> bytes:
    """One whole answer of a connection that stays open. Raises `ConnectionError`."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = sock.recv(1 << 16)
        if not part:
            raise ConnectionResetError
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        part = sock.recv(1 << 16)
        if not part:
            raise ConnectionResetError
        body += part
    return head + b"\r\n\r\n" + body


def outputs(whole: bytes) -> object:
    return json.loads(whole.partition(b"\r\n\r\n")[2])["outputs"]


class Clients:
    """Threads that ask and compare, each over one connection for as long as that lasts."""

    def __init__(self, server: Live, pause: float = PAUSE) -> None:
        self._server, self._pause = server, pause
        self._over = threading.Event()
        with server.socket() as sock:
            self._expected = []
            for request in REQUESTS:
                sock.sendall(request)
                self._expected.append(outputs(answer(sock)))
        self.counts = [Counts() for _ in range(CLIENTS)]
        self._threads = [threading.Thread(target=self._ask, args=[c]) for c in self.counts]
        for thread in self._threads:
            thread.start()

    def end(self) -> Counts:
        """The sum of what they met."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        return Counts(
            sum(c.answered for c in self.counts),
            sum(c.lost for c in self.counts),
            sum(c.refused for c in self.counts),
            [text for c in self.counts for text in c.wrong],
            max(c.longest for c in self.counts),
        )

    def _ask(self, counts: Counts) -> None:
        sock: socket.socket | None = None
        number = 0
        while not self._over.is_set():
            number = (number + 1) % len(REQUESTS)
            began = time.monotonic()
            sent = False
            try:
                if sock is None:
                    sock = self._server.socket()
                sock.sendall(REQUESTS[number])
                sent = True
                whole = answer(sock)
                if not whole.startswith(b"HTTP/1.1 200 OK"):
                    counts.wrong.append(whole[:200].decode())
                elif outputs(whole) != self._expected[number]:
                    counts.wrong.append("another answer than expected")
                else:
                    counts.answered += 1
                counts.longest = max(counts.longest, time.monotonic() - began)
                if b"Connection: close" in whole:
                    sock = None
            except (ConnectionError, TimeoutError):
                counts.lost += sent
                counts.refused += not sent
                if sock is None:  # nobody listens any more
                    return
                sock = None
            time.sleep(self._pause)


def told(server: Live, event: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in server.told().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


@pytest.mark.slow
@pytest.mark.timeout(60 + KILLS * 6)
def test_workers_killed_under_load(start: Start, bundle: Path) -> None:
    server = start(bundle, "--workers", "2", "--no-access-log")
    clients = Clients(server)
    dice = random.Random(0)
    back: list[float] = []
    deadly = [signal.SIGKILL, signal.SIGSEGV, signal.SIGFPE]
    for n in range(KILLS):
        time.sleep(dice.uniform(0.05, 0.5))
        victim = dice.choice(server.workers())
        os.kill(victim, deadly[n % len(deadly)])
        end = time.monotonic() + 20
        while len(told(server, "worker is back")) <= n:
            assert time.monotonic() < end, server.told()[-2000:]
            time.sleep(0.01)
        back.append(told(server, "worker is back")[-1]["after_seconds"])
    time.sleep(0.3)
    counts = clients.end()
    print(
        f"\n{KILLS} workers killed under load: {counts.answered} answered, {len(counts.wrong)} "
        f"wrong, {counts.lost} in flight lost; back after {statistics.median(back):.2f} s in the "
        f"middle, {max(back):.2f} s at most; the longest answer took {counts.longest:.2f} s"
    )
    assert not counts.wrong
    assert counts.answered > 10 * KILLS
    assert counts.lost <= CLIENTS * KILLS  # a client has one request in flight
    # One in twenty may fall into a moment when the machine does something else.
    assert sorted(back)[int(0.95 * (len(back) - 1))] <= BACK_SECONDS
    assert not told(server, "model quarantined")
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(60 + STOPS * 20)
def test_stopped_under_load(start: Start, bundle: Path) -> None:
    """What was sent on a connection that the server had taken is answered."""
    answered = lost = 0
    longest = 0.0
    for _ in range(STOPS):
        server = start(bundle, "--workers", "2", "--no-access-log")
        clients = Clients(server, pause=0.0)
        time.sleep(0.3)
        began = time.monotonic()
        assert server.stop() == 0
        longest = max(longest, time.monotonic() - began)
        counts = clients.end()
        assert not counts.wrong
        answered, lost = answered + counts.answered, lost + counts.lost
    print(
        f"\n{STOPS} times stopped under load: {answered} answered, {lost} lost; "
        f"out after {longest:.2f} s at most"
    )
    assert not lost
