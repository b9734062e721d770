"""The export against the trained network, through the code that serves. No proof, no bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.entry import StageError, main, stage
from stages.layout import Layout, write_atomically
from stages.params import Experiment

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from onnx import ModelProto

    from pipeline.prepared import Manifest, Rows
    from pipeline.proof import Proof
    from serving.inference.runtime import Session

UNREPORTED = {"batch_sizes", "metrics_torch", "metrics_onnx", "tolerance", "ties"}
"""Of the certificate in the manifest, what `dvc metrics show` has no room for."""


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Prove EXPERIMENT's export and write its bundle."""
    import numpy as np
    import onnx

    from pipeline import evaluate, plugins, prepared, proof
    from pipeline.bundle.manifest import canonical_json
    from serving.inference.runtime import open_session
    from stages.bundling import bundle

    manifest = prepared.read_manifest(layout.data)
    graph = layout.graph.read_bytes()  # once: what is proven is what is bundled
    task = experiment.task.module.Task(
        experiment.task.config, manifest.target, manifest.inputs
    ).shipping(experiment.export.part)
    rows = task.questions(prepared.read(layout.data, "test"))
    session = open_session(graph)
    model = onnx.load_from_string(graph)
    reference = _answers_of(layout, model)
    answers = evaluate.answers(session.run, rows, batch=proof.BATCH_SIZES[0])
    _compare_other_batches(session, rows, answers, reference)

    scores = tuple(
        task.scores(side, np.asarray(rows.target), experiment.metrics)
        for side in (reference, answers)
    )
    frontend = plugins.load("frontend", manifest.frontend["name"], "data.frontend.name")
    relative = getattr(frontend, "RELATIVE", proof.RELATIVE)
    proven = proof.prove(
        reference, answers, np.asarray(rows.target), task.ranked, (scores[0], scores[1]), relative
    )
    write_atomically(
        layout.parity,
        canonical_json({"parity": proven.parity.model_dump(mode="json", exclude=UNREPORTED)}),
    )
    if not proven.holds:
        raise StageError(
            f"the export does not answer as the trained network does; no bundle was written\n"
            f"{proven.failures()}"
        )
    _check_graph(experiment, model, manifest, task)
    _replay_golden(session, layout, proven)
    digest = bundle(experiment, layout, manifest, task, proven, answers, graph)
    worst = max(proven.parity.max_abs_difference.values())
    print(
        f"proven over {len(rows)} rows, largest difference {worst:.2g}; {layout.bundle} is bundle {digest}"
    )


def _check_graph(experiment: Experiment, model: ModelProto, data: Manifest, task: Any) -> None:
    """What the graph says of itself must be what was asked for. Raises `ExportError`."""
    from pipeline import export

    export.check(model, task.asked(), task.declared(), experiment.export.opset)
    export.check_metadata(model, export.metadata(experiment.name, task.config.name, data.labels))


def _replay_golden(session: Session, layout: Layout, proven: Proof) -> None:
    """The golden rows as a server will replay them. Raises `StageError` beyond the tolerance."""
    import numpy as np

    from pipeline.bundle import golden

    inputs, expected = golden.unpack(layout.golden.read_bytes())
    answers = session.run(inputs)
    for name, tolerance in proven.parity.tolerance.items():
        difference = np.abs(answers[name] - expected[name]).max()
        if not difference <= tolerance:
            raise StageError(
                f"{layout.golden}: {name} differs by {difference:.3g} from what the graph answers, "
                f"at most {tolerance:.3g} is allowed; no bundle was written. Run `dvc repro`"
            )


def _answers_of(layout: Layout, model: ModelProto) -> dict[str, np.ndarray]:
    """Torch's answers. Raises `StageError` where they, or the graph, are of other weights."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    from pipeline.bundle.manifest import sha256

    weights = sha256(layout.weights.read_bytes())
    try:
        with safe_open(layout.answers, "np") as answers:
            said = (answers.metadata() or {}).get("weights")
    except SafetensorError as error:
        raise StageError(f"{layout.answers}: damaged ({error}); run `dvc repro`") from error
    exported = {entry.key: entry.value for entry in model.metadata_props}.get("slipway.weights")
    for path, found in ((layout.answers, said), (layout.graph, exported)):
        if found != weights:
            raise StageError(
                f"{path}: made of other weights ({found}) than {layout.weights} ({weights}); "
                "no bundle was written. Run `dvc repro`"
            )
    return load_file(layout.answers)


def _compare_other_batches(
    session: Session,
    rows: Rows,
    answers: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
) -> None:
    """The start of the split again, otherwise batched; put in place of the answers where it is worse.

    A graph whose batch or length was frozen, that mixes rows or reads padding, answers otherwise then.
    """
    import numpy as np

    from pipeline import proof

    first = min(len(rows), proof.BATCH_SIZES[0])
    for what, asked in _otherwise(rows, first).items():
        parts = [session.run(batch) for batch in asked]
        for name, batched in answers.items():
            again = np.concatenate([answer[name] for answer in parts])
            expected = reference[name][:first]
            if batched.shape != reference[name].shape or again.shape != expected.shape:
                raise StageError(
                    f"{name}: the export answers {list(again.shape)} to {first} {what} and "
                    f"{list(batched.shape)} to {len(rows)} in batches, expected {list(expected.shape)} and "
                    f"{list(reference[name].shape)}; no bundle was written"
                )
            # Not `>`: that would pass over rows answered with NaN, and NaN is never mended.
            off = np.abs(batched[:first] - expected)
            worse = ~(np.abs(again - expected) <= off) & ~np.isnan(off)
            batched[:first][worse] = again[worse]


def _otherwise(rows: Rows, first: int) -> dict[str, Iterator[dict[str, np.ndarray]]]:
    """The first rows in each smaller batch size, by what a message calls them.

    A row is as long as the longest of its batch, so where length is free these are lengths too: of 64
    rows, of seven, a row's own. The last is the split's, beyond what any batch of these may have.
    """
    import numpy as np

    from pipeline import proof

    def batches(size: int) -> Iterator[dict[str, np.ndarray]]:
        return (
            rows.take(slice(start, min(start + size, first))) for start in range(0, first, size)
        )

    sizes = proof.BATCH_SIZES[1:]
    found = {f"rows in batches of {size}" if size > 1 else "single rows": size for size in sizes}
    asked = {what: batches(size) for what, size in found.items()}
    if rows.padding:
        asked["rows of full length"] = (
            {name: np.array(array[row : row + 1]) for name, array in rows.arrays.items()}
            for row in range(first)
        )
    return asked


if __name__ == "__main__":
    main(command)
