"""How much each test does: a moment's worth with every test run, all of it with `make endure`."""

from __future__ import annotations

import os
from typing import TypeVar

Number = TypeVar("Number", int, float)

SCALE = os.environ.get("SLIPWAY_SCALE", "quick")
if SCALE not in ("quick", "full"):
    raise ValueError(f"SLIPWAY_SCALE: expected quick or full, got {SCALE!r}")

FULL = SCALE == "full"


def sized(quick: Number, full: Number) -> Number:
    """The one that goes with the scale."""
    return full if FULL else quick
