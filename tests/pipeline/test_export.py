"""The exported graph: what it declares, that its bytes repeat, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline import export, prepared
from pipeline.bundle import golden
from pipeline.bundle.manifest import Input, Output
from pipeline.checkpoint import save_weights
from pipeline.export import ExportError
from pipeline.network import predict
from serving.inference.runtime import open_session
from stages import network as networks
from tests.pipeline.experiments import NAME, Trained, settings
from tests.project import through

ROOT = Path(__file__).parents[2]
OUTPUTS = ("logits", "probabilities")


@pytest.fixture(scope="module")
def exported(digits: Path, trained: Trained, tmp_path_factory) -> list[Path]:
    """The build folders of two exports of one network: by this process, and by one that began anew."""
    projects = []
    for place in ("here", "somewhere/else/far/down"):
        project = tmp_path_factory.mktemp("export") / place
        build = project / "build" / NAME
        shutil.copytree(digits, build / "data")
        save_weights(build / "weights.safetensors", trained.network.state_dict())
        changes = {"model.width": 64, "export.golden_rows": 20}
        params = {"experiments": {NAME: settings(changes)}}
        (project / "params.yaml").write_text(json.dumps(params))
        projects.append(project)
    one, other = projects
    with subprocess.Popen(
        [sys.executable, "-m", "stages.export", NAME],
        cwd=other,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        through(one, NAME, "export")
        told, _ = process.communicate()
    assert not process.returncode, told
    return [project / "build" / NAME for project in projects]


@pytest.fixture(scope="module")
def graph(exported: list[Path]) -> onnx.ModelProto:
    return onnx.load(exported[0] / "model.onnx")


def test_two_exports_are_the_same_bytes(exported):
    one, two = exported
    assert (one / "model.onnx").read_bytes() == (two / "model.onnx").read_bytes()
    assert (one / "golden.npz").read_bytes() == (two / "golden.npz").read_bytes()


def test_the_bytes_tell_nothing_of_where_and_when(graph):
    bare = onnx.ModelProto.FromString(graph.SerializeToString())
    for weight in bare.graph.initializer:
        weight.raw_data = b""  # numbers spell anything
    for trace in ("/", r"\\\\", r"\.py", "torch", "forward", r"20\d\d-"):
        assert not re.search(trace, str(bare)), trace
    for node in graph.graph.node:
        assert not node.doc_string and not node.metadata_props
    assert not graph.graph.value_info and not graph.doc_string
    assert (graph.producer_name, graph.producer_version) == ("slipway", "")


def test_names_types_and_metadata_are_as_declared(graph):
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {
        "image": (TensorProto.UINT8, ["batch", 8, 8, 1]),
        "logits": (TensorProto.FLOAT, ["batch", 10]),
        "probabilities": (TensorProto.FLOAT, ["batch", 10]),
    }
    told = {p.key: p.value for p in graph.metadata_props}
    assert len(told.pop("slipway.weights")) == 64
    assert told == {
        "slipway.schema_version": "1",
        "slipway.name": NAME,
        "slipway.task": "classification",
        "slipway.labels": json.dumps(list("0123456789")),
    }
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 20)]
    assert not any(node.op_type == "Dropout" for node in graph.graph.node)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_any_number_of_rows_is_answered_as_torch_does(exported, digits, trained, rows):
    module = networks.task(trained.experiment, trained.manifest).deployable(trained.network)
    raw = prepared.read(digits, "test").take(slice(0, rows))
    answers = open_session((exported[0] / "model.onnx").read_bytes()).run(raw)
    expected = predict(module, raw, OUTPUTS)
    for name in OUTPUTS:
        assert answers[name].shape == (rows, 10)
        assert np.abs(answers[name] - expected[name]).max() < 1e-5
    np.testing.assert_allclose(answers["probabilities"].sum(1), 1, rtol=1e-5)


def test_golden_rows_are_real_rows_with_torchs_answers(exported, digits, trained):
    inputs, answers = golden.unpack((exported[0] / "golden.npz").read_bytes())
    test = prepared.read(digits, "test")
    real = {
        row.tobytes(): label for row, label in zip(test.arrays["image"], test.target, strict=True)
    }
    labels = [real[row.tobytes()] for row in inputs["image"]]
    assert sorted(labels) == sorted([*range(10)] * 2)
    module = networks.task(trained.experiment, trained.manifest).deployable(trained.network)
    expected = predict(module, inputs, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_allclose(answers[name], expected[name], atol=1e-6)


@given(
    target=st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array),
    rows=st.integers(1, 64),
)
def test_golden_rows_are_dealt_around_the_classes(target, rows):
    chosen = export.golden_rows(rows, target)
    assert len(chosen) == len(set(chosen)) == min(rows, len(target))
    assert chosen.tolist() == sorted(chosen)
    counts = np.bincount(target[chosen], minlength=6)
    for label in np.unique(target):
        # A class has as many as any other, give or take one, unless it has no more.
        assert counts[label] >= counts.max() - 1 or counts[label] == (target == label).sum()


X = Input(name="x", dtype="float32", shape=("batch", 2), units="none")
Y = Output(name="y", dtype="float32", shape=("batch", 3), units="none")


def small_graph(
    x=("x", TensorProto.FLOAT, ["batch", 2]),
    y=("y", TensorProto.FLOAT, ["batch", 3]),
    weight=1.0,
    opset=20,
) -> onnx.ModelProto:
    """y = x @ W, declared as asked for."""
    weights = numpy_helper.from_array(np.full((2, 3), weight, np.float32), "w")
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", [x[0], "w"], [y[0]])],
            "g",
            [helper.make_tensor_value_info(*x)],
            [helper.make_tensor_value_info(*y)],
            [weights],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )


def test_a_sound_graph_passes():
    export.check(small_graph(), [X], [Y], 20)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"x": ("image", TensorProto.FLOAT, ["batch", 2])},
            r"inputs: asked for x float32 \[batch, 2\]; the graph has image float32 \[batch, 2\]",
        ),
        ({"y": ("z", TensorProto.FLOAT, ["batch", 3])}, "outputs: asked for y .* has z"),
        ({"x": ("x", TensorProto.DOUBLE, ["batch", 2])}, r"the graph has x float64 \[batch, 2\]"),
        ({"x": ("x", TensorProto.BFLOAT16, ["batch", 2])}, "the graph has x type 16"),
        ({"x": ("x", TensorProto.FLOAT, [3, 2])}, r"the graph has x float32 \[3, 2\]"),
        ({"y": ("y", TensorProto.FLOAT, [3, 3])}, r"the graph has y float32 \[3, 3\]"),
        ({"x": ("x", TensorProto.FLOAT, ["rows", 2])}, r"the graph has x float32 \[rows, 2\]"),
        ({"y": ("y", TensorProto.FLOAT, ["batch", "n"])}, r"has y float32 \[batch, n\]"),
        ({"y": ("y", TensorProto.FLOAT, ["batch"])}, r"has y float32 \[batch\]"),
        ({"opset": 21}, "opset: asked for 20"),
        ({"weight": np.nan}, "weight 'w' holds values that are no numbers"),
        ({"weight": np.inf}, "weight 'w' holds values that are no numbers"),
    ],
)
def test_a_graph_that_is_not_as_asked_is_refused(changed, why):
    with pytest.raises(ExportError, match=why):
        export.check(small_graph(**changed), [X], [Y], 20)


def with_second_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.example", version=1)


def with_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="local")


def with_weights_outside(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def with_another_input(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_second_domain, "opset: .*com.example"),
        (with_function, "1 local functions were left"),
        (with_weights_outside, "weight 'w' lies outside the file"),
        (with_another_input, "inputs: asked for .* has x .*, more"),
    ],
)
def test_a_graph_with_something_more_is_refused(change, why):
    model = small_graph()
    change(model)
    with pytest.raises(ExportError, match=why):
        export.check(model, [X], [Y], 20)


def test_canonical_form_forgets_names_and_traces():
    def told(prefix: str) -> onnx.ModelProto:
        model = small_graph()
        node, weight = model.graph.node[0], model.graph.initializer[0]
        node.name, node.doc_string = f"{prefix}/MatMul", f"{prefix}/train.py"
        weight.name = node.input[1] = f"{prefix}.weight"
        node.metadata_props.add(key="trace", value=prefix)
        model.graph.value_info.add().name = f"{prefix}/inner"
        model.producer_version, model.doc_string = prefix, prefix
        return export.canonical(model, {"b": "2", "a": "1"})

    one, other = told("here"), told("/home/there")
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert [(p.key, p.value) for p in one.metadata_props] == [("a", "1"), ("b", "2")]
    onnx.checker.check_model(one, full_check=True)
    x = np.ones((4, 2), np.float32)
    np.testing.assert_array_equal(
        open_session(one.SerializeToString()).run({"x": x})["y"], np.full((4, 3), 2, np.float32)
    )
