"""The model card: what the bundle is, in words, from facts the pipeline holds.

After Mitchell et al., "Model Cards for Model Reporting" (2019). A fact that is missing fails the
export rather than leaving a blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.bundle.manifest import Input, Output, Parity
from pipeline.export import ExportError
from pipeline.prepared import Manifest, digest
from pipeline.split import SPLITS
from pipeline.start import Origin

FEW_ROWS = 200
"""Test rows up to which a figure says what one of them weighs."""

LIMITS = (
    "The figures hold for data like the test split. Nothing here measures how the model does "
    "on other sources, on deliberately altered inputs, or across groups of people."
)


def few_rows(rows: int) -> str | None:
    """What one row weighs in an accuracy, where so few were judged that it shows."""
    return f"{rows} test rows: one row is {100 / rows:.1f} points" if rows <= FEW_ROWS else None


def card(
    name: str,
    data: Manifest,
    inputs: tuple[Input, ...],
    outputs: tuple[Output, ...],
    experiment: Mapping[str, Any],
    scores: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]],
    parity: Parity,
    versions: Mapping[str, str],
    origin: Origin | None = None,
) -> str:
    """The card as Markdown. Raises `ExportError` naming a fact that is missing."""
    for fact in ("title", "licence"):
        if not data.source.get(fact):
            raise ExportError(f"model card: the data set {data.name!r} does not state its {fact}")
    sections = {
        f"# {name}": [
            f"A `{experiment['model']['name']}` for {experiment['task']['name']}, "
            f"trained on `{data.name}`."
        ],
        "## Inputs and outputs": _interface(inputs, outputs, data.labels),
        "## Data": _data(data),
        "## Results on the test split": _results(scores, intervals, parity.rows),
        "## Proof": [_proof(parity)],
        "## Training": _training(experiment, versions, origin),
        "## Limits": [LIMITS],
    }
    return "\n".join(
        line for heading, body in sections.items() for line in (heading, "", *body, "")
    )


def _interface(
    inputs: tuple[Input, ...], outputs: tuple[Output, ...], labels: tuple[str, ...]
) -> list[str]:
    return [
        *(_tensor("in", tensor) for tensor in inputs),
        *(_tensor("out", tensor) for tensor in outputs),
        "",
        *([f"Labels: {', '.join(labels)}.", ""] if labels else []),
        "Preprocessing and postprocessing are in the graph: send raw values in the units above.",
    ]


def _tensor(side: str, tensor: Input | Output) -> str:
    shape = ", ".join(str(n) for n in tensor.shape)
    units = f", {tensor.units}" if tensor.units else ""
    return f"- {side} `{tensor.name}`: {tensor.dtype} `[{shape}]`{units}"


def _data(data: Manifest) -> list[str]:
    return [
        f"- Source: {data.source['title']}",
        f"- Licence: {data.source['licence']}",
        "- Rows: " + ", ".join(f"{data.rows[part]} {part}" for part in SPLITS),
        f"- Rows that repeat another (kept in one split): {data.identical_rows}",
        f"- Digest: `{digest(data)}`",
    ]


def _results(
    scores: Mapping[str, float], intervals: Mapping[str, Sequence[float]], rows: int
) -> list[str]:
    few = few_rows(rows) if "accuracy" in scores else None
    return [
        "| metric | value | 95 % interval |",
        "| --- | --- | --- |",
        *(
            f"| {metric.replace('_', ' ')} | {value:.6g} | {_interval(intervals.get(metric))} |"
            for metric, value in scores.items()
        ),
        "",
        "The intervals are what other rows of the same kind would give (bootstrap over the rows); they "
        "say nothing of another training.",
        *(["", f"{few}."] if few else []),
    ]


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:g} to {ends[1]:g}" if ends else "none (whole network, by torch)"


def _proof(parity: Parity) -> str:
    differences = ", ".join(
        f"largest difference of {output} {value:.2g} (allowed {parity.tolerance[output]:.2g})"
        for output, value in parity.max_abs_difference.items()
    )
    told = f"ONNX Runtime against torch over {parity.rows} test rows: {differences}"
    if parity.argmax_agreement is None:
        return f"{told}."
    return (
        f"{told}; the same label on {parity.argmax_agreement:.0%} of the rows that are no ties "
        f"({parity.ties} ties)."
    )


def _training(
    experiment: Mapping[str, Any], versions: Mapping[str, str], origin: Origin | None
) -> list[str]:
    return [
        f"- Model: {_settings(experiment['model'])}",
        f"- Training: {_settings(experiment['train'])}",
        *([f"- Started from {origin.told()}"] if origin else []),
        "- Versions: " + ", ".join(f"{package} {version}" for package, version in versions.items()),
    ]


def _settings(values: Mapping[str, Any]) -> str:
    """`lr 0.01, schedule (name cosine, warmup 0.1)`"""
    return ", ".join(
        f"{key} ({_settings(value)})" if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in values.items()
    )
