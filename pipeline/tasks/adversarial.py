"""Two players (Goodfellow et al. 2014): a generator of pictures, and a discriminator that doubts them.

The discriminator learns to tell made pictures from real ones, the generator to have its own taken for
real (the non-saturating loss). With labels, the generator is told which one to make, and the
discriminator, which learns them of real pictures, must find it there (Odena et al. 2017).

Neither's loss says how good the pictures are. So a small classifier of the training rows looks at them:
`loss`, what curves and stopping look at, is the Frechet distance of its features between made and real
pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pipeline.bundle.manifest import Input, Output
from pipeline.config import ConfigError, Section
from pipeline.evaluate import BATCH
from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.contract import Examined, Measure, Plot, Taught
from pipeline.tasks._shared.generative import FULL, Generative, body_of, image, latents, mosaic
from pipeline.tasks._shared.judge import Judge, distance

if TYPE_CHECKING:
    import torch
    from torch import nn

SURE = 0.9
"""Probability from which a picture counts as recognised."""

OCCURS = 0.1
"""Of an even share of the pictures: from this on, a label counts as occurring among them."""

SHOWN = 100


class Config(Section):
    """The settings of the task."""

    name: str
    latent: int = Field(64, ge=1, le=4096, description="numbers that a picture is made of")
    label_smoothing: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="by how much the discriminator is told that real pictures are less than real",
    )
    average: float = Field(
        0.998,
        ge=0,
        lt=1,
        description="of the shipped generator, what each step keeps: a running mean; 0: the last one",
    )
    labelled: bool = Field(
        False,
        description="whether a picture is made of a label too: of as many latent numbers as there are "
        "labels, from the first on, the largest chooses it",
    )


class Task(Generative):
    """A generator, and the discriminator that teaches it."""

    body = "adversaries"
    measures: ClassVar = {
        "distance": Measure("lower", "Frechet distance of a classifier's features, made to real"),
        "recognised": Measure("higher", f"share of made pictures that it is {SURE:.0%} sure of"),
        "recognised_real": Measure("higher", "the same of the real ones, to compare with"),
        "coverage": Measure("higher", "share of the labels that occur among those recognised"),
    }
    plots: ClassVar = {
        "labels": Plot("Made pictures by label", "bar_horizontal", "made", "label"),
    }

    def __init__(self, config: Config, target: Target, inputs: tuple[Input, ...]) -> None:
        super().__init__(config, target, inputs)
        self.watched = ("recognised", "coverage") if target.kind == "class" else ()
        if config.labelled and target.kind != "class":
            raise ConfigError(f"task.labelled: the data's target is a {target.kind}, not a class")
        self.labels = len(target.labels) if config.labelled else 0
        if config.labelled and config.latent <= self.labels:
            raise ConfigError(
                f"task.latent: {config.latent}, of which the first {self.labels} choose the label; "
                "take more"
            )

    def players(self, network: nn.Module) -> dict[str, nn.Module]:
        """Each learns by its own turns."""
        body = body_of(network)
        return {"discriminator": body.discriminator, "generator": body.generator}

    def turns(
        self, network: nn.Module, raw: Sequence[torch.Tensor], taught: Taught
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The discriminator's turn, then the generator's with the same latent numbers."""
        import torch
        from torch.nn import functional

        body = body_of(network)

        def verdict(pictures: torch.Tensor, real: float, labels: Taught) -> torch.Tensor:
            """Cross-entropy of what the discriminator says with `real` and labels, as it should be."""
            told = network(pictures).float()  # [batch, 1 + latent]
            apart = told[:, :1]
            loss = functional.binary_cross_entropy_with_logits(apart, torch.full_like(apart, real))
            for share, label in labels:
                loss = loss + share * functional.cross_entropy(told[:, 1 : 1 + self.labels], label)
            return loss

        # Drawn on the CPU: the same numbers on every device.
        latent = self._chosen(torch.randn(len(raw[0]), self.outputs).to(raw[0].device))
        # In the units of the raw ones: both go through the same frontend.
        made = FULL * image(body.generator(latent))
        known = taught if self.labels else []
        yield (
            "discriminator",
            verdict(raw[0], 1 - self.config.label_smoothing, known)
            + verdict(made.detach(), 0.0, []),
        )
        wanted = [(1.0, latent[:, : self.labels].argmax(1))] if self.labels else []
        with _still(body.discriminator):
            yield "generator", verdict(made, 1.0, wanted)
        _towards(body.average, body.generator, 1 - self.config.average)

    def _chosen(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent numbers as the generator reads them: of those for labels, the largest is 1, others 0."""
        import torch

        if not self.labels:
            return latent
        first, rest = latent[:, : self.labels], latent[:, self.labels :]
        return torch.cat([(first == first.amax(1, keepdim=True)).to(latent.dtype), rest], 1)

    def study(self, train: Rows) -> None:
        """Teach the classifier that judges."""
        self.judge = Judge(train, self.inputs[0].name, self.target)

    def validate(self, network: nn.Module, rows: Rows, names: Iterable[str]) -> dict[str, float]:
        """These measures over as many made pictures as there are rows, and the distance as `loss`."""
        figures, _ = self._measured(self._make(network, len(rows)), rows)
        return _named(figures, names) | {"loss": figures["distance"]}

    def examine(self, network: nn.Module, rows: Rows, names: Iterable[str]) -> Examined:
        """The named measures, how often each label occurs, and a sheet of samples."""
        made = self._make(network, len(rows))
        figures, table = self._measured(made, rows)
        shown = self._make(network, SHOWN)
        return Examined(
            _named(figures, names),
            {"labels": table} if table else {},
            {"samples.png": mosaic(shown / np.float32(FULL), columns=10)},
        )

    def _make(self, network: nn.Module, count: int) -> np.ndarray:
        """uint8 `[count, height, width, channels]`, of the same latent numbers every time."""
        import torch

        device, generator = next(network.parameters()).device, self.deployable(network)
        asked, parts = latents(count, self.outputs), []
        with torch.inference_mode():
            for start in range(0, count, BATCH):
                (made,) = generator(torch.from_numpy(asked[start : start + BATCH]).to(device))
                parts.append((made * FULL).round().byte().cpu().numpy())
        return np.concatenate(parts)

    def _measured(
        self, made: np.ndarray, rows: Rows
    ) -> tuple[dict[str, float], list[dict[str, float | str]]]:
        """Every measure, and by label how often it is recognised in made and in real pictures."""
        features, told = self.judge.looks(made)
        real, told_real = self.judge.looks(rows.arrays[self.inputs[0].name])
        apart = {"distance": distance(features, real)}
        if self.target.kind != "class":
            return apart, []
        labels = self.target.labels
        sure, sure_real = told.max(1) >= SURE, told_real.max(1) >= SURE
        counts = np.bincount(told.argmax(1)[sure], minlength=len(labels))
        counts_real = np.bincount(told_real.argmax(1)[sure_real], minlength=len(labels))
        even = len(made) / len(labels)
        figures = apart | {
            "recognised": float(sure.mean()),
            "recognised_real": float(sure_real.mean()),
            "coverage": float((counts >= OCCURS * even).mean()),
        }
        return figures, [
            {"label": label, "made": int(counts[place]), "real": int(counts_real[place])}
            for place, label in enumerate(labels)
        ]

    def deployable(self, network: nn.Module) -> nn.Module:
        """The generator: latent numbers -> a picture."""
        from torch import nn

        chosen = self._chosen

        class Generator(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.generator = body_of(network).average

            def forward(self, *asked: torch.Tensor) -> tuple[torch.Tensor]:
                return (image(self.generator(chosen(*asked))),)

        return Generator().eval()

    def asked(self) -> tuple[Input, ...]:
        """Latent numbers."""
        return (self.drawn("latent"),)

    def declared(self) -> tuple[Output, ...]:
        """A picture."""
        return (self.made(),)

    def questions(self, rows: Rows) -> Rows:
        """As many latent numbers as there are rows."""
        return self.asking(rows, {"latent": latents(len(rows), self.outputs)})


def _named(figures: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Those figures. Raises `ConfigError` for one that this data cannot have."""
    for name in names:
        if name not in figures:
            raise ConfigError(
                f"metrics: {name} counts classes, and this data has none; take it out"
            )
    return {name: figures[name] for name in names}


def _towards(average: nn.Module, last: nn.Module, share: float) -> None:
    """Bring what `average` holds that share of the way to what `last` holds.

    Two players circle around each other; their mean is nearer to where they are going
    (Yazici et al. 2019).
    """
    import torch

    with torch.no_grad():
        for held, wanted in zip(
            average.state_dict().values(), last.state_dict().values(), strict=True
        ):
            if held.is_floating_point():
                held.lerp_(wanted, share)
            else:  # how many batches a normalisation has seen
                held.copy_(wanted)


@contextmanager
def _still(player: nn.Module) -> Iterator[None]:
    """Without gradients of the player's own: it passes them on, and learns nothing."""
    learning = [parameter for parameter in player.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
