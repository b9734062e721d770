"""What a graph may be, checked before ONNX Runtime sees a byte of it.

Loading a hostile graph can hang, fill the memory or read files; a damaged one can answer wrongly
without a word. Nothing here runs anything: it walks the parsed file once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bundle.manifest import Manifest, Tensor, Variant
from pipeline.bundle.tensors import BY_NUMPY, BY_ONNX
from serving.config import GraphSettings
from serving.errors import ModelRefused
from serving.proto import ModelProto

if TYPE_CHECKING:
    import onnx

METADATA = "slipway."
VALUE_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)
EXTERNAL = 1  # TensorProto.DataLocation
FLOATS: dict[int, tuple[str, str]] = {  # by TensorProto.DataType
    1: ("<f4", "float_data"),
    11: ("<f8", "double_data"),
    10: ("<f2", "int32_data"),
    16: ("<u2", "int32_data"),  # bfloat16
}
BFLOAT16_EXPONENT = 0x7F80

FunctionKey = tuple[str, str, str]


def check(payload: bytes, manifest: Manifest, variant: Variant, limits: GraphSettings) -> None:
    """Raise `ModelRefused` unless the graph is within `limits` and is what the manifest says."""
    if len(payload) > limits.model_bytes:
        raise ModelRefused(f"{len(payload)} bytes, at most {limits.model_bytes} are loaded")
    model = parse(payload)
    _check_versions(model, variant, limits)
    _Walk(model, limits).check()
    for kind, declared, values in (
        ("input", manifest.inputs, model.graph.input),
        ("output", manifest.outputs, model.graph.output),
    ):
        _check_interface(kind, declared, values)
    _check_metadata(model, manifest)


def parse(payload: bytes) -> onnx.ModelProto:
    """The file as a message; external data is not looked at. Raises `ModelRefused`."""
    try:
        model = ModelProto.FromString(payload)
    except Exception as error:  # protobuf's own error type differs by implementation
        if "alloc" in str(error):  # which has no other words for it
            raise MemoryError(str(error)) from error
        raise ModelRefused(f"not an ONNX file: {error}") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelRefused("not an ONNX file: there is no graph with an output in it")
    return model


def _check_versions(model: onnx.ModelProto, variant: Variant, limits: GraphSettings) -> None:
    if not limits.min_ir <= model.ir_version <= limits.max_ir:
        raise ModelRefused(
            f"ONNX file format {model.ir_version}, expected {limits.min_ir} to {limits.max_ir}"
        )
    if model.training_info:
        raise ModelRefused("the file holds training information; export for inference")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for domain in opsets:
        if domain not in limits.domains and not any(f.domain == domain for f in model.functions):
            raise ModelRefused(f"operator domain {domain!r}; {_allowed(limits.domains)}")
    opset = opsets.get("", opsets.get("ai.onnx"))
    if opset is None or not limits.min_opset <= opset <= limits.max_opset:
        raise ModelRefused(f"opset {opset}, expected {limits.min_opset} to {limits.max_opset}")
    if opset != variant.opset:
        raise ModelRefused(f"opset {opset}, but the manifest says {variant.opset}")


@dataclass
class _Walk:
    """One pass over every node and tensor, subgraphs and local functions included."""

    model: onnx.ModelProto
    limits: GraphSettings
    nodes: int = 0

    def check(self) -> None:
        functions = {_key(f.domain, f.name, f): f for f in self.model.functions}
        if len(functions) != len(self.model.functions):
            raise ModelRefused("two local functions share a name")
        for function in self.model.functions:
            if function.domain in ("", *self.limits.domains):
                raise ModelRefused(
                    f"local function {function.name!r} stands in domain {function.domain!r}, "
                    "where ONNX Runtime has its own operators"
                )
        local = {key[:2] for key in functions}
        self._graph(self.model.graph, 0, local)
        for function in self.model.functions:
            self._nodes(function.node, 0, local)
        self._check_expansion(local)

    def _graph(self, graph: onnx.GraphProto, depth: int, local: set[tuple[str, str]]) -> None:
        if depth > self.limits.nesting:
            raise ModelRefused(f"subgraphs nested {depth} deep, at most {self.limits.nesting}")
        if graph.sparse_initializer:
            raise ModelRefused("sparse weights are not served")
        for tensor in graph.initializer:
            _check_tensor(tensor)
        self._nodes(graph.node, depth, local)

    def _nodes(
        self, nodes: Sequence[onnx.NodeProto], depth: int, local: set[tuple[str, str]]
    ) -> None:
        self.nodes += len(nodes)
        if self.nodes > self.limits.nodes:
            raise ModelRefused(f"more than {self.limits.nodes} nodes")
        for node in nodes:
            if (node.domain, node.op_type) not in local:
                self._check_operator(node)
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                    raise ModelRefused(f"operator {node.op_type!r}: sparse values are not served")
                for tensor in _tensors(attribute):
                    _check_tensor(tensor)
                for graph in _graphs(attribute):
                    self._graph(graph, depth + 1, local)

    def _check_operator(self, node: onnx.NodeProto) -> None:
        if node.domain not in self.limits.domains:
            raise ModelRefused(
                f"operator {node.op_type!r} of domain {node.domain!r}; "
                f"{_allowed(self.limits.domains)}"
            )
        if node.op_type in self.limits.forbidden_operators:
            raise ModelRefused(
                f"operator {node.op_type!r} can run without end and is refused by this server's "
                "setting graph.forbidden_operators"
            )

    def _check_expansion(self, local: set[tuple[str, str]]) -> None:
        """Count nodes as if every call were inlined: thirty functions can stand for 2^30 nodes."""
        # Overloads of one name are counted as the largest of them.
        bodies: dict[tuple[str, str], list[Sequence[onnx.NodeProto]]] = {}
        for function in self.model.functions:
            bodies.setdefault((function.domain, function.name), []).append(function.node)
        sizes: dict[tuple[str, str], int] = {}
        open_calls: set[tuple[str, str]] = set()

        def size(nodes: Sequence[onnx.NodeProto]) -> int:
            total = 0
            for node in _every_node(nodes):
                key = (node.domain, node.op_type)
                total += called(key) if key in local else 1
            return total

        def called(key: tuple[str, str]) -> int:
            if key in open_calls:
                raise ModelRefused(f"local function {key[1]!r} calls itself")
            if key not in sizes:
                if len(open_calls) >= 200:
                    raise ModelRefused("local functions call each other more than 200 deep")
                open_calls.add(key)
                sizes[key] = max(size(body) for body in bodies[key])
                open_calls.discard(key)
            return sizes[key]

        for total in [size(self.model.graph.node), *(called(key) for key in bodies)]:
            if total > self.limits.expanded_nodes:
                raise ModelRefused(
                    f"more than {self.limits.expanded_nodes} nodes once local functions are inlined"
                )


def _check_tensor(tensor: onnx.TensorProto) -> None:
    """Inside the file, told once, of the length its shape says, and every number finite."""
    name = tensor.name or "a constant"
    if tensor.data_location == EXTERNAL or tensor.external_data:
        raise ModelRefused(f"tensor {name!r} lies outside the file; bundles hold no external data")
    filled = [
        f for f in VALUE_FIELDS if (tensor.HasField(f) if f == "raw_data" else getattr(tensor, f))
    ]
    if len([f for f in filled if f != "raw_data" or tensor.raw_data]) > 1:
        raise ModelRefused(f"tensor {name!r} tells its values twice: {', '.join(filled)}")
    count = 1
    for axis in tensor.dims:
        if axis < 0:
            raise ModelRefused(f"tensor {name!r} has a negative axis: {list(tensor.dims)}")
        count *= axis
    known = BY_ONNX.get(tensor.data_type)
    if (
        tensor.raw_data
        and known
        and known.itemsize
        and len(tensor.raw_data) != count * known.itemsize
    ):
        raise ModelRefused(
            f"tensor {name!r} {list(tensor.dims)} needs {count * known.itemsize} bytes, "
            f"got {len(tensor.raw_data)}"
        )
    if tensor.data_type in FLOATS and not _finite(tensor):
        raise ModelRefused(f"tensor {name!r} holds values that are NaN or infinite")


def _finite(tensor: onnx.TensorProto) -> bool:
    code, field = FLOATS[tensor.data_type]
    if tensor.raw_data:
        if len(tensor.raw_data) % np.dtype(code).itemsize:
            return False
        values = np.frombuffer(tensor.raw_data, code)
    elif field == "int32_data":  # 16-bit floats as their bits
        values = np.array(tensor.int32_data, np.uint32).astype("<u2").view(code)
    else:
        values = np.array(getattr(tensor, field), code)
    if code == "<u2":
        return not bool(((values & BFLOAT16_EXPONENT) == BFLOAT16_EXPONENT).any())
    return bool(np.isfinite(values).all())


def _check_interface(
    kind: str, declared: Sequence[Tensor], values: Sequence[onnx.ValueInfoProto]
) -> None:
    wanted = [_declared(tensor) for tensor in declared]
    got = [_value(value) for value in values]
    if wanted != got:
        raise ModelRefused(
            f"{kind}s: the manifest says {', '.join(wanted)}; "
            f"the graph has {', '.join(got) or 'none'}"
        )


def _check_metadata(model: onnx.ModelProto, manifest: Manifest) -> None:
    """What the exporter wrote into the graph about its meaning must be what the manifest says."""
    labels = next((output.labels for output in manifest.outputs if output.labels), None)
    expected = {
        "schema_version": str(manifest.schema_version),
        "name": manifest.name,
        "task": manifest.task,
        "labels": json.dumps(labels, ensure_ascii=False) if labels else None,
    }
    for entry in model.metadata_props:
        key = entry.key.removeprefix(METADATA)
        if not entry.key.startswith(METADATA) or expected.get(key) is None:
            continue
        if entry.value != expected[key]:
            raise ModelRefused(
                f"the graph says {key} {entry.value[:200]!r}, "
                f"the manifest {str(expected[key])[:200]!r}"
            )


def _declared(tensor: Tensor) -> str:
    shape = ["n" if isinstance(axis, str) else str(axis) for axis in tensor.shape]
    return f"{tensor.name!r} {BY_NUMPY[tensor.dtype].protocol} [{','.join(shape)}]"


def _value(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return f"{value.name!r}, which is no tensor"
    tensor = value.type.tensor_type
    known = BY_ONNX.get(tensor.elem_type)
    shape = [str(d.dim_value) if d.HasField("dim_value") else "n" for d in tensor.shape.dim]
    dtype = known.protocol if known else f"type {tensor.elem_type}"
    return f"{value.name!r} {dtype} [{','.join(shape)}]"


def _every_node(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from _every_node(graph.node)


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)


def _tensors(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    return ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors)


def _key(domain: str, name: str, function: onnx.FunctionProto) -> FunctionKey:
    return (domain, name, function.overload)


def _allowed(domains: Sequence[str]) -> str:
    return f"only {', '.join(repr(domain) for domain in domains)} are served"
