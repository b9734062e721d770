"""A number for each row: trained on the standardised target, answered in the target's units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline import pictures
from pipeline.bundle.manifest import Input, Output
from pipeline.config import Section
from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.cases import chosen, number
from pipeline.tasks._supervised import Case, Plot, Supervised

if TYPE_CHECKING:
    import torch
    from torch import nn

PLOTTED = 2000
"""Rows of the test split that tables and pictures show one by one, evenly over the target's range."""


class Config(Section):
    """The settings of the task."""

    name: str
    loss: Literal["squared", "absolute", "huber"] = Field(
        "squared",
        description="squared: towards the mean; absolute: towards the median; huber: between",
    )
    huber_delta: float = Field(
        1.0,
        gt=0,
        description="of huber: the error, in deviations of the target, from which it is absolute",
    )


class Task(Supervised):
    """What the network is taught, what of it is shipped, and how its answers are judged."""

    teaches = "number"
    judged = "prediction"
    watched = ("r2",)
    outputs = 1
    plots: ClassVar = {
        "predictions": Plot("Predicted against actual", "scatter", "actual", "predicted"),
        "residuals": Plot("Residual against predicted", "scatter", "predicted", "residual"),
    }

    def __init__(self, config: Config, target: Target, inputs: tuple[Input, ...]) -> None:
        super().__init__(config, target, inputs)
        self.mean, self.std, self.units = target.mean, target.std, target.units

    def loss(self, answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean loss in deviations. answer float32 `[batch, 1]`, target float32 `[batch]` -> scalar."""
        from torch.nn import functional

        # In double: float32 has too few digits for a small deviation around a large mean.
        wanted = ((target.double() - self.mean) / self.std).float()
        given = answer[:, 0]
        match self.config.loss:
            case "squared":
                return functional.mse_loss(given, wanted)
            case "absolute":
                return functional.l1_loss(given, wanted)
        return functional.huber_loss(given, wanted, delta=self.config.huber_delta)

    def plain_loss(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> float:
        """The loss of answers already given: what curves and stopping look at."""
        errors = answers["prediction"].astype(np.float64) - target.astype(np.float64)
        off, delta = np.abs(errors) / self.std, self.config.huber_delta
        match self.config.loss:
            case "squared":
                return float((off**2).mean())
            case "absolute":
                return float(off.mean())
        return float(np.where(off < delta, off**2 / 2, delta * (off - delta / 2)).mean())

    def deployable(self, network: nn.Module) -> nn.Module:
        """The part that is shipped: raw inputs -> prediction in the target's units."""
        import torch
        from torch import nn

        class Regressor(nn.Module):
            mean: torch.Tensor
            std: torch.Tensor

            def __init__(self, mean: float, std: float) -> None:
                super().__init__()
                self.network = network
                device = next(network.parameters()).device
                self.register_buffer("mean", torch.tensor(mean, device=device))
                self.register_buffer("std", torch.tensor(std, device=device))

            def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor]:
                return (self.network(*raw)[:, 0] * self.std + self.mean,)

        return Regressor(self.mean, self.std).eval()

    def declared(self) -> tuple[Output, ...]:
        """The output of `deployable`."""
        shape = ("batch",)
        return (Output(name="prediction", dtype="float32", shape=shape, units=self.units),)

    def tables(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """CSV tables by name: actual, predicted and residual of rows spread over the range."""
        shown = _spread(target)
        actual, predicted = target[shown].tolist(), answers["prediction"][shown].tolist()
        return {
            "predictions": [
                {"actual": a, "predicted": p} for a, p in zip(actual, predicted, strict=True)
            ],
            "residuals": [
                {"predicted": p, "residual": p - a} for a, p in zip(actual, predicted, strict=True)
            ],
        }

    def pictures(self, answers: Mapping[str, np.ndarray], rows: Rows) -> dict[str, bytes]:
        """Pictures of the answers over these rows, by file name."""
        target = np.asarray(rows.target)
        shown = _spread(target)
        return pictures.regression(
            answers["prediction"][shown].astype(np.float64),
            target[shown].astype(np.float64),
            self.units,
        )

    def cases(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> list[Case]:
        """The rows that are furthest off, and the closest of each quarter of the target's range."""
        predicted, actual = answers["prediction"].astype(np.float64), target.astype(np.float64)
        off = np.abs(predicted - actual)
        right = off <= np.median(off)
        quarter = np.empty(len(off), np.int64)
        quarter[np.argsort(actual, kind="stable")] = np.arange(len(off)) * 4 // len(off)
        units = self.units or "prediction"
        return [
            Case(
                row,
                0,
                bool(right[row]),
                f"actual {number(actual[row])} \u2192 predicted {number(predicted[row])}",
                units,
            )
            for row in chosen(right, np.where(right, -off, off), quarter)
        ]

    def strength(self, answer: torch.Tensor, output: int) -> torch.Tensor:
        """The prediction in the target's units."""
        return answer[:, output] * self.std + self.mean


def _spread(target: np.ndarray) -> np.ndarray:
    """Indices of at most `PLOTTED` rows, evenly over the target's order, in the split's order."""
    order = np.argsort(target, kind="stable")
    chosen = np.linspace(0, len(order) - 1, min(PLOTTED, len(order))).round().astype(int)
    return np.sort(order[chosen])
