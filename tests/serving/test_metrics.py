"""What workers count: the shared memory, its names, and what is added up from it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import timeit
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.observability import cells
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.observability.call import Call
from serving.observability.ledger import NAME_BYTES, Ledger
from serving.observability.metrics import Metrics
from serving.observability.statistics import as_json, statistics

FORK = multiprocessing.get_context("fork")


def success(metrics: Metrics, name: str = "a", version: str = "1", door: int = cells.HTTP) -> None:
    metrics.meter(name, version).success(door, 3, 100, 50, 0.001, 0.002, 0.003, 0.004, 0.01)


def test_the_cells_of_a_row_do_not_overlap():
    edges = [cells.REQUESTS, cells.ROWS, cells.RECEIVED, cells.SENT, cells.FAILED_SECONDS]
    edges += [cells.DECODE_SECONDS, cells.LAST, cells.QUEUE, cells.QUEUE_SUM, cells.RUN]
    edges += [cells.RUN_SUM, cells.CODEC, cells.CODEC_SUM, cells.TOTAL, cells.TOTAL_SUM]
    edges += [cells.BATCHES, cells.BATCH_SECONDS, cells.BATCH_ROWS, cells.WAITING]
    edges += [cells.WAITING_ROWS, cells.STATE, cells.FALLBACK, cells.ACCOUNT_CELLS]
    assert edges == sorted(set(edges))
    assert cells.account(cells.OVERFLOW).stop == cells.ROW_CELLS
    assert cells.ANSWERED[cells.GRPC] + len(cells.GRPC_CODES) == cells.MEMORY


@given(st.integers(0, 10_000))
def test_a_batch_is_counted_under_its_size(rows: int):
    place = cells.batch_place(rows)
    sizes = (*cells.BATCH_SIZES, float("inf"))
    assert rows <= sizes[place] and (not place or rows > sizes[place - 1])


@given(st.lists(st.floats(0, 20), max_size=30))
def test_durations_fall_into_their_buckets(seconds: list[float]):
    ledger = Ledger()
    meter = Metrics(ledger).meter("a", "1")
    for value in seconds:
        meter.success(cells.GRPC, 1, 0, 0, value, 0, 0, 0, value)
    account = ledger.accounts(1)[0]
    expected = np.histogram(np.nextafter(seconds, -1), [-1, *cells.SECONDS, 1e9])[0]
    assert account[cells.QUEUE : cells.QUEUE_SUM].tolist() == expected.tolist()
    assert account[cells.TOTAL : cells.TOTAL_SUM].tolist() == expected.tolist()
    assert account[cells.QUEUE_SUM] == pytest.approx(sum(seconds))


def test_statistics_are_told_as_triton_tells_them():
    ledger = Ledger(2)
    first, second = Metrics(ledger, 0), Metrics(ledger, 1)
    success(first)
    success(second, door=cells.GRPC)
    second.meter("a", "1").failure(cells.GRPC, cells.OVERLOADED, 7, 8, 0.5)
    first.meter("a", "1").batch(3, 0.002)
    second.meter("a", "1").batch(3, 0.004)
    second.meter("a", "1").batch(100, 0.008)
    (told,) = as_json([statistics(ledger, "a", "1")])["model_stats"]
    assert abs(told.pop("last_inference") / 1000 - time.time()) < 60
    assert told == {
        "name": "a",
        "version": "1",
        "inference_count": 6,
        "execution_count": 3,
        "inference_stats": {
            "success": {"count": 2, "ns": 20_000_000},
            "fail": {"count": 1, "ns": 500_000_000},
            "queue": {"count": 2, "ns": 2_000_000},
            "compute_input": {"count": 2, "ns": 6_000_000},
            "compute_infer": {"count": 2, "ns": 4_000_000},
            "compute_output": {"count": 2, "ns": 8_000_000},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": count, "ns": 0},
                "compute_infer": {"count": count, "ns": ns},
                "compute_output": {"count": count, "ns": 0},
            }
            for size, count, ns in ((3, 2, 6_000_000), (128, 1, 8_000_000))
        ],
    }


def test_a_model_that_was_never_asked_has_statistics_of_zero():
    told = statistics(Ledger(), "nobody", "1")
    assert not told.inferences and not told.success.count and not told.batches


# Names


def test_every_worker_gives_a_model_the_same_place():
    ledger = Ledger(2)
    metrics = [Metrics(ledger, worker) for worker in (0, 1)]
    for name, version in (("b", "1"), ("a", "1"), ("a", "2"), ("b", "1")):
        assert len({id(m.meter(name, version)) for m in metrics}) == 2
        assert metrics[0].meter(name, version) is metrics[0].meter(name, version)
    assert ledger.names() == [("b", "1"), ("a", "1"), ("a", "2")]
    assert ledger.find("a", "2") == 3 and ledger.find("c", "1") is None


def test_models_beyond_the_last_place_share_one():
    metrics = Metrics()
    for number in range(cells.MODELS + 50):
        success(metrics, f"m{number}")
    success(metrics, "m0")
    success(metrics, "x" * NAME_BYTES)
    assert len(metrics.ledger.names()) == cells.MODELS
    assert metrics.meter("m300", "1").name == cells.OTHER
    assert metrics.ledger.accounts(1)[0, cells.REQUESTS] == 2
    assert metrics.ledger.accounts(cells.OVERFLOW)[0, cells.REQUESTS] == 51


def test_a_name_left_half_written_is_free():
    """A worker killed while it wrote an entry leaves no model, and takes no place."""
    ledger = Ledger()
    ledger.slot("whole", "1")
    ledger._memory[NAME_BYTES : NAME_BYTES + 12] = b"\x12\x34\x56\x78\x0a\x00half\x001"
    assert ledger.names() == [("whole", "1")]
    assert ledger.slot("next", "1") == 2
    assert ledger.names() == [("whole", "1"), ("next", "1")]


@given(st.text(max_size=60), st.text(max_size=60))
def test_names_come_back_as_they_were(name: str, version: str):
    ledger = Ledger()
    name, version = name.replace("\0", ""), version.replace("\0", "")
    try:
        (name + version).encode()
    except UnicodeEncodeError:
        return
    slot = ledger.slot(name, version)
    assert slot == 1 and Ledger.names(ledger) == [(name, version)]


# Processes


def forked(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=work)
    process.start()
    return process


def test_processes_that_write_at_once_lose_nothing():
    ledger, each = Ledger(3), 5_000

    def work(worker: int) -> None:
        metrics = Metrics(ledger, worker)
        for number in range(each):
            success(metrics, f"m{(number + worker) % 7}")
            metrics.answered(cells.HTTP, 200)

    processes = [forked(lambda worker=worker: work(worker)) for worker in range(3)]  # type: ignore[misc]
    seen = 0.0
    while any(process.is_alive() for process in processes):
        now = float(ledger.heads()[:, cells.ANSWERED[cells.HTTP]].sum())
        assert now >= seen
        seen = now
    for process in processes:
        process.join()
    assert sorted(ledger.names()) == [(f"m{number}", "1") for number in range(7)]
    counted = sum(ledger.accounts(slot)[:, cells.REQUESTS].sum() for slot in range(1, 8))
    assert counted == 3 * each
    assert ledger.heads()[:, cells.ANSWERED[cells.HTTP]].tolist() == [each] * 3


def test_a_killed_worker_leaves_what_it_counted_and_no_gauges():
    ledger = Ledger(2)
    for kills in range(1, 6):

        def work() -> None:
            metrics = Metrics(ledger, 1)
            metrics.meter("a", "1").now("ready", 9, 99, False)
            metrics.connections(4)
            while True:
                success(metrics)

        before = ledger.accounts(1)[1, cells.REQUESTS]
        process = forked(work)
        while ledger.accounts(1)[1, cells.REQUESTS] < before + 200:
            time.sleep(0.001)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        account = ledger.accounts(1)[1]
        assert account[cells.REQUESTS] >= before + 200
        # Killed between two cells, each of them left at most one request half counted.
        for start in (cells.QUEUE, cells.TOTAL):
            counted = account[start : start + cells.BUCKETS].sum()
            assert account[cells.REQUESTS] - kills <= counted <= account[cells.REQUESTS]
    kept = ledger.accounts(1)[1, cells.REQUESTS]
    again = Metrics(ledger, 1)
    account = ledger.accounts(1)[1]
    assert account[cells.REQUESTS] == kept
    assert not account[cells.WAITING] and not account[cells.STATE]
    head = ledger.heads()[1]
    assert head[cells.STARTS] == 6 and not head[cells.CONNECTIONS]
    again.sample_process()


def test_a_worker_killed_while_it_holds_the_lock_stops_nobody():
    ledger = Ledger()

    def work() -> None:
        import fcntl

        fcntl.lockf(ledger.descriptor, fcntl.LOCK_EX)
        ledger._memory[0:1] = b"x"
        os.kill(os.getpid(), signal.SIGKILL)

    forked(work).join()
    assert ledger.slot("a", "1") == 1 and ledger.names() == [("a", "1")]


def test_a_worker_started_afresh_opens_the_memory_by_its_descriptor():
    ledger = Ledger(2)
    same = Ledger(2, ledger.descriptor)
    success(Metrics(same, 1))
    assert ledger.names() == [("a", "1")]
    assert ledger.accounts(1)[1, cells.ROWS] == 3


def test_cpu_seconds_go_on_where_a_dead_workers_stopped():
    ledger = Ledger()

    def work() -> None:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        Metrics(ledger).sample_process()

    seen = []
    for _ in range(2):
        forked(work).join()
        seen.append(ledger.heads()[0, cells.CPU_SECONDS])
    assert seen[0] >= 0.09 and seen[1] >= seen[0] + 0.09


def test_the_kernel_tells_of_this_process():
    metrics = Metrics()
    metrics.sample_process()
    head = metrics.ledger.heads()[0]
    assert 1 << 20 < head[cells.MEMORY] < 1 << 40
    assert head[cells.CPU_SECONDS] > 0 and abs(head[cells.STARTED] - time.time()) < 60
    before = head[cells.FILES]
    assert before >= 3
    with open(os.devnull), open(os.devnull):
        metrics._sampled = -1e9
        metrics.sample_process()
        assert metrics.ledger.heads()[0, cells.FILES] == before + 2


def test_a_status_nobody_thought_of_is_counted_as_other():
    metrics = Metrics()
    metrics.answered(cells.HTTP, 299)
    metrics.answered(cells.GRPC, "NEW")
    head = metrics.ledger.heads()[0]
    for door, codes in ((cells.HTTP, cells.HTTP_CODES), (cells.GRPC, cells.GRPC_CODES)):
        assert head[cells.ANSWERED[door] + codes.index("other")] == 1


def test_counting_a_request_costs_little():
    """Three microseconds of CPU are the budget; the least of many tries is what it costs."""
    metrics = Metrics()
    meter = metrics.meter("a", "1")

    def request() -> None:
        meter.success(cells.HTTP, 1, 300, 200, 2e-5, 3e-5, 1e-5, 1e-5, 1e-4)
        meter.batch(1, 3e-5)
        metrics.answered(cells.HTTP, 200)

    number = 2_000
    seconds = min(timeit.repeat(request, timer=time.process_time, number=number, repeat=30))
    print(f"bookkeeping of one request: {seconds / number * 1e6:.2f} us of CPU")
    assert seconds / number < 3e-6


@pytest.mark.parametrize("logged", [False, True])
def test_noting_a_request_costs_little(logged: bool):
    """All that is done for a request's books, its id and its line in the log included."""
    metrics = Metrics()
    books = Books(metrics, AccessLog(logged, os.open(os.devnull, os.O_WRONLY)))
    meter = metrics.meter("digits-cnn", "1")

    def request() -> None:
        call = Call()
        call.meter, call.digest, call.rows = meter, "d" * 64, 1
        call.queued = call.started = call.ended = time.perf_counter()
        path, door = "/v2/models/digits-cnn/infer", cells.HTTP
        books.note(call, door, "POST", path, 200, books.new_id(), "", 300, 200, call.queued)

    least, number = 1.0, 1_000
    for _ in range(30):
        least = min(least, timeit.timeit(request, timer=time.process_time, number=number) / number)
        books.tick()
    print(f"the books of one request{', logged' * logged}: {least * 1e6:.2f} us of CPU")
    assert least < 12e-6
