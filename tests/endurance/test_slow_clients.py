"""Hundreds of clients that send slowly, send nothing, or do not read, beside a good one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.endurance.conftest import GOOD, Known, Start
from tests.endurance.hostile import sized as sized_request
from tests.endurance.resources import descriptors_return, held
from tests.endurance.scale import sized
from tests.endurance.steady import IDLE_SECONDS, RATE, GoodClient, idle, unharmed
from tests.serving.bundles import digits_rows
from tests.serving.live import Live, binary, framed

pytestmark = pytest.mark.slow

CLIENTS = sized(50, 500)
WAITS = 2.0
"""Seconds the server allows for headers, for a body, and between requests."""

SLACK = 2.0
"""Seconds by which it may be late, on a busy machine: its sweep comes every quarter of a second."""

DRIP_SECONDS = 1.0
ASKED = 16
READ_WAITS = sized(2.0, 30.0)
"""Seconds the server allows for reading: in the full scale so long that all are there at once."""

IMPATIENT = (
    f"[http]\nheader_seconds = {WAITS}\nbody_seconds = {WAITS}\nidle_seconds = {WAITS}\n"
    f"write_seconds = {READ_WAITS}\n"
)
ARRIVAL_SECONDS = sized(0.01, 0.04)
"""Between two clients. Making what fills a client's buffers is work that others wait for."""

MADE = 3
"""Of the answers that a client asks for and does not read, so many are made at most: what fills its
buffers and the kernel's, which takes megabytes of them unless it is told otherwise."""

PICTURE = digits_rows(1)
BODY, LENGTH = framed(
    {
        "inputs": [binary("image", PICTURE, "UINT8")],
        "parameters": {"binary_data_output": True},
    },
    PICTURE.tobytes(),
)
BIG = sized_request(
    BODY,
    *(f"{name}: {value}".encode() for name, value in LENGTH.items()),
    head=b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: x\r\n",
)
"""A small request whose answer has a quarter of a megabyte."""

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Client = Callable[[Reader, Writer], Awaitable[bytes]]


async def drip(reader: Reader, writer: Writer, at_once: bytes, slowly: bytes) -> bytes:
    """Everything the server says while it is sent a byte a second."""
    writer.write(at_once)
    listening = asyncio.ensure_future(reader.read(1 << 16))
    for position in range(len(slowly)):
        writer.write(slowly[position : position + 1])
        done, _ = await asyncio.wait({listening}, timeout=DRIP_SECONDS)
        if done:
            break
    answer = await listening
    assert await reader.read() == b""
    return answer


async def slow_headers(reader: Reader, writer: Writer) -> bytes:
    return await drip(reader, writer, b"", GOOD)


async def slow_bodies(reader: Reader, writer: Writer) -> bytes:
    return await drip(reader, writer, GOOD[:-60], GOOD[-60:])


async def idlers(reader: Reader, writer: Writer) -> bytes:
    return await reader.read()


async def slow_readers(reader: Reader, writer: Writer) -> bytes:
    """Ask for far more than any buffer holds, read nothing, and wait for the cut."""
    writer.transport.pause_reading()
    writer.write(BIG * ASKED)
    with suppress(ConnectionError):
        while not writer.transport.is_closing():
            await asyncio.sleep(0.1)
            # Nothing is read, so the end shows only to who sends: an empty line asks for nothing.
            writer.write(b"\r\n")
    return b""


async def one(port: int, number: int, client: Client) -> tuple[bytes, float]:
    """(what one client heard, seconds until its connection ended)."""
    await asyncio.sleep(number * ARRIVAL_SECONDS)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock)
    began = time.monotonic()
    try:
        answer = await client(reader, writer)
    except ConnectionError:
        answer = b"reset"
    finally:
        writer.transport.abort()
    return answer, time.monotonic() - began


async def crowd(port: int, client: Client) -> tuple[Counter[bytes], float]:
    """(what they heard, by its first line, the longest any of them was let wait)."""
    ends = await asyncio.gather(*(one(port, number, client) for number in range(CLIENTS)))
    return Counter(answer.split(b"\r\n")[0] for answer, _ in ends), max(took for _, took in ends)


@pytest.mark.parametrize(
    ("client", "heard"),
    [
        (slow_headers, b"HTTP/1.1 408 Request Timeout"),
        (slow_bodies, b"HTTP/1.1 408 Request Timeout"),
        (idlers, b""),
        (slow_readers, b""),
    ],
    ids=["headers", "bodies", "idle", "readers"],
)
def test_a_crowd(
    start: Start, models: Path, known: Callable[[Live], Known], client: Client, heard: bytes
) -> None:
    server = start(models, settings=IMPATIENT)
    good = known(server)
    before = idle(server.port, good.request, good.answer, RATE, IDLE_SECONDS)
    first = held(server.process.pid)
    with GoodClient(server.port, good.request, good.answer, RATE) as steady:
        ends, longest = asyncio.run(crowd(server.port, client))
    last = descriptors_return(server.process.pid, first.descriptors)
    _, told = server.json("GET", "/v2/models/wide/stats")
    made = told["model_stats"][0]["inference_count"]
    unharmed(
        before,
        steady.stretch,
        f"slow: {client.__name__}",
        clients=CLIENTS,
        wide_answers=made,
        longest_s=longest,
        heard={line.decode(): count for line, count in ends.items()},
        descriptors=f"{first.descriptors} to {last}",
    )
    assert ends == {heard: CLIENTS}
    # A reader's time begins anew while the kernel still takes something for it.
    limit = 2 * READ_WAITS if client is slow_readers else WAITS
    assert longest < limit + SLACK
    assert last <= first.descriptors
    assert made <= MADE * CLIENTS
