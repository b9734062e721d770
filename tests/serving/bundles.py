"""Small real bundles, built with `onnx.helper` and answered by ONNX Runtime itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle import golden
from pipeline.bundle.decode.image import ImageDecoder
from pipeline.bundle.manifest import Input, Output, write
from tests.manifests import OPSET, sound_manifest

LABELS = tuple("0123456789")


def digits_graph(seed: int = 0) -> onnx.ModelProto:
    """uint8 image [batch, 8, 8, 1] to logits and probabilities [batch, 10]."""
    weights = np.random.default_rng(seed).normal(0, 0.5, (64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 1])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
        ],
        [
            numpy_helper.from_array(np.float32(1 / 255), "scale"),
            numpy_helper.from_array(np.array([-1, 64]), "flat"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.linspace(-1, 1, 10).astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    for key, value in (
        ("slipway.schema_version", "1"),
        ("slipway.labels", json.dumps(LABELS, ensure_ascii=False)),
    ):
        model.metadata_props.add(key=key, value=value)
    return model


def digits_rows(count: int = 8, seed: int = 1) -> np.ndarray:
    """Pictures uint8 [count, 8, 8, 1]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def answers(model: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime says, with nothing of ours in between."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def digits_interface() -> tuple[tuple[Input, ...], tuple[Output, ...]]:
    """What the manifest of the digits graph declares."""
    return (
        Input(
            name="image",
            dtype="uint8",
            shape=("batch", 8, 8, 1),
            decoder=ImageDecoder(height=8, width=8, channels=1),
            units="grey level 0-255",
        ),
    ), (
        Output(
            name="logits", dtype="float32", shape=("batch", 10), labels=LABELS, units="log odds"
        ),
        Output(
            name="probabilities",
            dtype="float32",
            shape=("batch", 10),
            labels=LABELS,
            units="probability",
        ),
    )


def make_bundle(
    folder: Path,
    model: onnx.ModelProto | None = None,
    inputs: tuple[Input, ...] | None = None,
    outputs: tuple[Output, ...] | None = None,
    rows: Mapping[str, np.ndarray] | None = None,
    expected: Mapping[str, np.ndarray] | None = None,
    admitted: bool = True,
    name: str = "digits-test",
    files: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> str:
    """Write a whole bundle to `folder`, the digits one unless told otherwise; return its digest.

    `files` are further ones, such as a tokenizer.
    """
    payload = (model or digits_graph()).SerializeToString()
    declared_inputs, declared_outputs = digits_interface()
    inputs, outputs = inputs or declared_inputs, outputs or declared_outputs
    rows = rows or {"image": digits_rows()}
    expected = expected or answers(payload, rows)
    contents = {
        "model.onnx": payload,
        "golden.npz": golden.pack(rows, expected),
        "card.md": b"# digits-test\n",
        **(files or {}),
    }
    manifest = sound_manifest(
        contents,
        inputs,
        outputs,
        rows=len(next(iter(rows.values()))),
        admitted=admitted,
        name=name,
        **{"versions": {"onnx": onnx.__version__}, **changes},
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write(folder, manifest, contents)


TYPES = {
    "bool": (TensorProto.BOOL, "BOOL"),
    "uint8": (TensorProto.UINT8, "UINT8"),
    "uint16": (TensorProto.UINT16, "UINT16"),
    "uint32": (TensorProto.UINT32, "UINT32"),
    "uint64": (TensorProto.UINT64, "UINT64"),
    "int8": (TensorProto.INT8, "INT8"),
    "int16": (TensorProto.INT16, "INT16"),
    "int32": (TensorProto.INT32, "INT32"),
    "int64": (TensorProto.INT64, "INT64"),
    "float16": (TensorProto.FLOAT16, "FP16"),
    "float32": (TensorProto.FLOAT, "FP32"),
    "float64": (TensorProto.DOUBLE, "FP64"),
}


def make_types_bundle(folder: Path) -> str:
    """One input `in_<dtype>` [batch, 2, 2] for each element type, given back as `out_<dtype>`."""
    shape = ["batch", 2, 2]
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in TYPES],
        "model",
        [
            helper.make_tensor_value_info(f"in_{t}", number, shape)
            for t, (number, _) in TYPES.items()
        ],
        [
            helper.make_tensor_value_info(f"out_{t}", number, shape)
            for t, (number, _) in TYPES.items()
        ],
    )
    rows = {f"in_{t}": np.arange(8).reshape(2, 2, 2).astype(t) for t in TYPES}
    return make_bundle(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        tuple(Input(name=f"in_{t}", dtype=t, shape=("batch", 2, 2), units="none") for t in TYPES),
        tuple(Output(name=f"out_{t}", dtype=t, shape=("batch", 2, 2), units="none") for t in TYPES),
        rows,
        name="types",
        task="echo",
    )


def make_series_bundle(folder: Path, name: str = "series") -> str:
    """`values` float32 [batch, length] to `sum` [batch, 1] and natural `log` [batch, length]."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["values", "axis"], ["sum"], keepdims=1),
            helper.make_node("Log", ["values"], ["log"]),
        ],
        "model",
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", "length"])],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("log", TensorProto.FLOAT, ["batch", "length"]),
        ],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )
    return make_bundle(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        (Input(name="values", dtype="float32", shape=("batch", "length"), units="none"),),
        (
            Output(name="sum", dtype="float32", shape=("batch", 1), units="none"),
            Output(name="log", dtype="float32", shape=("batch", "length"), units="none"),
        ),
        {"values": np.array([[1, 2, 3], [4, 5, 6]], np.float32)},
        name=name,
        task="sums",
    )


ECHOES = {**TYPES, "object": (TensorProto.STRING, "BYTES")}


def make_echo_bundle(folder: Path, dtype: str) -> str:
    """One input `x` [batch, length] of one element type, texts included, given back as `y`."""
    number, protocol = ECHOES[dtype]
    shape = ("batch", "length")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "model",
        [helper.make_tensor_value_info("x", number, shape)],
        [helper.make_tensor_value_info("y", number, shape)],
    )
    rows = (
        np.array([["a", "é"], ["", "b"]], object) if dtype == "object" else np.eye(2, dtype=dtype)
    )
    return make_bundle(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        (Input(name="x", dtype=dtype, shape=shape, units="none"),),
        (Output(name="y", dtype=dtype, shape=shape, units="none"),),
        {"x": rows},
        name=f"echo-{protocol.lower()}",
        task="echo",
    )


FATAL = (-(2**31), -1)
"""Whose quotient no int32 holds: the processor traps, and the process is gone."""


def make_division_bundle(folder: Path, fatal: bool = False, name: str = "division") -> str:
    """`numerator` and `denominator` int32 [batch, 1] to `quotient`.

    Dividing `FATAL` kills whoever does it; with `fatal` ONNX Runtime does, while it loads.
    """
    numbers = np.array([[FATAL[0]]], np.int32), np.array([[FATAL[1]]], np.int32)
    nodes = [helper.make_node("Div", ["numerator", "denominator"], ["quotient"])]
    if fatal:
        nodes[0].output[0] = "wanted"
        nodes += [
            helper.make_node("Div", ["least", "minus"], ["folded"]),
            helper.make_node("Add", ["wanted", "folded"], ["quotient"]),
        ]
    columns = ["batch", 1]
    graph = helper.make_graph(
        nodes,
        "model",
        [
            helper.make_tensor_value_info("numerator", TensorProto.INT32, columns),
            helper.make_tensor_value_info("denominator", TensorProto.INT32, columns),
        ],
        [helper.make_tensor_value_info("quotient", TensorProto.INT32, columns)],
        [numpy_helper.from_array(n, k) for n, k in zip(numbers, ("least", "minus"), strict=True)],
    )
    shape = ("batch", 1)
    rows = {
        "numerator": np.array([[6], [7]], np.int32),
        "denominator": np.array([[3], [-2]], np.int32),
    }
    return make_bundle(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        tuple(Input(name=n, dtype="int32", shape=shape, units="none") for n in rows),
        (Output(name="quotient", dtype="int32", shape=shape, units="none"),),
        rows,
        {"quotient": np.array([[2], [-3]], np.int32)},
        name=name,
        task="division",
    )


def make_endless_bundle(folder: Path) -> str:
    """`turns` int64 [batch, 1] to as many turns of a Loop, counted: `counted` int64 [batch, 1].

    A server has to allow Loop to load it.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.INT64, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.INT64, ["batch", 1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
            helper.make_node("Sub", ["turns", "turns"], ["none"]),
            helper.make_node("Loop", ["most", "", "none"], ["counted"], body=body),
        ],
        "model",
        [helper.make_tensor_value_info("turns", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("counted", TensorProto.INT64, ["batch", 1])],
        [numpy_helper.from_array(np.array(1), "one")],
    )
    return make_bundle(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        (Input(name="turns", dtype="int64", shape=("batch", 1), units="none"),),
        (Output(name="counted", dtype="int64", shape=("batch", 1), units="none"),),
        {"turns": np.array([[3], [3]])},
        name="endless",
        task="counting",
    )
