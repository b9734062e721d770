"""grpc's core on the loop: calls end, however they end, and nothing holds on to them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

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
STREAMS = 2


@asynccontextmanager
async def served(bundle: Path) -> AsyncIterator[tuple[RpcServer, grpc.aio.Channel]]:
    """A door with two calls at a time on one connection, and that connection."""
    repository = Repository(bundle, Settings())
    repository.load_all()
    settings = GrpcSettings(port=0, streams=STREAMS)
    books = Books(repository.metrics, AccessLog(False))
    server = RpcServer(DataPlane(repository), settings, books)
    port = await server.start("127.0.0.1")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield server, channel
    assert await server.drain(5)
    repository.close()


def test_no_call_waits_for_the_collector(bundle: Path) -> None:
    """The core counts a call for as long as anything holds it, and the collector rarely runs."""

    async def scenario() -> None:
        async with served(bundle) as (_, channel), asyncio.timeout(20):
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
        async with served(bundle) as (_, channel), asyncio.timeout(20):
            nothing = channel.stream_unary(INFER)(iter([]))
            assert await nothing.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "expected one message" in await nothing.details()

    asyncio.run(scenario())


def test_an_address_that_is_taken_is_told(bundle: Path) -> None:
    async def scenario() -> None:
        async with served(bundle) as (server, _):
            other = RpcServer(
                server._plane, GrpcSettings(port=server._settings.port), server._calls.books
            )
            with pytest.raises(OSError, match="cannot be listened at"):
                await other.start("192.0.2.1")

    asyncio.run(scenario())
