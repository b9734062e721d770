"""Nothing has changed since the last tracking: told in a tenth of a second, by the standard library.

What was tracked is noted by a fingerprint of every file that the stage looks at. The settings are
among them, and were checked then. Any difference, or any doubt, wakes the whole stage.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from stages.layout import Layout, write_atomically
from stages.tracking.address import Address, address
from stages.tracking.lock import LOCK, STAGES, entries
from stages.tracking.presence import gone

SETTINGS = Path("params.yaml")
MANIFEST = "manifest.json"


def told(experiment: str) -> bool:
    """Whether the state is as it was noted, and its run is there; then it was said so."""
    if os.environ.get("SLIPWAY_TRACKING") not in (None, "", "best-effort", "required"):
        return False
    layout, where = Layout(experiment), address()
    try:
        note = json.loads(_path(where, experiment).read_bytes())
        run_id, name = note["run_id"], note["name"]
        same = note["fingerprint"] == fingerprint(layout)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not same or gone(where, run_id):
        return False
    tell(layout, name, run_id, "there already", where)
    return True


def note(layout: Layout, name: str, run_id: str, where: Address) -> None:
    """Keep what `told` compares: the files as they are now belong to this run."""
    try:
        found = {"fingerprint": fingerprint(layout), "run_id": run_id, "name": name}
    except OSError:  # a report is gone in the meantime: the next tracking looks at everything
        return
    write_atomically(_path(where, layout.experiment), json.dumps(found).encode())


def fingerprint(layout: Layout) -> str:
    """SHA-256 over the experiment's lock, all settings, and the files beside the bundle's manifest.

    Raises `OSError` where one is missing.
    """
    locked = entries(layout.experiment, LOCK.read_text())
    paths = (SETTINGS, layout.bundle / MANIFEST, layout.latency, layout.lineage)
    parts = [locked.get(stage, "") for stage in STAGES]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tell(layout: Layout, name: str, run_id: str, how: str, where: Address) -> None:
    """The stage's last words: the run, and what one would do next."""
    print(f"tracked: {layout.experiment} run {name} {run_id} ({how}) in {where.shown}")
    print(
        f"next: slipway predict {layout.experiment} {layout.example}; "
        f"make serve EXPERIMENT={layout.experiment}; slipway summary {layout.experiment}"
    )


def _path(where: Address, experiment: str) -> Path:
    # A name with a slash is nobody's: the whole stage says so.
    return where.notes / f"{Path(experiment).name}-{where.identity}.last"
