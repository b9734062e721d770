"""The one builder of small sound manifests, for bundles with and without a graph that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.bundle.manifest import (
    Gate,
    Golden,
    Input,
    Manifest,
    Output,
    Parity,
    Variant,
    entries,
)

OPSET = 20
TOLERANCE = 1e-5


def sound_manifest(
    contents: Mapping[str, bytes],
    inputs: tuple[Input, ...],
    outputs: tuple[Output, ...],
    *,
    rows: int = 8,
    admitted: bool = True,
    **changes: Any,
) -> Manifest:
    """A manifest over `contents`, which hold `model.onnx`, `golden.npz` of `rows` and `card.md`.

    `changes` are fields put in place of the manifest's own.
    """
    tolerance = {output.name: TOLERANCE for output in outputs}
    parity = Parity(
        rows=8,
        batch_sizes=(8, 1),
        max_abs_difference=dict.fromkeys(tolerance, 0.0),
        tolerance=tolerance,
        argmax_agreement=1.0,
        ties=0,
        metrics_torch={"accuracy": 1.0},
        metrics_onnx={"accuracy": 1.0},
    )
    gate = Gate(name="accuracy", measured=1.0, limit=0.9, rule="at least", passed=admitted)
    variant = Variant(
        file="model.onnx",
        precision="fp32",
        opset=OPSET,
        admitted=admitted,
        gates=(gate,),
        parity=parity,
    )
    fields: dict[str, Any] = {
        "name": "digits-test",
        "task": "classification",
        "inputs": inputs,
        "outputs": outputs,
        "variants": {"fp32": variant},
        "metrics": {"accuracy": 1.0},
        "golden": Golden(file="golden.npz", rows=rows, tolerance=tolerance),
        "profile": None,
        "card": "card.md",
        "experiment": {},
        "versions": {},
        "files": entries(contents),
    }
    return Manifest(**fields | changes)
