"""What a task is to the stages: what it teaches, what of the network it trains, ships and judges."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from pipeline.bundle.manifest import Input, Output
from pipeline.config import ConfigError
from pipeline.metrics import METRICS, Better
from pipeline.prepared import Rows
from pipeline.target import Kind, Target

if TYPE_CHECKING:
    import torch
    from torch import nn

Taught = Sequence[tuple[float, "torch.Tensor"]]
"""What a batch teaches: targets `[batch, ...]`, each with the share of the loss that it counts for."""

Body = Literal["answers", "autoencoder", "adversaries"]
"""What a model's `build` gives, which the model says as `GIVES` where it is not the first.

    answers        a module, features -> float32 [batch, outputs]
    autoencoder    a module with `encode`, features -> mean and log variance [batch, outputs], and
                   `decode`, latent [batch, outputs] -> logits [batch, channels, height, width]
    adversaries    a module with `generator`, latent [batch, outputs] -> logits
                   [batch, channels, height, width], its like `average`, and `discriminator`,
                   features -> [batch, 1 + outputs]: how real, and something of the latent numbers
"""


@dataclass(frozen=True)
class Plot:
    """How `dvc plots show` draws a table: a template of DVC's or of `.dvc/plots`, and its columns."""

    title: str
    template: str
    x: str
    y: str


@dataclass(frozen=True)
class Measure:
    """A figure that a task takes of the whole network, where no row's answer could tell it."""

    better: Better
    meaning: str


@dataclass(frozen=True)
class Case:
    """A row whose answer is looked into: which of the network's answers, and what a reader is told."""

    row: int
    output: int
    right: bool
    told: str
    units: str
    """Of the number that is explained, `Contract.strength`."""


@dataclass(frozen=True)
class Examined:
    """What was found of a whole network: figures, tables of rows, and pictures by file name."""

    scores: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)


class Contract(ABC):
    """Base of every task, over data with these inputs and this target."""

    teaches: ClassVar[Kind | None] = None
    """The kind of target that the task needs; none where it does without."""

    body: ClassVar[Body] = "answers"
    """What it needs of the model."""

    parts: ClassVar[tuple[str, ...]] = ()
    """Of what `export.part` chooses one, the first by default; none where all is shipped."""

    ranked: ClassVar[str | None] = None
    """The output whose argmax is the answer, which parity compares row by row; none where none is."""

    measures: ClassVar[Mapping[str, Measure]] = {}
    """Figures of its own, in place of the metrics of targets and answers."""

    watched: tuple[str, ...] = ()
    """Metrics of the validation split that every training curve shows, beside the loss."""

    plots: ClassVar[dict[str, Plot]] = {}
    """Of the tables, those that are drawn, by name."""

    outputs: int
    """The size that the model is built with: numbers that the body gives for a row, or is given."""

    part: str | None
    """The one of `parts` that is shipped."""

    def __init__(self, config: Any, target: Target, inputs: tuple[Input, ...]) -> None:
        if self.teaches not in (None, target.kind):
            raise ConfigError(
                f"task.name: {config.name} teaches a {self.teaches}, and the data's target is a "
                f"{target.kind}"
            )
        self.config, self.target, self.inputs = config, target, inputs
        self.part = next(iter(self.parts), None)

    def shipping(self, part: str | None) -> Self:
        """The same task, of which that part is shipped; the first where none is named."""
        shipped = copy.copy(self)
        shipped.part = part or self.part
        return shipped

    def players(self, network: nn.Module) -> dict[str, nn.Module]:
        """What is trained, each with an optimiser of its own."""
        return {"network": network}

    @abstractmethod
    def turns(
        self, network: nn.Module, raw: Sequence[torch.Tensor], taught: Taught
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """For one batch: a player and the loss that its next step makes smaller, in turn."""

    def study(self, train: Rows) -> None:
        """Called once with the training rows, before anything is judged."""
        return None

    @abstractmethod
    def validate(self, network: nn.Module, rows: Rows, names: Iterable[str]) -> dict[str, float]:
        """These figures of a split, and its `loss`: what curves and stopping look at."""

    def better(self, name: str) -> Better:
        """Which way a metric or measure improves."""
        return (self.measures.get(name) or METRICS[name]).better

    @abstractmethod
    def deployable(self, network: nn.Module) -> nn.Module:
        """The part that is shipped: `forward(*asked)` gives the declared outputs as a tuple."""

    @abstractmethod
    def declared(self) -> tuple[Output, ...]:
        """The outputs of `deployable`, in order."""

    def asked(self) -> tuple[Input, ...]:
        """The inputs of `deployable`, in order."""
        return self.inputs

    def questions(self, rows: Rows) -> Rows:
        """What `deployable` is asked over these rows of the data."""
        return rows

    def scores(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, names: Iterable[str]
    ) -> dict[str, float]:
        """Of the named metrics, those that answers tell, by whichever runtime they were given."""
        return {}

    def tables(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """CSV tables of the answers, by name."""
        return {}

    def pictures(self, answers: Mapping[str, np.ndarray], rows: Rows) -> dict[str, bytes]:
        """Pictures of the answers over these rows, by file name."""
        return {}

    def mistakes(self, answers: Mapping[str, np.ndarray], rows: Rows) -> list[dict[str, Any]]:
        """The worst answers about rows that a person can read; none where there are none to tell."""
        return []

    def cases(self, answers: Mapping[str, np.ndarray], target: np.ndarray) -> list[Case]:
        """The few answers that are looked into; none where no row's answer is decided by its parts."""
        return []

    def strength(self, answer: torch.Tensor, output: int) -> torch.Tensor:
        """What speaks for one of the network's answers `[batch, outputs]`, as a number `[batch]`."""
        raise NotImplementedError

    def examine(self, network: nn.Module, rows: Rows, names: Iterable[str]) -> Examined:
        """What only the whole network tells of a split of the data, by torch: the named measures."""
        return Examined()
