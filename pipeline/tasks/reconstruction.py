"""A picture to a few latent numbers and back: a variational autoencoder's evidence lower bound.

The loss is reconstruction plus beta times divergence, in nats a picture. Reconstruction is how
improbable the picture is, made of latent numbers drawn around the encoder's mean: `bernoulli` takes a
level for the probability that the pixel is full (customary for MNIST, an exact likelihood only of
pixels that are 0 or 1), `gaussian` a level's density about the one that was made. Divergence is how
far the encoder's normal lies from the standard one. The reported bound has beta 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.bundle.manifest import Input, Output
from pipeline.config import Section
from pipeline.evaluate import BATCH
from pipeline.prepared import Rows
from pipeline.tasks._shared.contract import Examined, Measure, Plot, Taught
from pipeline.tasks._shared.generative import (
    FULL,
    Generative,
    body_of,
    features_of,
    image,
    latents,
    levels,
    mosaic,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

ACTIVE = 0.01
"""Variance of its mean over the pictures from which a latent number tells of them (Burda et al. 2016)."""

SHOWN = 12
SAMPLES = 64


class Config(Section):
    """The settings of the task."""

    name: str
    latent: int = Field(16, ge=1, le=4096, description="numbers that a picture is made of")
    beta: float = Field(1.0, ge=0, description="what the loss multiplies the divergence by")
    likelihood: Literal["bernoulli", "gaussian"] = Field(
        "bernoulli", description="what a level is: a probability, or a measurement with an error"
    )
    deviation: float = Field(
        0.1, gt=0, le=1, description="gaussian only: of that error; levels run from 0 to 1"
    )

    @model_validator(mode="after")
    def _applicable(self) -> Config:
        if self.likelihood == "bernoulli" and "deviation" in self.model_fields_set:
            raise ValueError("bernoulli does not use deviation")
        return self


class Task(Generative):
    """A network that is taught to give back what it was shown; both of its sides are one player."""

    body = "autoencoder"
    parts = ("decoder", "encoder", "autoencoder")
    measures: ClassVar = {
        "bound": Measure("higher", "evidence lower bound on a picture's log likelihood, in nats"),
        "reconstruction": Measure("lower", "negative log likelihood given latent numbers, in nats"),
        "divergence": Measure("lower", "of the encoder's normal from the standard one, in nats"),
        "active": Measure("higher", "share of the latent numbers that tell of the picture"),
    }
    watched = ("reconstruction", "divergence")
    plots: ClassVar = {
        "latent": Plot("Divergence by latent number", "bar_horizontal", "divergence", "number")
    }

    def reconstruction(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Nats of each picture `[batch]`; both are `[batch, channels, height, width]`."""
        from torch.nn import functional

        if self.config.likelihood == "bernoulli":
            each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        else:
            deviation = self.config.deviation
            each = ((logits.sigmoid() - wanted) / deviation).square() / 2
            each = each + math.log(deviation * math.sqrt(2 * math.pi))
        return each.flatten(1).sum(1)

    def turns(
        self, network: nn.Module, raw: Sequence[torch.Tensor], taught: Taught
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """One step down the negative bound."""
        import torch

        # Drawn on the CPU: the same numbers on every device.
        noise = torch.randn(len(raw[0]), self.outputs).to(raw[0].device)
        found = _through(network, raw[0], noise)
        _, mean, log_variance, logits = (each.float() for each in found)
        reconstruction = self.reconstruction(logits, levels(raw[0]))
        divergence = _divergence(mean, log_variance).sum(1)
        yield "network", (reconstruction + self.config.beta * divergence).mean()

    def validate(self, network: nn.Module, rows: Rows, names: Iterable[str]) -> dict[str, float]:
        """These measures of a split, and its `loss`."""
        figures, _ = self._measured(network, rows)
        loss = figures["reconstruction"] + self.config.beta * figures["divergence"]
        return {name: figures[name] for name in names} | {"loss": loss}

    def examine(self, network: nn.Module, rows: Rows, names: Iterable[str]) -> Examined:
        """The named measures, each latent number's share, rows given back, and samples."""
        import torch

        figures, table = self._measured(network, rows)
        shown = rows.arrays[self.inputs[0].name][:SHOWN]
        noise = torch.zeros(len(shown), self.outputs)
        prior = torch.from_numpy(latents(SAMPLES, self.outputs))
        with torch.inference_mode():
            back, *_ = _through(network, torch.from_numpy(np.array(shown)), noise)
            samples = image(body_of(network).decode(prior))
        pairs = np.concatenate([shown.astype(np.float32) / FULL, back.numpy()])
        return Examined(
            {name: figures[name] for name in names},
            {"latent": table},
            {
                "reconstructions.png": mosaic(pairs, columns=len(shown)),
                "samples.png": mosaic(samples.numpy(), columns=8),
            },
        )

    def _measured(
        self, network: nn.Module, rows: Rows
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Every measure of a split, and what each latent number has of it."""
        import torch

        device = next(network.parameters()).device
        noise = latents(len(rows), self.outputs)
        nats, divergences, means = [], [], []
        with torch.inference_mode():
            for place, (arrays, _) in enumerate(rows.batches(BATCH)):
                raw = torch.from_numpy(arrays[self.inputs[0].name]).to(device)
                drawn = torch.from_numpy(noise[place * BATCH :][: len(raw)]).to(device)
                _, mean, log_variance, logits = _through(network, raw, drawn)
                nats.append(self.reconstruction(logits, levels(raw)).cpu().numpy())
                divergences.append(_divergence(mean, log_variance).cpu().numpy())
                means.append(mean.cpu().numpy())
        reconstruction = float(np.concatenate(nats).astype(np.float64).mean())
        each = np.concatenate(divergences).astype(np.float64).mean(0)
        spread = np.concatenate(means).astype(np.float64).var(0)
        divergence = float(each.sum())
        figures = {
            "bound": -(reconstruction + divergence),
            "reconstruction": reconstruction,
            "divergence": divergence,
            "active": float((spread > ACTIVE).mean()),
        }
        table = [
            {"number": place, "divergence": float(nat), "variance": float(variance)}
            for place, (nat, variance) in enumerate(zip(each, spread, strict=True))
        ]
        return figures, table

    def deployable(self, network: nn.Module) -> nn.Module:
        """The decoder, the encoder, or both with the noise between them as an input."""
        from torch import nn

        body = body_of(network)

        class Decoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = body

            def forward(self, *asked: torch.Tensor) -> tuple[torch.Tensor, ...]:
                return (image(self.body.decode(*asked)),)

        class Encoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network, self.body = network, body

            def forward(self, *asked: torch.Tensor) -> tuple[torch.Tensor, ...]:
                mean, log_variance = self.body.encode(*features_of(self.network)(*asked))
                return mean, log_variance

        class Autoencoder(Encoder):
            def forward(self, *asked: torch.Tensor) -> tuple[torch.Tensor, ...]:
                raw, noise = asked
                return _through(self.network, raw, noise)[:3]

        made = {"decoder": Decoder, "encoder": Encoder, "autoencoder": Autoencoder}
        return made[self.part or "decoder"]().eval()

    def asked(self) -> tuple[Input, ...]:
        """Latent numbers, a picture, or a picture and noise."""
        return {
            "decoder": (self.drawn("latent"),),
            "encoder": self.inputs,
            "autoencoder": (*self.inputs, self.drawn("noise")),
        }[self.part or "decoder"]

    def declared(self) -> tuple[Output, ...]:
        """A picture, what it was taken for, or both."""
        shape = ("batch", self.outputs)
        taken = tuple(
            Output(name=name, dtype="float32", shape=shape, units=units)
            for name, units in (("mean", "latent"), ("log_variance", "log of latent squared"))
        )
        return {
            "decoder": (self.made(),),
            "encoder": taken,
            # A graph calls no output as it calls an input.
            "autoencoder": (self.made("reconstruction"), *taken),
        }[self.part or "decoder"]

    def questions(self, rows: Rows) -> Rows:
        """As many latent numbers as there are rows, the rows, or the rows with noise."""
        numbers = latents(len(rows), self.outputs)
        arrays = {
            "decoder": {"latent": numbers},
            "encoder": dict(rows.arrays),
            "autoencoder": {**rows.arrays, "noise": numbers},
        }[self.part or "decoder"]
        return self.asking(rows, arrays)


def _through(
    network: nn.Module, raw: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, mean, log variance, logits: a picture to its latent numbers, `noise` away, and back."""
    body = body_of(network)
    mean, log_variance = body.encode(*features_of(network)(raw))
    logits = body.decode(mean + (log_variance / 2).exp() * noise)
    return image(logits), mean, log_variance, logits


def _divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence from the standard normal, in nats, of each number."""
    return (mean.square() + log_variance.exp() - log_variance - 1) / 2
