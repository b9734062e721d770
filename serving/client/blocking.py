"""The client for threads: a pool of keep-alive sockets, one deadline over each call."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import ArrayLike

from serving.client import calls
from serving.client.address import Address, parse
from serving.client.answers import Answer
from serving.client.calls import Call, File, Parts
from serving.client.errors import (
    ClientError,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    ServerError,
    Unreachable,
    no_handshake,
    reason,
)
from serving.client.reading import AnswerReader, Malformed, Reply
from serving.client.retries import Retries
from serving.protocol import IndexEntry, ModelMetadata, Prediction

T = TypeVar("T")
RECEIVE_BYTES = 256 << 10
SEND_BYTES = 1 << 20
POLL_SECONDS = 0.05
"""Between two looks while waiting for ready; doubles up to a second."""

IDLE_SECONDS = 30.0
"""How long a connection is kept for the next call: less than servers and gateways keep it."""


class Client:
    """A server's client, to be shared by all threads of a process and closed at the end.

    `timeout` is one call's seconds in all, retries and waiting for a free connection included
    (looking up the host's name is the system's and may take longer); `retries` the tries after the
    first. `key` goes out as `Authorization: Bearer`; `ca` is a file of certificates to trust
    instead of the system's, `certificate` our own as (file, key file). No proxy is used and no
    redirection followed. Inputs must not change while their call is under way.
    """

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
        self._pool = Pool(self._address, connections, answer_bytes)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._address.url

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
        deadline, pause = self._deadline(timeout), POLL_SECONDS
        while True:
            try:
                return self._once(calls.ready(model, version), deadline)
            except (Unreachable, Overloaded, NotFound) as failure:
                if isinstance(failure, Unreachable) and failure.permanent:
                    raise
                if time.monotonic() + pause >= deadline:
                    raise DeadlineExceeded(f"not ready in time: {failure}") from failure
            time.sleep(pause)
            pause = min(1.0, pause * 2)

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

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    def _holds(self, call: Call[None], timeout: float | None) -> bool:
        try:
            self._once(call, self._deadline(timeout))
        except Overloaded:
            return False
        return True

    def _call(self, call: Call[T], timeout: float | None) -> T:
        retries = Retries(self._retries, self._deadline(timeout), call.idempotent)
        while True:
            try:
                return self._once(call, retries.deadline)
            except ClientError as failure:
                wait = retries.wait(failure, time.monotonic())
            if wait:
                time.sleep(wait)

    def _once(self, call: Call[T], deadline: float) -> T:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{call.what}: the time was over before it was sent")
        parts = calls.rendered(call, self._address, left, self._compress)
        try:
            reply = self._pool.exchange(parts, deadline, fresh=not call.idempotent)
        except TimeoutError:
            raise DeadlineExceeded(f"{call.what}: no answer from {self.url} in time") from None
        except Malformed as error:
            raise ServerError(f"{call.what}: {error}") from None
        return calls.result(call, self._address, reply, time.time(), self._answer_bytes)


class Pool:
    """Connections to one address, at most so many at once, the latest used first."""

    def __init__(self, address: Address, limit: int, answer_bytes: int) -> None:
        self._address = address
        self._answer_bytes = answer_bytes
        self._limit = limit
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._free = threading.Semaphore(self._limit)
        self._idle: deque[Connection] = deque()

    def exchange(self, parts: Parts, deadline: float, fresh: bool) -> Reply:
        """Send a request and read its answer. Raises `Unreachable`, `TimeoutError`, `Malformed`."""
        if self._process != os.getpid():
            self._begin()  # forked: the sockets are the parent's to use
        free = self._free
        if not free.acquire(timeout=_seconds_left(deadline)):
            raise TimeoutError
        try:
            connection = None if fresh else self._reused()
            if connection is None:
                connection = connect(self._address, deadline, self._answer_bytes)
            try:
                reply = connection.exchange(parts, deadline)
            except BaseException:
                connection.close()
                raise
            if connection.reusable and not self._closed:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
            else:
                connection.close()
            return reply
        finally:
            free.release()

    def _reused(self) -> Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.usable():
                return connection
            connection.close()

    def close(self) -> None:
        """Close what is idle, and from now on whatever comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class Connection:
    """One socket, used by one call at a time."""

    def __init__(self, sock: socket.socket, answer_bytes: int) -> None:
        self._socket = sock
        self._reader = AnswerReader(answer_bytes)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.idle_since = -inf
        """When its last call ended; before the first, never."""
        self.reusable = False

    def usable(self) -> bool:
        """Whether the other side kept it: anything to read between answers means it did not."""
        return time.monotonic() < self.idle_since + IDLE_SECONDS and not self._poll.poll(0)

    def exchange(self, parts: Parts, deadline: float) -> Reply:
        """Raises `Unreachable`, `TimeoutError` and `Malformed`; the connection is then spent."""
        self._reader.begin()
        whole = True
        try:
            self._send(parts, deadline)
        except TimeoutError:
            raise
        except OSError:
            whole = False  # refused half-way, perhaps with an answer that says why
        reply = self._receive(deadline)
        self.reusable = whole and self._reader.reusable
        return reply

    def _send(self, parts: Parts, deadline: float) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest:
                self._socket.settimeout(_seconds_left(deadline))
                rest = rest[self._socket.send(rest[:SEND_BYTES]) :]

    def _receive(self, deadline: float) -> Reply:
        reply, told = None, "the server closed the connection"
        while reply is None:
            self._socket.settimeout(_seconds_left(deadline))
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError:
                raise
            except OSError as error:
                data, told = b"", reason(error)
            if data:
                reply = self._reader.feed(data)
            else:
                reply = self._reader.end()
                if reply is None:
                    started = self._reader.started
                    told += " within the answer" if started else " before the answer"
                    stale = self.idle_since > -inf and not started
                    raise Unreachable(told, sent=True, stale=stale)
        return reply

    def close(self) -> None:
        """Close at once."""
        self._socket.close()


def connect(address: Address, deadline: float, answer_bytes: int) -> Connection:
    """Try the host's addresses one after the other. Raises `Unreachable` and `TimeoutError`."""
    where = f"{address.host}:{address.port}"
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{where}: {reason(error)}") from None
    last: OSError | None = None
    for family, kind, protocol, _, place in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_seconds_left(deadline))
            sock.connect(place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                sock.settimeout(_seconds_left(deadline))
                sock = address.tls.wrap_socket(sock, server_hostname=address.host)
            return Connection(sock, answer_bytes)
        except TimeoutError:
            sock.close()
            raise
        except ssl.SSLError as error:
            sock.close()
            raise no_handshake(where, error) from None
        except OSError as error:
            sock.close()
            last = error
    assert last is not None, "getaddrinfo gives at least one address"
    raise Unreachable(f"{where}: {reason(last)}; is the server running?")


def _seconds_left(deadline: float) -> float | None:
    """For `settimeout`, where none waits for ever and 0 would mean not at all."""
    if deadline == inf:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
