"""The client against a server that misbehaves: what is retried, what never is, and the deadline."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client import (
    AsyncClient,
    Client,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerError,
    Unauthorized,
    Unreachable,
    retries,
)
from serving.commands.predict import server_address
from tests.serving.test_client import Awaited
from tests.serving.test_commands import slipway
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
    sends,
    trickles,
    unruly,
)

ROW = {"x": np.ones((1, 3), np.float32)}
SLACK = 0.5
"""Seconds a busy machine may add to a deadline."""

GOOD = says(200)
BOTH = pytest.mark.parametrize("kind", [Client, Awaited], ids=["blocking", "asynchronous"])


@pytest.fixture
def server() -> Iterator[Unruly]:
    with unruly(GOOD) as server:
        yield server


@contextmanager
def asking(kind: Any, server: Unruly, **settings: Any) -> Iterator[Any]:
    client = kind(server.url, **settings)
    yield client
    client.close()


def took(call: Callable[[], Any]) -> tuple[BaseException | None, float]:
    began = time.monotonic()
    try:
        call()
        return None, time.monotonic() - began
    except ClientError as failure:
        return failure, time.monotonic() - began


@BOTH
@pytest.mark.parametrize(
    "fault",
    [error(503), error(429), error(503, "busy", "Connection: close"), resets, closes],
    ids=["503", "429", "503 and closed", "reset", "closed"],
)
def test_what_may_pass_is_tried_again(kind: Any, server: Unruly, fault: Behaviour) -> None:
    with asking(kind, server) as client:
        server.script = [fault, fault]
        assert client.infer("m", ROW)["y"] == 2.5
        assert len(server.requests) == 3


@BOTH
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidRequest),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (405, InvalidRequest),
        (408, DeadlineExceeded),
        (413, InvalidRequest),
        (415, InvalidRequest),
        (422, InvalidRequest),
        (500, ServerError),
        (501, ServerError),
        (502, ServerError),
        (504, DeadlineExceeded),
        (302, ServerError),
    ],
)
def test_what_stays_wrong_is_asked_once(
    kind: Any, server: Unruly, status: int, expected: type[ClientError]
) -> None:
    with asking(kind, server) as client:
        server.script = [error(status, "the server's own words")]
        with pytest.raises(expected, match="the server's own words") as failure:
            client.infer("m", ROW)
        assert type(failure.value) is expected
        assert (failure.value.status, failure.value.tries) == (status, 1)
        assert len(server.requests) == 1


@BOTH
def test_tries_are_counted_and_end(kind: Any, server: Unruly) -> None:
    server.default = error(503, "queue full")
    with asking(kind, server, retries=2) as client:
        with pytest.raises(Overloaded, match=r"queue full \(tried 3 times\)") as failure:
            client.infer("m", ROW)
        assert len(server.requests) == 3 and failure.value.status == 503
    with asking(kind, server, retries=0) as client:
        with pytest.raises(Overloaded):
            client.infer("m", ROW)
        assert len(server.requests) == 4


@BOTH
def test_what_changes_the_server_is_never_sent_twice(kind: Any, server: Unruly) -> None:
    for fault, expected in ((error(503), Overloaded), (resets, Unreachable), (closes, Unreachable)):
        with asking(kind, server) as client:
            server.requests.clear()
            client.live()  # leaves a connection behind
            server.script = [fault]
            with pytest.raises(expected):
                client.load("m")
            assert sum(b"/load" in head for head, _ in server.requests) == 1


@BOTH
def test_what_changes_the_server_is_tried_again_where_nothing_was_sent(kind: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    client = kind(f"http://127.0.0.1:{port}", retries=2)
    with pytest.raises(Unreachable, match=r"refused.*\(tried 3 times\)"):
        client.unload("m")
    client.close()


@BOTH
def test_retry_after_is_waited_for(kind: Any, server: Unruly) -> None:
    with asking(kind, server) as client:
        server.script = [error(503, "wait", "Retry-After: 1")]
        failure, seconds = took(lambda: client.infer("m", ROW))
        assert failure is None and 1.0 <= seconds < 1.0 + SLACK


@BOTH
def test_a_retry_after_beyond_the_deadline_is_told_at_once(kind: Any, server: Unruly) -> None:
    when = formatdate(time.time() + 30, usegmt=True)
    for value in ("30", when):
        with asking(kind, server) as client:
            server.script = [error(429, "slow down", f"Retry-After: {value}")]
            failure, seconds = took(lambda client=client: client.infer("m", ROW, timeout=2))
            assert isinstance(failure, Overloaded) and seconds < SLACK
            assert failure.retry_after is not None and 27 < failure.retry_after <= 30


@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        after(5, GOOD),
        trickles(b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 1000, 0.01),
        trickles(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000, 0.01),
        error(503, "busy", "Retry-After: 0"),
        after(0.15, error(503)),
        after(0.15, resets),
    ],
    ids=["silent", "slow head", "slow body", "refusing", "slowly refusing", "slowly resetting"],
)
def test_the_deadline_is_over_everything(kind: Any, server: Unruly, fault: Behaviour) -> None:
    server.default = fault
    with asking(kind, server, retries=1000) as client:
        failure, seconds = took(lambda: client.infer("m", ROW, timeout=0.5))
        assert isinstance(failure, ClientError)
        assert seconds < 0.5 + SLACK
        if len(server.requests) > 1 and isinstance(failure, DeadlineExceeded):
            assert isinstance(failure.__cause__, Overloaded | Unreachable)


@BOTH
def test_a_peer_that_does_not_read_is_given_up(kind: Any) -> None:
    """The kernel's buffers fill, and sending blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = kind(f"http://127.0.0.1:{listener.getsockname()[1]}")
        large = {"x": np.ones((1, 8 << 20), np.float32)}
        failure, seconds = took(lambda: client.infer("m", large, timeout=0.5))
        assert isinstance(failure, DeadlineExceeded) and seconds < 0.5 + 2 * SLACK
        client.close()


@BOTH
def test_waiting_for_a_connection_counts(kind: Any, server: Unruly) -> None:
    server.default = after(1.0, GOOD)
    if kind is Client:
        with Client(server.url, connections=1) as client:
            first = threading.Thread(target=lambda: client.infer("m", ROW))
            first.start()
            time.sleep(0.2)
            failure, seconds = took(lambda: client.infer("m", ROW, timeout=0.3))
            first.join()
            assert isinstance(failure, DeadlineExceeded) and seconds < 0.3 + SLACK
            assert len(server.requests) == 1
    else:

        async def main() -> None:
            async with AsyncClient(server.url, connections=1) as client:
                first = asyncio.create_task(client.infer("m", ROW))
                await asyncio.sleep(0.2)
                with pytest.raises(DeadlineExceeded):
                    await client.infer("m", ROW, timeout=0.3)
                assert (await first)["y"] == 2.5

        asyncio.run(main())


@BOTH
def test_the_server_is_told_the_time_left(kind: Any, server: Unruly) -> None:
    with asking(kind, server) as client:
        server.script = [after(0.3, error(503))]
        client.infer("m", ROW, timeout=4)
        left = [
            json.loads(body[: -ROW["x"].nbytes])["parameters"]["timeout"]
            for _, body in server.requests
        ]
        assert 3.5e6 < left[0] <= 4e6 and left[1] < left[0] - 0.3e6
        server.requests.clear()
        client.infer("m", ROW, timeout=float("inf"))
        assert b"timeout" not in server.requests[0][1]


@BOTH
def test_connections_are_kept(kind: Any, server: Unruly) -> None:
    with asking(kind, server) as client:
        for _ in range(20):
            client.infer("m", ROW)
        assert len(server.requests) == 20 and server.connections == 1


@BOTH
def test_connections_are_not_kept_where_the_server_says_so(kind: Any, server: Unruly) -> None:
    server.default = says(200, ANSWER, "Connection: close")
    with asking(kind, server) as client:
        for _ in range(3):
            client.infer("m", ROW)
        assert server.connections == 3


@BOTH
def test_a_connection_closed_while_idle_is_not_used(kind: Any, server: Unruly) -> None:
    """The server drops it after the answer, as it does when its idle time is over."""

    async def drops(talk: Talk) -> None:
        await GOOD(talk)
        await asyncio.sleep(0.05)
        talk.writer.close()

    server.default = drops
    with asking(kind, server, retries=0) as client:
        for _ in range(3):
            client.infer("m", ROW)
            time.sleep(0.15)
        assert server.connections == len(server.requests) == 3


@BOTH
def test_a_connection_closed_under_the_request_costs_no_try(kind: Any, server: Unruly) -> None:
    """The request crosses the server's FIN: asked again on a new connection, even with no retries.

    A new connection that closes so is a failure like any other.
    """
    with asking(kind, server, retries=0) as client:
        client.infer("m", ROW)
        server.script = [closes]
        assert client.infer("m", ROW)["y"] == 2.5
        assert len(server.requests) == 3 and server.connections == 2
    with asking(kind, server, retries=0) as client:
        server.script = [closes]
        with pytest.raises(Unreachable, match="before the answer"):
            client.infer("m", ROW)


@BOTH
def test_what_comes_unasked_ends_the_connection(kind: Any, server: Unruly) -> None:
    """A second answer, late, must not be taken for the next request's."""
    head = b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
    stray = ANSWER.replace(b"2.5", b"9.9")

    async def twice(talk: Talk) -> None:
        talk.writer.write(head + ANSWER)
        await talk.writer.drain()
        await asyncio.sleep(0.05)
        talk.writer.write(head + stray)

    server.script = [twice]
    with asking(kind, server) as client:
        assert client.infer("m", ROW)["y"] == 2.5
        time.sleep(0.15)
        assert client.infer("m", ROW)["y"] == 2.5
        assert server.connections == 2


@BOTH
@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 3\r\n\r\n{}x", "not JSON"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{}", "not of the V2 protocol: no 'outputs'"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 99999999999\r\n\r\n", "answer_bytes"),
        (b"HTTP/1.1 200 X\r\n" + b"A: %b\r\n" % (b"b" * 70_000), "bytes of headers"),
        (
            b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b"
            % (len(ANSWER), ANSWER.replace(b"[1]", b"[2]")),
            "not of the V2 protocol",
        ),
    ],
)
def test_what_is_no_answer(kind: Any, server: Unruly, payload: bytes, told: str) -> None:
    server.script = [sends(payload)]
    with asking(kind, server) as client:
        with pytest.raises(ServerError, match=told):
            client.infer("m", ROW)
        assert len(server.requests) == 1
        assert client.infer("m", ROW)["y"] == 2.5


@BOTH
def test_odd_but_sound_answers(kind: Any, server: Unruly) -> None:
    """100 first, chunks, an answer that ends with the connection, gzip."""
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ANSWER), ANSWER)
    head = b"HTTP/1.1 200 X\r\n"
    length = b"Content-Length: %d\r\n" % len(ANSWER)
    packed = gzip.compress(ANSWER)
    server.script = [
        sends(b"HTTP/1.1 100 Continue\r\n\r\n" + head + length + b"\r\n" + ANSWER, close=False),
        sends(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, close=False),
        sends(head + b"\r\n" + ANSWER),
        says(200, packed, "Content-Encoding: gzip"),
    ]
    with asking(kind, server, retries=0) as client:
        for _ in range(4):
            assert client.infer("m", ROW)["y"] == 2.5
        assert server.connections == 2  # the third answer's end was the connection's
        server.script = [says(200, packed[:-9], "Content-Encoding: gzip")]
        with pytest.raises(ServerError, match="inflates"):
            client.infer("m", ROW)


@BOTH
def test_inflation_is_bounded(kind: Any, server: Unruly) -> None:
    server.default = says(200, gzip.compress(b" " * (8 << 20)), "Content-Encoding: gzip")
    with (
        asking(kind, server, answer_bytes=1 << 20) as client,
        pytest.raises(ServerError, match="inflates beyond"),
    ):
        client.infer("m", ROW)


@BOTH
def test_requests_are_compressed_on_request(kind: Any, server: Unruly) -> None:
    with asking(kind, server, compress=True) as client:
        client.infer("m", {"x": np.zeros((1, 10_000), np.float32)})
    head, body = server.requests[0]
    assert b"Content-Encoding: gzip" in head and b"Accept-Encoding: gzip" in head
    told = int(head.lower().split(b"inference-header-content-length: ")[1].split(b"\r\n")[0])
    whole = gzip.decompress(body)
    assert json.loads(whole[:told])["inputs"][0]["shape"] == [1, 10_000]
    assert len(whole) == told + 40_000 and len(body) < 1000


@BOTH
def test_a_refusal_while_sending_is_heard(kind: Any) -> None:
    """The server answers 413 to the head, reads no more, and lingers, as ours does."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await error(413, "too large")(Talk(reader, writer))
        writer.write_eof()
        while await reader.read(1 << 16):
            pass
        writer.close()

    server = Unruly(GOOD)
    server._talk = refuses  # type: ignore[method-assign,assignment]
    with (
        server,
        asking(kind, server) as client,
        pytest.raises(InvalidRequest, match="413: too large"),
    ):
        client.infer("m", {"x": np.ones((1, 4 << 20), np.float32)}, timeout=10)


def test_a_cancelled_call_leaves_the_pool_usable(server: Unruly) -> None:
    """Cancelled while waiting for the answer, for a connection, and during back-off."""

    async def main() -> None:
        async with AsyncClient(server.url, connections=1) as client:
            for turn in range(10):
                server.script = [after(0.3, GOOD) if turn % 2 else error(503, "", "Retry-After: 1")]
                tasks = [asyncio.create_task(client.infer("m", ROW)) for _ in range(3)]
                await asyncio.sleep(0.02 * (turn % 3))
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(
                    isinstance(one, asyncio.CancelledError) or one["y"] == 2.5 for one in done
                )
                server.script = []
                assert (await client.infer("m", ROW, timeout=2))["y"] == 2.5
            assert client._pool._free._value == 1

    asyncio.run(main())
    end = time.monotonic() + 5
    while server.open and time.monotonic() < end:
        time.sleep(0.05)
    assert server.open == 0


def test_a_cancelled_answer_is_nobody_elses(server: Unruly) -> None:
    late = says(200, ANSWER.replace(b"2.5", b"9.9"))

    async def main() -> None:
        async with AsyncClient(server.url, connections=1) as client:
            server.script = [after(0.1, late)]
            task = asyncio.create_task(client.infer("m", ROW))
            await asyncio.sleep(0.05)
            task.cancel()
            for _ in range(5):
                assert (await client.infer("m", ROW))["y"] == 2.5
                await asyncio.sleep(0.03)

    asyncio.run(main())


def test_threads_survive_a_server_that_resets(server: Unruly) -> None:
    """16 threads, every third request reset or refused: each call ends well, no slot is lost."""
    count = 0

    async def moody(talk: Talk) -> None:
        nonlocal count
        count += 1
        await (resets, error(503), GOOD, GOOD, GOOD, closes, GOOD)[count % 7](talk)

    server.default = moody
    with Client(server.url, connections=4, retries=20) as client:
        found: list[float] = []

        def ask() -> None:
            for _ in range(15):
                found.append(float(client.infer("m", ROW, timeout=20)["y"][0]))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [2.5] * 240
        assert client._pool._free._value == 4


def test_a_forked_process_uses_sockets_of_its_own(server: Unruly) -> None:
    with Client(server.url) as client:
        client.infer("m", ROW)
        child = os.fork()
        if child == 0:
            os._exit(0 if client.infer("m", ROW)["y"] == 2.5 else 1)
        assert os.waitpid(child, 0)[1] == 0
        client.infer("m", ROW)
        assert server.connections == 2


def test_back_off_grows_and_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: anywhere between nothing and a bound that doubles up to a longest."""
    bounds: list[float] = []
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: bounds.append(high) or low)
    course = retries.Retries(8, float("inf"), idempotent=True)
    for _ in range(8):
        assert course.wait(Unreachable("gone"), 0.0) == 0.0
    assert bounds == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, and another that nobody trusts."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "other"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"),
            ],
            check=True,
            capture_output=True,
        )
    return folder


def serving_tls(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


@BOTH
def test_tls_and_key(kind: Any, certificates: Path) -> None:
    with unruly(GOOD, serving_tls(certificates)) as server:
        with asking(kind, server, ca=certificates / "server.pem", key="s3cret") as client:
            for _ in range(3):
                client.infer("m", ROW)
            client.infer("m", {"x": np.ones((1, 1 << 20), np.float32)})
        assert b"Authorization: Bearer s3cret\r\n" in server.requests[0][0]
        assert server.connections == 1
        for more in ({}, {"ca": certificates / "other.pem"}):
            with asking(kind, server, **more) as client:
                failure, seconds = took(lambda client=client: client.infer("m", ROW))
                assert isinstance(failure, Unreachable) and "not trusted" in str(failure)
                assert failure.tries == 1 and seconds < 5
                # Waiting mends no certificate either.
                failure, seconds = took(lambda client=client: client.wait_ready("m", timeout=30))
                assert isinstance(failure, Unreachable) and seconds < 15


def test_predict_takes_certificates_and_a_key(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"model_name":"m","model_version":"1","label":"7","probabilities":{"7":1.0}}'
    metadata = b'{"name":"m","inputs":[],"outputs":[]}'
    monkeypatch.setenv("SLIPWAY_API_KEY", "s3cret")
    with unruly(says(200, metadata), serving_tls(certificates)) as server:
        server.script = [says(200, body)]
        where = (f"{server.url}/v2/models/m", "-", "--json")
        told = slipway("predict", *where, "--ca", certificates / "server.pem", given=b"x")
        assert told.exit_code == 0 and json.loads(told.stdout)["label"] == "7", told.output
        assert all(b"Bearer s3cret" in head for head, _ in server.requests)
        refused = slipway("predict", *where, given=b"x")
        assert refused.exit_code == 1 and "not trusted" in refused.stderr


def test_bench_takes_certificates_and_a_key(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutual TLS, over every connection of the load."""
    metadata = b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}],"outputs":[]}'
    context = serving_tls(certificates)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates / "other.pem")
    own = tmp_path / "own.pem"
    own.write_bytes(
        (certificates / "other.pem").read_bytes() + (certificates / "other.key").read_bytes()
    )
    monkeypatch.setenv("SLIPWAY_API_KEY", "s3cret")
    with unruly(GOOD, context) as server:
        server.script = [says(200, metadata)]
        trust = ("--ca", certificates / "server.pem", "--cert", own)
        quick = ("--seconds", "0.3", "--warm-up", "0", "--connections", "3")
        told = slipway("bench", server.url, "m", *trust, *quick)
        assert told.exit_code == 0 and "200: " in told.stdout, told.output
        assert all(b"Bearer s3cret" in head for head, _ in server.requests)
        assert server.connections == 4 and len(server.requests) > 5


@pytest.mark.parametrize(
    ("url", "meaning"),
    [
        ("http://h:1", ("http://h:1", None, None)),
        ("http://h:1/v2/", ("http://h:1", None, None)),
        ("http://h:1/v2/models", ("http://h:1", None, None)),
        ("http://h/v2/models/a%20b/predict", ("http://h", "a b", None)),
        ("https://h/v2/models/m/versions/3/infer", ("https://h", "m", "3")),
        ("https://h/below/v2/models/m", ("https://h/below", "m", None)),
        ("https://h/below/v2", ("https://h/below", None, None)),
    ],
)
def test_what_an_address_means(url: str, meaning: tuple[str, str | None, str | None]) -> None:
    assert server_address(url) == meaning


@BOTH
def test_mutual_tls(kind: Any, certificates: Path) -> None:
    context = serving_tls(certificates)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates / "other.pem")
    ours = (certificates / "other.pem", certificates / "other.key")
    with unruly(GOOD, context) as server:
        with asking(kind, server, ca=certificates / "server.pem", certificate=ours) as client:
            assert client.infer("m", ROW)["y"] == 2.5
        with (
            asking(kind, server, ca=certificates / "server.pem", retries=1) as client,
            pytest.raises(Unreachable),
        ):
            client.infer("m", ROW)


def test_the_deadline_covers_the_handshake() -> None:
    """A server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for kind in (Client, Awaited):
            client = kind(f"https://127.0.0.1:{listener.getsockname()[1]}")
            failure, seconds = took(lambda client=client: client.infer("m", ROW, timeout=0.4))
            assert isinstance(failure, DeadlineExceeded) and seconds < 0.4 + SLACK
            client.close()


@pytest.mark.parametrize(
    ("url", "settings", "told"),
    [
        ("ftp://host", {}, "expected http://HOST:PORT"),
        ("http://", {}, "expected http://HOST:PORT"),
        ("http://host:99999", {}, "Port out of range"),
        ("http://user:pass@host", {}, "expected http://HOST:PORT"),
        ("http://host", {"ca": "x.pem"}, "https"),
        ("http://host", {"key": "a\r\nX: y"}, "the key: expected printable"),
        ("http://host", {"headers": {"X y": "1"}}, "header 'X y'"),
        ("http://host", {"headers": {"Host": "other"}}, "the client's own"),
    ],
)
def test_mistaken_settings(url: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as failure:
        Client(url, **settings)
    assert "a\r\nX" not in str(failure.value)


@BOTH
def test_a_server_below_a_path_and_headers_of_ones_own(kind: Any, server: Unruly) -> None:
    client = kind(f"{server.url}/models/prod/", headers={"X-Team": "vision"})
    client.infer("a/b ü", ROW, version=3)
    head = server.requests[0][0]
    assert head.startswith(b"POST /models/prod/v2/models/a%2Fb%20%C3%BC/versions/3/infer HTTP/1.1")
    assert b"X-Team: vision\r\n" in head
    client.close()
