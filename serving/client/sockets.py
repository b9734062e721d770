"""A pool of keep-alive sockets for threads, one deadline over each exchange."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from math import inf

from serving.client.address import Address
from serving.client.calls import Parts
from serving.client.errors import Unreachable, no_handshake, reason
from serving.client.kept import Idle, Kept
from serving.client.reading import Reply

RECEIVE_BYTES = 256 << 10
SEND_BYTES = 1 << 20


class Pool:
    """Connections to one address, at most so many at once, the latest used first."""

    def __init__(self, address: Address, limit: int, answer_bytes: int) -> None:
        self._address = address
        self._answer_bytes = answer_bytes
        self._limit = limit
        self._idle: Idle[Connection] = Idle()
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._free = threading.Semaphore(self._limit)
        self._idle.forget()

    def exchange(self, parts: Parts, deadline: float, fresh: bool) -> Reply:
        """Send a request and read its answer. Raises `Unreachable`, `TimeoutError`, `Malformed`."""
        if self._process != os.getpid():
            self._begin()  # forked: the sockets are the parent's to use
        free = self._free
        if not free.acquire(timeout=_seconds_left(deadline)):
            raise TimeoutError
        try:
            connection = None if fresh else self._idle.take()
            if connection is None:
                connection = connect(self._address, deadline, self._answer_bytes)
            try:
                reply = connection.exchange(parts, deadline)
            except BaseException:
                connection.close()
                raise
            self._idle.put(connection)
            return reply
        finally:
            free.release()

    def close(self) -> None:
        """Close what is idle, and from now on whatever comes back."""
        self._idle.close()


class Connection(Kept):
    """One socket."""

    def __init__(self, sock: socket.socket, answer_bytes: int) -> None:
        super().__init__(answer_bytes)
        self._socket = sock
        self._poll.register(sock, select.POLLIN)

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
                    raise self._cut_off(told)
        return reply

    def close(self) -> None:
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
