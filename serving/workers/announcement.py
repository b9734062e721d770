"""What a server says once all its workers have started: what it serves, where, and what it lacks."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from serving.config import Settings
from serving.system.sockets import url
from serving.telemetry import log, say
from serving.workers.channel import Message


def announce(
    settings: Settings,
    sockets: Mapping[str, socket.socket],
    models: Sequence[Message],
    missing: Sequence[str],
) -> None:
    """Say it: `sockets` by door, `missing` what keeps the server unready, a line each."""
    doors = _addresses(settings, sockets)
    public = {door: doors[door] for door in ("http", "grpc") if door in doors}
    where = " and ".join(public.values())
    if not models:
        how = _how_to_load(settings, doors)
        say(
            f"started: no model yet, unready until one is loaded ({how}), on {where}",
            "started",
            reason="no model yet",
            ready=False,
            fix=how,
            **public,
        )
    event = "started" if missing else "ready"
    for model in models:
        name, version, digest = model["name"], model["version"], model["digest"]
        say(
            f"{event}: {name} version {version} (bundle {digest[:12]}...) on {where}",
            event,
            model=name,
            version=version,
            digest=digest,
            ready=not missing,
            **public,
        )
    for reason in missing:
        log("error", "not ready for want of a model", reason=reason)


def announce_control(settings: Settings, sockets: Mapping[str, socket.socket]) -> None:
    """Say where models are loaded and unloaded, where that can be done."""
    doors = _addresses(settings, sockets)
    for door in ("control", "control_grpc"):
        if door in doors:
            where = doors[door]
            say(f"control: load and unload on {where}", "control", address=where)


def _addresses(settings: Settings, sockets: Mapping[str, socket.socket]) -> dict[str, str]:
    secure = "s" if settings.tls.certificate else ""
    return {
        door: url(sock, ("grpc" if door.endswith("grpc") else "http") + secure)
        for door, sock in sockets.items()
    }


def _how_to_load(settings: Settings, doors: Mapping[str, str]) -> str:
    ways = [f"by request on {doors[door]}" for door in ("control", "control_grpc") if door in doors]
    if pause := settings.repository.poll_seconds:
        ways.append(f"by putting it into the folder, looked at every {pause:g} s")
    return " or ".join(ways)
