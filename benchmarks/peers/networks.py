"""The two networks that every contestant serves, as ONNX files, as a bundle of ours, and as requests.

Run by our own environment's Python: `networks.py FOLDER`.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np

ROWS = (1, 32)


def main(folder: Path) -> None:
    """Write `FOLDER/{cnn,mlp}.onnx`, `FOLDER/bundles/{cnn,mlp}/m/1/` and `FOLDER/bodies/`."""
    from torch import nn

    mlp = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    convolutions: list[nn.Module] = []
    for channels, wider in ((1, 32), (32, 64), (64, 128)):
        convolutions += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    cnn = nn.Sequential(
        *convolutions, nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    rows = {n: np.random.default_rng(0).standard_normal((n, 1, 28, 28)).astype("f4") for n in ROWS}
    for name, body in (("mlp", mlp), ("cnn", cnn)):
        write_network(folder, name, nn.Sequential(body, nn.Softmax(-1)), rows[32][:8])
    for count, array in rows.items():
        write_bodies(folder / "bodies", count, array)


def write_network(folder: Path, name: str, module, golden: np.ndarray) -> None:
    """One network, exported, and as a bundle named `m`."""
    import onnx
    import torch

    from pipeline.bundle.manifest import Input, Output
    from tests.serving.bundles import OPSET, make_bundle

    path = folder / f"{name}.onnx"
    torch.manual_seed(0)
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 1, 28, 28),),
        input_names=["input"],
        output_names=["probs"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    model.ir_version = 10
    model.metadata_props.add(key="slipway.schema_version", value="1")
    onnx.save(model, path)
    inputs = Input(name="input", dtype="float32", shape=("batch", 1, 28, 28), units="a number")
    outputs = Output(name="probs", dtype="float32", shape=("batch", 10), units="probability")
    target = folder / "bundles" / name / "m" / "1"
    make_bundle(target, model, (inputs,), (outputs,), {"input": golden}, name="m")


def write_bodies(folder: Path, count: int, array: np.ndarray) -> None:
    """A request of `count` rows in every dialect: `<form><count>.body` and `.headers`."""
    folder.mkdir(exist_ok=True)
    plain = {"name": "input", "shape": list(array.shape), "datatype": "FP32"}
    listed = {"Content-Type": "application/json"}
    binary = dumps(
        {
            "inputs": [plain | {"parameters": {"binary_data_size": array.nbytes}}],
            "outputs": [{"name": "probs", "parameters": {"binary_data": True}}],
        }
    )
    framed = {"Inference-Header-Content-Length": str(len(binary))}
    raw = {"Content-Type": "application/octet-stream"}
    message = grpc_message(array)
    for form, body, headers in (
        ("json", dumps({"inputs": [plain | {"data": array.ravel().tolist()}]}), listed),
        ("bin", binary + array.tobytes(), raw | framed),
        ("raw", array.tobytes(), raw),
        ("list", dumps({"x": array.tolist()}), listed),
        ("named", dumps({"inputs": {"input": array.tolist()}}), listed),
        (
            "grpc",
            b"\0" + struct.pack(">I", len(message)) + message,
            {"content-type": "application/grpc", "te": "trailers"},
        ),
    ):
        (folder / f"{form}{count}.body").write_bytes(body)
        lines = [f"{name}: {value}\n" for name, value in headers.items()]
        (folder / f"{form}{count}.headers").write_text("".join(lines))


def dumps(value) -> bytes:
    """JSON as small as it gets."""
    return json.dumps(value, separators=(",", ":")).encode()


def grpc_message(array: np.ndarray) -> bytes:
    """A `ModelInferRequest` for the model `m`, written by hand: it is four fields."""
    tensor = field(1, b"input") + field(2, b"FP32") + field(3, bytes(varints(array.shape)))
    return field(1, b"m") + field(5, tensor) + field(7, array.tobytes())


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return bytes(varints([number << 3 | 2, len(payload)])) + payload


def varints(values) -> list[int]:
    """Numbers in base 128, least significant first."""
    found = []
    for value in values:
        while value > 127:
            found.append(value & 127 | 128)
            value >>= 7
        found.append(value)
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    main(target)
