"""What a model accepts: its manifest's inputs, held against what a request brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, prod

import numpy as np

from pipeline.bundle.manifest import Input, Output, Tensor
from pipeline.bundle.tensors import BY_NUMPY, TensorType
from serving.config import Settings
from serving.errors import InvalidRequest
from serving.protocol import InferRequest
from serving.protocol import Tensor as WireTensor

MAX_FITTING = 4096
"""Shapes that are remembered to fit; a client sends the same few."""


MAX_SQUARED = 4096
"""Numbers whose squares are summed to see that all are finite."""


class Contract:
    """The inputs a model accepts and the outputs it has, as its manifest declares them."""

    def __init__(
        self, inputs: tuple[Input, ...], outputs: tuple[Output, ...], settings: Settings
    ) -> None:
        self.inputs = {tensor.name: tensor for tensor in inputs}
        self.outputs = {tensor.name: tensor for tensor in outputs}
        self._types = {t.name: BY_NUMPY[t.dtype] for t in (*inputs, *outputs)}
        self.protocol = {name: kind.protocol for name, kind in self._types.items()}
        self._max_rows = settings.batching.request_rows
        self._max_texts = settings.batching.request_texts
        self.takes_texts = any(self.protocol[tensor.name] == "BYTES" for tensor in inputs)
        """Whether an input is of texts, which take longer to read than numbers."""
        self._finite = settings.finite_inputs
        self._gapped = {i.name for i in inputs if i.decoder is not None and i.decoder.gapped}
        self._fitting: set[tuple[str, str, tuple[int, ...]]] = set()

    def type(self, name: str) -> TensorType:
        """The element type of a tensor of this model."""
        return self._types[name]

    def arrays(self, request: InferRequest) -> tuple[dict[str, np.ndarray], int]:
        """(inputs by name, rows). Raises `InvalidRequest` with what was expected and what came."""
        given: dict[str, np.ndarray] = {}
        for tensor in request.inputs:
            self.check(tensor.name, tensor.datatype, tensor.array.shape)
            self._check_finite(tensor)
            given[tensor.name] = tensor.array
        if len(given) == len(self.inputs) == 1:
            return given, len(tensor.array)
        for name, declared in self.inputs.items():
            if name not in given:
                raise InvalidRequest(f"input {name!r}: missing; expected {self._told(declared)}")
        # In the manifest's order, whatever order they came in: neighbours in a batch must agree.
        return {name: given[name] for name in self.inputs}, self._rows(given)

    def wanted(self, request: InferRequest) -> tuple[str, ...]:
        """The outputs to send, in order. Raises `InvalidRequest` for one there is not."""
        if request.outputs is None:
            return tuple(self.outputs)
        for output in request.outputs:
            if output.name not in self.outputs:
                raise InvalidRequest(
                    f"output {output.name!r}: not an output of this model; "
                    f"expected {', '.join(repr(name) for name in self.outputs)}"
                )
        return tuple(output.name for output in request.outputs)

    def told(self) -> str:
        """Every input with its type and shape, for messages."""
        return ", ".join(f"{name!r} {self._told(t)}" for name, t in self.inputs.items())

    def check(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        """What can be said of an input without its data. Raises `InvalidRequest`."""
        seen = (name, datatype, tuple(shape))
        if seen in self._fitting:
            return
        declared = self.inputs.get(name)
        if declared is None:
            raise InvalidRequest(
                f"input {name!r}: not an input of this model; expected {self.told()}"
            )
        if datatype != self._types[name].protocol or not fits(declared, shape):
            hint = ""
            if len(shape) == len(declared.shape) - 1 and fits(declared, (1, *shape)):
                hint = "; the first axis counts rows"
            raise InvalidRequest(
                f"input {name!r}: expected {self._told(declared)}, "
                f"got {datatype} {list(shape)}{hint}"
            )
        if not 1 <= shape[0] <= self._max_rows:
            raise InvalidRequest(
                f"input {name!r}: expected 1 to {self._max_rows} rows, got {shape[0]}"
            )
        if datatype == "BYTES" and prod(shape) > self._max_texts:
            raise InvalidRequest(
                f"input {name!r}: expected up to {self._max_texts} texts (setting "
                f"batching.request_texts), got {prod(shape)}"
            )
        if len(self._fitting) < MAX_FITTING:
            self._fitting.add(seen)

    def _check_finite(self, tensor: WireTensor) -> None:
        array = tensor.array
        if not self._finite or array.dtype.kind != "f" or is_finite(array):
            return
        if tensor.name not in self._gapped:
            raise InvalidRequest(
                f"input {tensor.name!r}: expected finite numbers, got NaN or infinity"
            )
        if np.isinf(array).any():
            raise InvalidRequest(
                f"input {tensor.name!r}: expected finite numbers, or NaN for a gap, got infinity"
            )

    def _rows(self, given: Mapping[str, np.ndarray]) -> int:
        counts = {name: len(array) for name, array in given.items()}
        (first, rows), *others = counts.items()
        for name, count in others:
            if count != rows:
                raise InvalidRequest(
                    f"input {name!r}: expected {rows} rows as in {first!r}, got {count}"
                )
        return rows

    def _told(self, tensor: Tensor) -> str:
        shape = ["n" if a == "batch" else str(a) for a in tensor.shape]
        return f"{self._types[tensor.name].protocol} [{','.join(shape)}]"


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of floats holds neither NaN nor infinity."""
    # A sum of squares takes a third of the time, and is finite only where every number is. Not for
    # many numbers: BLAS would wake threads.
    few = array.size <= MAX_SQUARED
    return (few and isfinite(np.vdot(array, array))) or bool(np.isfinite(array).all())


def fits(declared: Tensor, shape: Sequence[int]) -> bool:
    """Whether a shape is the declared one, any size standing where an axis is free."""
    return len(shape) == len(declared.shape) and all(
        isinstance(wanted, str) or wanted == axis
        for wanted, axis in zip(declared.shape, shape, strict=True)
    )
