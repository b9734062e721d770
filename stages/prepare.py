"""Raw data to a checked, split, packed data set, and a few test rows as files to try."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stages.entry import main, stage
from stages.layout import Layout
from stages.params import Experiment

if TYPE_CHECKING:
    import numpy as np

    from pipeline.dataset import RawData
    from pipeline.prepared import Manifest

SAMPLES = 1
"""Of each label, or part of a range."""


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Prepare EXPERIMENT's data."""
    from pipeline import prepared

    config = experiment.data.config
    raw = experiment.data.module.load(config, Path())
    manifest, chosen = prepared.prepare(config.name, raw, config.split, layout.data)
    _write_samples(layout, manifest, raw, chosen["test"], Path(config.path))
    counts = ", ".join(f"{count} {part}" for part, count in manifest.rows.items())
    print(f"prepared {config.name}: {counts}; {manifest.identical_rows} rows repeat another")


def _write_samples(
    layout: Layout, manifest: Manifest, raw: RawData, test: np.ndarray, source: Path
) -> None:
    """The first test row of each kind as a file named after it: its own file where it has one."""
    import numpy as np

    from pipeline import target

    layout.samples.mkdir(parents=True, exist_ok=True)
    kinds = target.strata(raw.target)[test]
    for number in np.unique(kinds):
        for place in np.flatnonzero(kinds == number)[:SAMPLES]:
            written = _as_file(layout, manifest, raw, int(test[place]), int(place), source)
            if written is None:
                return
            name = re.sub(r"[^\w.-]+", "_", _told(raw, int(test[place])))[:64]
            path = layout.samples / f"{name}{written[0]}"
            if path.exists():  # two labels that differ only in what a file name cannot hold
                path = layout.samples / f"{name}-{number}{written[0]}"
            path.write_bytes(written[1])


def _told(raw: RawData, row: int) -> str:
    """What a file of the row is named after: its labels, or its number without an exponent."""
    from pipeline import target

    if target.kind_of(raw.target) != "number":
        return target.told(raw, row)
    value = float(raw.target[row])
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.6g}"


def _as_file(
    layout: Layout, manifest: Manifest, raw: RawData, row: int, place: int, source: Path
) -> tuple[str, bytes] | None:
    """(suffix, bytes) of a row, which is the test split's at `place`; None where it has no file."""
    import numpy as np

    from pipeline import prepared
    from pipeline.bundle.decode import encode

    if raw.sample:
        return raw.sample(row)
    if raw.files:
        return Path(raw.files[row]).suffix, (source / raw.files[row]).read_bytes()
    (declared, *others) = manifest.inputs
    if others or declared.decoder is None or declared.decoder.reads:
        return None
    rows = prepared.read(layout.data, "test")
    return encode(declared.decoder, np.array(rows.arrays[declared.name][place]))


if __name__ == "__main__":
    main(command)
