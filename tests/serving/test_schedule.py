"""A request's own timeout and priority: in the queue by itself, and through both doors."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import BatchSettings
from serving.errors import Overloaded, ServingError, WaitedTooLong
from serving.inference.batching import Arrays, Batcher
from tests.serving.bundles import make_series_bundle
from tests.serving.live import Live, binary, framed, tensor
from tests.serving.rpc_client import Client, infer_request

INFER = "/v2/models/series/infer"
SMALL = tensor("values", np.ones((1, 3), np.float32), "FP32")


class Gate:
    """A model that stays busy with its first run until it is opened, and remembers the order."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.ran: list[int] = []

    def run(self, arrays: Arrays) -> Arrays:
        self.ran += [int(row[0]) for row in arrays["x"]]
        self.opened.wait(10)
        return arrays


def queued(
    requests: list[tuple[float, int]], seconds: float = 0.0, **limits: Any
) -> tuple[list[int], list[Any]]:
    """(order of the runs, answers) of requests (timeout, priority) sent while the model is busy.

    The first is what it is busy with, for so many seconds.
    """
    gate = Gate()
    answers: list[Any] = [None] * len(requests)

    async def everyone() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(gate.run, BatchSettings(rows=1, slow_ms=0, **limits), thread)
            everybody = asyncio.Event()

            def told(position: int) -> Callable[[Arrays | ServingError], None]:
                def done(answer: Arrays | ServingError) -> None:
                    assert answers[position] is None, "told twice"
                    answers[position] = answer
                    if all(answer is not None for answer in answers):
                        everybody.set()

                return done

            for position, (timeout, priority) in enumerate(requests):
                array = np.full((1, 1), position)
                try:
                    batcher.enqueue({"x": array}, 1, "x", told(position), timeout, priority)
                except Overloaded as error:
                    told(position)(error)
                if not position:
                    while not gate.ran:
                        await asyncio.sleep(0.001)
            await asyncio.sleep(seconds)
            gate.opened.set()
            await asyncio.wait_for(everybody.wait(), 10)
            assert not batcher.busy or await asyncio.sleep(0.05) is None
            assert batcher.waiting == 0

    asyncio.run(everyone())
    return gate.ran, answers


@settings(max_examples=25)
@given(priorities=st.lists(st.integers(0, 10), min_size=1, max_size=12))
def test_higher_priorities_first_and_equals_as_they_came(priorities: list[int]) -> None:
    ran, answers = queued([(0.0, 0), *((0.0, p) for p in priorities)])
    levels = [p or 2 for p in priorities]
    expected = sorted(range(len(levels)), key=lambda i: levels[i])
    assert ran == [0, *(i + 1 for i in expected)]
    assert not [answer for answer in answers if isinstance(answer, Exception)]


def test_the_default_priority_is_the_deployments() -> None:
    ran, _ = queued([(0, 0), (0, 0), (0, 5), (0, 7)], default_priority=6)
    assert ran == [0, 2, 1, 3]


def test_what_waits_too_long_is_told_at_once_and_never_run() -> None:
    ran, answers = queued([(0, 0), (0.05, 0), (0, 0), (5, 0), (0.05, 1)], seconds=0.3)
    assert ran == [0, 2, 3]
    assert isinstance(answers[1], WaitedTooLong) and isinstance(answers[4], WaitedTooLong)
    assert not isinstance(answers[3], Exception)


def test_what_runs_already_is_not_too_late() -> None:
    ran, answers = queued([(0.05, 0), (0, 0)], seconds=0.2)
    assert ran == [0, 1] and not isinstance(answers[0], Exception)


def test_those_who_gave_up_leave_their_places() -> None:
    async def everyone() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as thread:
            limits = BatchSettings(rows=1, slow_ms=0, queue_requests=2)
            batcher = Batcher(gate.run, limits, thread)
            told: list[Any] = []
            x = {"x": np.zeros((1, 1))}
            batcher.enqueue(x, 1, "x", told.append)
            while not gate.ran:
                await asyncio.sleep(0.001)
            for _ in range(2):
                batcher.enqueue(x, 1, "x", told.append, 0.01)
            with pytest.raises(Overloaded):
                batcher.enqueue(x, 1, "x", told.append)
            await asyncio.sleep(0.05)
            assert len(told) == 2
            batcher.enqueue(x, 1, "x", told.append)
            gate.opened.set()
            while len(told) < 4:
                await asyncio.sleep(0.001)

    asyncio.run(everyone())


# Through the doors


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose model runs in its thread."""
    folder = tmp_path_factory.mktemp("schedule")
    make_series_bundle(folder / "series")
    (folder / "serve.toml").write_text("[batching]\nslow_ms = 0\nrows = 1\n")
    server = Live(
        folder / "series",
        folder / "logs",
        "--config",
        str(folder / "serve.toml"),
        "--grpc-port",
        "0",
    )
    yield server
    assert server.stop() == 0
    assert "internal error" not in server.told() and "backend failure" not in server.told()


class Busy:
    """Keeps the model busy for as long as it is entered."""

    def __init__(self, server: Live) -> None:
        values = np.ones((1, 4_000_000), np.float32)
        header = {"inputs": [binary("values", values, "FP32")], "outputs": [{"name": "sum"}]}
        self._body, self._headers = framed(header, values.tobytes())
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            assert self._server.ask("POST", INFER, self._body, self._headers)[0] == 200

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("timeout", "9" * 20),
        ("timeout", "0" * 30),
        ("priority", "9" * 20),
        ("priority", "0" * 22 + "99"),
    ],
)
def test_numbers_written_as_texts_have_an_end(slow: Live, parameter: str, value: str) -> None:
    asked = {"inputs": [SMALL], "parameters": {parameter: value}}
    status, told = slow.json("POST", INFER, asked)
    assert status == 400 and parameter in told["error"]


def test_a_timeout_through_http(slow: Live) -> None:
    asked = {"inputs": [SMALL], "parameters": {"timeout": 1}}
    late = 0
    with Busy(slow):
        for _ in range(20):
            status, told = slow.json("POST", INFER, asked)
            assert status in (200, 504)
            late += status == 504
            if status == 504:
                assert "the request's timeout" in told["error"]
    assert late > 5
    patient = {"inputs": [SMALL], "parameters": {"timeout": 10_000_000}}
    for _ in range(3):  # the same bytes again: read by their template
        assert slow.json("POST", INFER, patient)[0] == 200
    for _ in range(3):
        assert slow.json("POST", INFER, asked)[0] in (200, 504)


def test_priorities_through_http(slow: Live) -> None:
    """Asked while the model is busy, the urgent wait less than others. The last may wait for ever."""

    def seconds(priority: int) -> float:
        asked = {"inputs": [SMALL], "parameters": {"priority": priority}}
        began = time.perf_counter()
        assert slow.json("POST", INFER, asked)[0] == 200
        return time.perf_counter() - began

    with Busy(slow):
        waits = [(seconds(1), seconds(0)) for _ in range(12)]
    urgent, patient = np.median(np.array(waits), axis=0)
    assert urgent < patient


def test_a_timeout_through_grpc(slow: Live) -> None:
    request = infer_request("series", {"values": np.ones((1, 3), np.float32)})
    request.parameters["timeout"].int64_param = 1
    request.parameters["priority"].uint64_param = 3
    port = slow.grpc_port
    with Client(port) as client:
        codes = set()
        with Busy(slow):
            for _ in range(10):
                try:
                    client.infer(request)
                except Exception as error:
                    codes.add(error.code().name)  # type: ignore[attr-defined]
        assert codes == {"DEADLINE_EXCEEDED"}
        request.parameters["timeout"].int64_param = 0
        assert client.infer(request)
        request.parameters["priority"].uint64_param = 11
        assert client.failure(request)[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"timeout": -1}, "timeout: expected microseconds"),
        ({"timeout": True}, "timeout: expected microseconds"),
        ({"timeout": 2**64}, "timeout: expected microseconds"),
        ({"timeout": "soon"}, "timeout: expected microseconds"),
        ({"priority": 11}, "priority: expected 1"),
        ({"priority": 1.5}, "priority: expected 1"),
        ({"priority": [1]}, "priority: expected 1"),
    ],
)
def test_what_makes_no_sense(slow: Live, parameters: dict[str, Any], told: str) -> None:
    status, answer = slow.json("POST", INFER, {"inputs": [SMALL], "parameters": parameters})
    assert status == 400 and told in answer["error"]


@pytest.mark.parametrize(
    "parameters", [{"timeout": 2**62}, {"timeout": "5000000"}, {"timeout": 0}, {"priority": "1"}]
)
def test_what_does(slow: Live, parameters: dict[str, Any]) -> None:
    status, answer = slow.json("POST", INFER, {"inputs": [SMALL], "parameters": parameters})
    assert status == 200, json.dumps(answer)
