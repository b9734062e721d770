"""What a stretch of load brought to light, as figures and as lines to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from serving.load.histogram import Histogram

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(slots=True)
class Outcome:
    """One stretch. Latencies are of requests that were due within it, however late they came."""

    connections: int
    rate: float | None
    """Requests a second that were due, none for a closed loop."""
    rows: int
    """Rows in one request."""
    warm_up: float
    seconds: float = 0.0
    """Length of what was counted; less than asked for where it was stopped."""
    latencies: Histogram = field(default_factory=Histogram)
    """Of good answers, and of what was never answered with the time it had waited."""
    refusals: Histogram = field(default_factory=Histogram)
    """Of answers other than 200 to 299."""
    lags: Histogram = field(default_factory=Histogram)
    """Between when a request was due and when it was written, where a connection was free: the
    generator's own lateness. Open loops only."""
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """Connections that failed, by what the system said."""
    asked: int = 0
    answered: int = 0
    """Good answers that came within the stretch, whenever they were asked for."""
    unanswered: int = 0
    """Due within the stretch, and neither answered nor lost with a connection by its end."""
    lost: int = 0
    """Went down with their connection."""
    wrong: int = 0
    """Good answers, where the right ones are known, that were not right."""
    sent_bytes: int = 0
    received_bytes: int = 0
    cpu_seconds: float = 0.0
    """Of the generator itself."""
    stopped: bool = False

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def failed(self) -> int:
        """Requests that got no good answer: refused, lost, or unanswered though nobody stopped it."""
        unanswered = 0 if self.stopped else self.unanswered
        return self.refusals.count + self.lost + unanswered

    def figures(self) -> dict[str, Any]:
        """Everything, in plain types for JSON. Times are in milliseconds."""
        ms = {f"p{percent:g}": self.latencies.percentile(percent) for percent in PERCENTILES}
        ms |= {"max": self.latencies.longest, "mean": self.latencies.mean}
        return {
            "loop": "closed" if self.rate is None else "open",
            "connections": self.connections,
            "rate": self.rate,
            "rows_per_request": self.rows,
            "seconds": round(self.seconds, 3),
            "warm_up_seconds": self.warm_up,
            "stopped": self.stopped,
            "requests": self.asked,
            "answered_per_second": round(self.throughput, 1),
            "rows_per_second": round(self.throughput * self.rows, 1),
            "latency_ms": {name: round(value * 1e3, 3) for name, value in ms.items()},
            "refusal_ms": {
                f"p{percent:g}": round(self.refusals.percentile(percent) * 1e3, 3)
                for percent in PERCENTILES
            }
            if self.refusals.count
            else {},
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "unanswered": self.unanswered,
            "lost": self.lost,
            "wrong": self.wrong,
            "failed": self.failed,
            "errors": dict(self.errors),
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "generator": {
                "cpu_us_per_request": round(self.cpu_seconds / max(1, self.asked) * 1e6, 1),
                "cores": round(self.cpu_seconds / self.seconds, 3) if self.seconds else 0.0,
                "lag_ms_p99": round(self.lags.percentile(99) * 1e3, 3),
            },
            "histogram_us": [
                [round(low * 1e6), round(high * 1e6), count]
                for low, high, count in self.latencies.buckets()
            ],
        }

    def told(self) -> str:
        """The lines a person reads."""
        if self.rate is None:
            kind = "closed loop: each connection asks again once it is answered"
        else:
            kind = f"open loop: {self.rate:g} requests/s due, latency counted from when they were"
        stopped = " (stopped)" if self.stopped else ""
        ms = self.figures()["latency_ms"]
        latency = "  ".join(f"{name} {_short(value)}" for name, value in ms.items())
        lines = [
            f"{self.connections} connections, {kind}",
            f"counted     {self.seconds:.1f} s after {self.warm_up:g} s of warm-up{stopped}",
            f"answered    {self.throughput:.0f} requests/s, "
            f"{self.throughput * self.rows:.0f} rows/s",
            f"latency ms  {latency}",
        ]
        per_second = 1e6 * self.seconds or 1.0
        lines.append(
            f"bytes       {self.sent_bytes / per_second:.1f} MB/s sent, "
            f"{self.received_bytes / per_second:.1f} MB/s received"
        )
        lines += self._troubles()
        cores = self.cpu_seconds / self.seconds if self.seconds else 0.0
        each = self.cpu_seconds / max(1, self.asked) * 1e6
        lag = f", {self.lags.percentile(99) * 1e3:.2f} ms late at p99" if self.lags.count else ""
        lines.append(f"generator   {cores:.2f} of a core, {each:.0f} us of CPU a request{lag}")
        return "\n".join(lines)

    def failures(self) -> str:
        """What `failed` counts, by kind."""
        statuses = sorted(self.statuses.items())
        told = [f"{count} answered {status}" for status, count in statuses if status // 100 != 2]
        told += [f"{self.lost} lost with their connections"] if self.lost else []
        told += [f"{self.unanswered} unanswered"] if self.unanswered and not self.stopped else []
        return f"{self.failed} of {self.asked} requests failed ({', '.join(told)})"

    def _troubles(self) -> list[str]:
        lines = []
        statuses = ", ".join(f"{s}: {n}" for s, n in sorted(self.statuses.items()))
        lines.append(f"statuses    {statuses or 'no answer at all'}")
        if self.refusals.count:
            quick, slow = (self.refusals.percentile(p) * 1e3 for p in (50, 99))
            lines.append(f"refusals ms p50 {_short(quick)}  p99 {_short(slow)}")
        if self.unanswered:
            lines.append(
                f"unanswered  {self.unanswered}, counted above with the time they had waited"
            )
        if self.wrong:
            lines.append(f"WRONG       {self.wrong} answers differ from the bundle's golden rows")
        if self.lost or self.errors:
            told = ", ".join(f"{reason}: {count}" for reason, count in self.errors.most_common(3))
            lines.append(f"lost        {self.lost} requests with their connections ({told})")
        return lines


def _short(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
