"""What `bench_growth.py` found, judged, as a table and as a picture; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

CLIFF = 1.5
"""Dearer by this factor than at the smaller neighbour is more than growth and noise."""

FULL_CORE = 0.95
FULL_MEMORY = 0.05

SERIES = {
    "connections": "open connections",
    "payload": "rows a request",
    "size": "weights of the model",
    "models": "models loaded",
}
STRIPS = {
    "rate": "requests or rows\na second",
    "latency": "latency, ms\np50 filled, p99 hollow",
    "cpu_us": "server CPU, \N{MICRO SIGN}s\na request or row",
    "pss_mb": "worker's memory\n(PSS), MB",
}
# Light and dark, each with a mark of its own: they stay apart without colour.
LOOKS = (("#0b3954", "o", "-"), ("#e08e1b", "s", "-"))
RAW, RAW_TOLD = "#7a8b99", "ONNX Runtime alone, 1 row"


@dataclass(frozen=True, slots=True)
class Point:
    """One stretch of load. A unit is a row where requests have many, else a request."""

    series: str
    line: str
    """What is the same along one line of the picture: the format, or the connections."""
    at: int
    rate: float
    """Units a second."""
    p50_ms: float
    p99_ms: float
    """Of whole requests."""
    cpu_us: float
    """The server's processor time a unit."""
    pss_mb: float
    ready_seconds: float
    """From the server's start to ready."""
    generator_cores: float
    memory_left: float
    """The share of the machine's memory that was still to be had."""
    raw_us: float = 0.0
    """What a unit takes ONNX Runtime alone, 0 where that was not asked."""
    raw_mb: float = 0.0
    """The memory of a process with ONNX Runtime alone."""

    def costs(self) -> dict[str, float]:
        """What a unit costs; beside raw ONNX Runtime where a unit is meant to grow dearer."""
        base = self.raw_us or 1.0
        found = {"time": 1e6 / self.rate / base, "CPU": self.cpu_us / base}
        if self.series == "models":
            found |= {"memory": self.pss_mb / self.at, "start": self.ready_seconds / self.at}
        return found


def cliff(before: Point, point: Point) -> str:
    """Which costs of a unit jump from one step to the next, '' where none does.

    Not where memory has ended; nor is time the server's where the generator's core has.
    """
    if point.memory_left < FULL_MEMORY:
        return ""
    old, new = before.costs(), point.costs()
    if point.generator_cores > FULL_CORE:
        del new["time"]
    jumps = {name: new[name] / old[name] for name in new}
    return ", ".join(f"{name} x{by:.1f}" for name, by in jumps.items() if by > CLIFF)


def lines(points: Sequence[Point], series: str) -> dict[str, list[Point]]:
    """The points of a series by line, each in order of growth."""
    chosen = sorted((p for p in points if p.series == series), key=lambda p: (p.line, p.at))
    return {line: list(group) for line, group in groupby(chosen, key=lambda p: p.line)}


def table(points: Sequence[Point], series: str) -> str:
    """A series as Markdown, a cliff marked in its row."""
    head = ["", SERIES[series], "a second", "p50 ms", "p99 ms", "CPU us", "memory MB", "ready s"]
    compared = any(point.raw_us for point in points if point.series == series)
    rows = [head + ["raw us", "time over raw", "raw MB"] * compared + ["cliff"]]
    rows.append(["---"] + ["---:"] * (len(rows[0]) - 2) + ["---"])
    for line, row in lines(points, series).items():
        for before, point in zip([row[0], *row], row, strict=False):
            cells = [line, f"{point.at:,}", f"{point.rate:,.0f}"]
            cells += [_short(point.p50_ms), _short(point.p99_ms), _short(point.cpu_us)]
            cells += [f"{point.pss_mb:.0f}", f"{point.ready_seconds:.2f}"]
            if compared:
                cells += [
                    _short(point.raw_us),
                    f"{point.costs()['time']:.2f}",
                    f"{point.raw_mb:.0f}",
                ]
            rows.append([*cells, cliff(before, point)])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "| " + " | ".join(c.rjust(w) for c, w in zip(row, wide, strict=True)) + " |" for row in rows
    )


def figures(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(point) for point in points]


def draw(points: Sequence[Point], file: Path, title: str) -> None:
    """A column for each series, a strip for each measure, all axes logarithmic."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from PIL import Image

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 9.5), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        grid = figure.subplots(len(STRIPS), len(SERIES), sharex="col")
        for column, series in enumerate(SERIES):
            for strip, (measure, told) in enumerate(STRIPS.items()):
                axes = grid[strip][column]
                _strip(axes, lines(points, series), measure)
                if column == 0:
                    axes.set_ylabel(told)
            handles, names = grid[0][column].get_legend_handles_labels()
            grid[0][column].set_title(f"against {SERIES[series]}", fontsize=11, loc="left")
            if len(handles) > 1:
                grid[-1][column].legend(
                    handles, names, fontsize=8.5, frameon=False, loc="upper left"
                )
            _steps(grid[-1][column], sorted({p.at for p in points if p.series == series}))
            grid[-1][column].set_xlabel(SERIES[series])
        with BytesIO() as drawn:
            figure.savefig(drawn, format="png", dpi=100)
            # A palette is a third of the bytes, and lines lose nothing by it.
            Image.open(drawn).convert("RGB").quantize(64).save(file, optimize=True)


def _strip(axes: Any, found: dict[str, list[Point]], measure: str) -> None:
    """One measure of one series."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for (line, row), (colour, mark, dash) in zip(found.items(), LOOKS, strict=False):
        across = [point.at for point in row]
        look = {"color": colour, "marker": mark, "linestyle": dash, "markersize": 4.5}
        if measure == "latency":
            axes.plot(across, [p.p50_ms for p in row], **look)
            axes.plot(across, [p.p99_ms for p in row], **look | {"mfc": "white", "lw": 0.9})
        else:
            axes.plot(across, [getattr(p, measure) for p in row], label=line, **look)
    beside = [point for row in list(found.values())[:1] for point in row if point.raw_us]
    if beside and measure != "latency":
        raw = {
            "rate": [1e6 / point.raw_us for point in beside],
            "cpu_us": [point.raw_us for point in beside],
            "pss_mb": [point.raw_mb for point in beside],
        }
        across = [point.at for point in beside]
        axes.plot(across, raw[measure], color=RAW, linestyle="--", label=RAW_TOLD)
    axes.set(xscale="log", yscale="log")
    low, high = axes.get_ylim()
    if high / low < 10:  # a line that hardly moves is to look like one
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 3.2, middle * 3.2)
    few = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=few))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _amount(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#e4e4e4", linewidth=0.7)


def _steps(axes: Any, steps: list[int]) -> None:
    """The steps that were measured are the ticks; one too near the next has no name."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_minor_locator(NullLocator())
    near = {one for one, more in pairwise(steps) if more < 2.5 * one}
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "" if value in near else _amount(value))
    )


def _amount(value: float) -> str:
    """20, 1024, 100k, 3M, 0.5."""
    if 1000 < value < 10_000:
        return f"{value:.0f}"
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
