"""How far a training is: a live bar on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


class Bar:
    """Counts `epochs` of `steps` each, the first `done` of them over already.

    A terminal that says it has no columns (a serial line, a build machine's) would show an empty
    bar, so it counts as elsewhere.
    """

    def __init__(self, epochs: int, steps: int, done: int) -> None:
        from tqdm import tqdm

        self.epochs = epochs
        self.live = sys.stderr.isatty() and _columns() > 0
        self.tqdm = tqdm(
            total=epochs * steps, initial=done * steps, unit="step", disable=not self.live
        )

    def step(self) -> None:
        """One more step is done."""
        self.tqdm.update()

    def epoch(self, line: Mapping[str, float]) -> None:
        """One more epoch is done; `line` has its figures, `epoch` and `validation_loss` among them."""
        if self.live:
            self.tqdm.set_description(f"epoch {line['epoch']}/{self.epochs}", refresh=False)
            self.tqdm.set_postfix_str(f"validation loss {line['validation_loss']:.4g}")
        else:
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in line.items() if k != "epoch")
            print(f"epoch {line['epoch']}/{self.epochs}  {numbers}", flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.tqdm.close()


def _columns() -> int:
    """The width of the terminal that standard error is."""
    if os.environ.get("COLUMNS") == "0":
        return 0
    return os.get_terminal_size(sys.stderr.fileno()).columns
