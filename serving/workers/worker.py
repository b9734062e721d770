"""A worker as the supervisor sees it, and what it is given to begin with."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from serving.workers.channel import Channel, Line, Message
from serving.workers.restarts import Backoff
from serving.workers.scoreboard import Row
from serving.workers.stderr import Stderr


class State(Enum):
    """Where a worker is on its way."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"


@dataclass(frozen=True)
class Place:
    """What a new worker is given.

    `sockets` are its own listeners by door; `counters` and `shelf` are the descriptors of the files
    that all workers count in and keep bundles in; `lineup` is what all serve, none at the start;
    `apart` names models that may not run at the same time, `quarantined` those that stay away, with
    the reason. `successor` says that it replaces one that died, `withdrawn` that its listeners take
    no connections until it listens.
    """

    worker: int
    workers: int
    sockets: Mapping[str, socket.socket]
    row: Row
    counters: int
    shelf: int
    lineup: Message | None
    channel: Channel
    quarantined: Mapping[str, str]
    apart: frozenset[str]
    successor: bool
    withdrawn: bool


Work = Callable[[Place], int]
"""What a worker does until its end, in its own process; its exit code."""


@dataclass
class Worker:
    """One of the workers, through all its lives. Times are of the monotonic clock.

    `stderr` is its standard error, where that is to be JSON. `looks` says that it looks at the
    folder, as there is no lineup yet.
    """

    number: int
    sockets: dict[str, socket.socket]
    row: Row
    state: State = State.WAITING
    pid: int = 0
    line: Line | None = None
    stderr: Stderr | None = None
    lives: int = 0
    began: float = 0.0
    died: float = 0.0
    due: float = 0.0
    beats: int = 0
    quiet: float = 0.0
    aborted: float | None = None
    refused: Message | None = None
    withdrawn: bool = False
    looks: bool = True
    backoff: Backoff = field(default_factory=Backoff)
