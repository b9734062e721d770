"""What is asked: whole requests as bytes, made once, and what is known of the right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np

from pipeline.bundle.tensors import BY_PROTOCOL
from serving.client import InvalidRequest, ModelMetadata, ServerError, TensorSpec, calls
from serving.client.address import Address
from serving.client.answers import infer
from serving.client.reading import Reply

REQUESTS = 16
"""Different requests, asked in turn: one alone would stay in every cache."""

KNOWN_ANSWERS = 16
"""Bodies already found right, remembered for each request: the next equal one is right too."""

FREE_AXIS = 16
"""Length of an axis that the model leaves open, where nothing else is said."""


@dataclass(slots=True)
class Request:
    """One request as it goes over the wire, and what its answer must be, where that is known."""

    wire: bytes
    rows: int
    expected: Mapping[str, np.ndarray] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    _right: set[bytes] = field(default_factory=set)

    def is_right(self, reply: Reply) -> bool:
        """Whether an answer is the one expected."""
        if reply.body in self._right:
            return True
        try:
            answer = infer(reply, reply.body)
        except ServerError:
            return False
        for name, values in self.expected.items():
            found = answer.get(name)
            if found is None or found.shape != values.shape or found.dtype != values.dtype:
                return False
            if not np.allclose(found, values, rtol=0, atol=self.tolerance.get(name, 0.0)):
                return False
        if len(self._right) < KNOWN_ANSWERS:
            self._right.add(reply.body)
        return True


def invented(
    metadata: ModelMetadata,
    rows: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> list[dict[str, np.ndarray]]:
    """Inputs of the declared types and shapes, drawn at random; `shapes` are without the batch.

    Raises `InvalidRequest` for a shape of an input that the model does not have.
    """
    shapes = shapes or {}
    unknown = shapes.keys() - {spec.name for spec in metadata.inputs}
    if unknown:
        raise InvalidRequest(
            f"shape of {sorted(unknown)[0]!r}: the model's inputs are "
            f"{', '.join(spec.name for spec in metadata.inputs)}"
        )
    generator = np.random.default_rng(seed)
    return [
        {
            spec.name: _values(generator, spec, [rows, *_row_shape(spec, shapes)])
            for spec in metadata.inputs
        }
        for _ in range(REQUESTS)
    ]


def golden(bundle: Path, rows: int) -> tuple[list[dict[str, np.ndarray]], list[Request]]:
    """(inputs of each request, requests that know their answers and still lack their bytes).

    Raises `BundleError`.
    """
    from pipeline.bundle import golden as rows_of
    from pipeline.bundle.manifest import read

    found = read(bundle)
    inputs, expected = rows_of.unpack(found.contents[found.manifest.golden.file])
    count = found.manifest.golden.rows
    taken = [np.arange(first, first + rows) % count for first in range(0, count * rows, rows)]
    taken = taken[:REQUESTS]
    tolerance = found.manifest.golden.tolerance
    return [{name: array[chosen] for name, array in inputs.items()} for chosen in taken], [
        Request(b"", rows, {name: array[chosen] for name, array in expected.items()}, tolerance)
        for chosen in taken
    ]


def wire(
    address: Address,
    model: str,
    version: str | None,
    inputs: Mapping[str, np.ndarray],
    binary: bool,
) -> bytes:
    """The request the client would send, without a deadline."""
    call = calls.infer(model, inputs, None, version, None, binary)
    return b"".join(calls.rendered(call, address, inf, compress=False))


def _row_shape(spec: TensorSpec, shapes: Mapping[str, Sequence[int]]) -> list[int]:
    given = shapes.get(spec.name)
    if given is not None:
        return list(given)
    return [FREE_AXIS if axis < 0 else axis for axis in spec.shape[1:]]


def _values(generator: np.random.Generator, spec: TensorSpec, shape: list[int]) -> np.ndarray:
    """Values that any model can take: small whole numbers, since they may be ids into a table."""
    kind = BY_PROTOCOL[spec.datatype].numpy
    if kind.kind == "f":
        return generator.normal(size=shape).astype(kind)
    if kind.kind == "O":
        return np.full(shape, "text", object)
    return generator.integers(0, 256 if spec.datatype == "UINT8" else 2, shape).astype(kind)
