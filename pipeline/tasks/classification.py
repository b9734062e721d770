"""One label for each row: cross-entropy in, logits and probabilities out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline import mistakes, pictures
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.metrics import METRICS, area, confusion, roc
from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.cases import chosen
from pipeline.tasks._supervised import Case, Labelled, Plot, label_weights

if TYPE_CHECKING:
    import torch


class Config(Section):
    """The settings of the task."""

    name: str
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="probability spread over all classes"
    )
    loss: Literal["cross_entropy", "focal"] = Field(
        "cross_entropy", description="focal: rows that are right already count for less"
    )
    focal_gamma: float = Field(
        2.0, ge=0, le=10, description="of focal: how much less; 0 is cross_entropy"
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none",
        description="balanced: every class counts as much, however rare; or label -> how much a row of "
        "it counts, 1 where not named",
    )


class Task(Labelled):
    """What the network is taught, what of it is shipped, and how its answers are judged."""

    teaches = "class"
    ranked = "logits"
    judged = "probabilities"
    watched = ("accuracy",)
    plots: ClassVar = {
        "confusion": Plot("Confusion", "confusion", "actual", "predicted"),
        "roc": Plot("ROC, one against rest", "roc", "false_positive_rate", "true_positive_rate"),
        "classes": Plot("F1 by class", "bar_horizontal", "f1", "label"),
    }

    def __init__(self, config: Config, target: Target, inputs: tuple[Input, ...]) -> None:
        super().__init__(config, target, inputs)
        self.weights = _weights(config, target)

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy. logits float32 `[batch, classes]`, target int64 `[batch]` -> scalar."""
        import torch
        from torch.nn import functional

        smoothing = self.config.label_smoothing
        if self.config.loss == "cross_entropy" and self.weights is None:
            return functional.cross_entropy(logits, target, label_smoothing=smoothing)
        each = functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        if self.config.loss == "focal":  # Lin et al., 2017
            sure = logits.softmax(-1).gather(1, target[:, None])[:, 0]
            each = each * (1 - sure) ** self.config.focal_gamma
        if self.weights is None:
            return each.mean()
        share = torch.tensor(self.weights, device=logits.device)[target]
        return (each * share).sum() / share.sum()

    def plain_loss(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> float:
        """The loss of answers already given, without smoothing: what curves and stopping look at."""
        return METRICS["log_loss"](answers["probabilities"], target)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of one label each: they add up to 1."""
        return logits.softmax(-1)

    def tables(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """CSV tables by name: every row's actual and predicted label, ROC points, per-class scores."""
        probabilities = answers["probabilities"]
        predicted = probabilities.argmax(1)
        matrix = confusion(probabilities, target)
        curves = {i: roc(probabilities[:, i], target == i) for i in range(self.outputs)}
        return {
            "confusion": [
                {"actual": self.labels[a], "predicted": self.labels[p]}
                for a, p in zip(target, predicted, strict=True)
            ],
            "roc": self.roc_table(curves),
            "classes": [
                {
                    "label": label,
                    "rows": int(matrix[i].sum()),
                    "precision": matrix[i, i] / max(1, matrix[:, i].sum()),
                    "recall": matrix[i, i] / max(1, matrix[i].sum()),
                    "f1": 2 * matrix[i, i] / max(1, matrix[i].sum() + matrix[:, i].sum()),
                    "roc_auc": area(*curves[i]),
                }
                for i, label in enumerate(self.labels)
            ],
        }

    def pictures(self, answers: Mapping[str, np.ndarray], rows: Rows) -> dict[str, bytes]:
        """Pictures of the answers over these rows, by file name."""
        return pictures.classification(answers["probabilities"], rows, self.labels)

    def mistakes(self, answers: Mapping[str, np.ndarray], rows: Rows) -> list[dict[str, Any]]:
        """The wrong rows that were surest, where rows are texts."""
        return mistakes.table(answers["probabilities"], rows, self.labels)

    def cases(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> list[Case]:
        """The wrong rows that were surest, and the right ones that were, of as many labels as can be."""
        probabilities = answers["probabilities"]
        said, sure = probabilities.argmax(1), probabilities.max(1)
        return [
            Case(
                row,
                int(said[row]),
                bool(said[row] == target[row]),
                f"{self.labels[target[row]]} \u2192 {self.labels[said[row]]}, p = {sure[row]:.2f}",
                f"log-odds of {self.labels[said[row]]}",
            )
            for row in chosen(said == target, sure, said)
        ]

    def strength(self, answer: torch.Tensor, output: int) -> torch.Tensor:
        """Log-odds of a label: unlike its logit, they do not change where all logits rise alike."""
        others = [label for label in range(self.outputs) if label != output]
        return answer[:, output] - answer[:, others].logsumexp(1)


def _weights(config: Config, target: Target) -> tuple[float, ...] | None:
    """How much a row of each class counts, none where all count the same. Raises `ConfigError`."""
    given = config.class_weights
    if given == "none":
        return None
    if isinstance(given, str):
        rows = target.rows
        return tuple(sum(rows) / (len(rows) * count) for count in rows)
    return label_weights(given, target, "task.class_weights")
