"""The policies of restarting and blaming, and the memory that tells who was running."""

from __future__ import annotations

import os
import signal
import threading
import timeit

import pytest

from serving.workers.restarts import Backoff, Strikes, cause
from serving.workers.scoreboard import CELLS, Board, Doing, Run, Suspect, Watch


def running(*keys: str) -> list[Suspect]:
    return [Suspect(key, Doing.RUNNING) for key in keys]


def test_delays_grow_to_a_limit_and_start_anew_after_a_long_life() -> None:
    backoff = Backoff()
    delays = [backoff.delay(1.0, sent=False) for _ in range(9)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.delay(31.0, sent=False) == 0.0
    assert backoff.delay(1.0, sent=False) == 0.1


def test_a_death_somebody_sent_costs_no_delay() -> None:
    backoff = Backoff()
    assert [backoff.delay(0.5, sent=True) for _ in range(5)] == [0.0] * 5


@pytest.mark.parametrize(
    ("number", "outside", "stuck", "out_of_memory", "expected"),
    [
        (signal.SIGSEGV, False, False, False, ("crashed", False)),
        (signal.SIGSEGV, True, False, False, ("signalled", True)),
        (signal.SIGABRT, False, True, False, ("stuck", False)),
        (-70, False, True, False, ("stuck", False)),
        (signal.SIGKILL, False, False, True, ("out of memory", False)),
        (signal.SIGKILL, False, False, False, ("signalled", True)),
        (signal.SIGTERM, False, False, False, ("signalled", True)),
        (0, False, False, True, ("ended", True)),
        (-1, False, False, False, ("ended", False)),
    ],
)
def test_whom_a_death_says_something_of(
    number: int, outside: bool, stuck: bool, out_of_memory: bool, expected: tuple[str, bool]
) -> None:
    assert cause(number, outside, stuck, out_of_memory) == expected


def test_three_deaths_within_the_time() -> None:
    strikes = Strikes(3, 60)
    assert [strikes.struck(running("m"), now) for now in (0, 10, 20)] == [[], [], ["m"]]


def test_deaths_far_apart_are_forgiven() -> None:
    strikes = Strikes(3, 60)
    assert not any(strikes.struck(running("m"), now) for now in (0, 50, 61, 115, 170))


def test_never() -> None:
    strikes = Strikes(0, 60)
    assert not any(strikes.struck(running("m"), now) for now in range(20))


def test_nobody_ran() -> None:
    assert Strikes(1, 60).struck([], 0) == []


def test_who_is_being_opened_is_blamed_before_those_that_ran_well() -> None:
    strikes = Strikes(1, 60)
    assert strikes.struck([Suspect("new", Doing.OPENING), *running("old")], 0) == ["new"]


def test_of_several_running_none_is_blamed_but_they_take_turns() -> None:
    strikes = Strikes(1, 60)
    assert strikes.struck(running("a", "b"), 0) == []
    assert strikes.apart(1) == {"a", "b"}
    assert strikes.struck(running("b"), 1) == ["b"]
    assert strikes.apart(100) == frozenset()


def test_the_board_outlives_its_writer() -> None:
    board = Board(2)
    if not (pid := os.fork()):
        watch = Watch(board.row(1))
        board.row(1).beat()
        watch.cell("idle/1@a")
        watch.cell("guilty/3@b").around(lambda arrays: os._exit(0))({})
    os.waitpid(pid, 0)
    assert board.row(1).suspects() == running("guilty/3@b")
    assert board.row(1).beats == 1
    assert board.row(0).suspects() == [] and board.row(0).beats == 0
    board.row(1).wipe()
    assert board.row(1).suspects() == [] and board.row(1).beats == 0


def test_a_model_that_raises_is_no_suspect() -> None:
    row = Board(1).row(0)
    cell = row.cell("m")
    with pytest.raises(ZeroDivisionError):
        cell.around(lambda arrays: {"y": 1 / 0})({})
    with pytest.raises(ZeroDivisionError), cell.opening():
        assert row.suspects() == [Suspect("m", Doing.OPENING)]
        raise ZeroDivisionError
    assert row.suspects() == []


def test_places_are_used_again_and_too_many_models_run_unwatched() -> None:
    row = Board(1).row(0)
    cells = [row.cell(f"m{n}") for n in range(CELLS)]
    assert row.cell("beyond").around(lambda arrays: {"n": len(row.suspects())})({}) == {"n": 0}
    cells[7].release()
    cells[7].release()
    again = row.cell("again")
    assert again.around(lambda arrays: {"s": row.suspects()})({}) == {"s": running("again")}


def test_models_kept_apart_take_turns() -> None:
    row = Board(1).row(0)
    watch = Watch(row, apart=frozenset({"a", "b"}))
    together: list[int] = []
    pause = threading.Event()

    def run(arrays: object) -> dict[str, int]:
        together.append(len(row.suspects()))
        pause.wait(0.01)
        return {}

    def often(noted: Run[dict[str, int]]) -> None:
        for _ in range(5):
            noted({})

    threads = [
        threading.Thread(target=often, args=[watch.cell(key).around(run)]) for key in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 10


def test_noting_costs_well_below_a_microsecond() -> None:
    cell = Board(1).row(0).cell("m")

    def run(arrays: object) -> dict[str, int]:
        return {}

    noted = cell.around(run)
    bare = min(timeit.repeat(lambda: run({}), number=20_000, repeat=5)) / 20_000
    cost = min(timeit.repeat(lambda: noted({}), number=20_000, repeat=5)) / 20_000 - bare
    assert cost < 0.7e-6
