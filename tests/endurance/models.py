"""Models whose answers are exact: whole numbers in floats, so that the batch they ran in, or the
order in which a product was summed, changes no bit. Answers are compared byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle.manifest import Output
from tests.manifests import OPSET
from tests.serving.bundles import LABELS, answers, digits_interface, make_bundle

LEVELS = 3.0
"""Hidden values are cut to 0..3, which keeps every sum far below 2**24."""


def exact_graph(seed: int = 0, width: int = 32) -> onnx.ModelProto:
    """uint8 image [batch, 8, 8, 1] to logits [batch, 10]; the work grows with the width's square."""
    draw = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(draw.integers(-1, 2, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "first"], ["a"]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Clip", ["c", "low", "high"], ["d"]),
        helper.make_node("MatMul", ["d", "third"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(np.array([-1, 64]), "flat"),
            numpy_helper.from_array(np.float32(0), "low"),
            numpy_helper.from_array(np.float32(LEVELS), "high"),
            weights("first", 64, width),
            weights("second", width, width),
            weights("third", width, 10),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    for key, value in (
        ("slipway.schema_version", "1"),
        ("slipway.labels", json.dumps(LABELS, ensure_ascii=False)),
    ):
        model.metadata_props.add(key=key, value=value)
    return model


def make_exact_bundle(folder: Path, seed: int = 0, width: int = 32, name: str = "exact") -> str:
    """Write a bundle of that graph; return its digest."""
    inputs, _ = digits_interface()
    logits = Output(
        name="logits", dtype="float32", shape=("batch", 10), labels=LABELS, units="log odds"
    )
    return make_bundle(folder, exact_graph(seed, width), inputs, (logits,), name=name)


def exact_answer(image: np.ndarray, seed: int = 0, width: int = 32) -> np.ndarray:
    """Logits float32 [n, 10] for images uint8 [n, 8, 8, 1], by ONNX Runtime alone."""
    return answers(exact_graph(seed, width).SerializeToString(), {"image": image})["logits"]


def make_wide_bundle(folder: Path) -> None:
    """uint8 image [batch, 8, 8, 1] to `many` float32 [batch, 65536], repeated: a big answer."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
            helper.make_node("Tile", ["rows", "times"], ["many"]),
        ],
        "model",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 1])],
        [helper.make_tensor_value_info("many", TensorProto.FLOAT, ["batch", 65536])],
        [
            numpy_helper.from_array(np.array([-1, 64]), "flat"),
            numpy_helper.from_array(np.array([1, 1024]), "times"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    inputs, _ = digits_interface()
    many = Output(name="many", dtype="float32", shape=("batch", 65536), units="none")
    make_bundle(folder, model, inputs, (many,), name="wide", task="repetition")
