"""SIGTERM under load, again and again: what was admitted is answered, and the server is gone."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.endurance.conftest import Known, Start
from tests.endurance.figures import report
from tests.endurance.leaving import Clients
from tests.endurance.scale import sized
from tests.serving.live import Live

pytestmark = pytest.mark.slow

TIMES = sized(5, 100)
CLIENTS = 9
DRAIN_SECONDS = 5.0
WORKERS = (1, 2)


@pytest.mark.timeout(60 + 20 * TIMES)
def test_nothing_admitted_is_lost(
    start: Start, models: Path, known: Callable[[Live], Known]
) -> None:
    chance = random.Random(5)
    ends: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    slowest = 0.0
    for turn in range(TIMES):
        server = start(
            models,
            "--drain",
            str(DRAIN_SECONDS),
            "--workers",
            str(WORKERS[turn % len(WORKERS)]),
            "--no-access-log",
        )
        with Clients(server.port, known(server), CLIENTS) as clients:
            time.sleep(0.3 + 0.3 * chance.random())
            began = clients.signalled = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            codes[server.process.wait(DRAIN_SECONDS + 10)] += 1
            slowest = max(slowest, time.monotonic() - began)
        ends += clients.ends
    report(
        "SIGTERM under load",
        times=TIMES,
        exit_codes=dict(codes),
        slowest_s=slowest,
        lost=ends["lost"],
        ends=dict(ends),
    )
    assert codes == {0: TIMES}
    assert slowest < DRAIN_SECONDS
    # What could not be sent whole, on a connection closed idle, was never the server's to answer.
    assert set(ends) <= {"answered", "turned away", "not sent whole"}, ends
    assert ends["answered"] > 20 * TIMES
