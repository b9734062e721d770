"""What both clients are, but for how they wait: settings, and the two ends of a call."""

from __future__ import annotations

import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from serving.client import calls
from serving.client.address import Address, parse
from serving.client.calls import Call, Parts
from serving.client.errors import ClientError, DeadlineExceeded, ServerError
from serving.client.reading import Malformed, Reply
from serving.client.retries import Polling, Retries

T = TypeVar("T")
P = TypeVar("P")


class Caller(ABC, Generic[P]):
    """A server's client over a pool of connections. `Client` says what the settings mean."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        connections: int = 64,
        key: str | None = None,
        ca: str | Path | None = None,
        certificate: tuple[str | Path, str | Path] | None = None,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        binary: bool = True,
        compress: bool = False,
        answer_bytes: int = 256 << 20,
    ) -> None:
        self._address = parse(url, key, ca, certificate, tls, headers, compress)
        self._timeout = timeout
        self._retries = retries
        self._binary, self._compress = binary, compress
        self._answer_bytes = answer_bytes
        self._pool = self._connected(self._address, connections, answer_bytes)

    @abstractmethod
    def _connected(self, address: Address, limit: int, answer_bytes: int) -> P:
        """A pool of at most `limit` connections, none of them open yet."""

    @property
    def url(self) -> str:
        """The server's address."""
        return self._address.url

    def _polling(self, timeout: float | None) -> Polling:
        return Polling(self._deadline(timeout))

    def _tries(self, call: Call[Any], timeout: float | None) -> Retries:
        return Retries(self._retries, self._deadline(timeout), call.idempotent)

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    def _request(self, call: Call[Any], deadline: float) -> tuple[Parts, float]:
        """(what to send, seconds left). Raises `DeadlineExceeded`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{call.what}: the time was over before it was sent")
        return calls.rendered(call, self._address, left, self._compress), left

    def _failure(self, call: Call[Any], error: TimeoutError | Malformed) -> ClientError:
        """No answer, or none that can be read, in the caller's terms."""
        if isinstance(error, Malformed):
            return ServerError(f"{call.what}: {error}")
        return DeadlineExceeded(f"{call.what}: no answer from {self.url} in time")

    def _result(self, call: Call[T], reply: Reply) -> T:
        return calls.result(call, self._address, reply, time.time(), self._answer_bytes)
