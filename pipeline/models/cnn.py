"""A plain convolutional network: stages of 3x3 convolutions, halved in size from stage to stage.

Each of the `depth` stages is `convolutions` times (3x3 convolution, batch normalisation,
activation); stage s has `width * 2**s` channels, and a 2x2 max-pool stands between stages. The last
map is flattened, dropped out and read by one linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config import ConfigError, Section
from pipeline.layers import Activation, Initialisation, activation, initialise

if TYPE_CHECKING:
    from torch import nn

    from pipeline.forms import Form

READS: Form = "grid"


class Config(Section):
    """The settings of a CNN."""

    name: str
    depth: int = Field(2, ge=1, le=8, description="stages; each after the first halves the picture")
    convolutions: int = Field(2, ge=1, le=8, description="convolutions in each stage")
    width: int = Field(
        32, ge=1, le=4096, description="channels of the first stage; each later one doubles"
    )
    activation: Activation = Field("relu", description="after each convolution")
    batch_norm: bool = Field(True, description="batch normalisation before each activation")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the last features dropped while training"
    )
    initialisation: Initialisation = Field("default", description="default: torch's own")


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """features float32 `[batch, channels, height, width]` -> float32 `[batch, outputs]`."""
    from torch import nn

    channels, height, width = features
    layers: list[nn.Module] = []
    for stage in range(config.depth):
        if stage:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        for _ in range(config.convolutions):
            wider = config.width * 2**stage
            layers.append(nn.Conv2d(channels, wider, 3, padding=1, bias=not config.batch_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(wider))
            layers.append(activation(config.activation))
            channels = wider
    if not height * width:
        raise ConfigError(
            f"model.depth: {config.depth} stages halve {features[1]}x{features[2]} pixels to nothing"
        )
    layers.append(nn.Flatten())  # [batch, channels * height * width]
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    layers.append(nn.Linear(channels * height * width, outputs))
    return initialise(nn.Sequential(*layers), config.initialisation, config.activation)
