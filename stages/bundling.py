"""A proven export to the bundle on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline import prepared, proof
from pipeline.bundle import golden
from pipeline.bundle.manifest import (
    Golden,
    Input,
    Manifest,
    Variant,
    canonical_json,
    entries,
    write,
)
from pipeline.card import card
from pipeline.profile import profile
from pipeline.start import notes
from stages.layout import Layout
from stages.params import Experiment

VERSIONS = ("slipway", "torch", "onnx", "onnxscript", "onnxruntime")


def bundle(
    experiment: Experiment,
    layout: Layout,
    data: prepared.Manifest,
    task: Any,
    proven: proof.Proof,
    answers: Mapping[str, np.ndarray],
    graph: bytes,
) -> str:
    """Write `layout.bundle` and return its digest; a bundle that was there before is replaced.

    `graph` is what was proven, `answers` what it gave over the test split.
    """
    inputs, outputs = task.asked(), task.declared()
    versions = {package: version(package) for package in VERSIONS}
    # What answers do not tell was measured by torch, of the whole network.
    scores = {**json.loads(layout.metrics.read_bytes())["test"], **proven.parity.metrics_onnx}
    golden_rows = layout.golden.read_bytes()
    files = _files_of(layout, inputs)
    rows = golden.unpack(golden_rows)[0]
    contents = {
        "model.onnx": graph,
        "golden.npz": golden_rows,
        "profile.json": canonical_json(
            profile(
                task.questions(prepared.read(layout.data, "train")),
                data.target,
                answers,
                next((o.threshold for o in outputs if o.threshold is not None), 0.5),
            )
        ),
        "card.md": card(
            experiment.name,
            data,
            inputs,
            outputs,
            experiment.resolved(),
            scores,
            _intervals(layout),
            proven.parity,
            versions,
            notes(layout.weights).origin,
        ).encode(),
        **files,
    }
    manifest = Manifest(
        name=experiment.name,
        task=experiment.task.config.name,
        inputs=inputs,
        outputs=outputs,
        variants={
            "fp32": Variant(
                file="model.onnx",
                precision="fp32",
                opset=experiment.export.opset,
                admitted=proven.holds,
                gates=proven.gates,
                parity=proven.parity,
            )
        },
        metrics=scores,
        golden=Golden(
            file="golden.npz",
            rows=len(next(iter(rows.values()))),
            tolerance={
                name: proof.GOLDEN_SLACK * limit for name, limit in proven.parity.tolerance.items()
            },
        ),
        profile="profile.json",
        card="card.md",
        experiment=experiment.resolved(),
        versions=versions,
        files=entries(contents),
    )
    return write(layout.bundle, manifest, contents)


def _intervals(layout: Layout) -> dict[str, list[float]]:
    """Of each figure, as `evaluate` found it."""
    intervals: dict[str, list[float]] = json.loads(layout.metrics.read_bytes())["intervals"]
    return intervals


def _files_of(layout: Layout, inputs: tuple[Input, ...]) -> dict[str, bytes]:
    """What the inputs' decoders read, as it was prepared."""
    names = {name for i in inputs if i.decoder is not None for name in i.decoder.reads}
    return {name: (layout.data / name).read_bytes() for name in sorted(names)}
