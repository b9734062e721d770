"""Trained weights to an ONNX graph, and golden rows with torch's answers.

A process of its own, and one export in it: see `pipeline/export.py`.
"""

from __future__ import annotations

from stages.entry import main, stage
from stages.layout import Layout, write_atomically
from stages.params import Experiment


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Export EXPERIMENT to ONNX."""
    from pipeline import export, prepared
    from pipeline.bundle import golden
    from pipeline.bundle.manifest import sha256
    from pipeline.determinism import make_deterministic
    from pipeline.network import predict
    from stages import network as networks

    manifest = prepared.read_manifest(layout.data)
    task = networks.task(experiment, manifest).shipping(experiment.export.part)
    outputs = task.declared()
    make_deterministic(0, experiment.train.threads)
    module = task.deployable(networks.trained(experiment, manifest, layout.weights))
    graph = export.export(
        module,
        task.asked(),
        outputs,
        experiment.export.opset,
        export.metadata(experiment.name, task.config.name, manifest.labels)
        | {"slipway.weights": sha256(layout.weights.read_bytes())},
    )
    rows = task.questions(prepared.read(layout.data, "test"))
    chosen = export.golden_rows(experiment.export.golden_rows, rows.target)
    raw = rows.take(chosen)
    answers = predict(module, raw, tuple(output.name for output in outputs))
    write_atomically(layout.graph, graph)
    write_atomically(layout.golden, golden.pack(raw, answers))
    print(f"exported {layout.graph}: {len(graph)} bytes, opset {experiment.export.opset}")


if __name__ == "__main__":
    main(command)
