"""Tensors in, tensors out over gRPC: one request a call, or many on a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from serving import errors
from serving.codecs import codec_proto
from serving.codecs.proto_fields import model_of
from serving.codecs.proto_templates import Reader
from serving.codecs.tensor_head import Check
from serving.dataplane import DataPlane
from serving.doors.grpc.calls import Calls, Cancellable, Reply, Unary, given_up
from serving.doors.grpc.core import Incoming
from serving.doors.grpc.status import NAMES, OK, told
from serving.doors.offload import LongReader
from serving.observability.accounting import CLIENT_LEFT
from serving.observability.call import Call
from serving.observability.cells import GRPC
from serving.proto.inference import INFERENCE
from serving.protocol import InferRequest, InferResponse
from serving.telemetry import log

Done = Callable[[InferRequest, InferResponse | errors.ServingError], None]

INFER, STREAM = f"/{INFERENCE}/ModelInfer", f"/{INFERENCE}/ModelStreamInfer"


class Inference:
    """ModelInfer and ModelStreamInfer. `pipelined`: requests of one stream that may wait.

    Once `leaving` is set, open streams end after what they had been sent, and new calls are refused:
    `late` counts them, and they are told when `closed` is set. Told at once, whoever asks again
    does so through a closing door, where grpc cuts calls off without a word.
    """

    def __init__(self, plane: DataPlane, calls: Calls, pipelined: int) -> None:
        self._plane = plane
        self._calls = calls
        self._pipelined = pipelined
        self._reader = Reader()
        self._long = LongReader("protobuf")
        self.leaving = asyncio.Event()
        self.closed = asyncio.Event()
        self.late = 0

    def infer(self, payload: bytes, asked: Unary) -> Cancellable | Awaitable[bytes]:
        """ModelInfer."""
        if self.leaving.is_set():
            return self._refused()
        if asked.incoming.time_remaining() <= 0:
            raise errors.DeadlineExceeded("the deadline had passed when the request came")
        return self._submit(payload, asked.call, asked.reply)

    async def _refused(self) -> bytes:
        self.late += 1
        await self.closed.wait()
        raise errors.NotReady("the server is leaving; ask again in a moment")

    def _submit(self, payload: bytes, call: Call, reply: Reply) -> Cancellable:
        """Have a request answered, later; what comes back takes it out of the queue."""

        def done(request: InferRequest, answer: InferResponse | errors.ServingError) -> None:
            if isinstance(answer, errors.ServingError):
                reply(answer)
                return
            try:
                found: bytes | Exception = codec_proto.encode(request.id, answer)
            except Exception as error:
                found = error
            reply(found)

        if self._reader.is_long(payload):
            return self._read_apart(payload, done, reply, call)
        model, version, read = self._reader.read(payload)
        return self._plane.submit(model, version, read, done, call)

    def _read_apart(self, payload: bytes, done: Done, reply: Reply, call: Call) -> Cancellable:
        """Have many typed values read in a thread, in which it takes turns with the event loop."""
        model, version = model_of(payload)
        check = self._plane.check(model, version, call)

        def then(asked: InferRequest) -> Cancellable:
            return self._plane.submit(model, version, lambda contract: asked, done, call)

        def fail(error: BaseException) -> None:
            if isinstance(error, Exception):
                reply(error)

        return self._long.read(lambda: _read(payload, check), then, fail)

    async def _answer(self, payload: bytes, call: Call) -> bytes:
        """The same as something to await. Cancelled, it leaves the queue."""
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def reply(answer: bytes | Exception) -> None:
            if answered.done():  # cancelled, and its task has not had its turn to say so
                return
            if isinstance(answer, bytes):
                answered.set_result(answer)
            else:
                answered.set_exception(answer)

        under_way = self._submit(payload, call, reply)
        try:
            return await answered
        except asyncio.CancelledError:
            under_way.cancel()
            raise

    async def stream(
        self, asked: AsyncIterator[bytes], incoming: Incoming
    ) -> AsyncGenerator[bytes, None]:
        """ModelStreamInfer: answers in the order of the requests, which run beside one another."""
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(self._pipelined)
        running: set[asyncio.Task[Any]] = set()
        reader = asyncio.create_task(self._read(asked, incoming, waiting, running))
        try:
            while (answer := await waiting.get()) is not None:
                yield await answer
                running.discard(answer)
            if self.leaving.is_set():
                raise errors.NotReady("the server is leaving; open another stream")
        finally:
            for left in (reader, *running):
                left.cancel()

    async def _read(
        self,
        asked: AsyncIterator[bytes],
        incoming: Incoming,
        waiting: asyncio.Queue[asyncio.Task[bytes] | None],
        running: set[asyncio.Task[Any]],
    ) -> None:
        """Start each request as it comes; at the end, or when leaving, say that there are no more."""
        leaving = asyncio.create_task(self.leaving.wait())
        try:
            while not leaving.done():
                coming = asyncio.ensure_future(anext(asked, None))
                await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    break
                payload = coming.result()
                if payload is None:
                    break
                answer = asyncio.create_task(self._streamed(payload, incoming))
                running.add(answer)
                await waiting.put(answer)
        except Exception as error:  # grpc's, for a call that has ended; whoever waits must not hang
            log("warning", "a stream broke off", kind=type(error).__name__)
        finally:
            leaving.cancel()
        await waiting.put(None)

    async def _streamed(self, payload: bytes, incoming: Incoming) -> bytes:
        """One request of a stream; its failure is an answer like any other."""
        arrived = time.perf_counter()
        call, answer, reason = Call(), b"", ""
        code: grpc.StatusCode | None = None
        try:
            answer = codec_proto.encode_streamed(await self._answer(payload, call))
            code = OK
        except Exception as error:
            call.failed(error)
            code, details = told(error)
            reason = errors.label_of(error)
            answer = codec_proto.encode_stream_failure(payload, details)
        finally:
            if code is None:
                code, reason = given_up(call, incoming), CLIENT_LEFT
            self._calls.books.note(
                *(call, GRPC, "GRPC", STREAM, NAMES[code], *self._calls.named(incoming.metadata)),
                *(len(payload), len(answer), arrived, incoming.key, reason),
            )
        return answer


def _read(payload: bytes, check: Check) -> InferRequest:
    return codec_proto.decode(codec_proto.parse(payload), check)
