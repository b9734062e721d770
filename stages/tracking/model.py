"""A bundle as an MLflow model: the same bytes, in a folder that MLflow's own readers know too."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import mlflow.artifacts
import mlflow.onnx
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.bundle import golden
from pipeline.bundle.manifest import LINEAGE, MANIFEST, Tensor, canonical_json, sha256
from stages.tracking.facts import Facts
from stages.tracking.server import Server

GRAPH = "model.onnx"
"""What MLflow calls a graph, and a bundle its fp32 variant."""


class ModelError(RuntimeError):
    """What MLflow stored is not the bundle."""


def log(server: Server, facts: Facts, run_id: str) -> str:
    """Log the bundle as the run's model and return the model's id.

    The folder holds what MLflow writes for an ONNX model and every file of the bundle beside it.
    Raises `ModelError` when the stored graph differs from the bundle's.
    """
    import onnx

    bundle = facts.bundle
    inputs, _ = golden.unpack(bundle.contents[bundle.manifest.golden.file])
    logged = server.client.create_logged_model(
        server.experiment_id,
        name=facts.experiment,
        source_run_id=run_id,
        params=facts.params,
        tags={
            "bundle": bundle.digest,
            "onnx.sha256": facts.tags["onnx.sha256"],
            "pipeline.key": facts.key,
        },
    )
    mlflow.onnx.log_model(
        # Read anew: MLflow's default, external data, strips the weights from the caller's object.
        onnx.load_model_from_string(bundle.contents[bundle.manifest.variants["fp32"].file]),
        save_as_external_data=False,
        model_id=logged.model_id,
        run_id=run_id,
        signature=ModelSignature(_schema(bundle.manifest.inputs), _schema(bundle.manifest.outputs)),
        input_example={name: rows[:1] for name, rows in inputs.items()},
        pip_requirements=_requirements(),
        onnx_execution_providers=["CPUExecutionProvider"],
    )
    check(server, logged.artifact_location, facts.tags["onnx.sha256"])
    _add_rest(server, facts.tracked(server.where.shown, run_id, logged.model_id), logged.model_id)
    return logged.model_id


def check(server: Server, location: str, expected: str) -> None:
    """Fetch the graph that lies at `location`. Raises `ModelError` on another SHA-256."""
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            f"{location}/{GRAPH}", dst_path=folder, tracking_uri=server.where.uri
        )
        actual = sha256(Path(path).read_bytes())
    if actual != expected:
        raise ModelError(
            f"{location}: MLflow holds a graph with SHA-256 {actual}, the bundle's is {expected}; "
            "its artifacts were changed, or MLflow rewrote the graph"
        )


def _add_rest(server: Server, facts: Facts, model_id: str) -> None:
    manifest = facts.bundle.manifest
    with tempfile.TemporaryDirectory() as folder:
        for name, payload in facts.bundle.contents.items():
            if name != manifest.variants["fp32"].file:
                Path(folder, name).write_bytes(payload)
        Path(folder, MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))
        Path(folder, LINEAGE).write_bytes(canonical_json(facts.lineage))
        server.client.log_model_artifacts(model_id, folder)


def _schema(tensors: Sequence[Tensor]) -> Schema:
    return Schema(
        [
            TensorSpec(
                np.dtype(t.dtype), tuple(n if isinstance(n, int) else -1 for n in t.shape), t.name
            )
            for t in tensors
        ]
    )


def _requirements() -> list[str]:
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu", "numpy"):
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
