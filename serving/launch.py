"""What `slipway serve` does first: how many workers, on which sockets, doing what."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from serving.config import Settings, check_address, check_control, is_loopback
from serving.system.host import fitting_workers, usable_cores, usable_memory
from serving.system.sockets import StartError, listening, reserved
from serving.telemetry import log
from serving.workers.announcement import announce_control
from serving.workers.supervisor import serve
from serving.workers.worker import Place

__all__ = ["StartError", "launch", "worker_count"]

CONTROL_PORT, CONTROL_GRPC_PORT = "--control-port", "--control-grpc-port"


def launch(path: Path, settings: Settings) -> None:
    """Serve the bundle or repository at `path` with the workers wished for, until told to stop.

    Raises `StartError`, `ModelRefused` or `ConfigError`; returns after SIGTERM, SIGINT or SIGHUP.
    """
    check_address(settings)
    check_control(settings)
    _warn_public(settings)
    count = worker_count(settings)

    def work(place: Place) -> int:
        # Here, in the worker: the supervisor is to stay free of what this brings.
        from serving.app import work

        return work(path, settings, place)

    with ExitStack() as stack:
        doors = _doors(settings, count, stack)
        announce_control(settings, {door: sockets[0] for door, sockets in doors.items()})
        serve(settings, doors, work)


def _doors(settings: Settings, count: int, stack: ExitStack) -> dict[str, list[socket.socket]]:
    """The sockets of each door, one for each worker; the stack closes them."""
    http, grpc, control = settings.http, settings.grpc, settings.control
    doors: dict[str, list[socket.socket]] = {}

    def add(name: str, sockets: list[socket.socket]) -> None:
        doors[name] = [stack.enter_context(sock) for sock in sockets]

    add("http", listening(http.host, http.port, http.backlog, count))
    if grpc.enabled:
        add("grpc", reserved(http.host, grpc.port, count, "--grpc-port, or --no-grpc"))
    if control.port is not None:
        add("control", listening(control.host, control.port, http.backlog, count, CONTROL_PORT))
    if control.grpc_port is not None:
        add("control_grpc", reserved(control.host, control.grpc_port, count, CONTROL_GRPC_PORT))
    return doors


def _warn_public(settings: Settings) -> None:
    """What a public address lacks: keys without TLS can be read on their way, TLS lets anyone in."""
    if settings.http.insecure_public or is_loopback(settings.http.host):
        return
    if not settings.access.keys_file and not settings.tls.client_ca:
        log("warning", "a public address without keys: anyone who reaches it may ask")
    if not settings.tls.certificate:
        log("warning", "a public address without TLS: what is sent can be read on its way")


def worker_count(settings: Settings) -> int:
    """How many workers there will be; what was asked for, even where the cores are fewer."""
    cores, threads = usable_cores(), settings.runtime.intra_threads
    if settings.workers in (0, "auto"):
        return fitting_workers(cores, threads, usable_memory())
    count = int(settings.workers)
    if count > 1 and count * threads > cores:
        log(
            "warning",
            "more threads than cores: they will slow each other down",
            workers=count,
            threads=threads,
            cores=cores,
        )
    return count
