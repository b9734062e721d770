"""Frontend and body as one module: raw tensors in, the task's raw answers out.

The frontend is the arithmetic between the raw tensor and the features a body reads. It holds its
constants as buffers, trains with the body, and is exported with it, so nobody repeats it wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from pipeline.prepared import Channel, Manifest


class Pixels(nn.Module):
    """uint8 `[batch, height, width, channels]` -> float32 `[batch, channels, height, width]`,
    each channel brought to mean 0 and deviation 1 by the training split's statistics."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, channels: tuple[Channel, ...]) -> None:
        super().__init__()
        mean = torch.tensor([c.mean for c in channels])
        # A constant channel carries nothing; dividing by 1 keeps it at 0 rather than at NaN.
        std = torch.tensor([c.std or 1.0 for c in channels])
        self.register_buffer("scale", (1 / std).view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.permute(0, 3, 1, 2).float() * self.scale + self.shift


class Network(nn.Module):
    """A frontend and a body; called with the raw inputs in the manifest's order."""

    def __init__(self, frontend: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.frontend = frontend
        self.body = body

    def forward(self, *raw: torch.Tensor) -> torch.Tensor:
        return self.body(self.frontend(*raw))


def assemble(manifest: Manifest, body: Callable[[tuple[int, ...]], nn.Module]) -> Network:
    """The network for prepared data: `body` is given the frontend's feature shape.

    The frontend follows from the kind of data, the body from the model named in the settings.
    """
    declared = manifest.inputs[0]
    height, width, channels = (int(n) for n in declared.shape[1:])
    frontend = Pixels(manifest.statistics[declared.name])
    return Network(frontend, body((channels, height, width)))


def predict(
    module: nn.Module, arrays: Mapping[str, np.ndarray], names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Run a deployable torch module on numpy inputs: the seam that everything scored satisfies."""
    device = next(iter(module.state_dict().values())).device
    with torch.inference_mode():
        answers = module(*(torch.from_numpy(array).to(device) for array in arrays.values()))
    return {name: answer.cpu().numpy() for name, answer in zip(names, answers, strict=True)}
