"""What tasks share whose rows each have an answer to learn: one network, taught by one loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.bundle.manifest import Input, Output
from pipeline.config import ConfigError
from pipeline.metrics import METRICS
from pipeline.prepared import Rows
from pipeline.target import Kind, Target

if TYPE_CHECKING:
    import torch
    from torch import nn

Taught = Sequence[tuple[float, "torch.Tensor"]]
"""What a batch teaches: targets `[batch, ...]`, each with the share of the loss that it counts for."""


@dataclass(frozen=True)
class Plot:
    """How `dvc plots show` draws a table: a template of DVC's or of `.dvc/plots`, and its columns."""

    title: str
    template: str
    x: str
    y: str


class Supervised(ABC):
    """The whole of a task but its head, its loss and its reports."""

    teaches: ClassVar[Kind]
    """The kind of target that the task needs."""

    ranked: ClassVar[str | None] = None
    """The output whose argmax is the answer, which parity compares row by row; none where none is."""

    judged: ClassVar[str]
    """The output that metrics read."""

    watched: ClassVar[tuple[str, ...]] = ()
    """Metrics of the validation split that every training curve shows, beside the loss."""

    plots: ClassVar[dict[str, Plot]] = {}
    """Of the tables, those that are drawn, by name."""

    outputs: int
    """Numbers that the body gives for a row."""

    def __init__(self, config: Any, target: Target) -> None:
        if target.kind != self.teaches:
            raise ConfigError(
                f"task.name: {config.name} teaches a {self.teaches}, and the data's target is a "
                f"{target.kind}"
            )
        self.config, self.target = config, target

    @abstractmethod
    def loss(self, answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What is made small: the network's answer `[batch, outputs]` and the target -> scalar."""

    @abstractmethod
    def deployable(self, network: nn.Module) -> nn.Module:
        """The part that is shipped: raw inputs -> the declared outputs."""

    @abstractmethod
    def declared(self) -> tuple[Output, ...]:
        """The outputs of `deployable`, in order."""

    def players(self, network: nn.Module) -> dict[str, nn.Module]:
        """What is trained, each with an optimiser of its own."""
        return {"network": network}

    def turns(
        self, network: nn.Module, raw: Sequence[torch.Tensor], taught: Taught
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """For one batch: a player and the loss that its next step makes smaller, in turn."""
        answer = network(*raw)
        value = answer.new_zeros(())
        for share, target in taught:
            value = value + share * self.loss(answer, target)
        yield "network", value

    def asked(self, inputs: tuple[Input, ...]) -> tuple[Input, ...]:
        """The inputs of `deployable`, in order; `inputs` are the data's."""
        return inputs

    def questions(self, rows: Rows) -> Rows:
        """What `deployable` is asked over these rows of the data."""
        return rows

    def scores(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, names: Iterable[str]
    ) -> dict[str, float]:
        """The named metrics over these answers."""
        return {name: METRICS[name](answers[self.judged], target) for name in names}
