"""`slipway summary`: what the last run made, and what to do next."""

from __future__ import annotations

import json

import click

from pipeline.bundle.manifest import BundleError, Manifest, Parity, read
from pipeline.card import few_rows
from pipeline.config import ConfigError, suggestion
from stages.entry import fail
from stages.layout import Layout
from stages.params import load


@click.command(name="summary")
@click.argument("experiment", nargs=-1)
def command(experiment: tuple[str, ...]) -> None:
    """Show each EXPERIMENT's result (of all, without one), its bundle, and the next commands."""
    try:
        experiments = load()
        for name in experiment:
            if name not in experiments:
                raise ConfigError(f"experiments: no {name!r}{suggestion(name, list(experiments))}")
    except ConfigError as error:
        fail(str(error), 2)
    shown = []
    for name in experiment or experiments:
        layout = Layout(name)
        if not layout.bundle.is_dir():
            click.echo(f"{name}: no bundle yet; run `dvc repro track@{name}`\n")
            continue
        try:
            click.echo("\n".join(describe(layout)) + "\n")
        except BundleError as error:
            fail(str(error), 1)
        shown.append(layout)
    if shown:
        click.echo("\n".join(next_commands(shown[0])))


def describe(layout: Layout) -> list[str]:
    """An experiment's result in lines. Raises `BundleError`."""
    bundle = read(layout.bundle)
    variant = bundle.manifest.variants["fp32"]
    parity = variant.parity
    worst = max(parity.max_abs_difference, key=lambda name: parity.max_abs_difference[name])
    return [
        click.style(layout.experiment, bold=True),
        *_scores(bundle.manifest, layout),
        *_few(parity),
        f"  parity         largest difference {parity.max_abs_difference[worst]:.2g} in {worst} "
        f"(allowed {parity.tolerance[worst]:.2g})"
        + (
            f", same label on {parity.argmax_agreement:.0%}"
            if parity.argmax_agreement is not None
            else ""
        ),
        f"  latency        {_latency(layout, bundle.digest)}",
        f"  bundle         {layout.bundle}/",
        f"  digest         {bundle.digest}",
    ]


def _scores(manifest: Manifest, layout: Layout) -> list[str]:
    """The experiment's first metric by both runtimes, with its interval, and the others on a line."""
    first, *others = manifest.experiment["metrics"]
    parity = manifest.variants["fp32"].parity
    shown = f"test {first.replace('_', ' ')}"
    both = (
        f"{_told(parity.metrics_torch[first])} torch, {_told(parity.metrics_onnx[first])} ONNX Runtime"
        if first in parity.metrics_onnx
        else f"{_told(manifest.metrics[first])}"
    )
    lines = [f"  {shown:<14} {both}, {parity.rows} rows{_interval(layout, first)}"]
    if others:
        told = ", ".join(f"{name} {_told(manifest.metrics[name])}" for name in others)
        lines.append(f"  others         {told}")
    return lines


def _told(value: float) -> str:
    """Four places of a share, else four figures."""
    return f"{value:.4f}" if -1 <= value <= 1 else f"{value:.4g}"


def _interval(layout: Layout, metric: str) -> str:
    """Of the test split's figure, where the report of this machine has it."""
    try:
        low, high = json.loads(layout.metrics.read_bytes())["intervals"][metric]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (95 %: {low:.4g} to {high:.4g})"


def next_commands(layout: Layout) -> list[str]:
    """Three things to try, with a sample that is there."""
    name = layout.experiment
    return [
        "Next (once: source .venv/bin/activate):",
        f"  slipway predict {name} {layout.example}",
        f"  make serve EXPERIMENT={name}    ask it on http://127.0.0.1:8000",
        "  make ui    compare the runs in MLflow on http://127.0.0.1:5000",
    ]


def _few(parity: Parity) -> list[str]:
    """What one row weighs, where the test rows are few and accuracy is counted in rows."""
    told = few_rows(parity.rows) if "accuracy" in parity.metrics_torch else None
    return [f"                 {told}"] if told else []


def _latency(layout: Layout, digest: str) -> str:
    try:
        report = json.loads(layout.latency.read_bytes())
    except (OSError, ValueError):
        report = {}
    if not isinstance(report, dict) or report.get("bundles") != [digest]:
        return f"not measured; run `dvc repro -f -s benchmark@{layout.experiment}`"
    one, many = report["latency"]["batch_1_p50_ms"], report["latency"]["batch_32_rows_per_second"]
    return f"{one:g} ms for one row, {many:,.0f} rows/s in batches of 32 (one thread, this machine)"
