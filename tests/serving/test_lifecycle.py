"""Starting, refusing to start, and leaving without losing what was taken on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.bundles import digits_rows, make_bundle
from tests.serving.live import Live, receive, tensor

BODY = json.dumps({"inputs": [tensor("image", digits_rows(1), "UINT8")]}).encode()
INFER = b"POST /v2/models/digits-test/infer HTTP/1.1\r\nHost: x\r\n"
REQUEST = INFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

Start = Callable[..., Live]


def test_ready_within_two_seconds(start: Start, bundle: Path) -> None:
    """Seconds that its processes were ready to run, but others had the processor, do not count."""
    servers = [start(bundle) for _ in range(2)]
    assert min(server.seconds_to_ready - queued(server) for server in servers) < 2


def queued(server: Live) -> float:
    """Seconds that a server's threads have waited for a processor, as the kernel counts them."""
    tasks = (Path(f"/proc/{pid}/task") for pid in (server.process.pid, *server.workers()))
    told = [stat.read_text() for task in tasks for stat in task.glob("*/schedstat")]
    return sum(int(text.split()[1]) for text in told) / 1e9


def test_one_line_says_what_is_served_and_where(start: Start, bundle: Path) -> None:
    server = start(bundle)
    told = server.told()
    assert told.count("\n") == 1
    assert told.startswith("ready: digits-test version 1 (bundle ")
    assert told.endswith(f"...) on http://127.0.0.1:{server.port}\n")


def test_a_port_in_use_is_one_line(start: Start, bundle: Path) -> None:
    server = start(bundle)
    second = start(bundle, "--port", str(server.port), wait=False)
    assert second.process.wait(20) == 1
    assert second.told() == (
        f"error: 127.0.0.1:{server.port} is in use: stop what listens there, "
        "or choose another --port\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_public_addresses_are_refused(start: Start, bundle: Path, host: str) -> None:
    server = start(bundle, "--host", host, wait=False)
    assert server.process.wait(20) == 2
    assert "--insecure-public" in server.told() and "Traceback" not in server.told()


def test_public_addresses_if_insisted_on(start: Start, bundle: Path) -> None:
    server = start(bundle, "--host", "0.0.0.0", "--insecure-public", wait=False)
    for _ in range(500):
        if server.told():
            break
        time.sleep(0.02)
    assert server.told().startswith("ready: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[http]\nport = 70000\n", "http.port"),
        ("[http]\nprot = 1\n", "did you mean 'port'"),
        ("[htp]\n", "did you mean 'http'"),
        ("port = ", "not TOML"),
        ("[runtime]\nprovider = 'gpu'\n", "runtime.provider"),
    ],
)
def test_mistaken_settings(
    start: Start, bundle: Path, tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "serve.toml").write_text(text)
    server = start(bundle, "--config", str(tmp_path / "serve.toml"), wait=False)
    assert server.process.wait(20) == 2
    assert told in server.told() and "Traceback" not in server.told()


def test_a_folder_that_is_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    server = start(tmp_path / "empty", wait=False)
    assert server.process.wait(20) == 1
    assert "neither a bundle" in server.told() and server.told().count("\n") == 1
    server = start(tmp_path / "nowhere", wait=False)
    assert server.process.wait(20) == 2 and "no such folder" in server.told()


def test_a_damaged_bundle_ends_the_process_with_the_file(
    start: Start, bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / "golden.npz").open("ab") as file:
        file.write(b"x")
    server = start(copy, wait=False)
    assert server.process.wait(20) == 1
    assert "golden.npz" in server.told() and server.told().count("\n") == 1


def test_a_repository_of_nothing_but_failures_ends_the_process(
    start: Start, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        make_bundle(tmp_path / "r" / "digits-test" / version)
        (tmp_path / "r" / "digits-test" / version / "card.md").unlink()
    server = start(tmp_path / "r", wait=False)
    assert server.process.wait(20) == 1
    assert server.told().count("error: ") == 2


def test_the_folder_names_the_model(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "r" / "other" / "1")
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    (tmp_path / "r" / "digits-test" / "config.pbtxt").write_text("for another server")
    (tmp_path / "r" / ".hidden").mkdir()
    server = start(tmp_path / "r")
    states = {e["name"]: e for e in server.json("POST", "/v2/repository/index")[1]}
    assert set(states) == {"other", "digits-test"}
    assert states["other"]["state"] == "READY"
    assert server.json("POST", "/v2/models/other/infer", json.loads(BODY))[0] == 200
    properties = server.json("GET", "/v2/models/other")[1]["properties"]
    assert properties["bundle_name"] == "digits-test"
    assert server.json("GET", "/v2/health/ready")[0] == 200


def test_a_failed_newest_version_leaves_the_older_one(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    make_bundle(tmp_path / "r" / "digits-test" / "2", admitted=False)
    server = start(tmp_path / "r")
    answer = server.json("POST", "/v2/models/digits-test/infer", json.loads(BODY))
    assert answer[0] == 200 and answer[1]["model_version"] == "1"
    assert server.json("GET", "/v2/models/digits-test")[1]["versions"] == ["1"]
    status, told = server.json("GET", "/v2/models/digits-test/versions/2")
    assert status == 503 and "not admitted" in told["error"]


def test_a_projects_bundles_are_a_repository_too(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundles" / "digits-test")
    (tmp_path / "bundles" / "digits-test.lineage.json").write_text(
        '{"git": {"commit": "abc", "dirty": false}}'
    )
    server = start(tmp_path / "bundles")
    properties = server.json("GET", "/v2/models/digits-test")[1]["properties"]
    assert properties["lineage.git_commit"] == "abc" and properties["lineage.git_dirty"] == "false"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_leaving_when_idle(start: Start, bundle: Path, number: int) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("this process ignores SIGINT, and what it starts inherits that")
    server = start(bundle)
    with server.socket() as idle:
        began = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 2
        assert receive(idle) == b""
    assert "Traceback" not in server.told()


def test_leaving_is_unready_first_and_finishes_what_was_begun(start: Start, bundle: Path) -> None:
    server = start(bundle, "--notice", "1", "--drain", "10")
    slow, kept = server.socket(), server.socket()
    with slow, kept:
        slow.sendall(REQUEST[:-10])
        kept.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 OK" in kept.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)

        kept.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        unready = kept.recv(1000)
        assert b" 503 " in unready and b'"ready":false' in unready
        status, told = server.json("GET", "/v2/models/digits-test/ready")
        assert status == 503 and "draining" in told["error"]
        assert server.json("GET", "/v2/health/live")[0] == 200
        assert server.json("POST", "/v2/models/digits-test/infer", json.loads(BODY))[0] == 200

        time.sleep(1.2)
        with pytest.raises(ConnectionRefusedError):
            server.socket()
        assert receive(kept) == b""
        slow.sendall(REQUEST[-10:])
        answer = receive(slow)
        assert b" 200 OK" in answer and b"Connection: close" in answer
    assert server.process.wait(20) == 0


def test_live_while_loading_and_free_to_leave(start: Start, tmp_path: Path) -> None:
    for version in range(1, 200):
        make_bundle(tmp_path / "r" / "digits-test" / str(version))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(tmp_path / "r", "--port", str(port), wait=False)
    server.port = port
    for _ in range(500):
        try:
            assert server.json("GET", "/v2/health/live") == (200, {"live": True})
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    status, told = server.json("GET", "/v2/health/ready")
    assert (status, told["ready"]) == (503, False)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert server.told() == ""


def test_leaving_does_not_wait_for_ever(start: Start, bundle: Path) -> None:
    server = start(bundle, "--drain", "0.5")
    with server.socket() as slow:
        slow.sendall(REQUEST[:-10])
        time.sleep(0.1)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert 0.4 < time.monotonic() - began < 3
    assert "cut off" in server.told()


def test_a_second_signal_leaves_at_once(start: Start, bundle: Path) -> None:
    server = start(bundle, "--drain", "30")
    with server.socket() as slow:
        slow.sendall(REQUEST[:-10])
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 1


def test_no_request_is_lost_when_leaving_under_load(start: Start, bundle: Path) -> None:
    """Whatever was sent on an open connection is answered; new connections are refused cleanly."""
    server = start(bundle)
    lost: list[str] = []
    answered = [0]

    def client() -> None:
        while True:
            try:
                sock = server.socket()
            except (ConnectionRefusedError, ConnectionResetError):
                return
            with sock:
                try:
                    sock.sendall(REQUEST.replace(b"Host: x", b"Host: x\r\nConnection: close", 1))
                    answer = receive(sock)
                except (BrokenPipeError, ConnectionResetError):
                    return
                if b" 200 OK" in answer:
                    answered[0] += 1
                elif answer:
                    lost.append(answer[:200].decode())

    clients = [threading.Thread(target=client) for _ in range(6)]
    for thread in clients:
        thread.start()
    time.sleep(0.5)
    os.kill(server.process.pid, signal.SIGTERM)
    for thread in clients:
        thread.join(20)
    assert server.process.wait(20) == 0
    assert not lost and answered[0] > 20


def test_the_access_log_is_json_without_what_was_sent(start: Start, bundle: Path) -> None:
    server = start(bundle)
    server.ask("POST", "/v2/models/digits-test/infer?secret=1", BODY, {"X-Request-ID": "r-1"})
    server.ask("GET", "/" + "a" * 2000)
    assert server.stop() == 0
    first, second = (json.loads(line) for line in server.out.read_text().splitlines())
    assert first["status"] == 200 and first["request_id"] == "r-1"
    assert first["path"] == "/v2/models/digits-test/infer" and first["received"] == len(BODY)
    assert len(second["path"]) <= 256
    quiet = start(bundle, "--no-access-log")
    quiet.ask("GET", "/v2")
    assert quiet.stop() == 0 and quiet.out.read_text() == ""


def test_ipv6_loopback(start: Start, bundle: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    server = start(bundle, "--host", "::1", wait=False)
    for _ in range(500):
        if server.told():
            break
        time.sleep(0.02)
    assert "on http://[::1]:" in server.told()
