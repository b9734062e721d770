"""Forms of features, and how one becomes another: why any data meets any network.

    vector      float32 [batch, values]
    grid        float32 [batch, channels, height, width]
    sequence    float32 [batch, steps, channels], and bool [batch, steps]: which steps there are

A frontend gives one form and a model reads one (`READS`). Between them stands what is made here,
plain arithmetic that exports with free axes. Steps that are not there count for nothing, so an answer
does not depend on how far a row was padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import nn

from pipeline.config import ConfigError

Form = Literal["vector", "grid", "sequence"]


@dataclass(frozen=True)
class Features:
    """What a frontend gives: `shape` is `(values,)`, `(channels, height, width)` or `(channels,)`.

    `segments` of a sequence: into how many equal parts it is cut, each of them averaged, for a model
    that reads a fixed size.
    """

    form: Form
    shape: tuple[int, ...]
    segments: int = 1


class Frontend(nn.Module):
    """Raw tensors to features, in the order of the inputs."""

    features: Features


def adapted(features: Features, wanted: Form) -> tuple[nn.Module, tuple[int, ...]]:
    """What stands between frontend and body, and the shape that the body is given.

    Raises `ConfigError` where the data has no such form.
    """
    match features.form, wanted:
        case (given, same) if given == same:
            return Same(), features.shape
        case "grid", "vector":
            return Flat(), (prod(features.shape),)
        case "grid", "sequence":
            channels, _, width = features.shape
            return Rows(), (channels * width,)
        case "sequence", "vector":
            return (
                nn.Sequential(Segments(features.segments), Flat()),
                (features.shape[0] * features.segments,),
            )
        case "sequence", "grid":
            return (
                nn.Sequential(Segments(features.segments), Plane()),
                (1, features.shape[0], features.segments),
            )
    raise ConfigError(
        f"model.name: reads a {wanted}, and this data gives a {features.form} {list(features.shape)}; "
        "mlp reads any"
    )


Tensors = tuple[torch.Tensor, ...]


class Same(nn.Module):
    """Nothing to do."""

    def forward(self, tensors: Tensors) -> Tensors:
        return tensors


class Flat(nn.Module):
    """[batch, ...] -> [batch, values]"""

    def forward(self, tensors: Tensors) -> Tensors:
        return (tensors[0].flatten(1),)


class Plane(nn.Module):
    """[batch, channels, segments] -> [batch, 1, channels, segments]"""

    def forward(self, tensors: Tensors) -> Tensors:
        return (tensors[0].unsqueeze(1),)


class Rows(nn.Module):
    """[batch, channels, height, width] -> a sequence of rows from the top, all of them there."""

    def forward(self, tensors: Tensors) -> Tensors:
        steps = tensors[0].permute(0, 2, 1, 3).flatten(2)  # [batch, height, channels * width]
        return steps, torch.ones_like(steps[:, :, 0], dtype=torch.bool)


class Segments(nn.Module):
    """A sequence -> [batch, channels, segments]: the mean of each of so many equal parts of it.

    A part may begin or end within a step, of which it then has its share.
    """

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, tensors: Tensors) -> Tensors:
        steps, there = tensors
        length = there.sum(1).clamp(min=1).to(steps.dtype)[:, None, None]
        edge = torch.arange(self.segments, device=steps.device, dtype=steps.dtype)[None, :, None]
        start = edge * length / self.segments  # [batch, segments, 1], in steps
        stop = (edge + 1) * length / self.segments
        # A step's place among those that are there: they come first, and no part reaches beyond them.
        place = torch.arange(steps.shape[1], device=steps.device, dtype=steps.dtype)[None, None]
        overlap = (torch.minimum(stop, place + 1) - torch.maximum(start, place)).clamp(min=0)
        # Without any, the first step's place would be reached, and must count for nothing too.
        share = overlap * there[:, None].to(steps.dtype) / (stop - start)
        return ((share @ steps).transpose(1, 2),)
