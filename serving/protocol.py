"""A request, an answer and their tensors, as every door and the models speak of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from pipeline.bundle.tensors import BY_PROTOCOL

NAME = "slipway"
PLATFORM = "onnx_onnxv1"
EXTENSIONS = (
    "binary_tensor_data",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "statistics",
    "parameters",
    "schedule_policy",
    "predict",
)
MAX_PRIORITY = 10
"""The last of the priorities that a request may ask for; 1 is the first, 0 the default."""


def server_version() -> str:
    """What is installed here; 0 in a checkout or an image that was not installed."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return "0"


# What is made anew for every request is not frozen: that alone would triple what making it costs.


@dataclass(slots=True)
class Tensor:
    """A named array with its V2 `datatype`; BYTES are object arrays of `str`."""

    name: str
    datatype: str
    array: np.ndarray

    def __post_init__(self) -> None:
        if self.array.dtype != BY_PROTOCOL[self.datatype].numpy:
            raise ValueError(f"{self.name!r}: {self.datatype} cannot hold {self.array.dtype}")


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output asked for by name; `binary` is how it is to travel."""

    name: str
    binary: bool = False


@dataclass(slots=True)
class InferRequest:
    """Tensors in. `outputs` none means all of them, travelling as `binary` says.

    `timeout` is how many seconds it may wait for its turn, 0 for ever. `priority` 1 goes before 2;
    0 is the deployment's default.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[WantedOutput, ...] | None = None
    binary: bool = False
    id: str | None = None
    timeout: float = 0.0
    priority: int = 0


@dataclass(slots=True)
class InferResponse:
    """Tensors out, from one bundle. `outputs` are in the order they were asked for."""

    model_name: str
    model_version: str
    bundle: str
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model says of one file: the parts that its kind of answer has.

    Of a classifier `label` and `probabilities`; of a model that may say several labels, `labels` (those
    that hold) and `probabilities`; of a regression `prediction`, a number in `units`. Labels are in the
    order of their probabilities, the likeliest first. `hint` is why the answer is likely worthless.
    """

    label: str | None = None
    labels: tuple[str, ...] | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    prediction: float | None = None
    units: str | None = None
    hint: str | None = None

    def told(self) -> dict[str, Any]:
        """As JSON has it: the parts that there are."""
        parts = {
            "label": self.label,
            "labels": None if self.labels is None else list(self.labels),
            "probabilities": dict(self.probabilities) or None,
            "prediction": self.prediction,
            "units": self.units,
        }
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(Reading):
    """What a person asked of a file, and which bundle said it."""

    model_name: str
    model_version: str
    bundle: str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as metadata tells it: -1 stands for a free axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model is; `properties` hold where it comes from and what its numbers mean."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: Mapping[str, str] = field(default_factory=dict)
    platform: str = PLATFORM


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version in the repository. `state` is READY, LOADING, UNLOADING or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str
