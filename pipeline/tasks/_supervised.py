"""What tasks share whose rows each have an answer to learn: one network, taught by one loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline import evaluate
from pipeline.bundle.manifest import Input, Output
from pipeline.config import ConfigError, suggestion
from pipeline.metrics import METRICS
from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.contract import Case, Contract, Plot, Taught

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Case", "Labelled", "Plot", "Supervised", "Taught", "label_weights"]


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


class Labelled(Supervised):
    """A task whose answer is a logit and a probability for each of the target's labels."""

    meaning: ClassVar[str] = "0 to 1"
    """The units of a probability."""

    threshold: float | None = None
    """Probability from which a label is said to hold; none where the largest decides."""

    def __init__(self, config: Any, target: Target, inputs: tuple[Input, ...]) -> None:
        super().__init__(config, target, inputs)
        self.labels = target.labels
        self.outputs = len(target.labels)

    @abstractmethod
    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 `[batch, labels]` -> the same, 0 to 1."""

    def deployable(self, network: nn.Module) -> nn.Module:
        """The part that is shipped: raw inputs -> (logits, probabilities)."""
        from torch import nn

        probabilities = self.probabilities

        class Labeller(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                logits = self.network(*raw)
                return logits, probabilities(logits)

        return Labeller().eval()

    def declared(self) -> tuple[Output, ...]:
        """The outputs of `deployable`, in order."""
        shape = ("batch", self.outputs)
        return (
            Output(
                name="logits", dtype="float32", shape=shape, labels=self.labels, units="log-odds"
            ),
            Output(
                name="probabilities",
                dtype="float32",
                shape=shape,
                labels=self.labels,
                threshold=self.threshold,
                units=self.meaning,
            ),
        )

    def roc_table(
        self, curves: Mapping[int, tuple[np.ndarray, np.ndarray]]
    ) -> list[dict[str, Any]]:
        """Points of the ROC curve of each label, by its number: false and true positive rates."""
        return [
            {"label": self.labels[i], "false_positive_rate": f, "true_positive_rate": t}
            for i, (false, true) in curves.items()
            for f, t in zip(false.tolist(), true.tolist(), strict=True)
        ]


def label_weights(given: Mapping[str, float], target: Target, path: str) -> tuple[float, ...]:
    """How much each label counts, 1 where `given` does not say.

    Raises `ConfigError` for a label that there is not, or a weight that is not above 0.
    """
    for label, weight in given.items():
        place = f"{path}.{label}"
        if label not in target.labels:
            raise ConfigError(f"{place}: no such label{suggestion(label, list(target.labels))}")
        if weight <= 0:
            raise ConfigError(f"{place}: expected a number greater than 0, got {weight:g}")
    return tuple(given.get(label, 1.0) for label in target.labels)
