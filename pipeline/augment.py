"""Small random changes to training pictures, as batched tensor operations on raw pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config import Section

if TYPE_CHECKING:
    import torch


class Affine(Section):
    """One affine map per picture, each part drawn evenly from -value to +value; all 0: none."""

    rotate: float = Field(0.0, ge=0, le=180, description="degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="share of the size")
    shear: float = Field(0.0, ge=0, le=1, description="pixels sideways for each pixel down")
    shift: float = Field(0.0, ge=0, description="pixels, in both directions")

    @property
    def active(self) -> bool:
        return any((self.rotate, self.scale, self.shear, self.shift))


def affine(image: torch.Tensor, config: Affine) -> torch.Tensor:
    """uint8 `[batch, height, width, channels]` -> the same, each picture moved on its own.

    Bilinear; what comes in from outside is 0. Draws from torch's global generator on the CPU, so
    the draws are the same on every device.
    """
    import torch
    from torch.nn import functional

    rows, height, width, _ = image.shape
    draw = torch.rand(5, rows) * 2 - 1
    angle = draw[0] * config.rotate * (torch.pi / 180)
    scale = 1 + draw[1] * config.scale
    shear = draw[2] * config.shear
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.empty(rows, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = cos, shear * cos - sin
    matrix[:, 1, 0], matrix[:, 1, 1] = sin, shear * sin + cos
    # The grid runs from -1 to 1 over the picture, so a pixel is 2 / size of it.
    matrix[:, 0, 2] = draw[3] * config.shift * 2 / width
    matrix[:, 1, 2] = draw[4] * config.shift * 2 / height
    planes = image.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(matrix.to(image.device), list(planes.shape), align_corners=False)
    moved = functional.grid_sample(planes, grid, mode="bilinear", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
