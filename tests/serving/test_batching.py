"""The policy by itself, the driver on a loop, and both before a real session."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import BatchSettings
from serving.errors import BackendFailure, Overloaded, ServingError, WaitedTooLong
from serving.inference.batching import Arrays, Batcher, RowCost, select
from serving.inference.runtime import open_session
from tests.serving.bundles import digits_graph, digits_rows


@dataclass(frozen=True)
class Waiter:
    rows: int
    signature: str = "a"


WAITING = st.lists(st.builds(Waiter, st.integers(1, 9), st.sampled_from("abc")), max_size=20)


@given(waiting=WAITING, limit=st.integers(1, 16))
def test_policy(waiting: list[Waiter], limit: int) -> None:
    chosen = select(waiting, limit)
    assert chosen == sorted(set(chosen)) and bool(chosen) == bool(waiting)
    batch = [waiting[position] for position in chosen]
    assert len({entry.signature for entry in batch}) <= 1
    assert sum(entry.rows for entry in batch) <= limit or len(batch) == 1
    if not batch:
        return
    assert chosen[0] == 0
    alike = [p for p, entry in enumerate(waiting) if entry.signature == batch[0].signature]
    assert chosen == alike[: len(chosen)], "nobody passes a neighbour of its kind"
    if len(chosen) < len(alike):
        left_out = waiting[alike[len(chosen)]]
        assert sum(entry.rows for entry in batch) + left_out.rows > limit, "room was left"


def double(arrays: Arrays) -> Arrays:
    """Refuses a row of 13s, as a model might."""
    if (arrays["x"] == 13).any():
        raise RuntimeError("thirteen")
    return {"y": arrays["x"] * 2, "first": arrays["x"][:, :1]}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3])), min_size=1, max_size=24
    ),
    bad=st.sets(st.integers(0, 23)),
    limit=st.integers(1, 12),
    threaded=st.booleans(),
)
def test_batched_is_unbatched(
    sizes: list[tuple[int, int]], bad: set[int], limit: int, threaded: bool
) -> None:
    """Whatever is joined: own answer, own failure, order kept, bounds kept."""
    requests = [np.full((rows, width), n + 20, np.int64) for n, (rows, width) in enumerate(sizes)]
    for position in bad & set(range(len(requests))):
        requests[position][0, 0] = 13
    runs: list[int] = []
    finished: list[int] = []

    def run(arrays: Arrays) -> Arrays:
        runs.append(len(arrays["x"]))
        return double(arrays)

    async def everyone() -> list[Arrays | BaseException]:
        executor = ThreadPoolExecutor(1) if threaded else None
        batcher = Batcher(run, BatchSettings(rows=limit), executor)

        async def one(number: int, array: np.ndarray) -> Arrays:
            try:
                return await batcher.submit({"x": array}, len(array), array.shape[1:])
            finally:
                finished.append(number)

        answers = await asyncio.gather(
            *(one(n, array) for n, array in enumerate(requests)), return_exceptions=True
        )
        assert batcher.waiting == 0
        if executor:
            executor.shutdown()
        return answers

    answers = asyncio.run(everyone())
    for position, (array, answer) in enumerate(zip(requests, answers, strict=True)):
        if position in bad:
            assert isinstance(answer, BackendFailure) and "RuntimeError" in str(answer)
        else:
            assert isinstance(answer, dict)
            assert (answer["y"] == array * 2).all() and answer["y"].shape == array.shape
    assert all(rows <= max(limit, 5) for rows in runs)
    for width in (1, 2, 3):
        alike = [n for n in finished if sizes[n][1] == width]
        assert alike == sorted(alike)


def test_what_came_together_runs_together() -> None:
    runs: list[int] = []

    def run(arrays: Arrays) -> Arrays:
        runs.append(len(arrays["x"]))
        return double(arrays)

    async def everyone() -> None:
        batcher = Batcher(run, BatchSettings(rows=8))
        one = np.ones((1, 1), np.int64)
        await asyncio.gather(*(batcher.submit({"x": one}, 1, ()) for _ in range(20)))

    asyncio.run(everyone())
    assert runs == [8, 8, 4]


def test_a_thread_gathers_while_it_is_busy() -> None:
    runs: list[int] = []
    gate = threading.Event()

    def run(arrays: Arrays) -> Arrays:
        gate.wait(5)
        runs.append(len(arrays["x"]))
        return double(arrays)

    async def everyone() -> None:
        batcher = Batcher(run, BatchSettings(), ThreadPoolExecutor(1))
        one = np.ones((1, 1), np.int64)
        first = batcher.submit({"x": one}, 1, ())
        await asyncio.sleep(0.05)
        others = [batcher.submit({"x": one}, 1, ()) for _ in range(7)]
        gate.set()
        await asyncio.gather(first, *others)

    asyncio.run(everyone())
    assert runs == [1, 7]


def test_a_thread_has_its_next_full_batch_already() -> None:
    """It goes on while the loop is busy with refusals; who gave up meanwhile is not worked for."""
    runs: list[list[int]] = []
    gate, second = threading.Event(), threading.Event()

    def run(arrays: Arrays) -> Arrays:
        gate.wait(5)
        runs.append(arrays["x"][:, 0].tolist())
        if len(runs) == 2:
            second.set()
        return double(arrays)

    async def everyone() -> None:
        batcher = Batcher(run, BatchSettings(rows=4), ThreadPoolExecutor(1))
        told: list[Arrays | ServingError] = []

        def ask(number: int, timeout: float = 0.0) -> None:
            one = {"x": np.full((1, 1), number)}
            batcher.enqueue(one, 1, (), told.append, timeout)

        ask(0)
        await asyncio.sleep(0.02)
        gone = batcher.submit({"x": np.full((1, 1), 1)}, 1, ())
        for number in (2, 3, 4, 5):
            ask(number, timeout=0.04 if number == 2 else 0.0)
        gone.cancel()
        await asyncio.sleep(0.1)
        assert [type(answer) for answer in told] == [WaitedTooLong]
        gate.set()
        assert second.wait(5)  # nothing else happens on the loop
        while len(told) < 5:
            await asyncio.sleep(0.01)
        assert not batcher.busy

    asyncio.run(everyone())
    assert runs == [[0], [3, 4], [5]]


def test_a_thread_that_has_ended_leaves_nobody_waiting() -> None:
    """As when a model is closed whose unloading did not wait for the last request."""

    async def everyone() -> None:
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(double, BatchSettings(), executor)
        executor.shutdown()
        for _ in range(2):
            with pytest.raises(BackendFailure, match="unloaded"):
                await asyncio.wait_for(batcher.submit({"x": np.ones((1, 1))}, 1, ()), 5)
        assert not batcher.busy

    asyncio.run(everyone())


def test_an_answer_that_cannot_be_told_is_told_as_a_failure() -> None:
    told: list[Arrays | ServingError] = []

    def tell(answer: Arrays | ServingError) -> None:
        told.append(answer)
        if not isinstance(answer, ServingError):
            raise KeyError("an output there is not")

    async def everyone() -> None:
        batcher = Batcher(double, BatchSettings())
        batcher.enqueue({"x": np.ones((1, 1))}, 1, (), tell)
        await batcher.submit({"x": np.ones((1, 1))}, 1, ())

    asyncio.run(everyone())
    assert [type(answer) for answer in told] == [dict, BackendFailure]


def test_only_what_takes_long_leaves_the_loop() -> None:
    threads: list[tuple[int, bool]] = []

    def run(arrays: Arrays) -> Arrays:
        rows = len(arrays["x"])
        threads.append((rows, threading.current_thread() is threading.main_thread()))
        time.sleep(rows * 0.002)
        return double(arrays)

    async def everyone() -> None:
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(run, BatchSettings(slow_ms=20), executor, row_seconds=0.002)
        for rows in (1, 40, 2):
            await batcher.submit({"x": np.ones((rows, 1), np.int64)}, rows, ())
        six = {"x": np.ones((6, 1), np.int64)}
        batcher = Batcher(run, BatchSettings(rows=6, slow_ms=20), executor, row_seconds=0.002)
        await asyncio.gather(*(batcher.submit(six, 6, ()) for _ in range(3)))
        executor.shutdown()

    asyncio.run(everyone())
    alone = [(1, True), (40, False), (2, True)]
    in_a_queue = [(6, False)] * 3
    assert threads == alone + in_a_queue


@pytest.mark.parametrize(("requests", "on_loop"), [(16, True), (48, False)])
def test_a_batch_a_little_too_long_is_cut_unless_a_queue_waits(
    requests: int, on_loop: bool
) -> None:
    runs: list[tuple[int, bool]] = []

    def run(arrays: Arrays) -> Arrays:
        rows = len(arrays["x"])
        runs.append((rows, threading.current_thread() is threading.main_thread()))
        time.sleep(rows * 0.002)
        return double(arrays)

    async def everyone() -> None:
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(run, BatchSettings(rows=16, slow_ms=20), executor, row_seconds=0.002)
        one = {"x": np.ones((1, 1), np.int64)}
        await asyncio.gather(*(batcher.submit(one, 1, ()) for _ in range(requests)))
        executor.shutdown()

    asyncio.run(everyone())
    assert sum(rows for rows, _ in runs) == requests
    if on_loop:
        assert all(rows <= 10 and loop for rows, loop in runs)
    else:
        assert runs[0] == (16, False)


@pytest.mark.parametrize(("most", "first"), [(512, 200), (100, 100)])
def test_a_crowd_of_small_rows_runs_in_long_batches(most: int, first: int) -> None:
    """Of 20 ms at most, where a good batch takes 6.4: a thread waits for its turn after every run."""
    runs: list[tuple[int, bool]] = []

    def run(arrays: Arrays) -> Arrays:
        rows = len(arrays["x"])
        runs.append((rows, threading.current_thread() is threading.main_thread()))
        time.sleep(rows * 0.0001)
        return double(arrays)

    async def everyone() -> None:
        executor = ThreadPoolExecutor(1)
        settings = BatchSettings(rows=most, slow_ms=20)
        batcher = Batcher(run, settings, executor, row_seconds=0.0001)
        one = {"x": np.ones((1, 1), np.int64)}
        await asyncio.gather(*(batcher.submit(one, 1, ()) for _ in range(300)))
        executor.shutdown()

    asyncio.run(everyone())
    assert sum(rows for rows, _ in runs) == 300
    assert runs[0] == (first, False)


def test_a_model_that_got_slow_is_noticed() -> None:
    """What a row takes is measured at every run: the promise of the proof is not believed for ever."""
    on_loop: list[bool] = []

    def run(arrays: Arrays) -> Arrays:
        on_loop.append(threading.current_thread() is threading.main_thread())
        time.sleep(0.03)
        return double(arrays)

    async def everyone() -> None:
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(run, BatchSettings(slow_ms=10), executor, row_seconds=1e-6)
        for _ in range(8):
            await batcher.submit({"x": np.ones((1, 1), np.int64)}, 1, ())
        executor.shutdown()

    asyncio.run(everyone())
    assert on_loop[0] and not on_loop[-1]


def test_what_a_row_takes_is_known_by_kind_and_survives_an_interruption() -> None:
    cost = RowCost(1.0)
    assert cost.of("short") == 1.0  # until it ran, the proof's word
    for _ in range(3):
        cost.note("short", 0.001)
    cost.note("short", 5.0)  # the machine was busy with something else
    assert cost.of("short") < 0.002
    for _ in range(60):
        cost.note("short", 0.2)  # that is no interruption
    assert cost.of("short") == 0.2
    cost.note("long", 0.7)
    assert cost.of("long") == 0.7 and cost.of("short") == 0.2
    assert cost.of("another") == 0.7  # the dearest, until it ran


def test_who_is_told_that_it_waited_too_long_may_ask_again_at_once() -> None:
    """As a client does that had sent its next request already."""
    told: list[str] = []

    async def everyone() -> None:
        batcher = Batcher(double, BatchSettings())
        one = {"x": np.ones((1, 1), np.int64)}

        def late(answer: object) -> None:
            told.append(type(answer).__name__)
            batcher.enqueue(one, 1, (), lambda answer: told.append("answered"))

        batcher.enqueue(one, 1, (), late, timeout=1e-6)
        time.sleep(0.01)  # the loop is busy beyond the deadline
        await asyncio.sleep(0.05)
        assert batcher.waiting == 0 and not batcher.busy

    asyncio.run(everyone())
    assert told == ["WaitedTooLong", "answered"]


@pytest.mark.parametrize(("requests", "rows"), [(3, 100), (100, 6)])
def test_a_full_queue_says_so_and_recovers(requests: int, rows: int) -> None:
    async def everyone() -> None:
        batcher = Batcher(double, BatchSettings(queue_requests=requests, queue_rows=rows))
        two = np.ones((2, 1), np.int64)
        accepted = [batcher.submit({"x": two}, 2, ()) for _ in range(3)]
        with pytest.raises(Overloaded, match="queue is full: 3 requests with 6 rows") as refused:
            batcher.submit({"x": two}, 2, ())
        assert refused.value.retry_after > 0
        accepted.pop().cancel()
        accepted.append(batcher.submit({"x": two}, 2, ()))  # a place that was given up is free
        await asyncio.gather(*accepted)
        await batcher.submit({"x": two}, 2, ())

    asyncio.run(everyone())


def test_who_has_gone_is_not_worked_for() -> None:
    runs: list[int] = []

    def run(arrays: Arrays) -> Arrays:
        runs.append(len(arrays["x"]))
        return double(arrays)

    async def everyone() -> None:
        batcher = Batcher(run, BatchSettings())
        one = np.ones((1, 1), np.int64)
        futures = [batcher.submit({"x": one}, 1, ()) for _ in range(5)]
        for future in futures[:3]:
            future.cancel()
        await asyncio.gather(*futures[3:])

    asyncio.run(everyone())
    assert runs == [2]


@pytest.mark.parametrize(
    "lie", [lambda a: {"y": a["x"][:1]}, lambda a: {"y": np.float32(1)}, lambda a: 1 / 0]
)
def test_a_model_that_lies_about_its_rows_fails(lie: Callable[[Arrays], Arrays]) -> None:
    async def everyone() -> list[Arrays | BaseException]:
        batcher = Batcher(lie, BatchSettings())
        two = np.ones((2, 1), np.float32)
        return await asyncio.gather(
            *(batcher.submit({"x": two}, 2, ()) for _ in range(2)), return_exceptions=True
        )

    assert all(isinstance(answer, BackendFailure) for answer in asyncio.run(everyone()))


def test_real_rows_answer_alike_alone_and_joined() -> None:
    session = open_session(digits_graph().SerializeToString())
    rows = digits_rows(40)

    async def everyone() -> list[Arrays]:
        batcher = Batcher(session.run, BatchSettings(rows=16))
        return await asyncio.gather(
            *(batcher.submit({"image": row[None]}, 1, row.shape) for row in rows)
        )

    for row, answer in zip(rows, asyncio.run(everyone()), strict=True):
        alone = session.run({"image": row[None]})
        for name in alone:
            np.testing.assert_allclose(answer[name], alone[name], atol=1e-5)
