"""Changes to columns of numbers: some of them unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config import Section

if TYPE_CHECKING:
    import torch

INPUT = "numeric"


class Settings(Section):
    """What happens to columns of numbers at random."""

    gaps: float = Field(
        0.0, ge=0, lt=1, description="share of a table's numbers that are taken for gaps"
    )


def augmented(numbers: torch.Tensor, config: Settings) -> torch.Tensor:
    """float32 `[rows, columns]`."""
    import torch

    if not config.gaps:
        return numbers
    return numbers.masked_fill(torch.rand(numbers.shape) < config.gaps, float("nan"))
