"""Changes to columns of categories: some values as if they had never been seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.bundle.decode.categorical import UNSEEN
from pipeline.config import Section

if TYPE_CHECKING:
    import torch

INPUT = "categorical"


class Settings(Section):
    """What happens to columns of categories at random."""

    unseen: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a table's categories that are taken for unseen ones, so that their place "
        "learns something",
    )


def augmented(numbers: torch.Tensor, config: Settings) -> torch.Tensor:
    """int64 `[rows, columns]`."""
    import torch

    if not config.unseen:
        return numbers
    return numbers.masked_fill(torch.rand(numbers.shape) < config.unseen, UNSEEN)
