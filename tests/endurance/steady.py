"""A good client in a process of its own: one connection, a low fixed rate, every byte compared.

Latency counts from when a request was due, so a stall is seen by all who came during it.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.endurance.figures import report
from tests.endurance.scale import FULL, sized

ROOT = Path(__file__).parents[2]
RATE = 100.0
"""Requests a second."""

IDLE_SECONDS = sized(1.0, 10.0)
"""How long its latency is measured before anybody else comes."""

PATIENCE = 20.0
"""Seconds after which an answer is given up."""


@dataclass(slots=True)
class Stretch:
    """What the client met between two moments; seconds are as measured, in order of arrival."""

    seconds: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def p50(self) -> float:
        """Milliseconds."""
        return self.percentile(50)

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return self.percentile(99)

    def percentile(self, percent: float) -> float:
        """Milliseconds that so many percent of the answers needed at most."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))] * 1e3


class GoodClient:
    """Asks from `with` to the end of it; `stretch` then has what it met.

    `request` is a whole one; the answer must be `expected`, status 200 and those bytes.
    """

    def __init__(self, port: int, request: bytes, expected: bytes, rate: float) -> None:
        self.stretch = Stretch()
        self._order = {
            "port": port,
            "request": request.hex(),
            "expected": expected.hex(),
            "rate": rate,
        }

    def __enter__(self) -> GoodClient:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.endurance.steady"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(self._order).encode() + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"asking\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            told, _ = self._process.communicate(timeout=PATIENCE + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        found = json.loads(told)
        self.stretch = Stretch(found["seconds"], Counter(found["wrong"]))


def idle(port: int, request: bytes, expected: bytes, rate: float, seconds: float) -> Stretch:
    """What the client meets while nobody else asks."""
    with GoodClient(port, request, expected, rate) as client:
        time.sleep(seconds)
    return client.stretch


def unharmed(before: Stretch, during: Stretch, subject: str, **figures: object) -> None:
    """Report, then judge: every answer right, and in the full scale hardly later than before."""
    report(
        subject,
        **figures,
        good_asked=len(during.seconds),
        good_wrong=during.wrong.total(),
        idle_p50_ms=before.p50,
        idle_p99_ms=before.p99,
        p50_ms=during.p50,
        p99_ms=during.p99,
        p99_ratio=during.p99 / before.p99,
    )
    assert not before.wrong and not during.wrong, (before.wrong, during.wrong)
    if FULL:
        assert during.p99 <= 2 * before.p99


def main() -> None:
    """Ask until standard input ends, then say how it was."""
    order = json.loads(sys.stdin.buffer.readline())
    request, expected = bytes.fromhex(order["request"]), bytes.fromhex(order["expected"])
    met = Stretch()
    connection: socket.socket | None = None
    gap = 1 / order["rate"]
    print("asking", flush=True)
    due = time.perf_counter()
    while not _told_to_stop(due):
        try:
            connection = connection or socket.create_connection(
                ("127.0.0.1", order["port"]), timeout=PATIENCE
            )
            wrong = _ask(connection, request, expected)
        except OSError as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            met.wrong[wrong] += 1
            connection = None
        met.seconds.append(time.perf_counter() - due)
        due += gap
    print(json.dumps({"seconds": met.seconds, "wrong": met.wrong}))


def _told_to_stop(due: float) -> bool:
    wait = max(0.0, due - time.perf_counter())
    return bool(select.select([sys.stdin], [], [], wait)[0])


def _ask(connection: socket.socket, request: bytes, expected: bytes) -> str:
    """What is wrong with the answer; nothing if it is right."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _more(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    fields: dict[str, Any] = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += _more(connection)
    if not head.startswith(b"HTTP/1.1 200 "):
        return f"{head.splitlines()[0]!r} {body[:200]!r}"
    return "" if body == expected else f"another answer: {body[:200]!r}"


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(1 << 16)
    if not part:
        raise ConnectionError("closed by the server")
    return part


if __name__ == "__main__":
    main()
