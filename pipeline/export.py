"""Module to graph: exported, checked, and brought to canonical bytes.

The exporter needs a process of its own: a second export in one process was seen to freeze a free
axis without a word. `python -m stages.export` is that process. Torch and onnx wake inside the
functions, so that the settings can be checked without them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pipeline.bundle.manifest import SCHEMA_VERSION, Input, Output, Tensor
from pipeline.bundle.tensors import BY_NUMPY, BY_ONNX
from pipeline.config import Section
from pipeline.target import strata

if TYPE_CHECKING:
    import onnx
    from torch import nn

IR_VERSION = 10
EXAMPLE_ROWS = 3
"""Rows in the example that is traced: neither 0 nor 1, which exporters like to treat as constants."""
EXAMPLE_LENGTH = 1999
"""Of a free axis in that example: unlike any number that a network holds, so that none is confused."""

WHOLE = 1 << 40
"""Bytes; a constant of any size that a graph can hold is computed once, when it is written."""


class ExportError(RuntimeError):
    """The graph is not what was asked for; nothing of it may be shipped."""


class Config(Section):
    """How the graph is written."""

    opset: int = Field(20, ge=18, le=22, description="ONNX operator set, pinned")
    golden_rows: int = Field(16, ge=1, le=64, description="real rows that travel with the graph")
    part: str | None = Field(
        None, description="which part is shipped, where a task has several; null: its first"
    )


def export(
    module: nn.Module,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    opset: int,
    metadata: Mapping[str, str],
) -> bytes:
    """The ONNX file of a deployable module: free batch axis, one file, canonical bytes.

    Raises `ExportError` when names, types, free axes or the opset differ from what is declared.
    """
    import onnx
    import torch
    from onnxscript import optimizer

    example = tuple(
        torch.from_numpy(np.zeros(_example_shape(declared), declared.dtype)) for declared in inputs
    )
    # It reports every operator library that is not installed, none of which is asked for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=[i.name for i in inputs],
            output_names=[o.name for o in outputs],
            # Names, not `Dim` objects: with a name, an axis that cannot be free is an error.
            dynamic_shapes=(tuple(_free_axes(declared) for declared in inputs),),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    # The exporter leaves large weights in the order that training has them; a quantiser, and whoever
    # loads the graph, wants each as it is used.
    optimizer.optimize_ir(program.model, input_size_limit=WHOLE, output_size_limit=WHOLE)
    model = canonical(program.model_proto, metadata)
    check(model, inputs, outputs, opset)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _free_axes(declared: Input) -> dict[int, str]:
    return {place: axis for place, axis in enumerate(declared.shape) if isinstance(axis, str)}


def _example_shape(declared: Input) -> tuple[int, ...]:
    free = [EXAMPLE_ROWS, *(EXAMPLE_LENGTH + place for place in range(1, len(declared.shape)))]
    return tuple(
        free[place] if isinstance(axis, str) else axis for place, axis in enumerate(declared.shape)
    )


def canonical(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The same graph without what differs between two exports of it.

    Nodes carry stack traces with absolute paths, and names count up from whatever was exported
    before; both are dropped. Only the graph's own inputs and outputs keep their names.
    """
    import onnx

    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.ir_version = IR_VERSION
    clean.producer_name, clean.producer_version, clean.doc_string = "slipway", "", ""
    del clean.metadata_props[:]
    for key in sorted(metadata):
        clean.metadata_props.add(key=key, value=metadata[key])
    graph = clean.graph
    graph.name, graph.doc_string = "model", ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for number, tensor in enumerate(graph.initializer):
        names.setdefault(tensor.name, f"weight_{number}")
        tensor.name, tensor.doc_string = names[tensor.name], ""
        del tensor.metadata_props[:]
    for number, node in enumerate(graph.node):
        node.name, node.doc_string = f"node_{number}", ""
        del node.metadata_props[:]
        for field in (node.input, node.output):
            for position, name in enumerate(field):
                if name:
                    field[position] = names.setdefault(name, f"value_{len(names)}")
    used = {node.domain for node in graph.node}
    for position in reversed(range(len(clean.opset_import))):
        if clean.opset_import[position].domain not in used:
            del clean.opset_import[position]
    return clean


def metadata(name: str, task: str, labels: Sequence[str]) -> dict[str, str]:
    """What the graph says of itself, so that a copy without its bundle still tells."""
    return {
        "slipway.schema_version": str(SCHEMA_VERSION),
        "slipway.name": name,
        "slipway.task": task,
        "slipway.labels": json.dumps(labels, ensure_ascii=False),
    }


def check_metadata(model: onnx.ModelProto, wanted: Mapping[str, str]) -> None:
    """Raise `ExportError` unless the graph says `wanted` of itself."""
    said = {entry.key: entry.value for entry in model.metadata_props}
    for key, value in wanted.items():
        if said.get(key) != value:
            raise ExportError(f"the graph says {key} {said.get(key)!r}, expected {value!r}")


def check(
    model: onnx.ModelProto, inputs: Sequence[Tensor], outputs: Sequence[Tensor], opset: int
) -> None:
    """Raise `ExportError` unless the graph's interface, opset and form are what was asked for."""
    import onnx

    for kind, declared, values in (
        ("input", inputs, model.graph.input),
        ("output", outputs, model.graph.output),
    ):
        wanted = [_told(d.name, BY_NUMPY[d.dtype].onnx, d.shape) for d in declared]
        got = [
            _told(
                v.name,
                v.type.tensor_type.elem_type,
                [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values
        ]
        if wanted != got:
            raise ExportError(
                f"{kind}s: asked for {', '.join(wanted)}; the graph has {', '.join(got)}"
            )
    opsets = {o.domain: o.version for o in model.opset_import}
    if opsets != {"": opset}:
        raise ExportError(f"opset: asked for {opset} of the standard domain alone, got {opsets}")
    if model.functions:
        raise ExportError(f"{len(model.functions)} local functions were left in the graph")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ExportError(f"weight {tensor.name!r} lies outside the file")
        if not np.isfinite(_numbers(tensor)).all():
            raise ExportError(f"weight {tensor.name!r} holds values that are no numbers")


def golden_rows(rows: int, target: np.ndarray) -> np.ndarray:
    """Indices of up to `rows` rows, dealt around the target's strata, in order of appearance."""
    kinds = strata(target)
    by_class = [iter(np.flatnonzero(kinds == kind)) for kind in np.unique(kinds)]
    return np.sort(np.array(list(_deal(by_class, min(rows, len(target))))))


def _deal(hands: list[Iterator[np.intp]], count: int) -> Iterator[int]:
    while count and hands:
        for hand in list(hands):
            row = next(hand, None)
            if row is None:
                hands.remove(hand)
            elif count:
                count -= 1
                yield int(row)


def _numbers(tensor: onnx.TensorProto) -> np.ndarray:
    import onnx

    array = onnx.numpy_helper.to_array(tensor)
    return array if array.dtype.kind == "f" else np.zeros(1)


def _told(name: str, onnx_type: int, shape: Sequence[int | str]) -> str:
    dtype = BY_ONNX[onnx_type].numpy.name if onnx_type in BY_ONNX else f"type {onnx_type}"
    return f"{name} {dtype} [{', '.join(str(n) for n in shape)}]"
