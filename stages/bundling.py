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
    report = json.loads(layout.metrics.read_bytes())
    # What answers do not tell was measured by torch, of the whole network.
    scores = {**report["test"], **proven.parity.metrics_onnx}
    contents = {
        "model.onnx": graph,
        "golden.npz": layout.golden.read_bytes(),
        "profile.json": _profile(layout, data, task, answers),
        "card.md": card(
            experiment.name,
            data,
            inputs,
            outputs,
            experiment.resolved(),
            scores,
            report["intervals"],
            proven.parity,
            versions,
            notes(layout.weights).origin,
        ).encode(),
        **_files(layout, inputs),
    }
    manifest = Manifest(
        name=experiment.name,
        task=experiment.task.config.name,
        inputs=inputs,
        outputs=outputs,
        variants={"fp32": _variant(experiment, proven)},
        metrics=scores,
        golden=_golden(contents["golden.npz"], proven),
        profile="profile.json",
        card="card.md",
        experiment=experiment.resolved(),
        versions=versions,
        files=entries(contents),
    )
    return write(layout.bundle, manifest, contents)


def _profile(
    layout: Layout, data: prepared.Manifest, task: Any, answers: Mapping[str, np.ndarray]
) -> bytes:
    """What training inputs and answers look like, for drift."""
    given = (output.threshold for output in task.declared() if output.threshold is not None)
    train = task.questions(prepared.read(layout.data, "train"))
    return canonical_json(profile(train, data.target, answers, next(given, 0.5)))


def _variant(experiment: Experiment, proven: proof.Proof) -> Variant:
    return Variant(
        file="model.onnx",
        precision="fp32",
        opset=experiment.export.opset,
        admitted=proven.holds,
        gates=proven.gates,
        parity=proven.parity,
    )


def _golden(payload: bytes, proven: proof.Proof) -> Golden:
    inputs, _ = golden.unpack(payload)
    return Golden(
        file="golden.npz",
        rows=len(next(iter(inputs.values()))),
        tolerance={
            name: proof.GOLDEN_SLACK * limit for name, limit in proven.parity.tolerance.items()
        },
    )


def _files(layout: Layout, inputs: tuple[Input, ...]) -> dict[str, bytes]:
    """What the inputs' decoders read, as it was prepared."""
    names = {name for i in inputs if i.decoder is not None for name in i.decoder.reads}
    return {name: (layout.data / name).read_bytes() for name in sorted(names)}
