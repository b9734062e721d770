"""Pictures: raw levels to planes of mean 0 and deviation 1 by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bundle.manifest import Input
from pipeline.config import Named
from pipeline.statistics import Channel, Statistics, by_channel

if TYPE_CHECKING:
    import torch

    from pipeline.forms import Frontend
    from pipeline.views import View

NOTHING = "a picture of average grey"


class Config(Named):
    """There is nothing to choose."""


def measure(
    config: Config, inputs: Sequence[Input], arrays: Mapping[str, np.ndarray], rows: np.ndarray
) -> Statistics:
    """Mean and deviation of each channel over these rows."""
    return {inputs[0].name: by_channel(arrays[inputs[0].name], rows)}


def build(config: Config, inputs: Sequence[Input], statistics: Statistics) -> Frontend:
    """uint8 `[batch, height, width, channels]` -> float32 `[batch, channels, height, width]`."""
    height, width, channels = (int(n) for n in inputs[0].shape[1:])
    return pixels(statistics[inputs[0].name], (channels, height, width))


def view(
    config: Config,
    inputs: Sequence[Input],
    row: Mapping[str, np.ndarray],
    features: np.ndarray,
    shares: np.ndarray,
    files: Mapping[str, bytes],
) -> View:
    """Which pixels: the picture, and for each pixel what its channels contributed."""
    from pipeline.views import Map

    levels = row[inputs[0].name]
    return Map(levels[:, :, 0] if levels.shape[2] == 1 else levels, shares.sum(0))


def pixels(channels: tuple[Channel, ...], shape: tuple[int, int, int]) -> Frontend:
    """Each channel brought to mean 0 and deviation 1; `shape` is what comes out of one picture."""
    import torch

    from pipeline.forms import Features, Frontend

    class Pixels(Frontend):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.features = Features("grid", shape)
            mean = torch.tensor([c.mean for c in channels])
            # A constant channel carries nothing; dividing by 1 keeps it at 0 rather than at NaN.
            std = torch.tensor([c.std or 1.0 for c in channels])
            self.register_buffer("scale", (1 / std).view(1, -1, 1, 1))
            self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.permute(0, 3, 1, 2).float() * self.scale + self.shift

    return Pixels()
