"""Leaving, seen from one connection: what was sent before the goodbye is still answered."""

from __future__ import annotations

import asyncio
import gzip
import socket
import sys

import pytest

from serving.config import CompressionSettings, HttpSettings
from serving.doors.http.exchange import Reply, Request, Response
from serving.doors.http.middleware import Compressed
from serving.doors.http.server import HttpServer
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.observability.metrics import Metrics
from serving.system.sockets import admit_again, admit_no_more

ASK = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


def slowly(request: Request, reply: Reply) -> asyncio.TimerHandle:
    answer = Response(200, (request.path.encode(),))
    return asyncio.get_running_loop().call_later(0.05, reply, answer)


async def leave(first: bytes, then: bytes) -> bytes:
    """What a client hears that sent `first` before the drain began and `then` a moment after."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(slowly, HttpSettings(), Books(Metrics(), AccessLog(False)))
    await server.start(sock)
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(first)
    await asyncio.sleep(0.02)
    draining = asyncio.ensure_future(server.drain(5))
    await asyncio.sleep(0.1)
    writer.write(then)
    answer = await asyncio.wait_for(reader.read(), 4)
    writer.close()
    assert await draining
    return answer


def test_pipelined_requests_are_answered_while_leaving() -> None:
    answer = asyncio.run(leave(b"".join(ASK % n for n in range(3)), b""))
    assert answer.count(b" 200 OK") == 3
    assert answer.count(b"Connection: close") == 1 and answer.endswith(b"/2")


def test_a_request_on_its_way_to_an_idle_connection_is_answered() -> None:
    answer = asyncio.run(leave(b"", ASK % 7))
    assert answer.count(b" 200 OK") == 1
    assert b"Connection: close" in answer and answer.endswith(b"/7")


def test_a_silent_connection_is_closed_all_the_same() -> None:
    assert asyncio.run(leave(b"", b"")) == b""


async def arrive_at_the_last_moment(count: int) -> list[bytes]:
    """What clients hear whose connections the kernel took, and nobody yet, when the drain began."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    server = HttpServer(slowly, HttpSettings(), Books(Metrics(), AccessLog(False)))
    await server.start(sock)
    clients = [socket.create_connection(sock.getsockname()) for _ in range(count)]
    for client in clients:
        client.sendall(ASK % 5)
    assert await server.drain(5)
    answers = []
    for client in clients:
        client.settimeout(5)
        answers.append(client.recv(1 << 16))
        client.close()
    return answers


def test_who_waits_at_the_closing_door_is_let_in() -> None:
    for answer in asyncio.run(arrive_at_the_last_moment(20)):
        assert b" 200 OK" in answer and answer.endswith(b"/5")


async def hold(limit: int, bodies: int, size: int) -> tuple[list[bytes], int, int]:
    """(answers to unfinished bodies while all are open, bytes held then, bytes held at the end)."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(slowly, HttpSettings(held_bytes=limit), Books(Metrics(), AccessLog(False)))
    await server.start(sock)
    streams = []
    for _ in range(bodies):
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(b"x" * (size - 1))
        await asyncio.sleep(0.02)
        streams.append((reader, writer))
    held, answers = server.held, []
    for reader, writer in streams:
        try:
            answers.append(await asyncio.wait_for(reader.read(1 << 16), 0.05))
        except TimeoutError:
            writer.write(b"x")
            answers.append(await asyncio.wait_for(reader.read(1 << 16), 5))
        writer.close()
    await asyncio.sleep(0.05)
    left = server.held
    await server.drain(1)
    return answers, held, left


def test_all_bodies_together_are_bounded() -> None:
    answers, held, left = asyncio.run(hold(limit=250_000, bodies=6, size=60_000))
    refused = [answer for answer in answers if b" 503 " in answer]
    assert len(refused) == 2 and all(b"held_bytes" in a and b"Retry-After" in a for a in refused)
    assert sum(b" 200 OK" in answer for answer in answers) == 4
    assert held <= 250_000 and left == 0


async def inflate(limit: int, bodies: int, size: int) -> tuple[list[bytes], int]:
    """(answers to compressed bodies that come at once, and to one after them; bytes held last)."""
    sock = socket.create_server(("127.0.0.1", 0))
    door = Compressed(slowly, CompressionSettings(), 1 << 30)
    server = HttpServer(door, HttpSettings(held_bytes=limit), Books(Metrics(), AccessLog(False)))
    await server.start(sock)
    body = gzip.compress(bytes(size))
    head = b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\n"

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return answer

    answers = [*await asyncio.gather(*(ask() for _ in range(bodies))), await ask()]
    left = server.held
    await server.drain(1)
    return answers, left


@pytest.mark.parametrize("size", [60_000, 100_000], ids=["on the loop", "in a thread"])
def test_bodies_are_held_as_large_as_they_are_once_inflated(size: int) -> None:
    *answers, last = asyncio.run(inflate(limit=4 * size, bodies=6, size=size))[0]
    refused = [answer for answer in answers if b" 503 " in answer]
    assert len(refused) == 3 and all(b"held_bytes" in a and b"Retry-After" in a for a in refused)
    assert sum(b" 200 OK" in answer for answer in answers) == 3 and b" 200 OK" in last
    assert asyncio.run(inflate(limit=4 * size, bodies=3, size=size))[1] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="packet filters are Linux's")
def test_a_closing_door_lets_nobody_new_in_and_can_be_opened_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        before = socket.create_connection(door.getsockname(), 1)
        assert admit_no_more(door)
        with pytest.raises(TimeoutError):
            socket.create_connection(door.getsockname(), 0.3)
        before.sendall(b"still here")
        accepted, _ = door.accept()
        assert accepted.recv(100) == b"still here"
        admit_again(door)
        socket.create_connection(door.getsockname(), 3).close()
        accepted.close()
        before.close()


def test_an_ordinary_socket_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        admit_again(door)
        socket.create_connection(door.getsockname(), 1).close()
