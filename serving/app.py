"""The object graph of one worker, built in the open by one function, and its life."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from asyncio import FIRST_COMPLETED
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from serving.config import HttpSettings, Settings
from serving.dataplane import DataPlane
from serving.doors.access import Access
from serving.doors.http.middleware import Compressed, Guarded
from serving.doors.http.rest import Rest
from serving.doors.http.server import HttpServer
from serving.doors.tls import Certificates, files
from serving.errors import ModelRefused
from serving.models.changes import Changes
from serving.models.control import Control
from serving.models.repository import Repository
from serving.models.self_test import keep_testing
from serving.models.shelf import Shelf
from serving.models.slot import State
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.observability.ledger import Ledger
from serving.observability.metrics import Metrics
from serving.telemetry import Records, log
from serving.workers.channel import Channel
from serving.workers.scoreboard import Row, Watch
from serving.workers.worker import Place

if TYPE_CHECKING:
    from serving.doors.grpc.rpc import RpcServer

BEAT_SECONDS = 0.5
SUCCESSOR_SECONDS = 2.0
"""How long clients of a worker that died wait for its successor to load, before it answers 503."""

SWITCH_SECONDS = 0.0001
"""How long a thread that has run a model waits for the interpreter while requests flood in.
Python's 5 ms at every run took a fifth to a third of an overloaded server's answers."""


def work(path: Path, settings: Settings, place: Place) -> int:
    """Serve the bundle or repository at `path` until told to stop; the worker's exit code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    logging.getLogger().addHandler(Records(logging.WARNING))
    metrics = Metrics(Ledger(place.workers, place.counters), place.worker)
    watch = Watch(place.row, place.quarantined, place.apart)
    repository = Repository(path, settings, metrics, watch, Shelf(place.shelf), place.lineup)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(repository, settings, place))
    return 0


async def _run(repository: Repository, settings: Settings, place: Place) -> None:
    """Everything a worker is made of, from the inside out."""
    plane = DataPlane(repository)
    access = Access(settings.access.keys_file) if settings.access.keys_file else None
    books = Books(repository.metrics, AccessLog(settings.http.access_log))
    routes = Rest(plane, settings.http.json_bytes)
    http = _door(routes, settings, settings.http, access, books)
    repository.metrics.samplers += [plane.sample, http.sample]
    doors: list[HttpServer | RpcServer] = [http]
    changes = Changes(repository)
    control = Control(place.channel.ask)
    place.channel.on("plan", changes.plan)
    place.channel.on("prepare", changes.prepare)
    place.channel.on("commit", changes.commit)

    tls = Certificates(settings.tls) if files(settings.tls) else None

    stop = _told_to_leave(place, repository)
    _beat(asyncio.get_running_loop(), place.row)
    # In a thread, so that health answers meanwhile: live at once, ready when the proof is done.
    loading = asyncio.ensure_future(_load(repository, changes, place.channel))
    if place.successor:
        # Its predecessor's clients wait in the socket: better a moment more than a 503. Nobody
        # waits in one that was withdrawn, and others answer: it opens when there is something.
        patience = None if place.withdrawn else SUCCESSOR_SECONDS
        await asyncio.wait({loading, stop}, timeout=patience, return_when=FIRST_COMPLETED)
    await http.start(place.sockets["http"], tls)
    if "grpc" in place.sockets:
        rpc = _rpc(plane, settings, place.sockets["grpc"], books, access)
        repository.metrics.samplers.append(rpc.sample)
        await rpc.start(settings.http.host, shared=True)
        doors.append(rpc)
    operators = await _control_doors(plane, control, settings, place, access, tls, books)
    testing = asyncio.ensure_future(keep_testing(repository, settings.self_test_seconds))
    try:
        await asyncio.wait({loading, stop}, return_when=FIRST_COMPLETED)
        if loading.done():
            loading.result()
            _settle_memory()
            place.channel.ready(_served(repository), _lacking(repository))
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
        testing.cancel()
        await _drained(operators, 0)
        changes.close()
        repository.close()


async def _control_doors(
    plane: DataPlane,
    control: Control,
    settings: Settings,
    place: Place,
    access: Access | None,
    tls: Certificates | None,
    books: Books,
) -> list[HttpServer | RpcServer]:
    """The listeners that load and unload, where they are asked for."""
    doors: list[HttpServer | RpcServer] = []
    if "control" in place.sockets:
        routes = Rest(plane, settings.http.json_bytes, control)
        http = _door(routes, settings, settings.http, access, books)
        await http.start(place.sockets["control"], tls)
        doors.append(http)
    if "control_grpc" in place.sockets:
        rpc = _rpc(plane, settings, place.sockets["control_grpc"], books, access, control)
        await rpc.start(settings.control.host, shared=True)
        doors.append(rpc)
    return doors


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


def _rpc(
    plane: DataPlane,
    settings: Settings,
    held: socket.socket,
    books: Books,
    access: Access | None,
    control: Control | None = None,
) -> RpcServer:
    """A gRPC door. It binds for itself, where a socket of ours holds the port for all workers."""
    from serving.doors.grpc.access import credentials
    from serving.doors.grpc.rpc import RpcServer  # switched off, it costs nothing

    secrets = credentials(settings.tls) if files(settings.tls) else None
    limits = settings.grpc.model_copy(update={"port": held.getsockname()[1]})
    return RpcServer(plane, limits, books, access, secrets, control)


async def _drained(doors: list[HttpServer | RpcServer], seconds: float) -> bool:
    """Whether every door could finish what it had."""
    return all(await asyncio.gather(*(door.drain(seconds) for door in doors)))


async def _load(repository: Repository, changes: Changes, channel: Channel) -> None:
    """Load what there is, or was, to serve, and see that all workers serve the same."""
    await asyncio.get_running_loop().run_in_executor(None, repository.load_all)
    await changes.become(await channel.agree(repository.lineup()))


def _settle_memory() -> None:
    """What was loaded stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _told_to_leave(place: Place, repository: Repository) -> asyncio.Future[None]:
    """Done when the supervisor says so, or an operator with SIGTERM; more of that does nothing.

    A second signal is the supervisor's to obey: what stops a service signals all its processes.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def leave() -> None:
        if not stop.done():
            stop.set_result(None)

    place.channel.open(leave, repository.quarantine)
    loop.add_signal_handler(signal.SIGTERM, leave)
    return stop


def _beat(loop: asyncio.AbstractEventLoop, row: Row) -> None:
    """A sign of life now and twice a second."""
    row.beat()
    loop.call_later(BEAT_SECONDS, _beat, loop, row)


def _served(repository: Repository) -> list[dict[str, str | int]]:
    return [
        {"name": slot.name, "version": slot.version, "digest": slot.model.bundle.digest}
        for slot in repository.slots()
        if slot.state is State.READY and slot.model
    ]


def _lacking(repository: Repository) -> list[str]:
    """What keeps a server unready that is told to be strict, a line each."""
    if not repository.settings.repository.strict_readiness:
        return []
    return [
        f"{s.name} version {s.version} is {s.state.value}: {s.reason}" for s in repository.missing()
    ]
