"""The sockets: bound once by the supervisor, one for each worker, all at one address.

The supervisor keeps them open. A client that the kernel has assigned to a worker that died waits
for its successor instead of being reset.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP's flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # then drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else let it in, whole
)
"""A classic packet filter: (operation, jump if true, jump if false, operand)."""

TRIES = 5
"""A free port can be taken by another process before all workers have it."""


UNSENT_BYTES = 128 << 10
"""What the kernel takes of an answer beyond what the network has room for, on each connection. Left
to itself it takes megabytes: a client that asks and does not read would have answers made for all of
them, and hundreds of such clients hundreds of megabytes and all of the server's time."""


class StartError(Exception):
    """The server cannot start; the message says what to change."""


def listening(
    host: str, port: int, backlog: int, count: int, option: str = "--port"
) -> list[socket.socket]:
    """Listening sockets, one for each of `count` workers; port 0 is one free port for all.

    Raises `StartError`, which names the option to change.
    """
    sockets = _sockets(host, port, count, option, shared=count > 1)
    for sock in sockets:
        _limit_unsent(sock)
        sock.listen(backlog)
        sock.setblocking(False)
    return sockets


def _limit_unsent(sock: socket.socket) -> None:
    """Limit what is not sent yet; the connections that a socket accepts inherit it.

    Unlike a small send buffer it costs a fast client far away nothing: what is on its way to him is
    not counted.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def reserved(host: str, port: int, count: int, option: str) -> list[socket.socket]:
    """Sockets that hold a port for a library that binds for itself, and take no connections.

    Raises `StartError`.
    """
    return _sockets(host, port, count, option, shared=True)


def admit_no_more(sock: socket.socket) -> bool:
    """Have a listening socket finish the handshakes it began and take no others; false: it cannot.

    Whoever is in its queue when it closes is reset in the middle of a request, and new ones come
    for as long as it listens. With this the queue can be emptied. Who comes now tries again after
    a second, and meets another server or a clear refusal.
    """
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in NO_SYN))
    program = struct.pack("HL", len(NO_SYN), ctypes.addressof(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except OSError:  # a kernel without packet filters
        return False
    return True


def admit_again(sock: socket.socket) -> None:
    """Undo that: the socket of a worker that left by itself is its successor's."""
    with suppress(OSError):  # nothing to undo
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def withdraw(sock: socket.socket) -> None:
    """Have a listening socket take no connections until it listens again.

    Others at its address then get them all. Who waits in its queue is reset, and may ask again.
    """
    with suppress(OSError):  # it does not listen
        sock.shutdown(socket.SHUT_RD)


def url(sock: socket.socket, scheme: str = "http") -> str:
    """Where a socket is reached."""
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"host {host!r}: {error.strerror}") from error
    return family, address


def _sockets(host: str, port: int, count: int, option: str, shared: bool) -> list[socket.socket]:
    family, address = _resolved(host, port)
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            return _together(family, address, count, shared)
        except OSError as error:
            if port or last or "in use" not in (error.strerror or ""):
                raise StartError(_failure(f"{host}:{port}", option, error)) from error
    raise AssertionError("the last try returns or raises")


def _together(
    family: socket.AddressFamily, address: Any, count: int, shared: bool
) -> list[socket.socket]:
    # Alone first: where the port is shared, nothing would tell us that another server has it.
    first = _bound(family, address, shared=False)
    if not shared:
        return [first]
    address = first.getsockname()
    first.close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(_bound(family, address, shared=True))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bound(family: socket.AddressFamily, address: Any, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if not shared:
            sock.listen(1)  # only this fails where another listens that allows its address reused
    except OSError:
        sock.close()
        raise
    return sock


def _failure(place: str, option: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{place}: not permitted; ports below 1024 belong to root, choose another {option}"
    if "in use" in (error.strerror or ""):
        return f"{place} is in use: stop what listens there, or choose another {option}"
    return f"{place}: {error.strerror}"
