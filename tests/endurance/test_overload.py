"""Four times the load that there can be: as much is done as ever, in time; the rest hears no at once."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from serving.load.generator import Plan
from serving.load.outcome import Outcome
from tests.endurance.conftest import Start
from tests.endurance.figures import report
from tests.endurance.load import NAME, good_requests, loaded, make_work_bundle, peak
from tests.endurance.resources import cpu_seconds
from tests.endurance.scale import sized
from tests.serving.live import Live

pytestmark = pytest.mark.slow

SECONDS = sized(3.0, 300.0)
TIMES = 4
DEADLINE = 1.0
"""Seconds each request allows."""

CONNECTIONS = 256
QUEUE = "[batching]\nqueue_requests = 64\n"
"""So many wait at most, which is what can be done well within the deadline."""

REFUSAL_MS = sized(250.0, 50.0)
GOODPUT = sized(0.5, 0.9)
"""Of the peak, which is measured before and after."""

ROUNDS = sized(3, 1)
"""In seconds, a neighbour on the machine can take half of it: one round of so many has to do."""

BACK_SECONDS = 5.0
ALLOWED_LATE = sized(0.05, 0.0)
"""Share of requests, and seconds beyond the deadline."""


class Prober:
    """One more client, with a connection of its own, that reads the headers of refusals."""

    def __init__(self, server: Live) -> None:
        wire = good_requests(server, DEADLINE)[0].wire
        head, _, self._body = wire.partition(b"\r\n\r\n")
        lines = [line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:]]
        self._headers = {name: value for name, value in lines if name != "Content-Length"}
        self._port = server.port
        self.answers: list[tuple[float, int, str | None, float]] = []
        """(when it was asked, status, Retry-After, seconds)"""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._probe)

    def _probe(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._over.wait(0.02):
            began = time.perf_counter()
            connection.request("POST", f"/v2/models/{NAME}/infer", self._body, self._headers)
            answer = connection.getresponse()
            answer.read()
            took = time.perf_counter() - began
            retry = answer.getheader("Retry-After")
            self.answers.append((began, answer.status, retry, took))
        connection.close()

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def normal_after(self, end: float, usual: float) -> float:
        """Seconds from `end` until ten answers in a row are all right and as quick as usual."""
        after = [answer for answer in self.answers if answer[0] >= end]
        for first in range(len(after) - 9):
            ten = after[first : first + 10]
            quick = statistics.median(took for *_, took in ten) <= 2 * usual
            if quick and all(status == 200 for _, status, _, _ in ten):
                return max(0.0, ten[0][0] - end)
        return float("inf")


@dataclass(frozen=True, slots=True)
class Round:
    """One stretch of overload, between two measurements of the peak."""

    most: float
    outcome: Outcome
    refused: list[tuple[float, int, str | None, float]]
    back: float
    cores: float
    """What the server used of the machine meanwhile. Where that and the generator's share are less
    than there are cores, neighbours have taken the rest."""

    @property
    def share(self) -> float:
        """Goodput of the peak."""
        return self.outcome.throughput / self.most

    def tell(self) -> None:
        """Report it."""
        figures = self.outcome.figures()
        report(
            "overload",
            seconds=self.outcome.seconds,
            peak_per_s=self.most,
            asked_per_s=self.outcome.asked / self.outcome.seconds,
            goodput_per_s=self.outcome.throughput,
            goodput_share=self.share,
            statuses=figures["statuses"],
            wrong=self.outcome.wrong,
            lost=self.outcome.lost + self.outcome.unanswered,
            admitted_ms=figures["latency_ms"],
            refusal_ms=figures["refusal_ms"],
            probe_refusals=len(self.refused),
            probe_refusal_ms_max=max((took for *_, took in self.refused), default=0.0) * 1e3,
            generator=figures["generator"],
            server_cores=self.cores,
            back_to_normal_s=self.back,
        )

    def check_answers(self) -> None:
        """What holds however busy the machine is."""
        outcome = self.outcome
        assert outcome.wrong == outcome.lost == outcome.unanswered == 0, outcome.told()
        assert not outcome.errors, outcome.errors
        assert set(outcome.statuses) <= {200, 503, 504}
        assert self.refused
        assert all(retry and int(retry) >= 1 for _, _, retry, _ in self.refused)

    def is_well(self) -> bool:
        """Whether goodput stayed, in time, with quick refusals and a quick end."""
        outcome = self.outcome
        late = outcome.statuses[504]  # it was let in, and its turn did not come in time
        return (
            self.share >= GOODPUT
            and late <= outcome.asked * ALLOWED_LATE
            # From when a request was due: where the generator was held up, that is part of it.
            and outcome.latencies.percentile(99.9) < DEADLINE + ALLOWED_LATE
            and outcome.refusals.percentile(99) * 1e3 < REFUSAL_MS
            and self.back < BACK_SECONDS
        )


def overloaded(server: Live) -> Round:
    """One round."""
    before = peak(server, sized(1.5, 20.0))
    with Prober(server) as quiet:
        time.sleep(sized(0.5, 5.0))
    usual = statistics.median(took for *_, took in quiet.answers)
    plan = Plan(
        connections=CONNECTIONS, seconds=SECONDS, warm_up=1.0, rate=TIMES * before, patience=2.0
    )
    with Prober(server) as prober:
        began, used = time.perf_counter(), cpu_seconds(server.process.pid)
        outcome = loaded(server, good_requests(server, DEADLINE), plan)
        end = time.perf_counter()
        cores = (cpu_seconds(server.process.pid) - used) / (end - began)
        time.sleep(sized(1.0, BACK_SECONDS + 1))
    most = (before + peak(server, sized(1.0, 20.0))) / 2
    refused = [answer for answer in prober.answers if answer[1] == 503]
    return Round(most, outcome, refused, prober.normal_after(end, usual), cores)


@pytest.mark.timeout(300 + 3 * int(SECONDS))
def test_goodput_stays_and_refusals_are_quick(start: Start, tmp_path: Path) -> None:
    make_work_bundle(tmp_path / "work")
    server = start(tmp_path / "work", "--no-access-log", settings=QUEUE)
    for _ in range(ROUNDS):
        found = overloaded(server)
        found.tell()
        found.check_answers()
        if found.is_well():
            return
    raise AssertionError(f"goodput {found.share:.2f} of the peak; the report says the rest")
