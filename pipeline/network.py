"""Frontend, form and body as one module: raw tensors in, the task's raw answers out."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import plugins
from pipeline.forms import Frontend, adapted
from pipeline.prepared import Manifest


class Network(nn.Module):
    """Called with the raw inputs in the manifest's order."""

    def __init__(self, frontend: Frontend, form: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.frontend = frontend
        self.form = form
        self.body = body

    def features(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the body reads. Frontends keep their precision, whatever a training step is cast to."""
        device = raw[0].device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                given = self.frontend(*raw)
        else:
            given = self.frontend(*raw)
        ready: tuple[torch.Tensor, ...] = self.form(given if isinstance(given, tuple) else (given,))
        return ready

    def forward(self, *raw: torch.Tensor) -> Any:
        return self.body(*self.features(*raw))


def assemble(manifest: Manifest, model: ModuleType, config: Any, outputs: int) -> Network:
    """The network for prepared data: its kind of data gives the frontend, `model` the body.

    Raises `ConfigError` where the model cannot read such data.
    """
    frontends = plugins.load("frontend", manifest.frontend["name"], "data.frontend.name")
    settings = frontends.Config.model_validate(manifest.frontend)
    return joined(
        frontends.build(settings, manifest.inputs, manifest.statistics), model, config, outputs
    )


def joined(frontend: Frontend, model: ModuleType, config: Any, outputs: int) -> Network:
    """A body behind a frontend, in the form that it reads."""
    form, shape = adapted(frontend.features, model.READS)
    return Network(frontend, form, model.build(config, shape, outputs))


def predict(
    module: nn.Module, arrays: Mapping[str, np.ndarray], names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Run a deployable torch module on numpy inputs: the seam that everything scored satisfies."""
    device = next(iter(module.state_dict().values())).device
    with torch.inference_mode():
        answers = module(*(torch.from_numpy(array).to(device) for array in arrays.values()))
    return {name: answer.cpu().numpy() for name, answer in zip(names, answers, strict=True)}
