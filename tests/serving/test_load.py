"""The load generator: its histogram, its schedule, and what it makes of servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import uvloop

from serving.client import Client, InvalidRequest
from serving.client.address import parse
from serving.load import picture
from serving.load.alarm import Alarm
from serving.load.generator import Plan, run
from serving.load.histogram import SIZE, Histogram, _bounds
from serving.load.outcome import Outcome
from serving.load.work import Request, golden, invented, wire
from tests.serving.live import Live
from tests.serving.unruly import (
    ANSWER,
    Behaviour,
    Talk,
    Unruly,
    after,
    closes,
    error,
    resets,
    says,
    unruly,
)

GOOD = says(200)


def loaded(url: str, plan: Plan, stop_after: float | None = None, wire: bytes = b"") -> Outcome:
    """One stretch on a loop of its own."""
    address = parse(url)
    asked = wire or b"POST /v2/models/m/infer HTTP/1.1\r\n%bContent-Length: 0\r\n\r\n" % (
        address.headers
    )

    async def main() -> Outcome:
        stop = asyncio.Event()
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, stop.set)
        return await run(address, [Request(asked, 1)], plan, stop)

    return uvloop.run(main())


@pytest.fixture
def server() -> Iterator[Unruly]:
    with unruly(GOOD) as server:
        yield server


def test_buckets_meet_and_are_narrow() -> None:
    end = 0
    for index in range(SIZE):
        low, width = _bounds(index)
        assert low == end and (width == 1 or width <= low / 128)
        end = low + width
    assert end == 1 << 36


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.1, 10])
def test_percentiles_are_right_to_a_hundredth(scale: float) -> None:
    values = np.random.default_rng(0).lognormal(0, 1, 20_000) * scale
    histogram = Histogram()
    for value in values:
        histogram.add(float(value))
    for percent in (50, 90, 99, 99.9):
        exact = np.percentile(values, percent, method="inverted_cdf")
        assert exact <= histogram.percentile(percent) <= exact * 1.01 + 1.1e-6
    assert histogram.percentile(100) == histogram.longest == values.max()
    assert histogram.mean == pytest.approx(values.mean())
    assert sum(count for _, _, count in histogram.buckets()) == histogram.count == 20_000


def test_a_histogram_takes_any_duration() -> None:
    histogram = Histogram()
    assert histogram.percentile(99) == histogram.mean == 0
    for value in (-1.0, 0.0, 1e-9, 1e9):
        histogram.add(value)
    assert histogram.count == 4 and histogram.percentile(50) <= 1e-6


def test_the_alarm_rings_when_it_is_due() -> None:
    async def main() -> list[float]:
        late: list[float] = []
        rang = asyncio.Event()

        def ring() -> None:
            late.append(time.perf_counter() - due)
            rang.set()

        alarm = Alarm(asyncio.get_running_loop(), ring)
        for _ in range(50):
            rang.clear()
            due = time.perf_counter() + 0.0033
            alarm.set(due)
            await rang.wait()
        alarm.set(time.perf_counter() - 1)  # past: at once
        rang.clear()
        await asyncio.wait_for(rang.wait(), 1)
        alarm.set(time.perf_counter() + 0.01)
        alarm.close()
        await asyncio.sleep(0.03)
        return late

    for runner in (asyncio.run, uvloop.run):
        late = runner(main())
        assert len(late) == 51 and min(late) >= 0
        assert np.median(late[:50]) < 0.0009  # a millisecond timer would be half of one late


def test_a_closed_loop_counts_what_it_asked(server: Unruly) -> None:
    outcome = loaded(server.url, Plan(4, 0.6, 0.2))
    assert outcome.statuses == {200: outcome.asked} and outcome.asked > 50
    assert outcome.latencies.count == outcome.asked
    assert outcome.seconds == pytest.approx(0.6, abs=0.01)
    assert abs(outcome.answered - outcome.asked) <= 4
    assert outcome.asked < len(server.requests)  # the warm-up was not counted
    assert server.connections == 4 and not outcome.errors
    assert outcome.received_bytes > outcome.asked * len(ANSWER) * 0.9


def test_a_closed_loop_waits_for_the_last_answers(server: Unruly) -> None:
    """Dropping what is under way at the end would drop the slowest."""
    server.default = after(0.4, GOOD)
    outcome = loaded(server.url, Plan(3, 0.6, 0.0))
    assert outcome.asked == outcome.latencies.count == 6 and outcome.unanswered == 0


@pytest.mark.parametrize("poisson", [False, True])
def test_an_open_loop_keeps_its_rate(server: Unruly, poisson: bool) -> None:
    outcome = loaded(server.url, Plan(16, 1.0, 0.2, rate=200, poisson=poisson))
    if poisson:
        assert 140 < outcome.asked < 260
    else:
        assert outcome.asked in (199, 200, 201)
    assert outcome.statuses == {200: outcome.asked} and outcome.unanswered == 0
    assert outcome.lags.count > 0


def stalls_once(at: int, seconds: float) -> Behaviour:
    """Answers at once, but for one stretch in which nobody is answered."""
    state = {"seen": 0, "until": 0.0}

    async def behave(talk: Talk) -> None:
        state["seen"] += 1
        if state["seen"] == at:
            state["until"] = time.monotonic() + seconds
        await asyncio.sleep(max(0.0, state["until"] - time.monotonic()))
        await GOOD(talk)

    return behave


def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    """Coordinated omission. A second's stall in three: a third of the requests due waited, half a
    second on average. One connection that waits for its answer saw a single slow one."""
    with unruly(stalls_once(150, 1.0)) as server:
        outcome = loaded(server.url, Plan(8, 3.0, 0.0, rate=200))
    waited = [outcome.latencies.percentile(percent) for percent in (50, 75, 90, 99)]
    assert outcome.asked in (599, 600, 601) and outcome.unanswered == 0
    assert waited[0] < 0.2 < 0.15 + waited[1] and 0.5 < waited[2] < 0.95 and waited[3] > 0.85
    with unruly(stalls_once(150, 1.0)) as server:
        closed = loaded(server.url, Plan(1, 3.0, 0.0))
    assert closed.latencies.longest > 0.9 and closed.latencies.percentile(99) < 0.2


def test_what_is_never_answered_is_counted_with_the_time_it_waited() -> None:
    async def never(talk: Talk) -> None:
        await asyncio.sleep(60)

    with unruly(never) as server:
        outcome = loaded(server.url, Plan(2, 1.0, 0.0, rate=20, patience=0.5))
    assert outcome.asked in (20, 21), "one a twentieth of a second, the last perhaps on the stroke"
    assert outcome.asked == outcome.unanswered == outcome.latencies.count
    assert outcome.answered == 0 and 1.3 < outcome.latencies.longest < 2.0
    assert 0.5 < outcome.latencies.percentile(5) < 0.8
    assert f"unanswered  {outcome.asked}" in outcome.told() and "no answer at all" in outcome.told()


def test_refusals_are_kept_apart(server: Unruly) -> None:
    server.default = error(503, "full")
    server.script = [GOOD] * 10
    outcome = loaded(server.url, Plan(1, 0.5, 0.0))
    assert outcome.statuses[200] == outcome.latencies.count == 10
    assert outcome.statuses[503] == outcome.refusals.count > 10
    assert "refusals ms" in outcome.told()


@pytest.mark.parametrize("rate", [None, 100.0])
def test_lost_connections_are_counted_and_replaced(server: Unruly, rate: float | None) -> None:
    server.script = [*[GOOD] * 5, resets, *[GOOD] * 5, closes]
    outcome = loaded(server.url, Plan(2, 0.8, 0.0, rate=rate))
    assert outcome.lost == 2 and sum(outcome.errors.values()) == 2
    assert outcome.asked == outcome.latencies.count + outcome.lost
    assert server.connections == 4 and outcome.unanswered == 0
    assert "lost        2" in outcome.told()


def test_a_server_that_closes_after_each_answer(server: Unruly) -> None:
    server.default = says(200, ANSWER, "Connection: close")
    outcome = loaded(server.url, Plan(4, 0.6, 0.0))
    assert outcome.asked == outcome.latencies.count > 4
    assert outcome.lost == 0 and not outcome.errors


def test_a_server_that_goes_away(server: Unruly) -> None:
    with unruly(GOOD) as gone:
        url = gone.url
    with pytest.raises(OSError):
        loaded(url, Plan(2, 0.3, 0.0))


def test_stopping_early_gives_what_there_is(server: Unruly) -> None:
    for rate in (None, 200.0):
        began = time.monotonic()
        outcome = loaded(server.url, Plan(4, 30.0, 0.1, rate=rate), stop_after=0.6)
        assert time.monotonic() - began < 3
        assert outcome.stopped and 0.3 < outcome.seconds < 0.6
        assert outcome.asked == outcome.latencies.count > 20 and outcome.unanswered == 0
    outcome = loaded(server.url, Plan(4, 30.0, 10.0), stop_after=0.1)
    assert outcome.stopped and outcome.seconds == 0 == outcome.asked


def test_golden_rows_are_asked_and_checked(bundle: Path, start: Callable[..., Live]) -> None:
    live = start(bundle)
    address = parse(f"http://127.0.0.1:{live.port}")
    for rows in (1, 3, 20):
        inputs, requests = golden(bundle, rows)
        for request, arrays in zip(requests, inputs, strict=True):
            assert len(arrays["image"]) == request.rows == rows
            request.wire = wire(address, "digits-test", None, arrays, binary=rows != 3)
        outcome = uvloop.run(run(address, requests, Plan(4, 0.3, 0.0)))
        assert outcome.wrong == 0 and outcome.latencies.count > 20
    requests[0].expected = {name: array + 0.01 for name, array in requests[0].expected.items()}
    requests[0]._right.clear()
    outcome = uvloop.run(run(address, requests, Plan(4, 0.3, 0.0)))
    assert 0 < outcome.wrong < outcome.latencies.count
    assert "WRONG" in outcome.told()


def test_idle_connections_that_are_closed_are_no_errors(
    bundle: Path, start: Callable[..., Live], tmp_path: Path
) -> None:
    settings = tmp_path / "serve.toml"
    settings.write_text("[http]\nidle_seconds = 0.3\n")
    live = start(bundle, "--config", str(settings))
    outcome = loaded(f"http://127.0.0.1:{live.port}", Plan(8, 1.5, 0.0, rate=20))
    assert outcome.asked and outcome.lost == 0 and not outcome.errors


def test_invented_inputs_fit_the_model(repository: Path, server_url: str) -> None:
    with Client(server_url) as client:
        for name, shapes in (("types", {}), ("series", {}), ("series", {"values": [3]})):
            for inputs in invented(client.metadata(name), 5, shapes):
                answer = client.infer(name, inputs)
                assert all(len(array) == 5 for array in answer.values())
        with pytest.raises(InvalidRequest, match="the model's inputs are values"):
            invented(client.metadata("series"), 1, {"value": [3]})


@pytest.fixture
def server_url(repository: Path, start: Callable[..., Live]) -> str:
    return f"http://127.0.0.1:{start(repository).port}"


def outcome_of(milliseconds: list[float], **fields: Any) -> Outcome:
    outcome = Outcome(8, None, 1, 0.0, seconds=2.0, answered=len(milliseconds))
    for name, value in fields.items():
        setattr(outcome, name, value)
    for value in milliseconds:
        outcome.latencies.add(value / 1000)
    return outcome


@pytest.mark.parametrize(
    "outcome",
    [
        outcome_of([1.0] * 10),
        outcome_of([0.0]),
        outcome_of(list(np.random.default_rng(0).lognormal(0, 1, 5000))),
        outcome_of([0.001, 1e7]),
        outcome_of([]),
        outcome_of([5.0] * 100, answered=0, rate=0.5),
    ],
)
def test_any_outcome_can_be_drawn_and_told(outcome: Outcome) -> None:
    for drawn in (
        picture.distribution(outcome, "a < b & c"),
        picture.curve([outcome, outcome_of([2.0] * 7, rate=outcome.rate)], "title"),
        picture.curve([outcome], "title"),
    ):
        page = ElementTree.fromstring(drawn)
        assert page.tag.endswith("svg")
        for element in page.iter():
            for name in ("x", "y", "cx", "cy", "x1", "x2", "y1", "y2"):
                assert -1 <= float(element.get(name, 0)) <= picture.WIDTH
    assert json.loads(json.dumps(outcome.figures()))["loop"] in ("open", "closed")
    assert outcome.told()


def test_figures_hold_the_whole_histogram() -> None:
    figures = outcome_of([1.0, 1.0, 30.0]).figures()
    assert [count for _, _, count in figures["histogram_us"]] == [2, 1]
    assert figures["latency_ms"]["max"] == 30.0 and figures["answered_per_second"] == 1.5
