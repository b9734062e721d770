"""The client for asyncio: the same calls awaited, cancellable at any point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from math import inf
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import ArrayLike

from serving.client import calls
from serving.client.address import Address
from serving.client.answers import Answer
from serving.client.caller import Caller
from serving.client.calls import Call, File
from serving.client.errors import ClientError, Overloaded
from serving.client.reading import Malformed
from serving.client.retries import NOT_YET
from serving.client.transports import Pool
from serving.protocol import IndexEntry, ModelMetadata, Prediction

T = TypeVar("T")


class AsyncClient(Caller[Pool]):
    """A server's client on an event loop, asyncio's own or uvloop's; `Client` says the settings.

    Any number of tasks may share it. Cancelling a call closes its connection and no other, which
    also tells the server that nobody waits any longer.
    """

    def _connected(self, address: Address, limit: int, answer_bytes: int) -> Pool:
        return Pool(address, limit, answer_bytes)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """Run a model on named arrays, the batch first. `outputs` none asks for all of them."""
        return await self._call(
            calls.infer(model, inputs, outputs, version, request_id, self._binary), timeout
        )

    async def predict(
        self,
        model: str,
        file: File,
        version: str | int | None = None,
        invert: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Label and probabilities of a file, given by its path or as its bytes."""
        return await self._call(calls.predict(model, file, version, invert, request_id), timeout)

    async def metadata(
        self, model: str, version: str | int | None = None, timeout: float | None = None
    ) -> ModelMetadata:
        """What a model takes and gives, and where it comes from."""
        return await self._call(calls.metadata(model, version), timeout)

    async def server(self, timeout: float | None = None) -> dict[str, Any]:
        """The server's name, version and extensions."""
        return await self._call(calls.server(), timeout)

    async def models(self, timeout: float | None = None) -> list[str]:
        """The names of the server's models."""
        return await self._call(calls.models(), timeout)

    async def index(
        self, ready_only: bool = False, timeout: float | None = None
    ) -> list[IndexEntry]:
        """Every version of every model with its state."""
        return await self._call(calls.index(ready_only), timeout)

    async def live(self, timeout: float | None = None) -> bool:
        """Whether the server says it runs. Raises `Unreachable` where nobody says anything."""
        return await self._holds(calls.live(), timeout)

    async def ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Whether the server, or one model, takes requests now; asked once, never retried."""
        return await self._holds(calls.ready(model, version), timeout)

    async def wait_ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Return once the server, or one model, takes requests; see `Client.wait_ready`."""
        polling = self._polling(timeout)
        while True:
            try:
                return await self._once(calls.ready(model, version), polling.deadline)
            except NOT_YET as failure:
                wait = polling.wait(failure, time.monotonic())
            await asyncio.sleep(wait)

    async def load(self, model: str, timeout: float | None = None) -> None:
        """Have the server load a model, or load it anew. Not tried again once it was sent."""
        await self._call(calls.load(model), timeout)

    async def unload(self, model: str, timeout: float | None = None) -> None:
        """Have the server unload a model. Not tried again once it was sent."""
        await self._call(calls.unload(model), timeout)

    async def close(self) -> None:
        """Close the connections; those in use close when their calls end."""
        self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _holds(self, call: Call[None], timeout: float | None) -> bool:
        try:
            await self._once(call, self._deadline(timeout))
        except Overloaded:
            return False
        return True

    async def _call(self, call: Call[T], timeout: float | None) -> T:
        retries = self._tries(call, timeout)
        while True:
            try:
                return await self._once(call, retries.deadline)
            except ClientError as failure:
                wait = retries.wait(failure, time.monotonic())
            if wait:
                await asyncio.sleep(wait)

    async def _once(self, call: Call[T], deadline: float) -> T:
        parts, left = self._request(call, deadline)
        try:
            async with asyncio.timeout(None if left == inf else left):
                reply = await self._pool.exchange(parts, fresh=not call.idempotent)
        except (TimeoutError, Malformed) as error:
            raise self._failure(call, error) from None
        return self._result(call, reply)
