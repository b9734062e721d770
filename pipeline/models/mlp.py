"""A multilayer perceptron: flatten, then hidden layers (linear, activation, dropout), then linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.layers import Activation, Initialisation, activation, initialise

if TYPE_CHECKING:
    from torch import nn

    from pipeline.forms import Form

READS: Form = "vector"


class Config(Section):
    """The settings of an MLP."""

    name: str
    depth: int = Field(2, ge=0, le=64, description="hidden layers")
    width: int = Field(256, ge=1, le=65536, description="units in each hidden layer")
    widths: tuple[int, ...] = Field(
        (), max_length=64, description="units of every hidden layer, in place of depth and width"
    )
    activation: Activation = Field("relu", description="after each hidden layer")
    batch_norm: bool = Field(False, description="batch normalisation before each activation")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of units dropped while training")
    initialisation: Initialisation = Field("default", description="default: torch's own")

    @model_validator(mode="after")
    def _one_way(self) -> Config:
        if self.widths and (idle := sorted({"depth", "width"} & self.model_fields_set)):
            raise ValueError(f"widths says it all: take out {' and '.join(idle)}")
        if any(not 1 <= units <= 65536 for units in self.widths):
            raise ValueError(f"widths: expected 1 to 65536 units, got {list(self.widths)}")
        return self


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """features float32 `[batch, values]` -> float32 `[batch, outputs]`."""
    from torch import nn

    layers: list[nn.Module] = []
    (width,) = features
    for units in config.widths or (config.width,) * config.depth:
        layers.append(nn.Linear(width, units, bias=not config.batch_norm))
        if config.batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(activation(config.activation))
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        width = units
    layers.append(nn.Linear(width, outputs))
    return initialise(nn.Sequential(*layers), config.initialisation, config.activation)
