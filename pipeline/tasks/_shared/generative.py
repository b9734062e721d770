"""What tasks share that make pictures: levels, latent numbers that are drawn once, mosaics.

Levels are what a picture's numbers are to a loss and to a viewer: 0 to 1, raw, whatever the frontend
makes of them for the network.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bundle.manifest import Input, Output
from pipeline.config import ConfigError
from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.contract import Contract

if TYPE_CHECKING:
    import torch
    from torch import nn

FULL = 255
SEED = 0
"""Of the latent numbers that questions, curves and pictures are made of: the same ones every time."""

GAP = 2
SIDE = 56
"""Pixels between two pictures of a mosaic, and what a small picture's side is brought to at least."""


class Generative(Contract):
    """Over data whose one input is a picture. `config.latent` says how many numbers one is made of."""

    def __init__(self, config: Any, target: Target, inputs: tuple[Input, ...]) -> None:
        super().__init__(config, target, inputs)
        if len(inputs) != 1 or inputs[0].dtype != "uint8" or len(inputs[0].shape) != 4:
            raise ConfigError(
                f"task.name: {config.name} makes pictures, and this data has "
                + ", ".join(f"{i.name} {i.dtype} {list(i.shape[1:])}" for i in inputs)
            )
        self.outputs = config.latent

    def drawn(self, name: str) -> Input:
        """An input of latent numbers. The graph draws nothing: whoever asks does."""
        shape = ("batch", self.outputs)
        return Input(name=name, dtype="float32", shape=shape, units="drawn from a standard normal")

    def made(self, name: str = "image") -> Output:
        """The picture that comes out."""
        shape = self.inputs[0].shape
        return Output(name=name, dtype="float32", shape=shape, units="level, 0 to 1")

    def asking(self, rows: Rows, arrays: Mapping[str, np.ndarray]) -> Rows:
        """These arrays, asked in place of the rows or beside them."""
        return Rows(arrays, rows.target)


def latents(rows: int, size: int) -> np.ndarray:
    """float32 `[rows, size]` from a standard normal, by numpy: the same on every machine."""
    return np.random.default_rng(SEED).standard_normal((rows, size), dtype=np.float32)


def levels(raw: torch.Tensor) -> torch.Tensor:
    """uint8 `[batch, height, width, channels]` -> float32 `[batch, channels, height, width]`, 0 to 1."""
    return raw.permute(0, 3, 1, 2).float() / FULL


def image(logits: torch.Tensor) -> torch.Tensor:
    """Logits `[batch, channels, height, width]` -> levels 0 to 1 `[batch, height, width, channels]`."""
    return logits.sigmoid().permute(0, 2, 3, 1)


def features_of(network: nn.Module) -> Any:
    """What makes the body's input of raw tensors."""
    return network.features


def body_of(network: nn.Module) -> Any:
    """The network's two sides, as `contract.Body` has them."""
    return network.get_submodule("body")


def mosaic(pictures: np.ndarray, columns: int) -> bytes:
    """PNG of pictures `[count, height, width, channels]`, levels 0 to 1, in rows of `columns`."""
    from PIL import Image

    scale = max(1, round(SIDE / min(pictures.shape[1:3])))
    tiles = (np.clip(pictures, 0, 1) * FULL).round().astype(np.uint8)
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = tiles.shape
    lines = -(-count // columns)
    sheet = np.full(
        (lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), FULL, np.uint8
    )
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = tile
    payload = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(payload, "PNG")
    return payload.getvalue()
