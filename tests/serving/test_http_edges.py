"""HTTP as it should not be spoken, over bare sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.codecs.long_lists import LONG_BYTES
from tests.serving.bundles import digits_rows
from tests.serving.live import Live, binary, framed, receive, tensor

BODY = json.dumps({"inputs": [tensor("image", digits_rows(1), "UINT8")]}).encode()
INFER = b"POST /v2/models/digits-test/infer HTTP/1.1\r\nHost: x\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def exchange(server: Live, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Everything the server says until it closes."""
    with server.socket() as sock:
        for piece in pieces:
            try:
                sock.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(pause)
        return receive(sock)


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def infer(body: bytes = BODY) -> bytes:
    return INFER + b"Content-Length: %d\r\n\r\n" % len(body) + body


def well(server: Live) -> None:
    assert server.json("GET", "/v2/health/ready")[0] == 200


def test_pipelined_requests_are_answered_in_order(server: Live) -> None:
    bodies = []
    for number in range(50):
        request = {"id": str(number), "inputs": [tensor("image", digits_rows(1), "UINT8")]}
        bodies.append(json.dumps(request).encode())
    requests = [part for body in bodies for part in (infer(body), LIVE)]
    answer = exchange(server, b"".join(requests) + LAST)
    assert statuses(answer) == [200] * 101
    assert re.findall(rb'"id":"(\d+)"', answer) == [b"%d" % n for n in range(50)]


def test_a_request_may_come_byte_by_byte(server: Live) -> None:
    request = infer() + LAST
    with server.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(request)):
            sock.sendall(request[position : position + 1])
        assert statuses(receive(sock)) == [200, 200]


def test_chunked_bodies(server: Live) -> None:
    for size in (1, 7, 4096):
        chunks = b"".join(
            b"%x;extension=1\r\n%b\r\n" % (len(BODY[i : i + size]), BODY[i : i + size])
            for i in range(0, len(BODY), size)
        )
        head = INFER + b"Transfer-Encoding: chunked\r\n\r\n"
        trailer = b"0\r\nHost: y\r\nX-Trailer: 1\r\n\r\n"
        assert statuses(exchange(server, head + chunks + trailer + LAST)) == [200, 200]


@pytest.mark.parametrize(
    ("name", "head", "status"),
    [
        ("both lengths", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("both, other order", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("length twice", b"Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("length twice, unequal", b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("lengths in one", b"Content-Length: 5, 5\r\n", 400),
        ("negative length", b"Content-Length: -5\r\n", 400),
        ("signed length", b"Content-Length: +5\r\n", 400),
        ("text length", b"Content-Length: five\r\n", 400),
        ("endless length", b"Content-Length: " + b"9" * 30 + b"\r\n", 400),
        ("unknown coding", b"Transfer-Encoding: gzip\r\n", 400),
        ("coding twice", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("hidden coding", b"Transfer-Encoding: xchunked\r\n", 400),
        ("chunked not last", b"Transfer-Encoding: chunked, gzip\r\n", 400),
        ("two hosts", b"Host: y\r\n", 400),
        ("space before colon", b"Content-Length : 5\r\n", 400),
        ("folded header", b"X-A: 1\r\n b\r\n", 400),
        ("nul in a header", b"X-A: \0\r\n", 400),
        ("tensor length twice", b"Inference-Header-Content-Length: 1\r\n" * 2, 400),
        ("300 MB announced", b"Content-Length: 314572800\r\n", 413),
        ("one byte too many", b"Content-Length: 67108865\r\n", 413),
        ("huge header", b"X-A: " + b"a" * 70_000 + b"\r\n", 431),
        ("many headers", b"X-A: 1\r\n" * 20_000, 431),
        ("unknown expectation", b"Expect: 200-ok\r\nContent-Length: 5\r\n", 417),
    ],
)  # fmt: skip
def test_refused_and_closed(server: Live, name: str, head: bytes, status: int) -> None:
    answer = exchange(server, INFER + head + b"\r\n" + b"hello" + LIVE)
    assert statuses(answer) == [status], "and nothing after it is taken for a request"
    assert b"Connection: close" in answer and b'{"error":"' in answer
    well(server)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2/health/live\r\n\r\n",
        b"GET /v2/health/live HTTP/0.9\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\n\r\n" + LIVE,
        b"GET /v2/health/live HTTP/1.1\r\nX-Host: x\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"GET /v2 HTTP/1.1 extra\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"FOO /v2 HTTP/1.1\r\n\r\n",
        b"GET v2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 1000,
        INFER + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        INFER + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        INFER + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    ],
)
def test_what_is_not_http_gets_400(server: Live, garbage: bytes) -> None:
    answer = exchange(server, garbage)
    assert statuses(answer) in ([400], [404]), answer
    assert b"Connection: close" in answer
    well(server)


def test_a_long_url_is_431_even_unfinished(server: Live) -> None:
    assert statuses(exchange(server, b"GET /" + b"a" * 100_000)) == [431]
    well(server)


def test_a_large_body_is_refused_before_it_is_held(server: Live) -> None:
    before = memory(server)
    for _ in range(20):
        answer = exchange(server, INFER + b"Content-Length: 314572800\r\n\r\n", b"x" * (1 << 20))
        assert statuses(answer) == [413] and b"67108864" in answer
    assert memory(server) - before < 4 << 20


def test_an_endless_chunked_body_is_refused(start: Callable[..., Live], bundle: Path) -> None:
    config = bundle.parent / "small.toml"
    config.write_text("[http]\nbody_bytes = 100000\nbody_chunks = 50\n")
    server = start(bundle, "--config", str(config))
    head = INFER + b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    assert statuses(exchange(server, head, *[piece] * 40)) == [413]
    answer = exchange(server, head + b"1\r\nx\r\n" * 60)
    assert statuses(answer) == [400] and b"50 chunks" in answer
    well(server)


def memory(server: Live) -> int:
    status = Path(f"/proc/{server.workers()[0]}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def test_expect_continue(server: Live) -> None:
    with server.socket() as sock:
        sock.sendall(
            INFER
            + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert statuses(receive(sock)) == [200]
    answer = exchange(
        server, INFER + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"
    )
    assert statuses(answer) == [413], "told before a byte of it is sent"
    old = INFER.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Expect: 100-continue\r\n"
    with server.socket() as sock:
        sock.sendall(old + b"Content-Length: %d\r\n\r\n" % len(BODY))
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):  # HTTP/1.0 knows no 100
            sock.recv(100)
        sock.sendall(BODY)
        sock.settimeout(20)
        assert statuses(receive(sock)) == [200]


def test_half_closed_clients_get_their_answers(server: Live) -> None:
    with server.socket() as sock:
        sock.sendall(infer() * 3)
        sock.shutdown(socket.SHUT_WR)
        assert statuses(receive(sock)) == [200] * 3
    with server.socket() as sock:
        sock.sendall(infer()[:-5])
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == b""
    with server.socket() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == b""


def test_clients_that_vanish_harm_nobody(server: Live) -> None:
    for cut in (1, 40, len(infer()) - 1, len(infer())):
        for _ in range(10):
            sock = server.socket()
            sock.sendall(infer()[:cut])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
    well(server)


def test_old_http_closes_unless_asked_not_to(server: Live) -> None:
    assert statuses(exchange(server, b"GET /v2 HTTP/1.0\r\n\r\n")) == [200]
    kept = b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    answer = exchange(server, kept + b"GET /v2 HTTP/1.0\r\n\r\n")
    assert statuses(answer) == [200, 200] and b"Connection: keep-alive" in answer


def test_head_has_no_body(server: Live) -> None:
    answer = exchange(server, b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(answer) == [200] and body == b"" and b"Content-Length: " in head


def test_an_offer_of_another_protocol_is_ignored(server: Live) -> None:
    upgrade = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert statuses(exchange(server, upgrade + upgrade, LAST)) == [200, 200, 200]
    offer = INFER + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n"
    sized = offer + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    chunk = b"%x\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(BODY), BODY)
    chunked = offer + b"Transfer-Encoding: chunked\r\n\r\n" + chunk
    answer = exchange(server, sized + chunked + sized + LAST)
    assert statuses(answer) == [200] * 4 and answer.count(b'"outputs"') == 3
    cuts = (10, len(sized) - len(BODY) - 2, len(sized) - len(BODY), len(sized) - 5)
    for cut in cuts:
        answer = exchange(server, sized[:cut], sized[cut:] + LAST, pause=0.05)
        assert statuses(answer) == [200, 200] and b'"outputs"' in answer
    closing = sized.replace(b"Upgrade, ", b"close, Upgrade, ")
    assert statuses(exchange(server, closing + LIVE)) == [200]


def test_an_offer_does_not_loosen_the_limits(server: Live) -> None:
    offer = INFER + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello"
    assert statuses(exchange(server, offer + both + LIVE)) == [400]
    huge = offer + b"Content-Length: 67108865\r\n\r\n"
    assert statuses(exchange(server, huge)) == [413]


def test_an_endless_trailer_is_refused(server: Live) -> None:
    head = INFER + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    for start in (b"0\r\nX-T: ", b"1;x="):
        began = time.monotonic()
        answer = exchange(server, head, start, *[b"a" * (1 << 16)] * 100, pause=0.01)
        assert statuses(answer) == [431] and b"trailers" in answer
        assert time.monotonic() - began < 8
    well(server)


def test_text_has_a_limit_of_its_own(server: Live) -> None:
    for path in (b"/v2/models/digits-test/infer", b"/v2/repository/index"):
        text = b" " * (16 << 20) + b"{}"
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % path
        answer = exchange(server, head + b"Content-Length: %d\r\n\r\n" % len(text) + text)
        assert statuses(answer) == [413] and b"http.json_bytes" in answer
    well(server)


def test_data_that_cannot_fit_is_not_converted(server: Live) -> None:
    """Every other client waits meanwhile, so the shape is looked at first."""
    nested = [[0]] * 2_000_000
    item = {"name": "image", "shape": [2_000_000, 1], "datatype": "UINT8", "data": nested}
    size = 32_000_000
    texts = {"name": "image", "shape": [size // 4], "datatype": "BYTES"}
    framed = json.dumps({"inputs": [texts | {"parameters": {"binary_data_size": size}}]}).encode()
    for body, extra in (
        (json.dumps({"inputs": [item]}, separators=(",", ":")).encode(), b""),
        (framed + bytes(size), b"Inference-Header-Content-Length: %d\r\n" % len(framed)),
    ):
        head = INFER + extra + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        began = time.monotonic()
        answer = exchange(server, head + body)
        assert statuses(answer) == [400] and b"expected UINT8 [n,8,8,1]" in answer
        assert time.monotonic() - began < 3


def test_long_json_says_what_short_says(server: Live) -> None:
    """It is read elsewhere, and the client cannot tell."""
    rows = np.repeat(digits_rows(4), 256, axis=0)
    asked = {"outputs": [{"name": "logits"}]}
    answers = []
    for data in (rows.tolist(), rows.reshape(-1).tolist()):
        item = {"name": "image", "shape": rows.shape, "datatype": "UINT8", "data": data}
        body = json.dumps({"inputs": [item], **asked}, indent=1).encode()
        assert len(body) > LONG_BYTES
        status, _, answer = server.ask("POST", "/v2/models/digits-test/infer", body)
        assert status == 200, answer
        answers.append(answer)
        status, _, answer = server.ask(
            "POST", "/v2/models/digits-test/infer", body.replace(b"1024", b"1023", 1)
        )
        assert status == 400 and b"input 'image': data: expected 65472 values" in answer
    head = {"inputs": [binary("image", rows, "UINT8")], **asked}
    body, headers = framed(head, rows.tobytes())
    answers.append(server.ask("POST", "/v2/models/digits-test/infer", body, headers)[2])
    assert answers[0] == answers[1] == answers[2]
    well(server)


def test_absolute_urls_and_queries(server: Live) -> None:
    request = (
        b"GET http://elsewhere/v2/health/live?a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert statuses(exchange(server, request)) == [200]


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> object:
    folder = tmp_path_factory.mktemp("impatient")
    config = folder / "settings.toml"
    config.write_text(
        "[http]\nheader_seconds = 0.5\nbody_seconds = 0.5\nidle_seconds = 0.5\n"
        "write_seconds = 0.5\nconnections = 40\n"
    )
    live = Live(repository, folder, "--config", str(config))
    yield live
    assert live.stop() == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", []),
        (b"GET /v2 HT", [408]),
        (LIVE[:-2], [408]),
        (infer()[:-1], [408]),
        (LIVE, [200]),
        (LIVE + infer()[:-1], [200, 408]),
    ],
    ids=["idle", "line", "header", "body", "kept", "kept then body"],
)
def test_deadlines(impatient: Live, sent: bytes, status: list[int]) -> None:
    began = time.monotonic()
    answer = exchange(impatient, sent)
    assert statuses(answer) == status
    assert 0.3 < time.monotonic() - began < 4


def test_dripping_does_not_extend_a_deadline(impatient: Live) -> None:
    began = time.monotonic()
    answer = exchange(impatient, *[b"%c" % byte for byte in LIVE[:-1]], pause=0.05)
    assert statuses(answer) == [408] and time.monotonic() - began < 4


def test_a_client_that_does_not_read_is_dropped(impatient: Live) -> None:
    rows = np.ones((1024, 256), "<f4")
    item = {
        "name": "values",
        "shape": [1024, 256],
        "datatype": "FP32",
        "parameters": {"binary_data_size": rows.nbytes},
    }
    header = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    head = (
        b"POST /v2/models/series/infer HTTP/1.1\r\nHost: x\r\n"
        b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
        % (len(header), len(header) + rows.nbytes)
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", impatient.port))
    with sock, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(100):
            sock.sendall(head + header + rows.tobytes())
    well(impatient)


def test_too_many_connections_are_told_so(impatient: Live) -> None:
    crowd = [impatient.socket() for _ in range(40)]
    try:
        time.sleep(0.1)
        answer = exchange(impatient, LIVE)
        assert statuses(answer) == [503] and b"Retry-After" in answer
    finally:
        for sock in crowd:
            sock.close()
    time.sleep(0.1)
    well(impatient)
