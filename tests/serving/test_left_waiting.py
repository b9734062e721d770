"""Whatever goes wrong on an answer's way, nobody is left waiting for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.config import CompressionSettings, HttpSettings
from serving.doors.http.exchange import Handler, Reply, Request, Response
from serving.doors.http.middleware import LOOP_BYTES, Compressed
from serving.doors.http.rest import reply_when_done
from serving.doors.http.server import HttpServer
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.observability.metrics import Metrics

ASK = b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"


async def ask(
    handler: Handler, sent: bytes = ASK, sampler: Callable[[], None] = lambda: None
) -> bytes:
    """What a client hears until the answer is whole, or the connection ends."""
    sock = socket.create_server(("127.0.0.1", 0))
    metrics = Metrics()
    metrics.samplers.append(sampler)
    settings = HttpSettings(header_seconds=0.6)
    server = HttpServer(handler, settings, Books(metrics, AccessLog(False)))
    await server.start(sock)
    reader, writer = await asyncio.open_connection(*sock.getsockname(), limit=1 << 20)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.readuntil(b"whole"), 5)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except ConnectionError:
        return b""
    finally:
        writer.close()
        metrics.samplers.clear()
        await server.drain(0)


@pytest.mark.parametrize("size", [100, LOOP_BYTES + 1], ids=["on the loop", "in a thread"])
def test_an_answer_that_cannot_be_compressed_goes_as_it_is(size: int) -> None:
    broken = CompressionSettings.model_construct(
        requests=True, answers=True, answer_bytes=1, level=99
    )  # zlib refuses this level, as it does when there is no memory

    def handler(request: Request, reply: Reply) -> None:
        reply(Response(200, (b"a" * size + b"whole",)))

    answer = asyncio.run(ask(Compressed(handler, broken, 1 << 20)))
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"a" * size + b"whole")
    assert b"Content-Encoding" not in answer


def test_an_answer_that_cannot_be_sent_ends_the_connection() -> None:
    def handler(request: Request, reply: Reply) -> asyncio.TimerHandle:
        unsendable = Response(200, (b"a",), headers=(("X-Letter", "\u0416"),))
        return asyncio.get_running_loop().call_later(0.01, reply, unsendable)

    assert asyncio.run(ask(handler)) == b""


def test_deadlines_are_kept_when_counting_fails() -> None:
    def sampler() -> None:
        raise OSError("the ledger's file is gone")

    answer = asyncio.run(ask(lambda request, reply: None, ASK[:20], sampler))
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_work_that_its_thread_threw_away_is_answered() -> None:
    """As a file to be decoded is when its model is closed."""

    async def everyone() -> Response:
        executor = ThreadPoolExecutor(1)
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Response] = loop.create_future()
        gate = asyncio.Event()
        busy = loop.run_in_executor(
            executor, asyncio.run_coroutine_threadsafe(gate.wait(), loop).result
        )

        async def answer() -> Response:
            return await loop.run_in_executor(executor, lambda: Response(200))

        reply_when_done(answer(), told.set_result)
        await asyncio.sleep(0.01)
        executor.shutdown(wait=False, cancel_futures=True)
        gate.set()
        await busy
        return await asyncio.wait_for(told, 5)

    assert asyncio.run(everyone()).status == 503
