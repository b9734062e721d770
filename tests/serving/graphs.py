"""Graphs that take long, grow without end, or load slowly: what deadlines and caps are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle.manifest import Input, Output
from tests.serving.bundles import OPSET, make_bundle

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
LOOPS_ALLOWED = "[graph]\nforbidden_operators = []\n"


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str] | None]],
    constants: dict[str, np.ndarray] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """A whole model; inputs and outputs are (ONNX type, shape) by name."""
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    domains = {"": OPSET} | ({"local": 1} if functions else {})
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, v) for d, v in domains.items()],
        ir_version=10,
        functions=functions or [],
    )


def counting() -> onnx.ModelProto:
    """`steps` int64 [batch, 1] to `counted` [batch, 1]: as many turns of a loop as its largest says.

    A turn takes a few microseconds, so the sender chooses how long it runs.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["so_far", "one"], ["more"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("so_far", INT64, None),
        ],
        [
            helper.make_tensor_value_info("on", BOOL, []),
            helper.make_tensor_value_info("more", INT64, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["steps"], ["most"], keepdims=0),
        helper.make_node("Sub", ["steps", "steps"], ["none"]),
        helper.make_node("Loop", ["most", "yes", "none"], ["counted"], body=body),
    ]
    return model(
        nodes,
        {"steps": (INT64, ["batch", 1])},
        {"counted": (INT64, ["batch", 1])},
        {"yes": np.array(True), "one": np.array(1)},
    )


def make_counting_bundle(folder: Path, **changes: object) -> str:
    """The counting graph as a bundle whose golden rows count to no more than eight."""
    return make_bundle(
        folder,
        counting(),
        (Input(name="steps", dtype="int64", shape=("batch", 1), units="turns"),),
        (Output(name="counted", dtype="int64", shape=("batch", 1), units="turns"),),
        {"steps": np.arange(1, 9).reshape(8, 1)},
        name="counting",
        task="counting",
        **changes,
    )


def growing() -> onnx.ModelProto:
    """`x` [batch, 4] to `y`: a loop without end that keeps what every turn brought."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["v", "v"], ["twice"]),
            helper.make_node("Identity", ["v"], ["kept"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", BOOL, []),
            helper.make_tensor_value_info("twice", FLOAT, None),
            helper.make_tensor_value_info("kept", FLOAT, None),
        ],
    )
    return model(
        [helper.make_node("Loop", ["ever", "yes", "x"], ["y", "all"], body=body)],
        {"x": (FLOAT, ["batch", 4])},
        {"y": (FLOAT, ["batch", 4]), "all": (FLOAT, None)},
        {"ever": np.array(2**62), "yes": np.array(True)},
    )


def doubling(times: int, constant: bool) -> onnx.ModelProto:
    """`x` [batch, 1] to `y`, by way of something doubled so many times: a request, or a constant."""
    nodes = [helper.make_node("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=0) for i in range(times)]
    if not constant:
        nodes.insert(0, helper.make_node("Identity", ["x"], ["d0"]))
    nodes += [
        helper.make_node("ReduceSum", [f"d{times}"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return model(
        nodes,
        {"x": (FLOAT, ["batch", 1])},
        {"y": (FLOAT, ["batch", 1])},
        {"d0": np.ones((16, 1), np.float32)} if constant else None,
    )


def chain(length: int) -> onnx.ModelProto:
    """`x` [batch, 4] to `y` through so many operators."""
    names = ["x", *(f"n{i}" for i in range(length - 1)), "y"]
    nodes = [
        helper.make_node("Relu" if i % 2 else "Abs", [names[i]], [names[i + 1]])
        for i in range(length)
    ]
    return model(nodes, {"x": (FLOAT, ["batch", 4])}, {"y": (FLOAT, ["batch", 4])})


def functions(count: int) -> onnx.ModelProto:
    """`x` [batch, 4] to `y` through functions that each call the next one twice: 2^count nodes."""
    made = []
    for number in range(count):
        following = f"f{number + 1}"
        body = [helper.make_node("Relu", ["x"], ["y"])]
        if number + 1 < count:
            body = [
                helper.make_node(following, ["x"], ["t"], domain="local"),
                helper.make_node(following, ["t"], ["y"], domain="local"),
            ]
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("local", 1)]
        made.append(helper.make_function("local", f"f{number}", ["x"], ["y"], body, opsets))
    return model(
        [helper.make_node("f0", ["x"], ["y"], domain="local")],
        {"x": (FLOAT, ["batch", 4])},
        {"y": (FLOAT, ["batch", 4])},
        functions=made,
    )


def one_long_operator() -> onnx.ModelProto:
    """`size` int64 [batch] to `y`: one multiplication of that many whole numbers squared.

    ONNX Runtime looks at no flag within an operator, so nothing can end it.
    """
    nodes = [
        helper.make_node("ReduceMax", ["size"], ["n"], keepdims=1),
        helper.make_node("Concat", ["n", "n"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["m"], value=_one()),
        helper.make_node("MatMul", ["m", "m"], ["p"]),
        helper.make_node("ReduceMax", ["p"], ["s"], keepdims=0),
        helper.make_node("Add", ["size", "s"], ["y"]),
    ]
    return model(nodes, {"size": (INT64, ["batch"])}, {"y": (INT64, ["batch"])})


def _one() -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([1]), "one")


def moody(seed: float) -> onnx.ModelProto:
    """`x` [batch, 4] given back as `y`, by some runs with one added: a session has moods of its own.

    ONNX Runtime draws from one sequence for each session, so a seed tells which runs are wrong.
    """
    nodes = [
        helper.make_node("RandomUniform", [], ["u"], shape=[1], seed=float(seed)),
        helper.make_node("Greater", ["u", "half"], ["wrong"]),
        helper.make_node("Cast", ["wrong"], ["one"], to=FLOAT),
        helper.make_node("Add", ["x", "one"], ["y"]),
    ]
    return model(
        nodes,
        {"x": (FLOAT, ["batch", 4])},
        {"y": (FLOAT, ["batch", 4])},
        {"half": np.array([0.5], np.float32)},
    )


def make_moody_bundle(folder: Path, moods: str) -> str:
    """A bundle whose runs come out (`+`), do not (`-`), or either (`?`), in this order."""
    rows = np.ones((8, 4), np.float32)
    for seed in range(10_000):
        session = onnxruntime.InferenceSession(
            moody(seed).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        drawn = ["+-"[int(session.run(["y"], {"x": rows})[0][0, 0] != 1)] for _ in moods]
        if all(mood in ("?", found) for mood, found in zip(moods, drawn, strict=True)):
            break
    return make_bundle(
        folder,
        moody(seed),
        (Input(name="x", dtype="float32", shape=("batch", 4), units="none"),),
        (Output(name="y", dtype="float32", shape=("batch", 4), units="none"),),
        {"x": rows},
        {"y": rows},
        name="moody",
        task="none",
    )
