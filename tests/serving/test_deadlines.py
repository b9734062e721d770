"""What runs too long is ended: the watchdog, one run, and a request to a real server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serving.config import RuntimeSettings
from serving.errors import DeadlineExceeded
from serving.inference.runtime import Session, open_session
from serving.system import watchdog as dogs
from serving.system.watchdog import LOOK_SECONDS, QUIET_LOOKS, STUCK_EXIT, Watchdog
from tests.serving.bundles import digits_graph
from tests.serving.graphs import (
    LOOPS_ALLOWED,
    counting,
    make_counting_bundle,
    one_long_operator,
)
from tests.serving.live import ROOT, Live, tensor

FOREVER = 2**40
SLACK = 1.0  # of a busy machine; the watchdog itself is at most LOOK_SECONDS late


def flag() -> SimpleNamespace:
    return SimpleNamespace(terminate=False)


def settled(condition: Callable[[], object], seconds: float = 10) -> bool:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    return bool(condition())


def test_what_is_late_is_told_to_stop_and_nothing_else() -> None:
    dog, now = Watchdog(), time.monotonic()
    late, early, ended = flag(), flag(), flag()
    dog.begin(now + 0.1, 0, late)
    dog.begin(now + 60, 0, early)
    dog.end(dog.begin(now + 0.1, 0, ended))
    assert settled(lambda: late.terminate)
    assert 0.1 <= time.monotonic() - now < 0.1 + SLACK
    assert not early.terminate and not ended.terminate
    assert 0 < dog.overdue(time.monotonic()) < SLACK


def test_the_thread_sleeps_when_nothing_runs_and_wakes_for_what_does() -> None:
    dog = Watchdog()
    dog.end(dog.begin(time.monotonic() + 60, 0, flag()))
    assert settled(lambda: dog._asleep, 4 * LOOK_SECONDS * QUIET_LOOKS)
    late = flag()
    dog.begin(time.monotonic() + 0.05, 0, late)
    assert settled(lambda: late.terminate)


def test_what_does_not_stop_is_told_of_once() -> None:
    told: list[float] = []
    dog = Watchdog(told.append)
    deaf, patient = flag(), flag()
    dog.begin(time.monotonic(), 0.1, deaf)
    dog.begin(time.monotonic(), 0, patient)  # 0: however long it goes on
    assert settled(lambda: told)
    time.sleep(4 * LOOK_SECONDS)
    assert len(told) == 1 and told[0] >= 0.1


def test_a_thread_for_all_and_another_after_a_fork() -> None:
    assert dogs.watchdog() is dogs.watchdog()
    code = (
        "import os, sys, time\n"
        "from serving.system.watchdog import watchdog\n"
        "from types import SimpleNamespace as N\n"
        "watchdog().begin(time.monotonic() + 60, 0, N(terminate=False))\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    late = N(terminate=False)\n"
        "    assert not watchdog().running\n"
        "    watchdog().begin(time.monotonic(), 0, late)\n"
        "    time.sleep(1)\n"
        "    os._exit(0 if late.terminate else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture(scope="module")
def counter() -> Session:
    return open_session(counting().SerializeToString(), RuntimeSettings(run_seconds=0.3))


def count(session: Session, steps: int, deadline: float | None = None) -> np.ndarray:
    return session.run({"steps": np.array([[steps]])}, deadline)["counted"]


def test_a_run_without_end_is_ended_and_the_next_one_runs(counter: Session) -> None:
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"not finish within 0\.3 s .*run_seconds"):
            count(counter, FOREVER)
        assert 0.3 <= time.monotonic() - began < 0.3 + SLACK
        assert count(counter, 7) == [[7]]


def test_a_request_may_want_it_sooner_and_never_later(counter: Session) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="before the request's deadline"):
        count(counter, FOREVER, began + 0.1)
    assert time.monotonic() - began < 0.1 + SLACK
    with pytest.raises(DeadlineExceeded, match="run_seconds"):
        count(counter, FOREVER, time.monotonic() + 60)
    with pytest.raises(DeadlineExceeded, match="had passed before the model ran"):
        count(counter, 1, time.monotonic() - 1)
    assert count(counter, 3, time.monotonic() + 60) == [[3]]


def test_neighbours_of_a_late_run_are_unharmed(counter: Session) -> None:
    """Runs that end while another is told to stop, on the same session, at the same time."""
    failures: list[BaseException] = []
    over = threading.Event()

    def late() -> None:
        with pytest.raises(DeadlineExceeded):
            count(counter, FOREVER)

    def steady() -> None:
        try:
            while not over.is_set():
                assert count(counter, 50) == [[50]]
        except BaseException as error:
            failures.append(error)

    beside = threading.Thread(target=steady)
    beside.start()
    for _ in range(3):
        late()
    over.set()
    beside.join()
    assert not failures


def test_nothing_is_watched_where_nobody_waits() -> None:
    before = dict(dogs.watchdog().running)
    session = open_session(digits_graph().SerializeToString())
    session.run({"image": np.zeros((1, 8, 8, 1), np.uint8)})
    assert dogs.watchdog().running == before


def test_a_process_with_an_operator_that_never_ends_gives_up(tmp_path: Path) -> None:
    """An operator cannot be interrupted; a supervisor can only start another process."""
    (tmp_path / "model.onnx").write_bytes(one_long_operator().SerializeToString())
    code = (
        "import pathlib, numpy, sys\n"
        "from serving.config import RuntimeSettings\n"
        "from serving.inference.runtime import open_session\n"
        "settings = RuntimeSettings(run_seconds=1, stuck_seconds=0.3)\n"
        "session = open_session(pathlib.Path(sys.argv[1]).read_bytes(), settings)\n"
        "print(session.run({'size': numpy.array([20])})['y'], flush=True)\n"
        "session.run({'size': numpy.array([2500])})"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == STUCK_EXIT, done.stderr
    assert done.stdout == "[40]\n" and '"event":"stopped: a model does not end"' in done.stderr
    assert time.monotonic() - began < 10


def test_a_request_that_takes_too_long_is_answered_504(
    start: Callable[..., Live], tmp_path: Path
) -> None:
    make_counting_bundle(tmp_path / "b")
    (tmp_path / "s.toml").write_text(LOOPS_ALLOWED + "[runtime]\nrun_seconds = 0.3\n")
    server = start(tmp_path / "b", "--config", str(tmp_path / "s.toml"))
    for _ in range(2):
        began = time.monotonic()
        status, answer = ask(server, FOREVER)
        assert status == 504 and "did not finish within 0.3 s" in answer["error"]
        assert time.monotonic() - began < 0.3 + SLACK
        assert ask(server, 5)[1]["outputs"][0]["data"] == [5]
    assert server.told().count('"level":"error"') == 2


def ask(server: Live, steps: int) -> tuple[int, dict]:
    body = {"inputs": [tensor("steps", np.array([[steps]]), "INT64")]}
    return server.json("POST", "/v2/models/counting/infer", body)
