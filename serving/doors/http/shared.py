"""What the connections of one server have in common."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import inf

from serving.config import HttpSettings
from serving.doors.http.answer_head import date_lines
from serving.doors.http.exchange import Handler
from serving.doors.http.reader import Guard, Heads
from serving.observability.accounting import Books
from serving.system.malloc import release_memory

LARGE_BYTES = 4 << 20
"""Once a body of this size is let go, the memory that bodies took is given back to the system."""

RELEASE_SECONDS = 2.0
"""And this often at most: under steady large bodies it would only be fetched again."""


@dataclass(slots=True, eq=False)
class Shared:
    """All that a connection asks its server for, or tells it.

    `held`: bytes of all bodies and answers that wait; `let_go`: whether a large one was let go since
    memory was last given back. Before `grace_end` idle connections of a `draining` server stay.
    """

    handler: Handler
    settings: HttpSettings
    books: Books
    guard: Guard | None
    loop: asyncio.AbstractEventLoop
    heads: Heads = field(default_factory=dict)
    date: bytes = field(default_factory=date_lines)
    draining: bool = False
    grace_end: float = inf
    held: int = 0
    let_go: bool = False
    release_at: float = 0.0

    def give_back(self, now: float) -> None:
        """Give memory back to the system, where much was let go and none has come since."""
        if self.let_go and self.held < LARGE_BYTES and now >= self.release_at:
            self.let_go, self.release_at = False, now + RELEASE_SECONDS
            release_memory()
