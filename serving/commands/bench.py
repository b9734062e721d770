"""`slipway bench`: load on a server, what it answers under it, and how long that takes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pipeline.bundle.manifest import BundleError
from serving.client import Client, ClientError, InvalidRequest
from serving.client.address import Address, parse
from serving.client.errors import reason
from serving.commands.folders import fail, resolve_bundle
from serving.commands.predict import KEY_VARIABLE, PredictError, only_model
from serving.load import picture
from serving.load.generator import Plan, run
from serving.load.outcome import Outcome
from serving.load.work import Request, golden, invented, wire

SWEEP = re.compile(r"((?:rate|connections)=)?(\d+(?:\.\d+)?(?:,\d+(?:\.\d+)?)*)")


@click.command()
@click.argument("url")
@click.argument("model", required=False)
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1, 20_000))
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Open loop: so many requests a second are due, whatever the server does.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["even", "poisson"]),
    default="even",
    show_default=True,
    help="Open loop: evenly spaced, or at random as independent users come.",
)
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(0.1))
@click.option("--warm-up", default=1.0, show_default=True, type=click.FloatRange(0), metavar="S")
@click.option(
    "--batch", default=1, show_default=True, type=click.IntRange(1), help="Rows a request."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["binary", "json"]),
    default="binary",
    show_default=True,
    help="How tensors travel, both ways.",
)
@click.option("--version", help="Of the model; the newest unless given.")
@click.option("--bundle", help="Ask its golden rows, and check every answer against them.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=N,N",
    help="A row's shape, for axes that the model leaves open.  [default: 16 each]",
)
@click.option(
    "--sweep",
    metavar="LIST",
    help="Several stretches: connections=1,8,64 or rate=100,500; bare numbers such as 10,50,90 are "
    "rates in percent of what a closed loop reaches first.",
)
@click.option(
    "--patience", default=5.0, show_default=True, help="Seconds for what is under way at the end."
)
@click.option(
    "--allow-failed",
    default=0.0,
    show_default=True,
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    help="Of a stretch's requests: so many may be refused, lost or unanswered. More is exit code 1.",
)
@click.option("--json", "json_file", type=click.Path(), help="Write all figures; '-' prints them.")
@click.option("--picture", "picture_file", type=click.Path(dir_okay=False), help="Draw an SVG.")
@click.option(
    "--ca", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="As predict's."
)
@click.option(
    "--cert", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="As predict's."
)
def command(
    url: str,
    model: str | None,
    version: str | None,
    bundle: str | None,
    shapes: tuple[str, ...],
    form: str,
    batch: int,
    sweep: str | None,
    json_file: str | None,
    picture_file: str | None,
    ca: Path | None,
    cert: Path | None,
    arrivals: str,
    connections: int,
    rate: float | None,
    seconds: float,
    warm_up: float,
    patience: float,
    allow_failed: float,
) -> None:
    """Measure MODEL (unnamed: the only one) of the server at URL under load.

    Without --rate each connection asks again once it is answered. With it, requests are due at fixed
    times and latency counts from those, so a server that stalls cannot hide it. Ctrl-C ends early
    and prints what there is. An API key is taken from SLIPWAY_API_KEY.

    The exit code is 1 where requests failed, more than --allow-failed of them, or an answer was wrong.
    """
    plan = Plan(connections, seconds, warm_up, rate, arrivals == "poisson", patience)
    points = _points(sweep, plan)
    try:
        key, own = os.environ.get(KEY_VARIABLE), (cert, cert) if cert else None
        address = parse(url, key=key, ca=ca, certificate=own)
        with Client(url, key=key, ca=ca, certificate=own) as client:
            model = model or only_model(client)
            requests = _requests(client, address, model, version, bundle, shapes, form, batch)
    except (ClientError, BundleError, PredictError, OSError) as error:
        fail(error)
    what = f"{model} at {address.url}, {form}, {batch} row{'s'[: batch > 1]} a request"
    quiet = json_file == "-"
    if not quiet:
        click.echo(f"{what}\n")
    try:
        outcomes = _looped(_measured(address, requests, plan, points, quiet))
    except OSError as error:
        fail(f"{address.url}: {reason(error)}")
    if points and not quiet:
        click.echo(_table(outcomes))
    if json_file:
        _write_json(json_file, {"model": model, "url": address.url, "format": form}, outcomes)
    if picture_file:
        drawn = picture.curve(outcomes, what) if points else picture.distribution(outcomes[0], what)
        Path(picture_file).write_text(drawn)
    if complaints := list(_complaints(outcomes, allow_failed)):
        fail("\n".join(complaints))


def _complaints(outcomes: Sequence[Outcome], allowed: float) -> Iterator[str]:
    """Why a script should not go on after this. `allowed` is in percent of a stretch's requests."""
    if not any(200 <= status < 300 for outcome in outcomes for status in outcome.statuses):
        yield "no request got a good answer"
    for outcome in outcomes:
        if outcome.failed > outcome.asked * allowed / 100:
            yield f"{outcome.failures()}, more than --allow-failed {allowed:g} %"
        if outcome.wrong:
            yield f"{outcome.wrong} answers differ from the bundle's golden rows"


Points = tuple[str, list[float]] | None
"""What a sweep goes through (`rate`, `connections`, `percent`) and its values."""


def _points(sweep: str | None, plan: Plan) -> Points:
    if sweep is None:
        return None
    found = SWEEP.fullmatch(sweep.replace(" ", ""))
    if not found:
        raise click.UsageError(
            f"--sweep {sweep}: expected connections=1,8,64 or rate=100,500 or percentages 10,50,90"
        )
    kind = (found[1] or "percent=")[:-1]
    values = [float(value) for value in found[2].split(",")]
    if plan.rate is not None:
        raise click.UsageError("--sweep and --rate: expected one of them")
    if min(values) <= 0 or (kind == "connections" and any(value % 1 for value in values)):
        raise click.UsageError(f"--sweep {sweep}: expected values above 0, connections whole")
    return kind, values


def _requests(
    client: Client,
    address: Address,
    model: str,
    version: str | None,
    bundle: str | None,
    shapes: Sequence[str],
    form: str,
    batch: int,
) -> list[Request]:
    """What will be asked; the first is tried, so that what is wrong is told in the server's words.

    Raises `ClientError` and `BundleError`.
    """
    if bundle:
        inputs, requests = golden(resolve_bundle(bundle), batch)
    else:
        inputs = invented(client.metadata(model, version), batch, _row_shapes(shapes))
        requests = [Request(b"", batch) for _ in inputs]
    client.infer(model, inputs[0], version=version)
    for request, arrays in zip(requests, inputs, strict=True):
        request.wire = wire(address, model, version, arrays, form == "binary")
    return requests


def _row_shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    shapes = {}
    for text in texts:
        name, _, axes = text.rpartition("=")
        try:
            shapes[name] = [int(axis) for axis in axes.split(",")] if axes else []
        except ValueError:
            raise InvalidRequest(f"--shape {text}: expected INPUT=8,8,1") from None
    return shapes


def _looped(measuring: Coroutine[Any, Any, list[Outcome]]) -> list[Outcome]:
    import uvloop  # half of what asyncio's own loop costs

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measuring)


async def _measured(
    address: Address, requests: Sequence[Request], plan: Plan, points: Points, quiet: bool
) -> list[Outcome]:
    """The outcomes, one for each point of a sweep. SIGINT ends the present one and the rest."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    outcomes: list[Outcome] = []

    async def measure(one: Plan) -> Outcome:
        outcome = await run(address, requests, one, stop)
        if outcome.seconds:
            outcomes.append(outcome)
        if not quiet:
            told = outcome.told() if outcome.seconds else "stopped before anything was counted"
            click.echo(f"{told}\n")
        return outcome

    if points is None:
        await measure(plan)
        return outcomes
    kind, values = points
    peak = 0.0
    if kind == "percent":
        peak = (await measure(plan)).throughput
        outcomes.clear()
    for value in values:
        if stop.is_set():
            break
        if kind == "connections":
            await measure(replace(plan, connections=int(value)))
        else:
            rate = value if kind == "rate" else peak * value / 100
            if rate > 0:
                await measure(replace(plan, rate=rate))
    return outcomes


def _table(outcomes: Sequence[Outcome]) -> str:
    """The sweep at a glance."""
    closed = bool(outcomes) and outcomes[0].rate is None
    names = ("p50", "p90", "p99", "p99.9", "max")
    head = f"{'connections' if closed else 'due/s':>11}{'answers/s':>11}"
    lines = [head + "".join(f"{name:>10}" for name in names) + f"{'unanswered':>12}{'refused':>9}"]
    for outcome in outcomes:
        ms = outcome.figures()["latency_ms"]
        first = outcome.connections if closed else round(outcome.rate or 0)
        lines.append(
            f"{first:>11}{outcome.throughput:>11.0f}"
            + "".join(f"{ms[name]:>10.2f}" for name in names)
            + f"{outcome.unanswered:>12}{outcome.refusals.count:>9}"
        )
    return "\n".join(lines)


def _write_json(file: str, about: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    stretches = [outcome.figures() for outcome in outcomes]
    text = json.dumps({**about, "stretches": stretches}, indent=None if file == "-" else 1)
    if file == "-":
        click.echo(text)
    else:
        Path(file).write_text(text + "\n")
