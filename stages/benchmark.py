"""How fast the bundle answers on this machine. Timings are this machine's truth, so no DVC output."""

from __future__ import annotations

from stages.entry import main, stage
from stages.layout import Layout, write_atomically
from stages.params import Experiment

BATCHES = (1, 32)
ROUNDS = 200
WARM_UP = 20


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Measure EXPERIMENT's bundle through the serving runtime, one thread."""
    import time

    import numpy as np

    from pipeline.bundle import golden
    from pipeline.bundle.manifest import canonical_json, read
    from serving.inference.runtime import open_session

    bundle = read(layout.bundle)
    variant = bundle.manifest.variants["fp32"]
    session = open_session(bundle.contents[variant.file])
    inputs, _ = golden.unpack(bundle.contents[bundle.manifest.golden.file])
    measured: dict[str, float] = {}
    for batch in BATCHES:
        arrays = {name: np.resize(rows, (batch, *rows.shape[1:])) for name, rows in inputs.items()}
        seconds = []
        for turn in range(WARM_UP + ROUNDS):
            start = time.perf_counter()
            session.run(arrays)
            if turn >= WARM_UP:
                seconds.append(time.perf_counter() - start)
        p50, p99 = np.percentile(seconds, (50, 99)) * 1000
        measured |= {
            f"batch_{batch}_p50_ms": float(f"{p50:.3g}"),
            f"batch_{batch}_p99_ms": float(f"{p99:.3g}"),
        }
        measured[f"batch_{batch}_rows_per_second"] = float(f"{batch / (p50 / 1000):.3g}")
    # Whose figures they are, as a list: `dvc metrics show` passes over it, and has room for numbers.
    report = {"bundles": [bundle.digest], "latency": measured}
    write_atomically(layout.latency, canonical_json(report))
    print(f"latency, one row: {measured['batch_1_p50_ms']} ms (median of {ROUNDS}, one thread)")


if __name__ == "__main__":
    main(command)
