"""An experiment's entries in `dvc.lock`, as text. Free of mlflow, and of whatever takes time to wake."""

from __future__ import annotations

import re
from pathlib import Path

LOCK = Path("dvc.lock")
STAGES = ("prepare", "train", "evaluate", "export", "verify")
"""What makes a state. `benchmark` depends on the machine, `track` on the state."""


def entries(experiment: str, text: str) -> dict[str, str]:
    """Of a lock's text, the entry of each of the experiment's stages that it has.

    DVC writes the file, two spaces before a stage's name. Cut out what is ours, since parsing a lock
    of many experiments takes longer than all else that happens when nothing has changed.
    """
    parts = re.split(r"^  (?=\S)", text.partition("\nstages:\n")[2], flags=re.MULTILINE)
    wanted = {f"{stage}@{experiment}": stage for stage in STAGES}
    return {wanted[name]: part for part in parts if (name := part.partition(":\n")[0]) in wanted}
