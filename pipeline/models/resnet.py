"""A residual network of basic blocks (He et al. 2016): each block adds a correction to its input.

A stem reads the picture; then come `depth` stages of `blocks` blocks, stage s with `width * 2**s`
channels, and each stage after the first halves the picture. A block is twice (3x3 convolution,
batch normalisation) with an activation between, added to its input and activated again. The last
map is averaged over its places, dropped out, and read by one linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.config import Section
from pipeline.layers import Activation, Initialisation, activation, initialise

if TYPE_CHECKING:
    from torch import nn

    from pipeline.forms import Form

READS: Form = "grid"


class Config(Section):
    """The settings of a residual network."""

    name: str
    depth: int = Field(3, ge=1, le=8, description="stages; each after the first halves the picture")
    blocks: int = Field(2, ge=1, le=64, description="blocks in each stage, two convolutions each")
    width: int = Field(
        32, ge=1, le=4096, description="channels of the first stage; each later one doubles"
    )
    stem: Literal["small", "large"] = Field(
        "small",
        description="small: one 3x3 convolution; large: 7x7, and a pool, to a quarter of the size",
    )
    activation: Activation = Field("relu", description="within each block and after it")
    zero_scale: bool = Field(
        True,
        description="blocks begin as nothing added: the last normalisation's scale starts at 0",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the last features dropped while training"
    )
    initialisation: Initialisation = Field("kaiming", description="default: torch's own")


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """features float32 `[batch, channels, height, width]` -> float32 `[batch, outputs]`."""
    from torch import nn

    layers = [_stem(config, features[0])]
    channels = config.width
    for stage in range(config.depth):
        wider = config.width * 2**stage
        for block in range(config.blocks):
            halved = stage > 0 and block == 0
            layers.append(_block(config, channels, wider, stride=2 if halved else 1))
            channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]  # [batch, channels]
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    layers.append(nn.Linear(channels, outputs))
    return initialise(nn.Sequential(*layers), config.initialisation, config.activation)


def _stem(config: Config, channels: int) -> nn.Module:
    """`[batch, channels, height, width]` -> `[batch, width, ...]`, a quarter of the size if large."""
    from torch import nn

    if config.stem == "small":
        return nn.Sequential(_convolution(channels, config.width), activation(config.activation))
    return nn.Sequential(
        nn.Conv2d(channels, config.width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(config.width),
        activation(config.activation),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def _block(config: Config, channels: int, wider: int, stride: int) -> nn.Module:
    """activation(input + correction); the input is projected where its shape changes."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            last = _convolution(wider, wider)
            if config.zero_scale:
                nn.init.zeros_(last.get_parameter("1.weight"))
            self.correction = nn.Sequential(
                _convolution(channels, wider, stride=stride), activation(config.activation), last
            )
            same = channels == wider and stride == 1
            self.shortcut = (
                nn.Identity() if same else _convolution(channels, wider, size=1, stride=stride)
            )
            self.activation = activation(config.activation)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.activation(self.shortcut(x) + self.correction(x))

    return Block()


def _convolution(channels: int, wider: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (or divides it by `stride`), and batch normalisation."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(channels, wider, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(wider),
    )
