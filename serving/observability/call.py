"""One request for a model, as it is remembered on its way down and back."""

from __future__ import annotations

from serving import errors
from serving.observability import cells
from serving.observability.metrics import Meter

OUTCOMES: dict[type[Exception], int] = {
    errors.InvalidRequest: cells.INVALID,
    errors.NotFound: cells.INVALID,
    errors.UnsupportedMedia: cells.INVALID,
    errors.TooLarge: cells.INVALID,
    errors.Unsupported: cells.INVALID,
    errors.Unauthenticated: cells.INVALID,
    errors.Forbidden: cells.INVALID,
    errors.NotReady: cells.UNREADY,
    errors.Overloaded: cells.OVERLOADED,
    errors.DeadlineExceeded: cells.DEADLINE,
    errors.WaitedTooLong: cells.DEADLINE,
}


class Call:
    """What each layer notes of a request; the door writes it down when the answer is sent.

    `queued`, `started` and `ended` are by `time.perf_counter`, 0 where it did not come that far:
    when it joined the queue, when its batch began and when that was done.
    """

    __slots__ = ("digest", "ended", "meter", "outcome", "queued", "rows", "started")

    def __init__(self) -> None:
        self.meter: Meter | None = None
        self.digest = ""
        self.rows = 0
        self.queued = self.started = self.ended = 0.0
        self.outcome = cells.SUCCESS

    def failed(self, error: Exception) -> None:
        """Note that it ended with this; what is nobody else's fault is ours."""
        self.outcome = OUTCOMES.get(type(error), cells.FAILED)
