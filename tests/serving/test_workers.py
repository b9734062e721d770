"""Workers that are killed, stuck or killed by their model: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.config import Settings
from serving.host import fitting_workers, usable_cores, usable_memory
from serving.launch import worker_count
from tests.serving.bundles import (
    FATAL,
    digits_graph,
    digits_rows,
    make_bundle,
    make_division_bundle,
    make_endless_bundle,
)
from tests.serving.live import Live, tensor
from tests.serving.test_control import change

DIGITS = "/v2/models/digits-test/infer"
DIVISION = "/v2/models/division/infer"
BODY = {"inputs": [tensor("image", digits_rows(1), "UINT8")]}

Start = Callable[..., Live]


def events(server: Live, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.told().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def divide(server: Live, numerator: int, denominator: int) -> tuple[int, Any] | None:
    """The answer, or none where the connection broke."""
    columns = {"numerator": numerator, "denominator": denominator}
    inputs = [tensor(k, np.array([[v]], np.int32), "INT32") for k, v in columns.items()]
    try:
        return server.json("POST", DIVISION, {"inputs": inputs})
    except (ConnectionError, TimeoutError):
        return None


def refused(server: Live) -> bool:
    try:
        server.socket().close()
    except ConnectionError:
        return True
    return False


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_two_workers_one_line_and_both_answer(start: Start, bundle: Path) -> None:
    server = start(bundle, "--workers", "2")
    assert server.told().count("\n") == 1 + len(events(server, "more threads than cores"))
    assert len(server.workers()) == 2
    for pid in server.workers():  # each in turn, with the other stopped
        other = next(p for p in server.workers() if p != pid)
        os.kill(other, signal.SIGSTOP)
        # The kernel deals connections out: those for the stopped one wait in its queue.
        socks = [server.socket() for _ in range(16)]
        for sock in socks:
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        for sock in socks:
            sock.setblocking(False)
        answered = 0
        for sock in socks:
            with suppress(BlockingIOError):
                answered += b" 200 OK" in sock.recv(1000)
        os.kill(other, signal.SIGCONT)
        assert 0 < answered < 16
        for sock in socks:
            sock.close()


def test_a_port_in_use_by_another_with_workers(start: Start, bundle: Path) -> None:
    """Sockets that share a port would share it with a stranger's, too."""
    server = start(bundle, "--workers", "2")
    second = start(bundle, "--workers", "2", "--port", str(server.port), wait=False)
    assert second.process.wait(20) == 1
    assert "is in use" in second.told().splitlines()[-1]


@pytest.mark.parametrize("number", ["auto", "0"])
def test_as_many_as_the_cores_allow(start: Start, bundle: Path, number: str) -> None:
    server = start(bundle, "--workers", number)
    assert len(server.workers()) == fitting_workers(usable_cores(), 1, usable_memory())


def test_more_threads_than_cores_are_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    cores = usable_cores()
    assert worker_count(Settings(workers=cores)) == cores
    assert not capfd.readouterr().err
    assert worker_count(Settings(workers=cores + 1)) == cores + 1
    assert "more threads than cores" in capfd.readouterr().err


@pytest.mark.parametrize("number", ["-1", "many", "257", "1.5"])
def test_numbers_of_workers_that_are_none(start: Start, bundle: Path, number: str) -> None:
    server = start(bundle, "--workers", number, wait=False)
    assert server.process.wait(20) == 2
    assert "workers" in server.told() and "Traceback" not in server.told()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT])
def test_a_single_worker_is_replaced_and_its_clients_wait(
    start: Start, bundle: Path, number: signal.Signals
) -> None:
    server = start(bundle)
    expected = server.json("POST", DIGITS, BODY)
    (pid,) = server.workers()
    began = time.monotonic()
    os.kill(pid, number)
    until(lambda: gone(pid))
    assert server.json("POST", DIGITS, BODY) == expected  # neither refused nor 503
    assert time.monotonic() - began < 3
    until(lambda: events(server, "worker is back"))
    (died,) = events(server, "worker died")
    assert died["how"] == number.name and died["models"] == []
    assert died["why"] == ("crashed" if number is signal.SIGABRT else "signalled")
    assert server.workers() != [pid] and server.stop() == 0


def test_a_worker_told_to_leave_is_replaced(start: Start, bundle: Path) -> None:
    server = start(bundle)
    (pid,) = server.workers()
    os.kill(pid, signal.SIGTERM)
    until(lambda: events(server, "worker is back"))
    assert server.json("POST", DIGITS, BODY)[0] == 200
    assert events(server, "worker died")[0]["how"] == "exit code 0"


def test_a_model_that_kills_is_quarantined_and_the_rest_answer(
    start: Start, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    make_division_bundle(tmp_path / "r" / "division" / "1")
    server = start(tmp_path / "r", "--workers", "2")
    for _ in range(3):
        assert divide(server, 7, 2) == (200, divide(server, 7, 2)[1])  # type: ignore[index]
        died = len(events(server, "worker died"))
        assert divide(server, *FATAL) is None
        until(lambda died=died: len(events(server, "worker died")) == died + 1)
        assert server.json("POST", DIGITS, BODY)[0] == 200
    until(lambda: events(server, "model quarantined"))
    until(lambda: len(events(server, "worker is back")) == 3)
    (first, *_) = events(server, "worker died")
    assert first["how"] == "SIGFPE" and first["models"][0].startswith("division/1@")
    for _ in range(20):  # on every worker
        answer = divide(server, 7, 2)
        assert answer and answer[0] == 503 and "quarantined: workers died 3" in answer[1]["error"]
        assert server.json("POST", DIGITS, BODY)[0] == 200
        index = {e["name"]: e for e in server.json("POST", "/v2/repository/index")[1]}
        assert index["division"]["state"] == "UNAVAILABLE"
        assert "quarantined" in index["division"]["reason"]
        assert index["digits-test"]["state"] == "READY"
    os.kill(server.workers()[0], signal.SIGKILL)  # a new worker knows
    until(lambda: len(events(server, "worker is back")) == 4)
    for _ in range(10):
        answer = divide(server, 7, 2)
        assert answer and answer[0] == 503
    assert server.json("GET", "/v2/health/ready")[0] == 200


def test_a_model_that_kills_while_it_loads(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    make_division_bundle(tmp_path / "r" / "division" / "1", fatal=True)
    server = start(tmp_path / "r")
    assert len(events(server, "worker died")) == 3
    assert server.json("POST", DIGITS, BODY)[0] == 200
    answer = divide(server, 7, 2)
    assert answer and answer[0] == 503 and "quarantined" in answer[1]["error"]


def test_the_only_model_kills_while_it_loads(start: Start, tmp_path: Path) -> None:
    make_division_bundle(tmp_path / "division", fatal=True)
    server = start(tmp_path / "division", wait=False)
    assert server.process.wait(20) == 1
    assert "error: " in server.told() and "quarantined" in server.told().splitlines()[-1]


def test_the_next_content_of_a_quarantined_version_gets_a_chance(
    start: Start, tmp_path: Path
) -> None:
    """What is quarantined is these bytes under this name, not the name."""
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    make_division_bundle(tmp_path / "r" / "division" / "1", fatal=True)
    server = start(tmp_path / "r")
    for path in (tmp_path / "r" / "division" / "1").iterdir():
        path.unlink()
    (tmp_path / "r" / "division" / "1").rmdir()
    make_division_bundle(tmp_path / "r" / "division" / "1")
    back = len(events(server, "worker is back"))
    os.kill(server.workers()[0], signal.SIGKILL)
    until(lambda: len(events(server, "worker is back")) > back)
    assert divide(server, 7, 2)[0] == 200  # type: ignore[index]


def test_a_stuck_worker_is_aborted_and_replaced(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    make_endless_bundle(tmp_path / "r" / "endless" / "1")
    (tmp_path / "serve.toml").write_text(
        "[graph]\nforbidden_operators = []\n[supervision]\nstuck_seconds = 2\n"
    )
    server = start(tmp_path / "r", "--config", str(tmp_path / "serve.toml"))
    turns = tensor("turns", np.array([[2**62]]), "INT64")
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        server.json("POST", "/v2/models/endless/infer", {"inputs": [turns]})
    assert time.monotonic() - began < 8
    assert server.json("POST", DIGITS, BODY)[0] == 200
    (died,) = events(server, "worker died")
    assert died["why"] == "stuck" and died["models"][0].startswith("endless/1@")
    assert "Fatal Python error: Aborted" in server.told() and "runtime.py" in server.told()


def test_a_stopped_worker_is_killed(start: Start, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("[supervision]\nstuck_seconds = 2\n")
    server = start(bundle, "--config", str(tmp_path / "serve.toml"))
    (pid,) = server.workers()
    os.kill(pid, signal.SIGSTOP)
    until(lambda: events(server, "worker is back"), 15)
    assert gone(pid) and server.json("POST", DIGITS, BODY)[0] == 200


def test_workers_die_with_the_supervisor(start: Start, bundle: Path) -> None:
    server = start(bundle, "--workers", "2")
    pids = server.workers()
    os.kill(pids[0], signal.SIGSTOP)  # not even this one keeps the port
    server.process.kill()
    until(lambda: all(gone(pid) for pid in pids), 5)
    until(lambda: refused(server), 5)  # a process's sockets outlive its first thread by a moment
    again = start(bundle, "--port", str(server.port))
    assert again.json("POST", DIGITS, BODY)[0] == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_at_once_is_one_signal(
    start: Start, bundle: Path, number: signal.Signals
) -> None:
    """As a terminal sends them, and a service manager."""
    if signal.getsignal(number) is signal.SIG_IGN:  # and so will what this starts
        pytest.skip(f"this process ignores {number.name}")
    server = start(bundle, "--workers", "2", "--notice", "0.5")
    for pid in (*server.workers(), server.process.pid):
        os.kill(pid, number)
    time.sleep(0.2)
    assert server.json("POST", DIGITS, BODY)[0] == 200
    assert server.process.wait(20) == 0
    assert not events(server, "worker died")


def test_a_second_signal_ends_all_workers_at_once(start: Start, bundle: Path) -> None:
    server = start(bundle, "--workers", "2", "--notice", "30")
    pids = server.workers()
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(5) == 1
    assert all(gone(pid) for pid in pids)


def test_a_worker_that_will_not_leave_is_killed(start: Start, bundle: Path) -> None:
    server = start(bundle, "--workers", "2", "--drain", "0.1")
    os.kill(server.workers()[0], signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(15) == 0
    assert events(server, "workers that did not leave were killed")


# Changes


def versions(server: Live) -> list[str]:
    """What the workers answer with, over enough connections to have met all of them."""
    return sorted({server.json("POST", DIGITS, BODY)[1].get("model_version") for _ in range(24)})


def test_a_change_reaches_all_workers_and_those_that_come_later(
    start: Start, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    server = start(tmp_path / "r", "--workers", "2", "--control-port", "0")
    make_bundle(tmp_path / "r" / "digits-test" / "2", digits_graph(seed=2))
    assert versions(server) == ["1"]
    status, told = change(server, "load")
    assert status == 200 and [v["version"] for v in told["versions"]] == ["1", "2"]
    assert versions(server) == ["2"]
    assert change(server, "unload", version="2")[0] == 200
    assert versions(server) == ["1"]
    for n in (1, 2):  # the folder has version 2; only what was asked for keeps it away
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda n=n: len(events(server, "worker is back")) == n)
        assert versions(server) == ["1"]
    assert change(server, "load")[0] == 200
    assert versions(server) == ["2"]
    os.kill(server.workers()[0], signal.SIGKILL)
    until(lambda: len(events(server, "worker is back")) == 3)
    assert versions(server) == ["2"]


def test_a_load_that_one_worker_cannot_answer_is_told(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    server = start(tmp_path / "r", "--workers", "2", "--control-port", "0", "--drain", "1")
    make_division_bundle(tmp_path / "r" / "division" / "1", fatal=True)
    answer: list[Any] = []
    with suppress(ConnectionError):  # the worker that was asked may be the one that dies
        answer.append(change(server, "load", "division"))
    assert not answer or (answer[0][0] == 503 and "the worker died" in answer[0][1]["error"])
    until(lambda: events(server, "model quarantined"))
    assert events(server, "model quarantined")[0]["model"].startswith("division/1@")
    until(lambda: len(events(server, "worker is back")) >= 2)
    for _ in range(10):
        assert server.json("POST", DIGITS, BODY)[0] == 200


def test_one_page_of_numbers_for_all_workers(start: Start, bundle: Path) -> None:
    server = start(bundle, "--workers", "2")
    for _ in range(20):
        assert server.json("POST", DIGITS, BODY)[0] == 200
    os.kill(server.workers()[0], signal.SIGKILL)
    until(lambda: events(server, "worker is back"))
    time.sleep(0.5)
    told = server.json("GET", "/v2/models/digits-test/stats")[1]["model_stats"][0]
    assert told["inference_stats"]["success"]["count"] == 20
