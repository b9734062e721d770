"""How cost grows with the work: connections, rows a request, weights of a model, models loaded.

    python benchmarks/bench_growth.py [--quick] [--json FILE] [--picture FILE]

Server, load and the raw loop each run in a process of their own; one worker, one thread, with metrics,
limits and the access log on. The models are networks of two hidden layers over 64 numbers. The load is
a closed loop, so latency grows with connections once a core is full, and the rate is shared with the
generator: a unit's processor time says most. A row of the table is marked where a unit costs 1.5 times
as much as at the step before; such a step is measured twice more first, and the best counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_serving import answered, golden_row
from growth import Point, cliff, draw, figures, table
from served import Served, pss_mb

WIDTH, CLASSES = 64, 10
SMALL = 10_000
# A server's own limits for 2,000 connections that all ask at once; the rest is as shipped.
LIMITS = """
[http]
connections = 4096
backlog = 4096
[batching]
queue_requests = 4096
"""
FULL = {
    "connections": (1, 4, 16, 64, 256, 1000, 2000),
    "payload": (1, 4, 16, 64, 256, 1024),
    "size": (10**4, 10**5, 10**6, 10**7, 10**8),
    "models": (1, 3, 10, 30, 100),
}
QUICK = {
    "connections": (1, 64, 2000),
    "payload": (1, 32, 1024),
    "size": (10**4, 10**6),
    "models": (1, 10),
}
PAYLOAD_CONNECTIONS = 4  # times 1,024 rows: half of what may wait in the queue
SIZE_CONNECTIONS = (1, 16)
MODELS_CONNECTIONS = 64
DESCRIPTORS = 4096
AGAIN = 2


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and shorter steps: under a minute.")
@click.option("--seconds", type=float, help="Length of each measurement.  [default: 1.5]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw them as PNG.")
def main(quick: bool, seconds: float | None, json_file: Path | None, picture: Path | None) -> None:
    """Measure all four series and print their tables."""
    raise_descriptors()
    steps = QUICK if quick else FULL
    seconds = seconds or (0.5 if quick else 1.5)
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as scratch:
        for series, grown in (
            ("connections", connections),
            ("payload", payload),
            ("size", size),
            ("models", models),
        ):
            points += grown(Path(scratch, series), steps[series], seconds)
            print(f"{series}\n\n{table(points, series)}\n", flush=True)
    if json_file:
        found = {"cores": os.cpu_count(), "seconds": seconds, "points": figures(points)}
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    if picture:
        draw(points, picture, "What a request costs as work grows (one worker, one thread)")


def connections(folder: Path, steps: Sequence[int], seconds: float) -> list[Point]:
    """One row a request, binary."""
    make_network(folder / "m" / "1", SMALL)
    found: list[Point] = []
    with serving(folder) as served:
        for at in steps:
            load = Load("connections", "binary", at, seconds, connections=at)
            found.append(measured(served, load, found[-1:]))
    return found


def payload(folder: Path, steps: Sequence[int], seconds: float) -> list[Point]:
    """Both formats, from one row to as many as a request may bring."""
    make_network(folder / "m" / "1", SMALL)
    found: list[Point] = []
    with serving(folder) as served:
        for form in ("binary", "json"):
            before: list[Point] = []
            for at in steps:
                load = Load("payload", form, at, seconds, PAYLOAD_CONNECTIONS, rows=at, form=form)
                before = [measured(served, load, before)]
                found += before
    return found


def size(folder: Path, steps: Sequence[int], seconds: float) -> list[Point]:
    """From a network that is all overhead to one that is none, beside ONNX Runtime alone."""
    found: list[Point] = []
    for weights in steps:
        bundle = folder / str(weights) / "m" / "1"
        make_network(bundle, weights)
        raw = answered([sys.executable, __file__, "--as-raw", str(bundle), str(seconds)])
        with serving(bundle.parents[1]) as served:
            for count in SIZE_CONNECTIONS:
                line = f"{count} connection" + "s" * (count > 1)
                before = [point for point in found if point.line == line][-1:]
                load = Load("size", line, weights, seconds, count, **raw)
                found.append(measured(served, load, before))
    return found


def models(folder: Path, steps: Sequence[int], seconds: float) -> list[Point]:
    """Requests go to all models in turn."""
    found: list[Point] = []
    for count in steps:
        for number in range(sum(1 for _ in folder.glob("*")), count):
            make_network(folder / f"m{number}" / "1", SMALL, seed=number)
        names = tuple(f"m{number}" for number in range(count))
        with serving(folder) as served:
            load = Load("models", "binary", count, seconds, MODELS_CONNECTIONS, models=names)
            found.append(measured(served, load, found[-1:]))
    return found


@dataclass(frozen=True, slots=True)
class Load:
    """What one point is asked."""

    series: str
    line: str
    at: int
    seconds: float
    connections: int
    rows: int = 1
    form: str = "binary"
    models: tuple[str, ...] = ("m",)
    raw_us: float = 0.0
    raw_mb: float = 0.0


def measured(served: Served, load: Load, before: Sequence[Point]) -> Point:
    """A point; one that looks like a cliff behind the last of `before` is the best of three."""
    found = stretch(served, load)
    for _ in range(AGAIN):
        if before and cliff(before[-1], found):
            found = min(found, stretch(served, load), key=lambda point: point.cpu_us)
    return found


def stretch(served: Served, load: Load) -> Point:
    """One stretch of load. Opening the connections is counted in its processor time."""
    command = [sys.executable, __file__, "--as-load", served.url, json.dumps(asdict(load))]
    cpu = served.cpu_seconds()
    found = answered(command)
    cpu = served.cpu_seconds() - cpu
    if set(found["statuses"]) != {"200"} or found["errors"] or found["unanswered"]:
        told = {name: found[name] for name in ("statuses", "errors", "unanswered")}
        raise click.ClickException(f"{load.series} {load.at}: expected nothing but 200, got {told}")
    units = found["requests"] * load.rows
    return Point(
        series=load.series,
        line=load.line,
        at=load.at,
        rate=found["rows_per_second"],
        p50_ms=found["latency_ms"]["p50"],
        p99_ms=found["latency_ms"]["p99"],
        cpu_us=cpu / units * 1e6,
        pss_mb=served.worker_pss_mb(),
        ready_seconds=served.seconds_to_ready,
        generator_cores=found["generator"]["cores"],
        memory_left=memory_left(),
        raw_us=load.raw_us,
        raw_mb=load.raw_mb,
    )


def serving(folder: Path) -> Served:
    """A server of all that lies in a folder."""
    config = folder.parent / "limits.toml"
    config.write_text(LIMITS)
    return Served(str(folder), "--grpc-port", "0", "--config", str(config))


def make_network(folder: Path, weights: int, seed: int = 0) -> None:
    """A bundle: float32 [batch, 64] through two hidden layers to probabilities [batch, 10]."""
    from onnx import TensorProto, helper, numpy_helper

    from pipeline.bundle.manifest import Input, Output
    from tests.manifests import OPSET
    from tests.serving.bundles import make_bundle

    if folder.exists():
        return
    ends = WIDTH + CLASSES
    hidden = round((-ends + (ends**2 + 4 * weights) ** 0.5) / 2)  # hidden**2 + ends*hidden weights
    random = np.random.default_rng(seed)
    nodes, kept, last = [], [], "input"
    widths = (WIDTH, hidden, hidden, CLASSES)
    for number, (wide, narrow) in enumerate(pairwise(widths)):
        matrix = random.standard_normal((wide, narrow), np.float32) / np.float32(wide**0.5)
        kept.append(numpy_helper.from_array(matrix, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"h{number}"]))
        last = f"h{number}"
        if number < 2:
            nodes.append(helper.make_node("Relu", [last], [f"r{number}"]))
            last = f"r{number}"
    nodes.append(helper.make_node("Softmax", [last], ["probs"], axis=1))
    source, target = ("batch", WIDTH), ("batch", CLASSES)
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, source)],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, target)],
        kept,
    )
    make_bundle(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        (Input(name="input", dtype="float32", shape=source, units="a number"),),
        (Output(name="probs", dtype="float32", shape=target, units="probability"),),
        {"input": random.standard_normal((8, WIDTH), np.float32)},
        name=folder.parent.name,
    )


def as_load(url: str, told: str) -> dict[str, Any]:
    """In a process of its own: a closed loop whose requests go to all models in turn."""
    import uvloop

    from serving.client import Client
    from serving.client.address import parse
    from serving.load.generator import Plan, run
    from serving.load.work import Request, invented, wire

    load, address = Load(**json.loads(told)), parse(url)
    with Client(url) as client:
        asked = [invented(client.metadata(model), load.rows) for model in load.models]
    requests = [
        Request(wire(address, model, None, arrays, load.form == "binary"), load.rows)
        for turn in zip(*asked, strict=True)
        for model, arrays in zip(load.models, turn, strict=True)
    ]
    plan = Plan(load.connections, load.seconds, warm_up=0.0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(address, requests, plan)).figures()
    return found | {"histogram_us": []}


def as_raw(bundle: str, seconds: str) -> dict[str, float]:
    """In a process of its own: microseconds of a row, one at a time, and the memory of that."""
    from serving.inference.runtime import open_session

    inputs, found = golden_row(bundle)
    session = open_session(found.contents[found.manifest.variants["fp32"].file])
    del found  # and with it the file's bytes
    for _ in range(5):
        session.run(inputs)
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + float(seconds):
        session.run(inputs)
        count += 1
    return {
        "raw_us": (time.perf_counter() - began) / count * 1e6,
        "raw_mb": pss_mb(os.getpid()),
    }


def memory_left() -> float:
    """The share of this machine's memory that can still be had."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    told = {line[0]: int(line[1]) for line in lines}
    return told["MemAvailable:"] / told["MemTotal:"]


def raise_descriptors() -> None:
    """As many open files as the system lets us, for us and for those we start."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < DESCRIPTORS:
        raise click.ClickException(f"ulimit -Hn: expected {DESCRIPTORS} or more, got {most}")


PARTS = {"--as-load": as_load, "--as-raw": as_raw}

if __name__ == "__main__":
    if part := PARTS.get("".join(sys.argv[1:2])):
        print(json.dumps(part(*sys.argv[2:])))
    else:
        main()
