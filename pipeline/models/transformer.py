"""A Transformer encoder (Vaswani et al. 2017): every step looks at every other, layer upon layer.

The steps are brought to `width` and told their positions. Each of the `depth` layers adds what its
`heads` gather by attention, then what a feed-forward network makes of it, each from a normalised
input (Xiong et al. 2020). The last states are pooled to one, which a linear layer reads. Steps that
are not there are looked at by none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.layers import Activation, Initialisation, activation, initialise

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.forms import Form

READS: Form = "sequence"

ABSENT = -1e4
"""Weighs nothing in a softmax, in float16 too; rows where it is everywhere stay finite."""


class Config(Section):
    """The settings of a Transformer encoder."""

    name: str
    depth: int = Field(2, ge=1, le=64, description="layers")
    width: int = Field(128, ge=2, le=8192, description="numbers that each step is held in")
    heads: int = Field(4, ge=1, le=128, description="attentions side by side; they share the width")
    feed_forward: int = Field(
        0,
        ge=0,
        le=65536,
        description="units of each layer's inner network; 0: four times the width",
    )
    positions: Literal["sinusoidal", "learned", "none"] = Field(
        "sinusoidal", description="how a step is told where it stands"
    )
    longest: int = Field(
        512, ge=1, le=65536, description="learned positions; steps beyond share the last"
    )
    pooling: Literal["mean", "first"] = Field(
        "mean", description="what is read: the mean, or a learned step that is put first"
    )
    activation: Activation = Field("gelu", description="within each feed-forward network")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="share dropped while training of whatever is added to a step"
    )
    initialisation: Initialisation = Field("xavier", description="default: torch's own")

    @model_validator(mode="after")
    def _shared(self) -> Config:
        if self.width % self.heads or (self.positions == "sinusoidal" and self.width % 2):
            raise ValueError(
                f"width: {self.width} does not divide into {self.heads} heads"
                if self.width % self.heads
                else f"width: {self.width} is odd, and sinusoidal positions come in pairs"
            )
        return self


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """float32 `[batch, steps, channels]`, bool `[batch, steps]` -> float32 `[batch, outputs]`."""
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(features[0], config.width)
            self.first = None
            if config.pooling == "first":
                self.first = nn.Parameter(torch.randn(1, 1, config.width) * config.width**-0.5)
            self.positions = _positions(config)
            self.dropout = nn.Dropout(config.dropout)
            self.layers = nn.ModuleList(_layer(config) for _ in range(config.depth))
            self.norm = nn.LayerNorm(config.width)
            self.answer = nn.Linear(config.width, outputs)

        def forward(self, steps: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
            present = there[:, :, None].to(steps.dtype)  # [batch, steps, 1]
            states = self.enter(steps * present)
            if self.first is not None:
                states = torch.cat([self.first.expand(len(states), -1, -1), states], 1)
                present = torch.cat([torch.ones_like(present[:, :1]), present], 1)
            states = self.dropout(self.positions(states))
            # [batch, 1, 1, steps], added to what each step thinks of each other.
            mask = (ABSENT * (1 - present)).permute(0, 2, 1)[:, None]
            for layer in self.layers:
                states = layer(states, mask)
            states = self.norm(states)
            if self.first is not None:
                return self.answer(states[:, 0])
            count = present.sum(1).clamp(min=1)  # [batch, 1]; nothing there has a mean of 0
            return self.answer((states * present).sum(1) / count)

    return initialise(Transformer(), config.initialisation, config.activation)


def _positions(config: Config) -> nn.Module:
    """`[batch, steps, width]` -> the same, each step told its place."""
    import torch
    from torch import nn

    class Sinusoidal(nn.Module):
        pace: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            share = torch.arange(0, config.width, 2) / config.width
            self.register_buffer("pace", torch.exp(-math.log(10_000.0) * share))

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            place = torch.arange(states.shape[1], device=states.device, dtype=states.dtype)
            angle = place[:, None] * self.pace  # [steps, width / 2]
            return states + torch.cat([angle.sin(), angle.cos()], 1)

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(config.longest, config.width)
            nn.init.normal_(self.table.weight, std=config.width**-0.5)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            place = torch.arange(states.shape[1], device=states.device)
            return states + self.table(place.clamp(max=config.longest - 1))

    return {"sinusoidal": Sinusoidal, "learned": Learned, "none": nn.Identity}[config.positions]()


def _layer(config: Config) -> nn.Module:
    """states `[batch, steps, width]` and mask `[batch, 1, 1, steps]` -> states."""
    from torch import nn
    from torch.nn import functional

    inner = config.feed_forward or 4 * config.width

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_before_attention = nn.LayerNorm(config.width)
            self.asked = nn.Linear(config.width, 3 * config.width)
            self.gathered = nn.Linear(config.width, config.width)
            self.norm_before_inner = nn.LayerNorm(config.width)
            self.inner = nn.Sequential(
                nn.Linear(config.width, inner),
                activation(config.activation),
                nn.Dropout(config.dropout),
                nn.Linear(inner, config.width),
            )
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states = states + self.dropout(self.attention(self.norm_before_attention(states), mask))
            added: torch.Tensor = self.dropout(self.inner(self.norm_before_inner(states)))
            return states + added

        def attention(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            # [batch, steps, 3 * width] -> three times [batch, heads, steps, width / heads]
            query, key, value = (
                part.unflatten(2, (config.heads, -1)).transpose(1, 2)
                for part in self.asked(states).chunk(3, 2)
            )
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            gathered: torch.Tensor = self.gathered(seen.transpose(1, 2).flatten(2))
            return gathered

    return Layer()
