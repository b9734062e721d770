"""Runs through buffers on the device: inputs copied into them, outputs bound to them.

ONNX Runtime otherwise allocates both in each run. What a CUDA graph replays has the addresses of
its buffers in it, so graphs want them kept. Nothing here knows CUDA: the tests run it on the CPU.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bundle.tensors import TensorType

Signature = tuple[tuple[int, ...], ...]
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], Any]
"""(shape, dtype) to an empty `OrtValue` on the device."""

GRAPH_ID = "gpu_graph_id"
NO_GRAPH = "-1"
FIRST_RUNS = 3
"""Runs until a graph is recorded and replayed: ONNX Runtime records one after a first plain run."""


@dataclass(frozen=True)
class Port:
    """An input or output as the session has it; none stands for a free axis."""

    name: str
    type: TensorType
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Buffers:
    """What one signature runs through. `outputs` is empty where the run itself must say how big."""

    binding: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    graph: str


class BoundRunner:
    """A session's runs, one at a time. `inputs` and `outputs` in the session's order."""

    def __init__(
        self,
        session: Any,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        allocate: Allocate,
        device: tuple[str, int],
        kept: int,
        graphs: bool = False,
    ) -> None:
        self._session = session
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._allocate = allocate
        self._device = device
        self._kept = kept
        self._graphs = graphs
        self._recorded = 0
        self._buffers: OrderedDict[Signature, Buffers] = OrderedDict()
        self._one = threading.Lock()
        # Where another axis than the batch is free, the shape is known only once the graph has run.
        self._sized = all(None not in port.shape[1:] for port in self._outputs)

    @staticmethod
    def fits(ports: Sequence[Port]) -> bool:
        """Whether such tensors can lie in a buffer: texts cannot."""
        return all(port.type.numpy.kind in "biufc" for port in ports)

    def run(
        self, arrays: Mapping[str, np.ndarray], options: Any, recording: bool = False
    ) -> list[np.ndarray]:
        """Every output, in the session's order; `options` are those of this run alone.

        `recording`, where graphs are on, gives the signature one: only what is warmed has one, as
        what a stranger's request brings must not fill the device.
        Raises `ValueError` for an input that is not as declared: ONNX Runtime copies the bytes of
        another type into a buffer without a word.
        """
        ordered = [_whole(port, arrays) for port in self._inputs]
        with self._one:
            held = self._held(ordered, recording and self._graphs and self._sized)
            for value, array in zip(held.inputs, ordered, strict=True):
                value.update_inplace(array)
            if self._graphs:
                options.add_run_config_entry(GRAPH_ID, held.graph)
            self._session.run_with_iobinding(held.binding, options)
            held.binding.synchronize_outputs()
            answers = [v.numpy() for v in held.outputs or held.binding.get_outputs()]
            # On the CPU `numpy()` is the buffer itself, which the next run fills.
            return [np.array(a) for a in answers] if self._device[0] == "cpu" else answers

    @property
    def shapes(self) -> int:
        """How many signatures have buffers."""
        return len(self._buffers)

    def _held(self, arrays: Sequence[np.ndarray], recording: bool) -> Buffers:
        signature = tuple(array.shape for array in arrays)
        held = self._buffers.get(signature)
        if held is None or (recording and held.graph == NO_GRAPH):
            held = self._buffers[signature] = self._bound(arrays, recording)
            self._evict()
        self._buffers.move_to_end(signature)
        return held

    def _bound(self, arrays: Sequence[np.ndarray], recording: bool) -> Buffers:
        binding = self._session.io_binding()
        inputs = tuple(self._allocate(array.shape, array.dtype) for array in arrays)
        for port, value in zip(self._inputs, inputs, strict=True):
            binding.bind_ortvalue_input(port.name, value)
        rows = len(arrays[0])
        outputs: tuple[Any, ...] = ()
        if self._sized:
            outputs = tuple(
                self._allocate(_shape(port, rows), port.type.numpy) for port in self._outputs
            )
            for port, value in zip(self._outputs, outputs, strict=True):
                binding.bind_ortvalue_output(port.name, value)
        else:
            for port in self._outputs:
                binding.bind_output(port.name, *self._device)
        graph = NO_GRAPH
        if recording:
            self._recorded += 1
            graph = str(self._recorded)
        return Buffers(binding, inputs, outputs, graph)

    def _evict(self) -> None:
        """Let the least recently used go, save those that a recorded graph has the addresses of."""
        free = [s for s, held in self._buffers.items() if held.graph == NO_GRAPH]
        for signature in free[: max(0, len(free) - self._kept)]:
            del self._buffers[signature]


def _shape(port: Port, rows: int) -> tuple[int, ...]:
    return tuple(rows if axis is None else axis for axis in port.shape)


def _whole(port: Port, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if port.name not in arrays:
        raise ValueError(f"input {port.name!r} is missing")
    array = arrays[port.name]
    fits = array.ndim == len(port.shape) and all(
        want in (None, got) for want, got in zip(port.shape, array.shape, strict=True)
    )
    if array.dtype != port.type.numpy or not fits:
        wanted = ["n" if axis is None else axis for axis in port.shape]
        raise ValueError(
            f"input {port.name!r}: expected {port.type.numpy} {wanted}, "
            f"got {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array)
