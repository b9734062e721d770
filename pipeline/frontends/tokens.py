"""Texts as ids of tokens: each id looked up in a learned table; padding counts for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pipeline.bundle.decode import named
from pipeline.bundle.decode.text import PADDING, UNKNOWN, TextDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import Named, Section
from pipeline.statistics import Statistics

if TYPE_CHECKING:
    import torch

    from pipeline.forms import Frontend
    from pipeline.views import View

NOTHING = "a text as long, of no words"


class Embedding(Section):
    """How a token becomes numbers."""

    width: int = Field(128, ge=1, le=8192, description="numbers that stand for a token")
    deviation: float = Field(
        1.0,
        gt=0,
        le=10,
        description="of those numbers before training; small, and a rare token says little",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of them dropped while training")
    segments: int = Field(
        1, ge=1, description="parts, each averaged, that a model of a fixed size (mlp) reads"
    )


class Config(Embedding, Named):
    """An embedding's settings; how large its table is, the tokenizer tells."""


def measure(
    config: Config, inputs: Sequence[Input], arrays: Mapping[str, np.ndarray], rows: np.ndarray
) -> Statistics:
    """Nothing: ids are names, not numbers."""
    return {}


def view(
    config: Config,
    inputs: Sequence[Input],
    row: Mapping[str, np.ndarray],
    features: np.ndarray,
    shares: np.ndarray,
    files: Mapping[str, bytes],
) -> View:
    """Which words: each with what its tokens contributed."""
    from pipeline.views import Words

    decoder = inputs[0].decoder
    assert decoder is not None
    words, tokens = zip(*named(decoder, row[inputs[0].name], files), strict=True)
    begins = np.cumsum((0, *tokens[:-1]))
    return Words(words, np.add.reduceat(shares.sum(1)[: sum(tokens)], begins))


def build(config: Config, inputs: Sequence[Input], statistics: Statistics) -> Frontend:
    """int64 `[batch, tokens]` -> float32 `[batch, tokens, width]`, bool `[batch, tokens]`."""
    import torch
    from torch import nn

    from pipeline.forms import Features, Frontend

    decoder = inputs[0].decoder
    assert isinstance(decoder, TextDecoder)
    vocabulary = decoder.vocabulary

    class Tokens(Frontend):
        def __init__(self) -> None:
            super().__init__()
            self.features = Features("sequence", (config.width,), config.segments)
            self.table = nn.Embedding(vocabulary, config.width, padding_idx=PADDING)
            with torch.no_grad():
                self.table.weight.mul_(config.deviation)
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            known = (token_ids >= 0) & (token_ids < vocabulary)
            ids = torch.where(known, token_ids, UNKNOWN)  # a stranger's tensor holds any number
            # Up to the last token: padding between two is a step that says nothing.
            there = (ids != PADDING).flip(1).cumsum(1).flip(1) > 0
            return self.dropout(self.table(ids)), there

    return Tokens()
