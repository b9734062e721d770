"""What is written down of every request, whatever its door: counters and a line of the log."""

from __future__ import annotations

from time import perf_counter

from serving.observability.access_log import AccessLog, of_model, times
from serving.observability.call import Call
from serving.observability.cells import CANCELLED, DOORS, SUCCESS
from serving.observability.metrics import Metrics
from serving.observability.tracing import RequestIds

LEFT: tuple[int | str, ...] = (499, "CANCELLED")
"""How each door calls it that the client left before the answer."""

CLIENT_LEFT = "client_left"
"""The label of that."""


class Books:
    """One worker's counters and its log. Each request is noted once, when its answer is sent."""

    def __init__(self, metrics: Metrics, access_log: AccessLog) -> None:
        self.metrics = metrics
        self.access_log = access_log
        self.new_id = RequestIds().new

    def note(
        self,
        call: Call | None,
        door: int,
        method: str,
        path: str,
        status: int | str,
        request_id: str,
        trace: str,
        received: int,
        sent: int,
        arrived: float,
        key: str = "",
        reason: str = "",
    ) -> None:
        """Write down one request. `arrived` is by `time.perf_counter`, sizes are in bytes.

        `status` is HTTP's number or the name of gRPC's code, `trace` what `trace_id` made of the
        client's header; `call` is none where no model was asked for an answer. `key` is the name of
        the API key that it came with, `reason` the label of the failure that it ended with.
        """
        now = perf_counter()
        total = now - arrived
        self.metrics.answered(door, status)
        more = ""
        if call is not None:
            meter = call.meter or self.metrics.nameless
            if call.meter is not None:
                more = of_model(meter.name, meter.version, call.digest)
            if call.outcome == SUCCESS:
                queue = call.started - call.queued
                run = call.ended - call.started
                decode, encode = call.queued - arrived, now - call.ended
                meter.success(door, call.rows, received, sent, queue, run, decode, encode, total)
                more += times(call.rows, queue, run, decode + encode)
            else:
                meter.failure(door, call.outcome, received, sent, total)
        self.access_log.request(
            *(DOORS[door], method, path, status, request_id, trace, received, sent, total, more),
            *(key, reason),
        )

    def cancelled(
        self,
        call: Call,
        door: int,
        method: str,
        path: str,
        request_id: str,
        trace: str,
        received: int,
        arrived: float,
        key: str = "",
    ) -> None:
        """Write down a request for a model whose client left before the answer."""
        call.outcome = CANCELLED
        status, reason = LEFT[door], CLIENT_LEFT
        self.note(
            *(
                call,
                door,
                method,
                path,
                status,
                request_id,
                trace,
                received,
                0,
                arrived,
                key,
                reason,
            )
        )

    def tick(self) -> None:
        """What is due a few times a second: gauges, and the log's lines."""
        self._write(0.0)
        self.metrics.sample()

    def close(self, patience: float) -> None:
        """The last lines of the log, waiting at most so many seconds for who reads it."""
        self._write(patience)
        self.metrics.sample()

    def _write(self, patience: float) -> None:
        before = self.access_log.dropped
        self.access_log.flush(patience)
        self.metrics.dropped(self.access_log.dropped - before)
