"""grpc's core on the loop: calls end, however they end, and nothing holds on to them."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from serving.codecs.codec_proto import field_head
from serving.codecs.proto_templates import LONG_BYTES
from serving.config import GrpcSettings, Settings
from serving.dataplane import DataPlane
from serving.doors.grpc.rpc import RpcServer
from serving.models.repository import Repository
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.proto.inference import HEALTH, INFERENCE
from tests.serving.bundles import digits_rows
from tests.serving.rpc_client import infer_request

INFER, STREAM = f"/{INFERENCE}/ModelInfer", f"/{INFERENCE}/ModelStreamInfer"
DIGITS = infer_request("digits-test", {"image": digits_rows(1)}).SerializeToString()
LIVE, WATCH = f"/{INFERENCE}/ServerLive", f"/{HEALTH}/Watch"
STREAMS = 2
HEADERS, DATA, SETTINGS = 1, 0, 4
"""HTTP/2's kinds of frames."""
LAST, WHOLE = 1, 4
"""Flags: nothing more comes from the client; these are all headers."""
EMPTY = b"\0" * 5
"""A message of no bytes, with what says so."""


@asynccontextmanager
async def served(
    bundle: Path, **more: float
) -> AsyncIterator[tuple[RpcServer, grpc.aio.Channel, int]]:
    """A door with two calls at a time on one connection, that connection, and the port."""
    repository = Repository(bundle, Settings())
    repository.load_all()
    settings = GrpcSettings.model_validate({"port": 0, "streams": STREAMS, **more})
    books = Books(repository.metrics, AccessLog(False))
    server = RpcServer(DataPlane(repository), settings, books)
    port = await server.start("127.0.0.1")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield server, channel, port
    assert await server.drain(5)
    repository.close()


def test_no_call_waits_for_the_collector(bundle: Path) -> None:
    """The core counts a call for as long as anything holds it, and the collector rarely runs."""

    async def scenario() -> None:
        async with served(bundle) as (_, channel, _), asyncio.timeout(20):
            unary = channel.unary_unary(INFER)
            live = channel.unary_unary(f"/{INFERENCE}/ServerLive")
            stream = channel.stream_stream(STREAM)
            for _ in range(4 * STREAMS):
                assert await unary(DIGITS)
                assert await live(b"")
                for wrong in (channel.unary_unary(f"/{INFERENCE}/Nothing"), unary):
                    with pytest.raises(grpc.RpcError):
                        await wrong(b"\xff")
                assert [answer async for answer in stream(iter([DIGITS] * 3))]
                left = stream(iter([DIGITS]))
                assert await left.read()
                left.cancel()
                watched = channel.unary_stream(f"/{HEALTH}/Watch")(b"")
                assert await watched.read()
                watched.cancel()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


def test_a_method_without_a_message_is_told(bundle: Path) -> None:
    async def scenario() -> None:
        async with served(bundle) as (_, channel, _), asyncio.timeout(20):
            nothing = channel.stream_unary(INFER)(iter([]))
            assert await nothing.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "expected one message" in await nothing.details()

    asyncio.run(scenario())


def test_only_long_messages_that_are_not_raw_are_read_in_a_thread(bundle: Path) -> None:
    typed = infer_request("digits-test", {"image": digits_rows(1)}, typed=True).SerializeToString()
    more = b"\xfa\x01" + field_head(0, LONG_BYTES)[1:] + bytes(LONG_BYTES)  # a field of no meaning

    def readers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("protobuf")}

    async def scenario() -> None:
        async with served(bundle) as (_, channel, _), asyncio.timeout(20):
            infer, before = channel.unary_unary(INFER), readers()
            for payload, apart in ((typed, False), (DIGITS + more, False), (more + typed, True)):
                assert await infer(payload)
                assert bool(readers() - before) is apart

    asyncio.run(scenario())


def test_an_address_that_is_taken_is_told(bundle: Path) -> None:
    async def scenario() -> None:
        async with served(bundle) as (server, _, _):
            other = RpcServer(
                server._plane, GrpcSettings(port=server._settings.port), server._calls.books
            )
            with pytest.raises(OSError, match="cannot be listened at"):
                await other.start("192.0.2.1")

    asyncio.run(scenario())


class Bare:
    """A client that sends what no library would: frames, as they are given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._number = -1
        self.heard = b""
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._frame(SETTINGS, 0, 0, b"")

    @classmethod
    async def at(cls, port: int) -> Bare:
        """Connected."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def begin(
        self, path: str, *more: tuple[bytes, bytes], data: bytes = b"", flags: int = 0
    ) -> None:
        """A call: its headers, `more` of them, and what there is of its message."""
        self._number += 2
        headers = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"x"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *more,
        )
        told = [b"\0" + _counted(name) + _counted(value) for name, value in headers]
        self._frame(HEADERS, WHOLE, self._number, b"".join(told))
        if data:
            self._frame(DATA, flags, self._number, data)

    async def hears(self, text: bytes, times: int = 1) -> None:
        """Wait until the server has said that so often; then forget it."""
        while self.heard.count(text) < times:
            found = await self._reader.read(1 << 16)
            assert found, self.heard
            self.heard += found
        self.heard = b""

    def close(self) -> None:
        """Leave."""
        self._writer.close()

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
        self._writer.write(head + number.to_bytes(4, "big") + payload)


def _counted(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def test_calls_whose_message_does_not_come_close_the_door_for_nobody(bundle: Path) -> None:
    """Headers only, all of a message but its last byte, a stream that asks for nothing."""
    late = b"no whole message came within 0.4 seconds"
    part = b"\0\0\0\0\x64" + b"x" * 99
    limits = {"streams": 16, "calls": 2, "open_calls": 3, "message_seconds": 0.4}

    async def scenario() -> None:
        async with served(bundle, **limits) as (server, channel, port), asyncio.timeout(20):
            bare = await Bare.at(port)
            bare.begin(LIVE)
            bare.begin(LIVE, data=part)
            bare.begin(WATCH)
            while server._calls.under_way() < 3:
                await asyncio.sleep(0.01)
            live = channel.unary_unary(LIVE)
            with pytest.raises(grpc.RpcError, match=r"3 concurrent calls.*grpc.open_calls"):
                await live(b"")
            infer = channel.unary_unary(INFER)
            assert await infer(DIGITS)
            await bare.hears(late, times=3)
            assert await live(b"")
            bare.begin(INFER)
            bare.begin(INFER, data=part)
            while server._calls.under_way() < 2:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.RpcError, match=r"2 concurrent calls.*grpc.calls"):
                await infer(DIGITS)
            assert await live(b"")
            await bare.hears(late, times=2)
            assert await infer(DIGITS)
            with pytest.raises(grpc.RpcError, match="at most 4096 bytes, got 5000"):
                await live(bytes(5000))
            assert not server._calls.under_way()
            bare.close()

    asyncio.run(scenario())


def test_a_request_id_that_cannot_be_sent_back_is_not(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        async with served(bundle) as (_, _, port), asyncio.timeout(20):
            bare = await Bare.at(port)
            for wrong in (b"a\xff\xe9", "caf\u00e9".encode()):
                bare.begin(LIVE, (b"x-request-id", wrong), data=EMPTY, flags=LAST)
                await bare.hears(b"x-request-id")
            bare.close()

    asyncio.run(scenario())
    assert not capfd.readouterr().err
