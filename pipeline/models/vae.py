"""A variational autoencoder (Kingma, Welling 2014): a picture to a few numbers, and back.

The encoder gives mean and log variance of the latent numbers, the decoder a logit for each level of
the picture. Convolutional: each width halves the picture, and the decoder doubles it again. Dense:
each width is a hidden layer. How many latent numbers there are, the task says (`task.latent`).
"""

from __future__ import annotations

import itertools
from math import prod
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.config import Section
from pipeline.layers import (
    Activation,
    Initialisation,
    activated,
    activation,
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
GIVES = "autoencoder"


class Config(Section):
    """The settings of a variational autoencoder."""

    name: str
    form: Literal["convolutional", "dense"] = Field(
        "convolutional", description="what stands between the picture and the latent numbers"
    )
    widths: tuple[int, ...] = Field(
        (32, 64),
        min_length=1,
        max_length=8,
        description="channels after each halving, or units of each dense layer, inwards",
    )
    activation: Activation = Field("relu", description="after each hidden layer")
    batch_norm: bool = Field(True, description="batch normalisation before each activation")
    initialisation: Initialisation = Field("default", description="default: torch's own")


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """features float32 `[batch, channels, height, width]`; `outputs`: how many latent numbers."""
    from torch import nn

    sides = _convolutional if config.form == "convolutional" else _dense
    encoder, decoder = sides(config, features, outputs)

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = encoder, decoder

        def encode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Mean and log variance, float32 `[batch, latent]`."""
            both = self.encoder(features)
            return both[:, :outputs], both[:, outputs:]

        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            """`[batch, latent]` -> logits `[batch, channels, height, width]`."""
            logits: torch.Tensor = self.decoder(latent)
            return logits

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.decode(self.encode(features)[0])

    return initialise(Autoencoder(), config.initialisation, config.activation)


def _convolutional(
    config: Config, features: tuple[int, ...], latent: int
) -> tuple[nn.Module, nn.Module]:
    from torch import nn

    channels, size, bn = features[0], (features[1], features[2]), config.batch_norm
    inwards: list[nn.Module] = []
    outwards: list[nn.Module] = []
    for place, width in enumerate(config.widths):
        inwards.append(halving(channels, width, size, bias=not bn))
        inwards += activated(config.activation, width, batch_norm=bn)
        then = config.activation if place else None
        outwards = [*enlarging(width, channels, size, then, batch_norm=bn), *outwards]
        channels, size = width, halved(size)
    inner = (channels, *size)
    encoder = nn.Sequential(*inwards, nn.Flatten(), nn.Linear(prod(inner), 2 * latent))
    start = unfolding(latent, inner, config.activation, batch_norm=bn)
    return encoder, nn.Sequential(*start, *outwards)


def _dense(config: Config, features: tuple[int, ...], latent: int) -> tuple[nn.Module, nn.Module]:
    from torch import nn

    def through(*widths: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for width, wider in itertools.pairwise(widths):
            layers.append(nn.Linear(width, wider, bias=not config.batch_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(wider))
            layers.append(activation(config.activation))
        return layers

    encoder = nn.Sequential(
        nn.Flatten(),
        *through(prod(features), *config.widths),
        nn.Linear(config.widths[-1], 2 * latent),
    )
    decoder = nn.Sequential(
        *through(latent, *reversed(config.widths)),
        nn.Linear(config.widths[0], prod(features)),
        nn.Unflatten(1, features),
    )
    return encoder, decoder
