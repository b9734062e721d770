"""The object graph, built in the open by one function, and the life of the process around it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from serving.access import Access
from serving.access_log import AccessLog
from serving.books import Books
from serving.changes import Changes
from serving.config import HttpSettings, Settings, check_address, check_control, is_loopback
from serving.control import Control, watch
from serving.dataplane import DataPlane
from serving.entrance import Compressed, Guarded
from serving.errors import ModelRefused
from serving.http import HttpServer
from serving.repository import Repository, State
from serving.rest import Rest
from serving.self_test import keep_testing
from serving.telemetry import log
from serving.tls import Certificates, files

if TYPE_CHECKING:
    from serving.rpc import RpcServer


class StartError(Exception):
    """The server cannot start; the message says what to change."""


def serve(path: Path, settings: Settings) -> None:
    """Serve the bundle or repository at `path` until told to stop.

    Raises `StartError`, `ModelRefused` or `ConfigError`; returns after SIGTERM or SIGINT.
    """
    check_address(settings)
    check_control(settings)
    repository = Repository(path, settings)
    with bound(settings.http) as sock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if settings.grpc.enabled:  # told before models are loaded: grpc binds for itself, later
            place = settings.http.model_copy(update={"port": settings.grpc.port})
            bound(place, "--grpc-port, or --no-grpc").close()
        runner.run(_run(repository, settings, sock))


async def _run(repository: Repository, settings: Settings, sock: socket.socket) -> None:
    """Everything the server is made of, from the inside out."""
    plane = DataPlane(repository)
    access = Access(settings.access.keys_file) if settings.access.keys_file else None
    books = Books(repository.metrics, AccessLog(settings.http.access_log))
    routes = Rest(plane, settings.http.json_bytes)
    server = _door(routes, settings, settings.http, access, books)
    repository.metrics.samplers += [plane.sample, server.sample]
    doors: list[HttpServer | RpcServer] = [server]
    changes = Changes(repository)
    control = Control(changes)

    tls = Certificates(settings.tls) if files(settings.tls) else None
    _warn_public(settings)

    stop = _signalled()
    await server.start(sock, tls)
    operators = await _control_door(plane, control, settings, access, tls, books)
    watching = asyncio.ensure_future(_watch(control, settings))
    testing = asyncio.ensure_future(keep_testing(repository, settings.self_test_seconds))
    try:
        # In a thread, so that health answers meanwhile: live at once, ready when the proof is done.
        loading = asyncio.get_running_loop().run_in_executor(None, repository.load_all)
        rpc_port = 0
        if settings.grpc.enabled:
            rpc, rpc_port = await _rpc(plane, settings, books, access)
            doors.append(rpc)
        await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            _settle_memory()
            _announce(repository, sock, rpc_port, tls)
            await stop
            plane.leave()
            await asyncio.sleep(settings.notice_seconds)
        if not await _drained(doors, settings.drain_seconds):
            log("warning", "requests were cut off", after_seconds=settings.drain_seconds)
        if not loading.done() or changes.under_way:
            os._exit(0)  # a load cannot be interrupted, and nobody waits for it any more
    except ModelRefused:
        await _drained(doors, 0)
        raise
    finally:
        watching.cancel()
        testing.cancel()
        if operators:
            await operators.drain(0)
        changes.close()
        repository.close()


async def _control_door(
    plane: DataPlane,
    control: Control,
    settings: Settings,
    access: Access | None,
    tls: Certificates | None,
    books: Books,
) -> HttpServer | None:
    """The listener that loads and unloads, where one is asked for. Raises `StartError`."""
    if settings.control.port is None:
        return None
    place = settings.http.model_copy(
        update={"host": settings.control.host, "port": settings.control.port}
    )
    sock = bound(place)
    server = _door(Rest(plane, place.json_bytes, control), settings, place, access, books)
    await server.start(sock, tls)
    print(f"control: load and unload on {_url(sock, tls)}", file=sys.stderr, flush=True)
    return server


def _door(
    routes: Rest,
    settings: Settings,
    place: HttpSettings,
    access: Access | None,
    books: Books,
) -> HttpServer:
    """What a request passes on its way to the routes: its key, if keys are asked for, and zlib."""
    handler = Compressed(routes, settings.compression, place.body_bytes)
    if access is None:
        return HttpServer(handler, place, books)
    guarded = Guarded(handler, access)
    return HttpServer(guarded, place, books, guarded.refusal)


async def _watch(control: Control, settings: Settings) -> None:
    if settings.repository.poll_seconds:
        await watch(control, settings.repository.poll_seconds)


async def _rpc(
    plane: DataPlane, settings: Settings, books: Books, access: Access | None
) -> tuple[RpcServer, int]:
    """(the gRPC door, its port). Raises `StartError`."""
    from serving.rpc import RpcServer  # switched off, it costs nothing
    from serving.rpc_access import credentials

    secrets = credentials(settings.tls) if files(settings.tls) else None
    server = RpcServer(plane, settings.grpc, books, access, secrets)
    books.metrics.samplers.append(server.sample)
    try:
        return server, await server.start(settings.http.host)
    except OSError as error:
        raise StartError(str(error)) from error


async def _drained(doors: list[HttpServer | RpcServer], seconds: float) -> bool:
    """Whether every door could finish what it had."""
    return all(await asyncio.gather(*(door.drain(seconds) for door in doors)))


def _warn_public(settings: Settings) -> None:
    """What a public address lacks: keys without TLS can be read on their way, TLS lets anyone in."""
    if settings.http.insecure_public or is_loopback(settings.http.host):
        return
    if not settings.access.keys_file and not settings.tls.client_ca:
        log("warning", "a public address without keys: anyone who reaches it may ask")
    if not settings.tls.certificate:
        log("warning", "a public address without TLS: what is sent can be read on its way")


def _settle_memory() -> None:
    """What was loaded stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def bound(settings: HttpSettings, option: str = "--port") -> socket.socket:
    """A socket bound to the address. Raises `StartError`, which names the option to change."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"host {settings.host!r}: {error.strerror}") from error
    sock = socket.socket(family, kind, number)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(settings.backlog)
    except OSError as error:
        sock.close()
        raise StartError(_bind_failure(settings, option, error)) from error
    sock.setblocking(False)
    return sock


def _bind_failure(settings: HttpSettings, option: str, error: OSError) -> str:
    place = f"{settings.host}:{settings.port}"
    if isinstance(error, PermissionError):
        return f"{place}: not permitted; ports below 1024 belong to root, choose another {option}"
    if "in use" in (error.strerror or ""):
        return f"{place} is in use: stop what listens there, or choose another {option}"
    return f"{place}: {error.strerror}"


def _signalled() -> asyncio.Future[None]:
    """Done at the first SIGTERM or SIGINT; at the second the process is gone."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def received() -> None:
        if stop.done():
            log("warning", "stopped at once: a second signal came")
            os._exit(1)
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received)
    return stop


def _announce(
    repository: Repository, sock: socket.socket, rpc_port: int, tls: Certificates | None
) -> None:
    address = _url(sock, tls)
    if rpc_port:
        scheme, _, place = address.rpartition(":")[0].partition("://")
        address += f" and {scheme.replace('http', 'grpc')}://{place}:{rpc_port}"
    ready = [slot for slot in repository.slots() if slot.state is State.READY and slot.model]
    for slot in ready:
        assert slot.model
        digest = slot.model.bundle.digest[:12]
        print(
            f"ready: {slot.name} version {slot.version} (bundle {digest}...) on {address}",
            file=sys.stderr,
            flush=True,
        )
    if not ready:
        print(f"ready: no model yet, on {address}", file=sys.stderr, flush=True)


def _url(sock: socket.socket, tls: Certificates | None) -> str:
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
