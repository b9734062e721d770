"""Pictures: moved, mirrored, coloured and blanked, on raw pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config import Section

if TYPE_CHECKING:
    import torch

INPUT = "image"


class Affine(Section):
    """One affine map per picture, each part drawn evenly from -value to +value; all 0: none."""

    rotate: float = Field(0.0, ge=0, le=180, description="degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="share of the size")
    shear: float = Field(0.0, ge=0, le=1, description="pixels sideways for each pixel down")
    shift: float = Field(0.0, ge=0, description="pixels, in both directions")

    @property
    def active(self) -> bool:
        return any((self.rotate, self.scale, self.shear, self.shift))


class Settings(Affine):
    """What happens to training pictures at random, in this order; all 0 or false: nothing."""

    crop: int = Field(
        0, ge=0, description="pixels of black set around, out of which the same size is cut again"
    )
    flip: bool = Field(False, description="left and right change places in half of the pictures")
    brightness: float = Field(0.0, ge=0, le=1, description="levels times 1 - value to 1 + value")
    contrast: float = Field(
        0.0,
        ge=0,
        le=1,
        description="distance from the picture's mean, times 1 - value to 1 + value",
    )
    saturation: float = Field(
        0.0, ge=0, le=1, description="distance from grey, times 1 - value to 1 + value; RGB only"
    )
    erase: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="largest share of a picture that is blanked to its mean, in half of the pictures",
    )


def augmented(image: torch.Tensor, config: Settings) -> torch.Tensor:
    """uint8 `[batch, height, width, channels]` -> the same, changed as asked for."""
    if config.crop:
        image = crop(image, config.crop)
    if config.flip:
        image = flip(image)
    if config.active:
        image = affine(image, config)
    if config.brightness or config.contrast or config.saturation:
        image = colour(image, config.brightness, config.contrast, config.saturation)
    if config.erase:
        image = erase(image, config.erase)
    return image


def crop(image: torch.Tensor, pixels: int) -> torch.Tensor:
    """Each picture moved by whole pixels, up to `pixels` each way; what comes in is 0."""
    import torch

    rows, height, width, channels = image.shape
    padded = image.new_zeros((rows, height + 2 * pixels, width + 2 * pixels, channels))
    padded[:, pixels : pixels + height, pixels : pixels + width] = image
    start = torch.randint(0, 2 * pixels + 1, (2, rows, 1)).to(image.device)
    down = start[0] + torch.arange(height, device=image.device)  # [rows, height]
    across = start[1] + torch.arange(width, device=image.device)  # [rows, width]
    row = torch.arange(rows, device=image.device)
    return padded[row[:, None, None], down[:, :, None], across[:, None, :]]


def flip(image: torch.Tensor) -> torch.Tensor:
    """Half of the pictures, each by its own draw, with left and right exchanged."""
    import torch

    turned = torch.rand(len(image)).lt(0.5).to(image.device)
    return torch.where(turned[:, None, None, None], image.flip(2), image)


def colour(
    image: torch.Tensor, brightness: float, contrast: float, saturation: float
) -> torch.Tensor:
    """Each picture's levels times a factor, then about its mean, then its colours about grey."""
    import torch

    most = torch.tensor([brightness, contrast, saturation])
    factors = 1 + (torch.rand(len(image), 3) * 2 - 1) * most
    light, spread, hue = factors.to(image.device)[..., None, None, None].unbind(1)
    levels = image.float() * light
    mean = _grey(levels).mean((1, 2, 3), keepdim=True)
    levels = mean + (levels - mean) * spread
    if image.shape[-1] == 3:
        grey = _grey(levels)
        levels = grey + (levels - grey) * hue
    return levels.round().clamp(0, 255).to(torch.uint8)


def erase(image: torch.Tensor, most: float) -> torch.Tensor:
    """One rectangle of half of the pictures, up to a share `most` of them, set to their mean."""
    import torch

    rows, height, width, _ = image.shape
    chosen, share, shape, down, across = torch.rand(5, rows, 1).to(image.device)
    ratio = torch.exp((shape * 2 - 1) * math.log(3))  # height to width, from 1:3 to 3:1
    area = share * most * height * width * (chosen < 0.5)
    tall, wide = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    top, left = down * (height - tall), across * (width - wide)
    y = torch.arange(height, device=image.device) + 0.5
    x = torch.arange(width, device=image.device) + 0.5
    inside = ((y > top) & (y < top + tall))[:, :, None] & ((x > left) & (x < left + wide))[:, None]
    mean = image.float().mean((1, 2), keepdim=True).round().to(torch.uint8)
    return torch.where(inside[..., None], mean, image)


def affine(image: torch.Tensor, config: Affine) -> torch.Tensor:
    """uint8 `[batch, height, width, channels]` -> the same, each picture moved on its own.

    Bilinear; what comes in from outside is 0.
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


def _grey(levels: torch.Tensor) -> torch.Tensor:
    """Luminance (ITU-R 601), `[batch, height, width, 1]`."""
    if levels.shape[-1] == 1:
        return levels
    return (levels * levels.new_tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
