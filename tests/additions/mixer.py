"""Patches of a picture, mixed over places and over channels in turn (Tolstikhin et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config import Section

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.forms import Form

READS: Form = "grid"


class Config(Section):
    """Blocks of the same width over patches of the same size."""

    name: str
    depth: int = Field(2, ge=1, le=24, description="blocks")
    width: int = Field(64, ge=4, description="numbers that a patch becomes")
    patch: int = Field(4, ge=1, description="pixels across a patch; what is left over is cut off")


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """features float32 [batch, channels, height, width] -> float32 [batch, outputs]"""
    from torch import nn

    channels, height, width = features
    patch = min(config.patch, height, width)
    places = (height // patch) * (width // patch)

    def mixed(size: int) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)
        )

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over_places, self.over_channels = mixed(places), mixed(config.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.over_places(x.mT).mT  # [batch, places, width]
            return x + self.over_channels(x)

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(channels, config.width, patch, stride=patch)
            self.blocks = nn.Sequential(*(Block() for _ in range(config.depth)))
            self.head = nn.Linear(config.width, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patches(x).flatten(2).mT
            return self.head(self.blocks(x).mean(1))

    return Mixer()
