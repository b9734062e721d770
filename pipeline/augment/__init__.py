"""Small random changes to training rows, as batched tensor operations on raw tensors.

The folder is the registry, one kind of data per file: `INPUT`, the input that it changes; `Settings`,
all of them off by default; `augmented(tensor, config)`. Each draws from torch's global generator on
the CPU, and only where it is asked for: the draws are the same on every device, and one more kind of
change leaves a training without it as it was. Nothing here is ever exported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.augment.categorical import Settings as Categorical
from pipeline.augment.image import Settings as Image
from pipeline.augment.numeric import Settings as Numeric
from pipeline.augment.sound import Settings as Sound
from pipeline.augment.text import Settings as Text
from pipeline.config import ConfigError

if TYPE_CHECKING:
    import torch

_KINDS = {
    kind.INPUT: kind
    for found in pkgutil.iter_modules(__path__)
    for kind in [importlib.import_module(f"{__name__}.{found.name}")]
}


class Augment(Categorical, Numeric, Text, Image, Sound):
    """What happens to training rows at random; all 0 or false: nothing."""

    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="alpha of the Beta distribution by which two rows and their labels are mixed",
    )


def check(config: Augment, inputs: Sequence[str]) -> None:
    """Raise `ConfigError` for a setting that changes none of these inputs."""
    idle = Augment()
    for name, kind in _KINDS.items():
        for setting in kind.Settings.model_fields:
            if name not in inputs and getattr(config, setting) != getattr(idle, setting):
                raise ConfigError(
                    f"train.augment.{setting}: changes the input {name}, and this data has "
                    f"{', '.join(inputs)}; take it out"
                )
    numbers = [name for name in inputs if name in ("token_ids", "categorical")]
    if config.mixup and numbers:
        raise ConfigError(f"train.augment.mixup: {', '.join(numbers)} has no values between two")


def augmented(raw: Mapping[str, torch.Tensor], config: Augment) -> dict[str, torch.Tensor]:
    """The inputs of a batch by name, changed as asked for, save for mixup."""
    return {
        name: _KINDS[name].augmented(tensor, config) if name in _KINDS else tensor
        for name, tensor in raw.items()
    }


def mixup(
    inputs: list[torch.Tensor], target: torch.Tensor, alpha: float
) -> tuple[list[torch.Tensor], list[tuple[float, torch.Tensor]]]:
    """Each row and another one of the batch, mixed by one share (Zhang et al. 2018).

    The mixed inputs, whole levels staying whole, and the two targets, each with the share that its loss
    counts for.
    """
    import torch

    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(len(target))
    mixed = []
    for tensor in inputs:
        between = share * tensor.float() + (1 - share) * tensor[partner].float()
        whole = not tensor.is_floating_point()
        mixed.append(between.round().to(tensor.dtype) if whole else between)
    return mixed, [(share, target), (1 - share, target[partner])]
