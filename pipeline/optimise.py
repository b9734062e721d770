"""Optimisers, learning-rate schedules and penalties, by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from pipeline.config import Section

if TYPE_CHECKING:
    import torch
    from torch import nn


class Optimiser(Section):
    """How a gradient becomes a step."""

    name: Literal["sgd", "adam", "adamw"] = Field("adamw", description="which optimiser")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only: share of the last step kept")
    nesterov: bool = Field(False, description="sgd only: Nesterov's form of momentum")
    beta1: float = Field(0.9, ge=0, lt=1, description="adam, adamw: memory of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="adam, adamw: memory of squared gradients")
    weight_decay: float = Field(
        0.0, ge=0, description="adamw only: decoupled (Loshchilov, Hutter 2019)"
    )

    @model_validator(mode="after")
    def _applicable(self) -> Optimiser:
        own = {
            "sgd": {"momentum", "nesterov"},
            "adam": {"beta1", "beta2"},
            "adamw": {"beta1", "beta2", "weight_decay"},
        }[self.name]
        idle = sorted(self.model_fields_set - own - {"name"})
        if idle:
            hint = "; penalty.l2 is the same thing there" if idle == ["weight_decay"] else ""
            raise ValueError(f"{self.name} does not use {', '.join(idle)}{hint}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Schedule(Section):
    """How the learning rate runs over the training, as a factor on `lr`."""

    name: Literal["constant", "step", "cosine", "one_cycle"] = Field(
        "cosine", description="one_cycle: up, then straight down to 0 (Smith, Topin 2018)"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the training spent rising to lr")
    step_every: int = Field(10, ge=1, description="step: epochs between two drops")
    step_factor: float = Field(0.1, gt=0, le=1, description="step: what a drop multiplies lr by")

    @model_validator(mode="after")
    def _applicable(self) -> Schedule:
        idle = sorted(self.model_fields_set & {"step_every", "step_factor"})
        if idle and self.name != "step":
            raise ValueError(f"{self.name} does not use {', '.join(idle)}")
        return self


class Penalty(Section):
    """Added to the loss, over weight matrices and kernels (not biases or normalisation)."""

    l1: float = Field(0.0, ge=0, description="times the sum of absolute weights")
    l2: float = Field(0.0, ge=0, description="times half the sum of squared weights")


def build(config: Optimiser, lr: float, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the parameters that learn; weight decay touches matrices only."""
    import torch

    decayed = weights(network)
    plain = [p for p in network.parameters() if p.ndim < 2 and p.requires_grad]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(
            [*decayed, *plain], lr=lr, momentum=config.momentum, nesterov=config.nesterov
        )
    if config.name == "adam":
        return torch.optim.Adam([*decayed, *plain], lr=lr, betas=(config.beta1, config.beta2))
    return torch.optim.AdamW(groups, lr=lr, betas=(config.beta1, config.beta2))


def factor(config: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """What `lr` is multiplied by at `step` of `steps` (counted from 0)."""
    # A one-cycle without a given warm-up rises over 0.3 of the steps, as is usual.
    rise = (
        max(config.warmup, 0.3 if config.name == "one_cycle" and not config.warmup else 0.0) * steps
    )
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(1.0, steps - rise)
    if config.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.name == "one_cycle":
        return 1 - done
    if config.name == "step":
        return config.step_factor ** (step // (config.step_every * steps_per_epoch))
    return 1.0


def penalty(config: Penalty, network: nn.Module) -> torch.Tensor | float:
    """What is added to the loss; 0 where nothing was asked for."""
    total: torch.Tensor | float = 0.0
    for weight in weights(network) if config.l1 or config.l2 else ():
        total = total + config.l1 * weight.abs().sum() + config.l2 / 2 * weight.square().sum()
    return total


def weights(network: nn.Module) -> list[nn.Parameter]:
    """Matrices and kernels that learn: parameters of two or more axes."""
    return [p for p in network.parameters() if p.ndim >= 2 and p.requires_grad]
