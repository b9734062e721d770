"""Graphs that may not reach ONNX Runtime, each refused at once and with its reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle.manifest import Bundle, Manifest, read
from serving.config import GraphSettings
from serving.errors import ModelRefused
from serving.inference import graph
from tests.serving.bundles import digits_graph

LIMITS = GraphSettings()
Change = Callable[[onnx.ModelProto], Any]


@pytest.fixture(scope="module")
def manifest(bundle: Any) -> Manifest:
    found: Bundle = read(bundle)
    return found.manifest


def refuse(manifest: Manifest, model: onnx.ModelProto | bytes, told: str) -> None:
    payload = model if isinstance(model, bytes) else model.SerializeToString()
    began = time.monotonic()
    with pytest.raises(ModelRefused, match=told):
        graph.check(payload, manifest, manifest.variants["fp32"], LIMITS)
    assert time.monotonic() - began < 2


def test_what_is_sound_passes_quickly(manifest: Manifest) -> None:
    payload = digits_graph().SerializeToString()
    graph.check(payload, manifest, manifest.variants["fp32"], LIMITS)
    began = time.monotonic()
    for _ in range(20):
        graph.check(payload, manifest, manifest.variants["fp32"], LIMITS)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("payload", [b"", b"garbage" * 9, b"PK\3\4", b"\x80\x04\x95", b"\0" * 99])
def test_what_is_no_graph(manifest: Manifest, payload: bytes) -> None:
    refuse(manifest, payload, "not an ONNX file")


def test_every_truncation_is_refused(manifest: Manifest) -> None:
    whole = digits_graph().SerializeToString()
    for length in range(0, len(whole), 40):
        with pytest.raises(ModelRefused):
            graph.check(whole[:length], manifest, manifest.variants["fp32"], LIMITS)


def weights(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == "weights")


def external(model: onnx.ModelProto) -> None:
    tensor = weights(model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def set_weight(value: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(weights(model)).copy()
        array[3, 3] = value
        weights(model).CopyFrom(numpy_helper.from_array(array, "weights"))

    return change


def half_weight(dtype: int, bits: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer.add(name="half", data_type=dtype, dims=[2])
        tensor.int32_data.extend([0, bits])

    return change


def constant(array: np.ndarray) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array, "c"))
        model.graph.node.append(node)

    return change


def node(op: str, domain: str = "", **attributes: Any) -> Change:
    return lambda model: model.graph.node.append(
        helper.make_node(op, ["logits"], ["more"], domain=domain, **attributes)
    )


def nested(depth: int) -> onnx.GraphProto:
    inner = [
        helper.make_node("If", ["c"], ["y"], then_branch=nested(depth - 1), else_branch=nested(0))
        if depth
        else helper.make_node("Identity", ["logits"], ["y"])
    ]
    return helper.make_graph(inner, "g", [], [helper.make_tensor_value_info("y", 1, None)])


def hidden_in_a_branch(change: Change) -> Change:
    """The same mistake within a subgraph."""

    def outer(model: onnx.ModelProto) -> None:
        branch = onnx.ModelProto()
        branch.graph.CopyFrom(model.graph)
        change(branch)
        model.graph.node.append(
            helper.make_node("If", ["c"], ["z"], then_branch=branch.graph, else_branch=nested(0))
        )

    return outer


def shadow(name: str, domain: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        opset = helper.make_opsetid("", 20)
        body = [helper.make_node("Identity", ["x"], ["y"])]
        model.functions.append(helper.make_function(domain, name, ["x"], ["y"], body, [opset]))
        node("Loop", domain, body=nested(0))(model)

    return change


def functions(count: int, calls: int = 2, recursive: bool = False) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import.add(domain="local", version=1)
        for number in range(count):
            if number + 1 < count:
                body = [helper.make_node(f"f{number + 1}", ["x"], ["x"], domain="local")] * calls
            elif recursive:
                body = [helper.make_node("f0", ["x"], ["y"], domain="local")]
            else:
                body = [helper.make_node("Identity", ["x"], ["y"])]
            model.functions.append(
                helper.make_function(
                    "local", f"f{number}", ["x"], ["y"], body, [helper.make_opsetid("", 20)]
                )
            )
        model.graph.node.append(helper.make_node("f0", ["logits"], ["more"], domain="local"))

    return change


def said_twice(model: onnx.ModelProto) -> None:
    weights(model).float_data.extend([0.0] * 640)


def chain(model: onnx.ModelProto) -> None:
    one = helper.make_node("Identity", ["logits"], ["more"])
    model.graph.node.extend([one] * 25_000)


def rename(kind: str, name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        getattr(model.graph, kind)[0].name = name

    return change


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.extend([4])


def metadata(key: str, value: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kept = [entry for entry in model.metadata_props if entry.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        model.metadata_props.add(key=key, value=value)

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "external data": (external, "'weights' lies outside the file"),
    "external in a branch": (hidden_in_a_branch(external), "outside the file"),
    "external key alone": (
        lambda m: weights(m).external_data.add(key="location", value="x"),
        "outside the file",
    ),
    "values told twice": (said_twice, "'weights' tells its values twice"),
    "twice in a branch": (hidden_in_a_branch(said_twice), "tells its values twice"),
    "NaN weight": (set_weight(np.nan), "'weights' holds values that are NaN or infinite"),
    "infinite weight": (set_weight(np.inf), "NaN or infinite"),
    "NaN constant": (constant(np.array([np.nan])), "NaN or infinite"),
    "infinite half": (half_weight(TensorProto.FLOAT16, 0x7C00), "'half' holds"),
    "NaN bfloat16": (half_weight(TensorProto.BFLOAT16, 0x7FC0), "'half' holds"),
    "short weights": (lambda m: weights(m).dims.__setitem__(0, 65), "needs 2600 bytes, got 2560"),
    "huge dims": (lambda m: weights(m).dims.__setitem__(0, 2**40), "bytes, got 2560"),
    "overflowing dims": (lambda m: weights(m).dims.extend([2**62, 4]), "bytes, got 2560"),
    "negative dims": (lambda m: weights(m).dims.__setitem__(0, -64), "negative axis"),
    "sparse": (sparse, "sparse"),
    "unknown domain": (node("Evil", "com.example"), "'com.example'"),
    "domain only imported": (lambda m: m.opset_import.add(domain="x.y", version=1), "'x.y'"),
    "loop": (node("Loop", body=nested(0)), "'Loop' can run without end"),
    "scan": (node("Scan", body=nested(0), num_scan_inputs=1), "'Scan' can run without end"),
    "nested too deep": (node("If", then_branch=nested(12), else_branch=nested(0)), "nested 9 deep"),
    "20 deep": (node("If", then_branch=nested(20), else_branch=nested(0)), "nested 9 deep"),
    "too many nodes": (chain, "more than 20000 nodes"),
    "2^30 by functions": (functions(31), "more than 200000 nodes once local functions"),
    "2^18 by functions": (functions(19), "more than 200000 nodes once local functions"),
    "function named as an operator": (shadow("Loop", ""), "'Loop' stands in domain ''"),
    "the same by its other name": (shadow("Loop", "ai.onnx"), "stands in domain 'ai.onnx'"),
    "function calls itself": (functions(3, recursive=True), "calls itself"),
    "functions 300 deep": (functions(300, calls=1), "200 deep"),
    "opset from the future": (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999"),
    "opset from the past": (lambda m: setattr(m.opset_import[0], "version", 3), "opset 3"),
    "another opset": (lambda m: setattr(m.opset_import[0], "version", 19), "manifest says 20"),
    "no opset": (lambda m: m.ClearField("opset_import"), "opset None"),
    "format from the future": (lambda m: setattr(m, "ir_version", 999), "format 999"),
    "training": (lambda m: m.training_info.add(), "training information"),
    "renamed input": (rename("input", "picture"), "'image' UINT8 .*the graph has 'picture'"),
    "renamed output": (rename("output", "scores"), "the graph has 'scores'"),
    "extra input": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("x", 1, [1])),
        "'x' FP32",
    ),
    "lost output": (lambda m: m.graph.output.pop(), "outputs: the manifest says"),
    "frozen batch": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 3),
        r"UINT8 \[3,8,8,1\]",
    ),
    "other type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1),
        r"FP32 \[n,8,8,1\]",
    ),
    "complex type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 14),
        "type 14",
    ),
    "sequence": (
        lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("image", 1, [])),
        "no tensor",
    ),
    "other labels": (metadata("slipway.labels", '["cat", "dog"]'), "the graph says labels"),
    "other schema": (metadata("slipway.schema_version", "9"), "schema_version '9'"),
    "other name": (metadata("slipway.name", "someone"), "name 'someone'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(manifest: Manifest, case: str) -> None:
    change, told = HOSTILE[case]
    model = digits_graph()
    change(model)
    refuse(manifest, model, told)


def test_sound_functions_and_branches_pass(manifest: Manifest) -> None:
    model = digits_graph()
    functions(4)(model)
    node("If", then_branch=nested(2), else_branch=nested(0))(model)
    payload = model.SerializeToString()
    graph.check(payload, manifest, manifest.variants["fp32"], LIMITS)


def test_an_operator_can_allow_loops_and_lower_limits(manifest: Manifest) -> None:
    model = digits_graph()
    node("Loop", body=nested(0))(model)
    allowed = GraphSettings(forbidden_operators=())
    graph.check(model.SerializeToString(), manifest, manifest.variants["fp32"], allowed)
    with pytest.raises(ModelRefused, match="at most 100 are loaded"):
        small = GraphSettings(model_bytes=100)
        graph.check(model.SerializeToString(), manifest, manifest.variants["fp32"], small)


def test_vendored_schema_is_that_of_the_onnx_package() -> None:
    from serving.proto import SCHEMA

    assert SCHEMA.read_bytes() == onnx.onnx_ml_pb2.DESCRIPTOR.serialized_pb
