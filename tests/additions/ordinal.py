"""One of several labels that have an order: the chance of being beyond each but the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pipeline.bundle.manifest import Input, Output
from pipeline.config import Section
from pipeline.metrics import METRICS
from pipeline.target import Target
from pipeline.tasks._supervised import Plot, Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import torch
    from torch import nn


class Config(Section):
    """There is nothing to set; labels stand in their order."""

    name: str


class Task(Supervised):
    """A logit for each step between two labels, which being beyond it has to raise."""

    teaches = "class"
    ranked = judged = "probabilities"
    watched = ("accuracy",)
    plots: ClassVar = {"confusion": Plot("Confusion", "confusion", "actual", "predicted")}

    def __init__(self, config: Config, target: Target, inputs: tuple[Input, ...]) -> None:
        super().__init__(config, target, inputs)
        self.labels, self.outputs = target.labels, max(1, len(target.labels) - 1)

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits float32 `[batch, steps]`, target int64 `[batch]` -> scalar."""
        import torch
        from torch.nn import functional

        steps = torch.arange(self.outputs, device=target.device)
        return functional.binary_cross_entropy_with_logits(
            logits, (target[:, None] > steps).float()
        )

    def plain_loss(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> float:
        """Mean negative log probability of the target."""
        return METRICS["log_loss"](answers["probabilities"], target)

    def deployable(self, network: nn.Module) -> nn.Module:
        """Raw inputs -> probabilities `[batch, labels]`."""
        import torch
        from torch import nn
        from torch.nn import functional

        class Ordinal(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor]:
                # A product over the steps before, as a sum: ONNX has no running product.
                beyond = functional.logsigmoid(self.network(*raw)).cumsum(1).exp()
                ones, none = torch.ones_like(beyond[:, :1]), torch.zeros_like(beyond[:, :1])
                return (torch.cat([ones, beyond], 1) - torch.cat([beyond, none], 1),)

        return Ordinal().eval()

    def declared(self) -> tuple[Output, ...]:
        """The one output."""
        shape = ("batch", len(self.labels))
        return (
            Output(
                name="probabilities",
                dtype="float32",
                shape=shape,
                labels=self.labels,
                units="0 to 1",
            ),
        )

    def tables(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """Every row's actual and predicted label."""
        predicted = answers["probabilities"].argmax(1)
        return {
            "confusion": [
                {"actual": self.labels[a], "predicted": self.labels[p]}
                for a, p in zip(target, predicted, strict=True)
            ]
        }
