"""Raw data to a checked, split, packed data set, and a few test rows as files to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.entry import main, stage
from stages.layout import Layout
from stages.params import Experiment

if TYPE_CHECKING:
    from pipeline.prepared import Manifest

SAMPLES_PER_LABEL = 1


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Prepare EXPERIMENT's data."""
    from pipeline import prepared

    config = experiment.data.config
    raw = experiment.data.module.load(config, Path())
    manifest = prepared.prepare(config.name, raw, config.split, layout.data)
    _write_samples(layout, manifest, Path(config.path))
    counts = ", ".join(f"{count} {part}" for part, count in manifest.rows.items())
    print(f"prepared {config.name}: {counts}; {manifest.identical_rows} rows repeat another")


def _write_samples(layout: Layout, manifest: Manifest, source: Path) -> None:
    """The first test row of each label as `<label>` and a suffix: its own file where it has one."""
    import re

    import numpy as np

    from pipeline import prepared
    from pipeline.bundle.decode import encode

    declared = manifest.inputs[0]
    if declared.decoder is None:
        return
    rows = prepared.read(layout.data, "test")
    files = prepared.read_files(layout.data, "test")
    layout.samples.mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(manifest.labels):
        for row in np.flatnonzero(rows.target == number)[:SAMPLES_PER_LABEL]:
            if files:
                suffix, payload = Path(files[row]).suffix, (source / files[row]).read_bytes()
            else:
                pixels = np.array(rows.arrays[declared.name][row])
                suffix, payload = encode(declared.decoder, pixels)
            name = re.sub(r"[^\w.-]+", "_", label)[:64]
            path = layout.samples / f"{name}{suffix}"
            if path.exists():  # two labels that differ only in what a file name cannot hold
                path = layout.samples / f"{name}-{number}{suffix}"
            path.write_bytes(payload)


if __name__ == "__main__":
    main(command)
