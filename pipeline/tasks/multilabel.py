"""Any number of labels for each row: binary cross-entropy in, logits and probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline import pictures
from pipeline.bundle.manifest import Input
from pipeline.config import Section
from pipeline.metrics import METRICS, area, average_precision, roc
from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.cases import chosen
from pipeline.tasks._supervised import Case, Labelled, Plot, label_weights

if TYPE_CHECKING:
    import torch


class Config(Section):
    """The settings of the task."""

    name: str
    threshold: float = Field(
        0.5, gt=0, lt=1, description="probability from which a label is said to hold"
    )
    positive_weights: dict[str, float] = Field(
        {},
        description="label -> how much more a row that has it counts; above 1 finds more of a rare "
        "label, and says it wrongly more often",
    )


class Task(Labelled):
    """What the network is taught, what of it is shipped, and how its answers are judged."""

    teaches = "tags"
    judged = "logits"
    watched = ("micro_f1",)
    meaning = "0 to 1, each label by itself"
    plots: ClassVar = {
        "roc": Plot("ROC by label", "roc", "false_positive_rate", "true_positive_rate"),
        "labels": Plot("F1 by label", "bar_horizontal", "f1", "label"),
    }

    def __init__(self, config: Config, target: Target, inputs: tuple[Input, ...]) -> None:
        super().__init__(config, target, inputs)
        self.threshold = config.threshold
        self.weights = label_weights(config.positive_weights, target, "task.positive_weights")

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean binary cross-entropy. logits float32, target bool `[batch, labels]` -> scalar."""
        import torch
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(
            logits,
            target.to(logits.dtype),
            pos_weight=torch.tensor(self.weights, device=logits.device),
        )

    def plain_loss(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> float:
        """The loss of answers already given, unweighted: what curves and stopping look at."""
        return METRICS["log_loss"](answers["logits"], target)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each label by itself."""
        return logits.sigmoid()

    def scores(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, names: Iterable[str]
    ) -> dict[str, float]:
        """The named metrics; those that count rows are given what holds at the threshold."""
        held = answers["probabilities"] >= np.float32(self.config.threshold)
        return {
            name: METRICS[name](
                held if METRICS[name].agreement == "equal" else answers["logits"], target
            )
            for name in names
        }

    def tables(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """CSV tables by name: ROC points, and scores by label at the threshold."""
        logits = answers["logits"]
        held = answers["probabilities"] >= np.float32(self.config.threshold)
        curves = {i: roc(logits[:, i], target[:, i]) for i in range(self.outputs)}
        found, said, have = (held & target).sum(0), held.sum(0), target.sum(0)
        return {
            "roc": self.roc_table(curves),
            "labels": [
                {
                    "label": label,
                    "rows": int(have[i]),
                    "precision": found[i] / max(1, said[i]),
                    "recall": found[i] / max(1, have[i]),
                    "f1": 2 * found[i] / max(1, said[i] + have[i]),
                    "average_precision": average_precision(logits[:, i], target[:, i]),
                    "roc_auc": area(*curves[i]),
                }
                for i, label in enumerate(self.labels)
            ],
        }

    def pictures(self, answers: Mapping[str, np.ndarray], rows: Rows) -> dict[str, bytes]:
        """Pictures of the answers over these rows, by file name."""
        return pictures.multilabel(
            answers["probabilities"], np.asarray(rows.target), self.labels, self.config.threshold
        )

    def cases(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> list[Case]:
        """Rows by their likeliest label: those that do not have it, surest first, and those that do."""
        probabilities = answers["probabilities"]
        said, sure = probabilities.argmax(1), probabilities.max(1)
        right = np.asarray(target)[np.arange(len(said)), said]
        return [
            Case(
                row,
                int(said[row]),
                bool(right[row]),
                f"{self._held(target[row])} \u2192 {self.labels[said[row]]}, p = {sure[row]:.2f}",
                f"log-odds of {self.labels[said[row]]}",
            )
            for row in chosen(right, sure, said)
        ]

    def strength(self, answer: torch.Tensor, output: int) -> torch.Tensor:
        """Log-odds of a label."""
        return answer[:, output]

    def _held(self, target: np.ndarray) -> str:
        held = [label for label, holds in zip(self.labels, target, strict=True) if holds]
        return " + ".join(held) or "none"
