"""The client for threads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
from serving.client.sockets import Pool
from serving.protocol import IndexEntry, ModelMetadata, Prediction

T = TypeVar("T")


class Client(Caller[Pool]):
    """A server's client, to be shared by all threads of a process and closed at the end.

    `timeout` is one call's seconds in all, retries and waiting for a free connection included
    (looking up the host's name is the system's and may take longer); `retries` the tries after the
    first. `key` goes out as `Authorization: Bearer`; `ca` is a file of certificates to trust
    instead of the system's, `certificate` our own as (file, key file). No proxy is used and no
    redirection followed. Inputs must not change while their call is under way.
    """

    def _connected(self, address: Address, limit: int, answer_bytes: int) -> Pool:
        return Pool(address, limit, answer_bytes)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """Run a model on named arrays, the batch first. `outputs` none asks for all of them."""
        return self._call(
            calls.infer(model, inputs, outputs, version, request_id, self._binary), timeout
        )

    def predict(
        self,
        model: str,
        file: File,
        version: str | int | None = None,
        invert: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Label and probabilities of a file, given by its path or as its bytes."""
        return self._call(calls.predict(model, file, version, invert, request_id), timeout)

    def metadata(
        self, model: str, version: str | int | None = None, timeout: float | None = None
    ) -> ModelMetadata:
        """What a model takes and gives, and where it comes from."""
        return self._call(calls.metadata(model, version), timeout)

    def server(self, timeout: float | None = None) -> dict[str, Any]:
        """The server's name, version and extensions."""
        return self._call(calls.server(), timeout)

    def models(self, timeout: float | None = None) -> list[str]:
        """The names of the server's models."""
        return self._call(calls.models(), timeout)

    def index(self, ready_only: bool = False, timeout: float | None = None) -> list[IndexEntry]:
        """Every version of every model with its state."""
        return self._call(calls.index(ready_only), timeout)

    def live(self, timeout: float | None = None) -> bool:
        """Whether the server says it runs. Raises `Unreachable` where nobody says anything."""
        return self._holds(calls.live(), timeout)

    def ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Whether the server, or one model, takes requests now; asked once, never retried."""
        return self._holds(calls.ready(model, version), timeout)

    def wait_ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Return once the server, or one model, takes requests.

        A server that is not up yet and a model not there yet are waited for. Raises
        `DeadlineExceeded` saying what stood in the way last.
        """
        polling = self._polling(timeout)
        while True:
            try:
                return self._once(calls.ready(model, version), polling.deadline)
            except NOT_YET as failure:
                wait = polling.wait(failure, time.monotonic())
            time.sleep(wait)

    def load(self, model: str, timeout: float | None = None) -> None:
        """Have the server load a model, or load it anew. Not tried again once it was sent."""
        self._call(calls.load(model), timeout)

    def unload(self, model: str, timeout: float | None = None) -> None:
        """Have the server unload a model. Not tried again once it was sent."""
        self._call(calls.unload(model), timeout)

    def close(self) -> None:
        """Close the connections; those in use close when their calls end."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _holds(self, call: Call[None], timeout: float | None) -> bool:
        try:
            self._once(call, self._deadline(timeout))
        except Overloaded:
            return False
        return True

    def _call(self, call: Call[T], timeout: float | None) -> T:
        retries = self._tries(call, timeout)
        while True:
            try:
                return self._once(call, retries.deadline)
            except ClientError as failure:
                wait = retries.wait(failure, time.monotonic())
            if wait:
                time.sleep(wait)

    def _once(self, call: Call[T], deadline: float) -> T:
        parts, _ = self._request(call, deadline)
        try:
            reply = self._pool.exchange(parts, deadline, fresh=not call.idempotent)
        except (TimeoutError, Malformed) as error:
            raise self._failure(call, error) from None
        return self._result(call, reply)
