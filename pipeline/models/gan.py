"""A generative adversarial network in the manner of DCGAN (Radford et al. 2016).

The generator makes a picture of latent numbers by transposed convolutions, each of which doubles its
size; the discriminator halves it by convolutions and gives one logit, how real it looks, and one for
each latent number, which a task may have it guess. How many of them there are, the task says
(`task.latent`).
"""

from __future__ import annotations

import copy
from math import prod
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.config import Section
from pipeline.layers import (
    Activation,
    Initialisation,
    enlarging,
    halved,
    halving,
    initialise,
    unfolding,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.forms import Form

READS: Form = "grid"
GIVES = "adversaries"
SLOPE = 0.2
"""Of the discriminator's leaky ReLU, where a plain one would let no gradient through to the generator."""


class Config(Section):
    """The settings of a GAN."""

    name: str
    generator_widths: tuple[int, ...] = Field(
        (64, 128),
        min_length=1,
        max_length=8,
        description="channels before each doubling, from the picture inwards",
    )
    discriminator_widths: tuple[int, ...] = Field(
        (32, 64),
        min_length=1,
        max_length=8,
        description="channels after each halving, from the picture inwards",
    )
    activation: Activation = Field("relu", description="in the generator")
    batch_norm: bool = Field(True, description="batch normalisation in the generator")
    normalisation: Literal["spectral", "batch", "none"] = Field(
        "spectral", description="of the discriminator; spectral: Miyato et al. 2018"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the discriminator's features dropped while training"
    )
    initialisation: Initialisation = Field("default", description="default: torch's own")


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """features float32 `[batch, channels, height, width]`; `outputs`: how many latent numbers."""
    from torch import nn

    class Adversaries(nn.Module):
        """`generator`: `[batch, latent]` -> logits like features.

        `discriminator`: -> `[batch, 1 + latent]`: how real, and a guess at each latent number.

        `average` is a second generator, for the mean of the first over its last steps.
        """

        def __init__(self) -> None:
            super().__init__()
            self.generator = _generator(config, features, outputs)
            self.average = copy.deepcopy(self.generator).requires_grad_(False)
            self.discriminator = _discriminator(config, features, outputs)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            opinion: torch.Tensor = self.discriminator(features)
            return opinion

    return Adversaries()


def _generator(config: Config, features: tuple[int, ...], latent: int) -> nn.Module:
    from torch import nn

    channels, size, bn = features[0], (features[1], features[2]), config.batch_norm
    layers: list[nn.Module] = []
    for place, width in enumerate(config.generator_widths):
        then = config.activation if place else None
        layers = [*enlarging(width, channels, size, then, batch_norm=bn), *layers]
        channels, size = width, halved(size)
    start = unfolding(latent, (channels, *size), config.activation, batch_norm=bn)
    return initialise(nn.Sequential(*start, *layers), config.initialisation, config.activation)


def _discriminator(config: Config, features: tuple[int, ...], latent: int) -> nn.Module:
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    channels, size = features[0], (features[1], features[2])
    layers: list[nn.Module] = []
    for place, width in enumerate(config.discriminator_widths):
        # The first sees the pictures as they are: their levels are what tells real ones apart.
        normalised = place > 0 and config.normalisation == "batch"
        layers.append(halving(channels, width, size, bias=not normalised))
        if normalised:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.LeakyReLU(SLOPE))
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        channels, size = width, halved(size)
    layers += [nn.Flatten(), nn.Linear(channels * prod(size), 1 + latent)]
    whole = initialise(nn.Sequential(*layers), config.initialisation, "leaky_relu")
    if config.normalisation == "spectral":
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                spectral_norm(layer)
    return whole
