"""Leaving, seen from one connection: what was sent before the goodbye is still answered."""

from __future__ import annotations

import asyncio
import socket

from serving.config import HttpSettings
from serving.http import HttpServer
from serving.rest import Reply, Request, Response
from serving.telemetry import AccessLog

ASK = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


def slowly(request: Request, reply: Reply) -> asyncio.TimerHandle:
    answer = Response(200, (request.path.encode(),))
    return asyncio.get_running_loop().call_later(0.05, reply, answer)


async def leave(first: bytes, then: bytes) -> bytes:
    """What a client hears that sent `first` before the drain began and `then` a moment after."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(slowly, HttpSettings(), AccessLog(False))
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
