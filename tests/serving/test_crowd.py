"""A crowd at the door of a busy server is let in at once, not one by one between its batches."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress

import uvloop

from serving.config import HttpSettings
from serving.doors.http.exchange import Reply, Request, Response
from serving.doors.http.server import CROWD, HttpServer
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.observability.metrics import Metrics

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CROWDS = 3
TURNS = 12 * CROWDS
"""Of the loop: a few to accept, read and answer each crowd, far less than one for each client."""


def at_once(request: Request, reply: Reply) -> None:
    reply(Response(200, (b"whole",)))


async def answers_after_few_turns() -> int:
    """Clients that were answered of a crowd that had come while the loop was busy."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = HttpServer(at_once, HttpSettings(), Books(Metrics(), AccessLog(False)))
    await server.start(sock)
    clients = [socket.create_connection(sock.getsockname()) for _ in range(CROWDS * CROWD)]
    for client in clients:
        client.sendall(ASK)
    for _ in range(TURNS):
        await asyncio.sleep(0)
        time.sleep(0.001)  # what a batch would take of each turn
    answered = 0
    for client in clients:
        client.setblocking(False)
        with suppress(BlockingIOError):
            answered += client.recv(4096).endswith(b"whole")
        client.close()
    assert await server.drain(1)
    return answered


def test_a_crowd_is_let_in_at_once() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(answers_after_few_turns()) == CROWDS * CROWD
