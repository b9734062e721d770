"""What a run measured: a line for people, and a line of JSON in the file that SLIPWAY_FIGURES names.

`python -m tests.endurance.figures FILE` prints the file as a table.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.endurance.scale import SCALE


def report(subject: str, **figures: Any) -> None:
    """Print figures and keep them, before they are judged. Floats are rounded to 3 digits."""
    rounded = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    print(f"\n{row(subject, rounded)}", flush=True)
    place = os.environ.get("SLIPWAY_FIGURES")
    if place:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        line = {"subject": subject, "scale": SCALE, "load_average": os.getloadavg()[0], **rounded}
        with open(place, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def row(subject: str, figures: dict[str, Any]) -> str:
    """One line of the table."""
    told = "  ".join(f"{name} {value}" for name, value in figures.items())
    return f"{subject:<28} {told}"


def table(path: Path) -> str:
    """Every line of a file of figures."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return "\n".join(row(line.pop("subject"), line) for line in lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
