"""Texts: tokens that are kept from the network, on their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.bundle.decode.text import PADDING, UNKNOWN
from pipeline.config import Section

if TYPE_CHECKING:
    import torch

INPUT = "token_ids"


class Settings(Section):
    """What happens to training texts at random; 0: nothing."""

    drop_tokens: float = Field(
        0.0, ge=0, lt=1, description="share of a text's tokens that become unknown ones"
    )


def augmented(ids: torch.Tensor, config: Settings) -> torch.Tensor:
    """int64 `[batch, tokens]` -> the same, changed as asked for; padding stays."""
    import torch

    if not config.drop_tokens:
        return ids
    dropped = (torch.rand(ids.shape) < config.drop_tokens) & (ids.cpu() != PADDING)
    return torch.where(dropped.to(ids.device), UNKNOWN, ids)
