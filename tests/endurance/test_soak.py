"""A long stretch of load with bad input in it: nothing grows. A server that leaks is found out.

`SLIPWAY_SOAK=3600` sets the seconds of the soak.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from serving.load.generator import Plan
from serving.load.outcome import Outcome
from tests.endurance.conftest import Start
from tests.endurance.figures import report
from tests.endurance.load import bad_requests, good_requests, loaded, make_work_bundle, mixed, peak
from tests.endurance.resources import Held, held, slope
from tests.endurance.scale import sized
from tests.serving.live import Live

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SLIPWAY_SOAK") or sized(6.0, 1200.0))
WARM_SECONDS = sized(2.0, 60.0)
LEAK_SECONDS = sized(6.0, 120.0)
SAMPLE_SECONDS = sized(0.2, 2.0)
SHARE = 0.7
"""Of the peak."""

BAD_IN = 100
"""One request in so many is bad."""

GROWTH = sized(0.05, 0.01)
"""Of the memory at the start, over the whole run, along the straight line through all samples. A
few seconds hold too few samples for the strict figure."""


class Sampler:
    """Looks at a server every so often, until told to stop."""

    def __init__(self, server: Live) -> None:
        self.times: list[float] = []
        self.samples: list[Held] = []
        self._pid = server.process.pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        if self._over.wait(WARM_SECONDS):
            return
        while not self._over.wait(SAMPLE_SECONDS):
            self.times.append(time.monotonic())
            self.samples.append(held(self._pid))

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """Share of the memory that the run added, by the line through the samples."""
        line = slope(self.times, [float(sample.memory) for sample in self.samples])
        return line * (self.times[-1] - self.times[0]) / self.samples[0].memory


LATE_THREADS = 1
"""The model's own is made when a batch is slow for the first time."""


def soaked(server: Live, seconds: float, subject: str) -> tuple[Sampler, Outcome]:
    """A run at a share of the peak, reported."""
    most = peak(server, sized(1.5, 10.0))
    requests = mixed(good_requests(server), bad_requests(server), BAD_IN)
    plan = Plan(connections=32, seconds=seconds, warm_up=WARM_SECONDS, rate=SHARE * most)
    with Sampler(server) as sampler:
        outcome = loaded(server, requests, plan)
    first, last = sampler.samples[0], sampler.samples[-1]
    figures = outcome.figures()
    report(
        subject,
        seconds=outcome.seconds,
        peak_per_s=most,
        rate=plan.rate,
        answered_per_s=outcome.throughput,
        statuses=figures["statuses"],
        wrong=outcome.wrong,
        lost=outcome.lost + outcome.unanswered,
        p50_ms=figures["latency_ms"]["p50"],
        p99_ms=figures["latency_ms"]["p99"],
        growth_percent=sampler.growth * 100,
        memory_mib=f"{first.memory / (1 << 20):.1f} to {last.memory / (1 << 20):.1f}",
        descriptors=f"{first.descriptors} to {last.descriptors}",
        threads=f"{first.threads} to {last.threads}",
        samples=len(sampler.samples),
    )
    return sampler, outcome


@pytest.mark.timeout(300 + 2 * int(SECONDS))
def test_nothing_grows(start: Start, tmp_path: Path) -> None:
    make_work_bundle(tmp_path / "work")
    server = start(tmp_path / "work")
    sampler, outcome = soaked(server, SECONDS, "soak")
    assert outcome.wrong == outcome.lost == outcome.unanswered == 0
    assert set(outcome.statuses) == {200, 400} and not outcome.errors
    assert outcome.statuses[400] == pytest.approx(outcome.asked / BAD_IN, abs=2)
    first, last = sampler.samples[0], sampler.samples[-1]
    assert abs(last.descriptors - first.descriptors) <= 2
    assert last.threads <= first.threads + LATE_THREADS
    assert sampler.growth < GROWTH


def test_a_server_that_leaks_is_found_out(start: Start, tmp_path: Path) -> None:
    make_work_bundle(tmp_path / "work")
    server = start(tmp_path / "work", program="tests.endurance.leaking")
    sampler, outcome = soaked(server, LEAK_SECONDS, "soak of a server that leaks")
    assert set(outcome.statuses) == {200, 400} and not outcome.wrong, "and by nothing else"
    assert sampler.growth > GROWTH
