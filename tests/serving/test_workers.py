"""Workers that are killed, stuck or killed by their model: real processes, real signals."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.config import Settings
from serving.launch import worker_count
from serving.system.host import fitting_workers, usable_cores, usable_memory
from tests.serving.bundles import (
    FATAL,
    digits_graph,
    digits_rows,
    make_bundle,
    make_division_bundle,
    make_endless_bundle,
)
from tests.serving.live import Live, tensor
from tests.serving.test_control import change, index, with_ballast

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
    server = start(tmp_path / "r", "--control-port", "0")
    status, told = change(server, "load", "division")
    assert status == 400 and "quarantined" in told["error"]
    shutil.rmtree(tmp_path / "r" / "division" / "1")
    make_division_bundle(tmp_path / "r" / "division" / "1")
    back = len(events(server, "worker is back"))
    os.kill(server.workers()[0], signal.SIGKILL)
    until(lambda: len(events(server, "worker is back")) > back)
    assert divide(server, 7, 2)[0] == 503  # type: ignore[index]  # nobody asked for another
    assert change(server, "load", "division")[0] == 200
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


def answering(server: Live, path: str = DIGITS, times: int = 24) -> set[tuple[int, str, str]]:
    """(status, version, bundle) of answers, over enough connections to have met all workers."""
    found = set()
    for _ in range(times):
        status, answer = server.json("POST", path, BODY)
        bundle = answer.get("parameters", {}).get("bundle", answer.get("error"))
        found.add((status, answer.get("model_version", ""), bundle))
    return found


def kill(server: Live, pid: int) -> None:
    """Kill a worker and wait for its successor."""
    back = len(events(server, "worker is back"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(events(server, "worker is back")) > back)


def test_successors_serve_what_the_others_do_whatever_the_folder_holds(
    start: Start, tmp_path: Path
) -> None:
    digests = {n: make_bundle(tmp_path / "r" / "digits-test" / n) for n in ("1", "2")}
    make_bundle(tmp_path / "r" / "other" / "1")
    server = start(tmp_path / "r", "--workers", "2", "--control-port", "0")
    assert change(server, "unload", version="2")[0] == 200
    served = {(200, "1", digests["1"])}
    assert answering(server) == served
    graph = tmp_path / "r" / "digits-test" / "1" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])  # a copy under way, into the very file
    make_bundle(tmp_path / "r" / "digits-test" / "3", digits_graph(seed=3))
    make_bundle(tmp_path / "r" / "other" / "1", digits_graph(seed=4))
    over, seen = threading.Event(), set()

    def ask() -> None:
        while not over.is_set():
            with suppress(ConnectionError):
                seen.update(answering(server, times=1))

    asking = threading.Thread(target=ask)
    asking.start()
    kill(server, server.workers()[0])
    shutil.rmtree(tmp_path / "r" / "digits-test")
    kill(server, server.workers()[0])
    shutil.rmtree(tmp_path / "r")
    kill(server, server.workers()[0])
    over.set()
    asking.join()
    assert seen == served == answering(server)
    assert {s for s, *_ in answering(server, "/v2/models/digits-test/versions/2/infer")} == {404}
    assert {s for s, *_ in answering(server, "/v2/models/digits-test/versions/3/infer")} == {404}
    assert len(answering(server, "/v2/models/other/infer")) == 1
    assert server.json("GET", "/v2/health/ready")[0] == 200
    assert "model failed" not in server.told() and "missing" not in server.told()


def test_a_single_bundle_outlives_its_folder(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    server = start(tmp_path / "bundle")
    expected = server.json("POST", DIGITS, BODY)
    shutil.rmtree(tmp_path / "bundle")
    kill(server, server.workers()[0])
    assert server.json("POST", DIGITS, BODY) == expected


def test_a_bundle_that_cannot_be_had_takes_nothing_else_along(start: Start, tmp_path: Path) -> None:
    """Neither kept, for want of room, nor in its folder: the rest serves, and it is loud."""
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    make_bundle(tmp_path / "r" / "large" / "1", digits_graph(seed=2))
    server = start(tmp_path / "r", "--control-port", "0")
    (pid,) = server.workers()
    for file in Path(f"/proc/{server.process.pid}/fd").iterdir():
        if "/#" in str(file.readlink()) or "slipway-shelf" in str(file.readlink()):
            os.truncate(file, 0)  # as if the disk had lost it
    shutil.copytree(tmp_path / "r" / "large" / "1", tmp_path / "good")
    shutil.rmtree(tmp_path / "r" / "large" / "1")
    kill(server, pid)
    assert server.json("POST", DIGITS, BODY)[0] == 200
    status, told = server.json("POST", "/v2/models/large/infer", BODY)
    assert status == 503 and "cannot be had" in told["error"]
    assert events(server, "model missing in this worker")[0]["model"] == "large"
    metrics = server.ask("GET", "/metrics")[2].decode()
    assert 'slipway_model_state{model="large",version="1",state="failed"} 1' in metrics
    assert server.json("GET", "/v2/models/large/ready")[0] == 503
    shutil.copytree(tmp_path / "good", tmp_path / "r" / "large" / "1")
    assert change(server, "load", "large")[0] == 200
    assert server.json("POST", "/v2/models/large/infer", BODY)[0] == 200


def test_the_clients_of_a_worker_that_does_not_come_back_go_to_others(
    start: Start, bundle: Path
) -> None:
    server = start(bundle, "--workers", "2")
    survivor, over = server.workers()[1], threading.Event()

    def haunt() -> None:
        while not over.is_set():
            for pid in server.workers():
                if pid != survivor:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    haunting = threading.Thread(target=haunt)
    haunting.start()
    until(lambda: events(server, "worker does not come back: others take its clients"))
    began = time.monotonic()
    assert {status for status, *_ in answering(server, times=40)} == {200}
    assert time.monotonic() - began < 5
    over.set()
    haunting.join()
    until(lambda: events(server, "worker is back"))
    os.kill(survivor, signal.SIGSTOP)
    socks = [server.socket() for _ in range(16)]
    for sock in socks:
        sock.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    time.sleep(0.3)
    os.kill(survivor, signal.SIGCONT)
    assert all(b" 200 OK" in sock.recv(1000) for sock in socks)  # and it has its part of them


def test_a_change_reaches_all_workers_and_those_that_come_later(
    start: Start, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    server = start(tmp_path / "r", "--workers", "2", "--control-port", "0")

    def versions() -> list[str]:
        return sorted(version for _, version, _ in answering(server))

    make_bundle(tmp_path / "r" / "digits-test" / "2", digits_graph(seed=2))
    assert versions() == ["1"]
    status, told = change(server, "load")
    assert status == 200 and [v["version"] for v in told["versions"]] == ["1", "2"]
    assert versions() == ["2"]
    assert change(server, "unload", version="2")[0] == 200
    assert versions() == ["1"]
    for _ in range(2):  # the folder has version 2; only what was asked for keeps it away
        kill(server, server.workers()[0])
        assert versions() == ["1"]
    assert change(server, "load")[0] == 200
    assert versions() == ["2"]
    kill(server, server.workers()[0])
    assert versions() == ["2"]


def test_a_load_that_one_worker_has_no_memory_for_changes_none(
    start: Start, tmp_path: Path
) -> None:
    old = make_bundle(tmp_path / "r" / "digits-test" / "1")
    server = start(tmp_path / "r", "--workers", "2", "--control-port", "0")
    graph = digits_graph(seed=2)
    with_ballast(graph, np.random.default_rng(0).normal(size=16 << 20).astype(np.float32))
    new = make_bundle(tmp_path / "r" / "digits-test" / "2", graph)
    poor = server.workers()[1]
    pages = int(Path(f"/proc/{poor}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (48 << 20)
    before = resource.prlimit(poor, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for _ in range(3):  # planned by the poor one, or by the other
        status, told = change(server, "load")
        assert status == 400 and "memory" in told["error"], told
        assert answering(server) == {(200, "1", old)}
    state, reason = index(server)["digits-test", "2"]
    assert state == "UNAVAILABLE" and reason
    resource.prlimit(poor, resource.RLIMIT_AS, before)
    assert change(server, "load")[0] == 200
    assert answering(server) == {(200, "2", new)}
    assert server.workers()[1] == poor


def test_workers_that_die_while_models_change_leave_no_mixture(
    start: Start, tmp_path: Path
) -> None:
    digests = [make_bundle(tmp_path / str(seed), digits_graph(seed)) for seed in range(5)]
    place = tmp_path / "r" / "digits-test" / "1"
    place.parent.mkdir(parents=True)
    shutil.copytree(tmp_path / "0", place)
    server = start(tmp_path / "r", "--workers", "2", "--control-port", "0")
    dice = random.Random(0)

    def load() -> None:
        with suppress(ConnectionError):  # the worker that was asked may be the one that dies
            change(server, "load")

    for seed in range(1, 5):
        shutil.rmtree(place)
        shutil.copytree(tmp_path / str(seed), place)
        loading = threading.Thread(target=load)
        loading.start()
        time.sleep(dice.uniform(0, 0.03))
        kill(server, dice.choice(server.workers()))
        loading.join()
        ((status, _, bundle),) = answering(server)  # the old one or the new one, of all alike
        assert status == 200 and bundle in digests[: seed + 1]
    assert change(server, "load")[0] == 200
    assert answering(server) == {(200, "1", digests[4])}


def test_a_load_that_kills_is_told_and_given_up(start: Start, tmp_path: Path) -> None:
    """One worker tries it; the other, which passes on the answer, serves as it did."""
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    server = start(tmp_path / "r", "--workers", "2", "--control-port", "0", "--drain", "1")
    make_division_bundle(tmp_path / "r" / "division" / "1", fatal=True)
    for n in range(3):
        status, told = change(server, "load", "division")
        assert status == 503 and "the worker died" in told["error"]
        until(lambda n=n: len(events(server, "worker is back")) == n + 1)
        assert {status for status, *_ in answering(server)} == {200}
    assert events(server, "model quarantined")[0]["model"].startswith("division/1@")
    status, told = change(server, "load", "division")
    assert status == 400 and "quarantined" in told["error"]


def test_one_page_of_numbers_for_all_workers(start: Start, bundle: Path) -> None:
    server = start(bundle, "--workers", "2")

    def counted() -> int:
        told = server.json("GET", "/v2/models/digits-test/stats")[1]["model_stats"][0]
        return int(told["inference_stats"]["success"]["count"])

    for _ in range(20):
        assert server.json("POST", DIGITS, BODY)[0] == 200
    # An answer is counted just after it was sent: whoever counts must live until then.
    until(lambda: counted() == 20)
    kill(server, server.workers()[0])
    assert {counted() for _ in range(10)} == {20}  # of whichever worker one asks
