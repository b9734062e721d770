"""What tasks share whose rows each have an answer to learn: one network, taught by one loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pipeline import evaluate
from pipeline.metrics import METRICS
from pipeline.prepared import Rows
from pipeline.tasks._shared.contract import Case, Contract, Plot, Taught

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Case", "Plot", "Supervised", "Taught"]


class Supervised(Contract):
    """The whole of a task but its head, its loss and its reports."""

    judged: ClassVar[str]
    """The output that metrics read."""

    @abstractmethod
    def loss(self, answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What is made small: the network's answer `[batch, outputs]` and the target -> scalar."""

    @abstractmethod
    def plain_loss(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> float:
        """The loss of answers already given: what curves and stopping look at."""

    def turns(
        self, network: nn.Module, raw: Sequence[torch.Tensor], taught: Taught
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """For one batch: a player and the loss that its next step makes smaller, in turn."""
        answer = network(*raw).float()  # a loss is taken in full precision
        value = answer.new_zeros(())
        for share, target in taught:
            value = value + share * self.loss(answer, target)
        yield "network", value

    def validate(self, network: nn.Module, rows: Rows, names: Iterable[str]) -> dict[str, float]:
        """These metrics of a split, and its `loss`."""
        from pipeline.network import predict

        module, told = self.deployable(network), tuple(output.name for output in self.declared())
        answers = evaluate.answers(lambda raw: predict(module, raw, told), self.questions(rows))
        return self.scores(answers, rows.target, names) | {
            "loss": self.plain_loss(answers, rows.target)
        }

    def scores(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, names: Iterable[str]
    ) -> dict[str, float]:
        """The named metrics over these answers."""
        return {name: METRICS[name](answers[self.judged], target) for name in names}
