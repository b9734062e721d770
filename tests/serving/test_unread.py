"""Answers that a client does not read: little is kept for it, that counts, and there is a limit."""

from __future__ import annotations

import asyncio
import socket

from serving.config import HttpSettings
from serving.doors.http.exchange import Reply, Request, Response
from serving.doors.http.server import HttpServer
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.observability.metrics import Metrics
from serving.system.sockets import UNSENT_BYTES, listening

ANSWER = 1 << 20
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Answering:
    """Answers with a megabyte, and counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, request: Request, reply: Reply) -> None:
        self.made += 1
        reply(Response(200, (bytes(ANSWER),)))


async def unread(held_bytes: int, asked: int) -> tuple[int, int, int, int]:
    """(answers made, bytes held, bytes a client then reads, bytes held in the end)."""
    [sock] = listening("127.0.0.1", 0, 16, 1)
    handler = Answering()
    books = Books(Metrics(), AccessLog(False))
    server = HttpServer(handler, HttpSettings(held_bytes=held_bytes), books)
    await server.start(sock)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(sock.getsockname())
    client.setblocking(False)
    client.send(ASK * asked)
    await asyncio.sleep(0.1)
    made, held, read = handler.made, server.held, 0
    loop = asyncio.get_running_loop()
    try:
        while read < asked * ANSWER:
            part = await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 5)
            if not part:
                break
            read += len(part)
    except ConnectionError:
        pass
    client.close()
    await server.drain(1)
    return made, held, read, server.held


def test_one_answer_is_made_and_held_until_it_is_read() -> None:
    made, held, read, last = asyncio.run(unread(held_bytes=1 << 30, asked=4))
    assert made == 1
    assert ANSWER - 4 * UNSENT_BYTES < held < ANSWER
    assert read >= 4 * ANSWER and last == 0


def test_who_does_not_read_is_cut_off_where_there_is_no_room() -> None:
    made, held, read, last = asyncio.run(unread(held_bytes=ANSWER // 4, asked=4))
    assert (made, held, last) == (1, 0, 0)
    assert read < ANSWER
