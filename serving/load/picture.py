"""Outcomes drawn as SVG, with nothing but text: a latency distribution, or latency by throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

from serving.load.histogram import Histogram
from serving.load.outcome import Outcome

WIDTH, HEIGHT = 960, 430
INK, FAINT, SOFT = "#1b1f24", "#e3e6ea", "#59636e"
COLOURS = {"p50": "#2563a8", "p90": "#7b52ab", "p99": "#c2571a", "p99.9": "#8f1d2c"}
NINES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
BARS_A_DECADE = 25


@dataclass(frozen=True, slots=True)
class Panel:
    """A rectangle with axes; `x` and `y` turn values into its pixels."""

    left: float
    top: float
    width: float
    height: float
    x: Callable[[float], float]
    y: Callable[[float], float]

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


def distribution(outcome: Outcome, title: str) -> str:
    """Two panels: how many answers took how long, and the time of each percentile."""
    latencies = outcome.latencies
    if not latencies.count:
        return _page([_text(WIDTH / 2, HEIGHT / 2, "no answers to draw", "middle", 15)], title, "")
    low, high = _decades(latencies)
    subtitle = (
        f"{outcome.connections} connections, "
        + ("closed loop" if outcome.rate is None else f"open loop at {outcome.rate:g}/s")
        + f", {outcome.throughput:,.0f} answers/s, {outcome.rows} row{'s'[: outcome.rows > 1]} each"
    )
    parts = [*_bars(latencies, low, high), *_percentiles(latencies, low, high)]
    return _page(parts, title, subtitle)


def curve(outcomes: Sequence[Outcome], title: str) -> str:
    """Latency percentiles against throughput, a point for each stretch."""
    drawn = [outcome for outcome in outcomes if outcome.latencies.count]
    if not drawn:
        return _page([_text(WIDTH / 2, HEIGHT / 2, "no answers to draw", "middle", 15)], title, "")
    most = max(outcome.throughput for outcome in drawn) * 1.08 or 1.0
    lows, highs = zip(*(_decades(outcome.latencies, 50, 99.9) for outcome in drawn), strict=True)
    low, high = min(lows), max(highs)
    panel = _panel(80, 62, 770, 300, lambda v: v / most, lambda v: _share(v, low, high))
    parts = [*_time_axis(panel, low, high, horizontal=False)]
    for value in _round_steps(most):
        x = panel.x(value)
        parts.append(_line(x, panel.top, x, panel.bottom, FAINT))
        parts.append(_text(x, panel.bottom + 18, f"{value:,.0f}", "middle"))
    parts.append(
        _text(panel.left + panel.width / 2, panel.bottom + 40, "answers a second", "middle")
    )
    parts.append(_text(panel.left, panel.top - 10, "latency", "start", 12, SOFT))
    parts.append(_frame(panel))
    for name, colour in COLOURS.items():
        points = [(o.throughput, o.latencies.percentile(float(name[1:]))) for o in drawn]
        places = [(panel.x(a), panel.y(b)) for a, b in points]
        parts.append(_path(places, colour))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in places]
    for row, (name, colour) in enumerate(reversed(COLOURS.items())):
        y = panel.top + 8 + 18 * row
        parts.append(_line(panel.right + 14, y, panel.right + 32, y, colour, 2))
        parts.append(_text(panel.right + 38, y + 4, name))
    closed = drawn[0].rate is None
    for outcome in drawn:
        what = f"{outcome.connections} conn." if closed else f"{outcome.rate:,.0f}/s due"
        x, y = panel.x(outcome.throughput), panel.y(outcome.latencies.percentile(50))
        if y + 20 < panel.bottom:
            parts.append(_text(x, y + 17, what, "middle", 11, SOFT))
        else:
            parts.append(_text(x + 9, y - 6, what, "start", 11, SOFT))
    kind = "closed loop" if closed else "open loop, latency counted from when a request was due"
    return _page(parts, title, f"{kind}; {drawn[0].rows} row{'s'[: drawn[0].rows > 1]} a request")


def _bars(latencies: Histogram, low: int, high: int) -> list[str]:
    """Answers by latency, bars of equal width on a logarithmic axis."""
    shares: dict[int, float] = {}
    for start, end, count in latencies.buckets():
        # A bucket wider than a bar is spread over several; microseconds are, at the very left.
        first = floor(log10(max(start, 10**low)) * BARS_A_DECADE)
        last = max(first, ceil(log10(max(end, 10**low)) * BARS_A_DECADE) - 1)
        for bar in range(first, last + 1):
            shares[bar] = shares.get(bar, 0.0) + count / (last - first + 1)
    most = max(shares.values())
    panel = _panel(70, 62, 380, 300, lambda v: _share(v, low, high), lambda v: v / (most * 1.06))
    parts = [*_time_axis(panel, low, high, horizontal=True)]
    for share in _round_steps(most):
        y = panel.y(share)
        parts.append(_line(panel.left, y, panel.right, y, FAINT))
        parts.append(_text(panel.left - 8, y + 4, _thousands(share), "end"))
    width = panel.width / (high - low) / BARS_A_DECADE
    for bar, share in sorted(shares.items()):
        x, y = panel.x(10.0 ** (bar / BARS_A_DECADE)), panel.y(share)
        x, w = max(x, panel.left), min(width, panel.right - x)
        if w > 0.5:
            tall = max(panel.bottom - y, 0.8)
            parts.append(
                f'<rect x="{x + 0.4:.1f}" y="{panel.bottom - tall:.1f}" width="{w - 0.8:.1f}" '
                f'height="{tall:.1f}" fill="#8fb4d9"/>'
            )
    heights: list[tuple[float, str]] = []
    for name, colour in COLOURS.items():
        x = panel.x(latencies.percentile(float(name[1:])))
        parts.append(_line(x, panel.top, x, panel.bottom, colour, 1.2, "4 3"))
        heights.append((x, name))
    level = {name: place for place, (_, name) in enumerate(sorted(heights))}
    for x, name in heights:
        y = panel.top + 13 + 14 * level[name]
        end = x > panel.right - 40
        parts.append(
            _text(x + (-4 if end else 4), y, name, "end" if end else "start", 11, COLOURS[name])
        )
    parts.append(_text(panel.left + panel.width / 2, panel.bottom + 40, "latency", "middle"))
    parts.append(_text(panel.left, panel.top - 10, "answers", "start", 12, SOFT))
    return [*parts, _frame(panel)]


def _percentiles(latencies: Histogram, low: int, high: int) -> list[str]:
    """Latency by percentile, on an axis that gives every further nine the same room."""
    last = min(4.0, max(2.0, log10(latencies.count)))
    panel = _panel(
        545,
        62,
        380,
        300,
        lambda percent: min(-log10(max(1 - percent / 100, 1e-9)) / last, 1.0),
        lambda v: _share(v, low, high),
    )
    parts = [*_time_axis(panel, low, high, horizontal=False)]
    for percent in NINES:
        x = panel.x(percent)
        if -log10(1 - percent / 100) <= last + 1e-9:
            parts.append(_line(x, panel.top, x, panel.bottom, FAINT))
            if percent:  # half of all stands too near for another name
                parts.append(_text(x, panel.bottom + 18, f"{percent:g} %", "middle"))
    line = []
    for step in range(201):
        percent = 100 * (1 - 10 ** (-last * step / 200))
        line.append((panel.x(percent), panel.y(latencies.percentile(percent))))
    parts.append(_path(line, INK))
    for name, colour in COLOURS.items():
        percent = float(name[1:])
        if -log10(1 - percent / 100) > last + 1e-9:
            continue
        value = latencies.percentile(percent)
        x, y = panel.x(percent), panel.y(value)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>')
        left = x < panel.left + 100
        place = (x + 8, y + 12, "start") if left else (x - 7, y - 7, "end")
        parts.append(_text(place[0], place[1], f"{name} {_time(value)}", place[2], 11, colour))
    parts.append(
        _text(panel.left + panel.width / 2, panel.bottom + 40, "share of the answers", "middle")
    )
    parts.append(_text(panel.left, panel.top - 10, "latency", "start", 12, SOFT))
    return [*parts, _frame(panel)]


def _decades(latencies: Histogram, first: float = 0.0, last: float = 100.0) -> tuple[int, int]:
    """The powers of ten, of seconds, between which the latencies lie."""
    low = floor(log10(max(latencies.percentile(first), 1e-6)))
    high = ceil(log10(max(latencies.percentile(last), 1e-6)) + 1e-9)
    return low, max(high, low + 1)


def _share(value: float, low: int, high: int) -> float:
    """Where a value lies between two powers of ten, 0 to 1."""
    return min(max((log10(max(value, 1e-12)) - low) / (high - low), 0.0), 1.0)


def _panel(
    left: float,
    top: float,
    width: float,
    height: float,
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> Panel:
    """`across` and `up` turn values into shares of the panel's width and height."""
    return Panel(
        left,
        top,
        width,
        height,
        lambda value: left + width * across(value),
        lambda value: top + height * (1 - min(max(up(value), 0.0), 1.0)),
    )


def _time_axis(panel: Panel, low: int, high: int, horizontal: bool) -> list[str]:
    """Lines at 1, 2 and 5 of each decade where there is room, named where there is more."""
    parts = []
    for decade in range(low, high + 1):
        for step in (1, 2, 5):
            value = step * 10.0**decade
            if value > 10.0**high * 1.001 or (step > 1 and high - low > 4):
                continue
            named = step == 1 or high - low <= (2 if horizontal else 3)
            if horizontal:
                x = panel.x(value)
                parts.append(_line(x, panel.top, x, panel.bottom, FAINT))
                if named:
                    parts.append(_text(x, panel.bottom + 18, _time(value), "middle"))
            else:
                y = panel.y(value)
                parts.append(_line(panel.left, y, panel.right, y, FAINT))
                if named:
                    parts.append(_text(panel.left - 8, y + 4, _time(value), "end"))
    return parts


def _round_steps(most: float) -> list[float]:
    """Some four to eight round values from 0 to at most `most`, which is above 0."""
    unit = 10.0 ** floor(log10(most))
    step = next(size * unit for size in (0.1, 0.2, 0.5, 1.0, 2.0) if most / (size * unit) <= 7)
    return [step * number for number in range(int(most / step) + 1)]


def _time(seconds: float) -> str:
    """As a person says it: 250 us, 1.5 ms, 2 s."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit * 0.9995:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} \N{MICRO SIGN}s"


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _page(parts: Sequence[str], title: str, subtitle: str) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(20, 24, title, "start", 15),
        _text(20, HEIGHT - 10, subtitle, "start", 12, SOFT),
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: float = 12, colour: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, dash: str = ""
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"{dashes}/>'
    )


def _path(points: Sequence[tuple[float, float]], colour: str) -> str:
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{steps}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def _frame(panel: Panel) -> str:
    return (
        f'<path d="M{panel.left:.1f} {panel.top:.1f} V{panel.bottom:.1f} H{panel.right:.1f}" '
        f'fill="none" stroke="{SOFT}"/>'
    )
