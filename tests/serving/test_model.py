"""Loading: only what is proven on this machine, where it was asked to run, is ever served."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.bundle.manifest import Gate, read
from serving.config import RuntimeSettings, Settings
from serving.errors import BackendFailure, InvalidRequest, ModelRefused
from serving.inference import providers, runtime
from serving.inference.contract import Contract
from serving.inference.model import Model, load
from tests.serving.bundles import (
    OPSET,
    answers,
    digits_graph,
    digits_interface,
    digits_rows,
    make_bundle,
    make_series_bundle,
)
from tests.serving.live import ROOT, Live


def loaded(folder: Path, settings: Settings | None = None) -> Model:
    return load(read(folder), settings or Settings())


def expected_rows() -> dict[str, np.ndarray]:
    return answers(digits_graph().SerializeToString(), {"image": digits_rows()})


def test_a_sound_bundle_is_proven(bundle: Path) -> None:
    told: list[str] = []
    model = load(read(bundle), Settings(), told.append)
    assert told == ["verifying", "warming"]
    assert model.replay.rows == 8 and set(model.replay.differences) == {"logits", "probabilities"}
    assert max(model.replay.differences.values()) <= 1e-5


def off_by(difference: float) -> dict[str, np.ndarray]:
    rows = expected_rows()
    rows["logits"] = rows["logits"].copy()
    rows["logits"][5, 3] += difference
    return rows


def lost(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in expected_rows().items() if key != name}


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        (off_by(0.25), "'logits' differs by up to 0.25 from what was proven, at most 1e-05"),
        (off_by(-0.25), "differs by up to 0.25"),
        (off_by(np.nan), "differs by up to nan"),
        (lost("logits"), "no expected answers for output 'logits'"),
        ({k: v[:4] for k, v in expected_rows().items()}, r"expected float32 \[4, 10\]"),
    ],
)
def test_golden_rows_that_do_not_come_out(
    tmp_path: Path, expected: dict[str, np.ndarray], told: str
) -> None:
    make_bundle(tmp_path / "b", expected=expected)
    with pytest.raises(ModelRefused, match=told):
        loaded(tmp_path / "b")


def test_golden_rows_within_tolerance(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", expected=off_by(5e-6))
    assert loaded(tmp_path / "b").replay.differences["logits"] == pytest.approx(5e-6, rel=0.2)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"picture": digits_rows()}, "inputs"),
        ({"image": digits_rows().astype(np.float32)}, "float32"),
        ({"image": digits_rows()[:, :4]}, r"\[8, 4, 8, 1\]"),
    ],
)
def test_golden_rows_of_another_model(
    tmp_path: Path, rows: dict[str, np.ndarray], told: str
) -> None:
    make_bundle(tmp_path / "b", rows=rows, expected=expected_rows())
    with pytest.raises(ModelRefused, match=told):
        loaded(tmp_path / "b")


def test_golden_rows_are_never_unpickled(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{"in/image": np.array([object()], object)}, allow_pickle=True)
    from pipeline.bundle.manifest import BundleError, entries, write

    make_bundle(tmp_path / "a")
    whole = read(tmp_path / "a")
    contents = dict(whole.contents) | {"golden.npz": buffer.getvalue()}
    manifest = whole.manifest.model_copy(update={"files": entries(contents)})
    write(tmp_path / "b", manifest, contents)
    with pytest.raises((ModelRefused, BundleError), match="golden rows"):
        loaded(tmp_path / "b")


def test_answers_that_are_no_numbers(tmp_path: Path) -> None:
    make_series_bundle(tmp_path / "a")
    whole = read(tmp_path / "a")
    rows = {"values": np.array([[-1, 1]], np.float32)}
    make_bundle(
        tmp_path / "b",
        onnx.load_from_string(whole.contents["model.onnx"]),
        whole.manifest.inputs,
        whole.manifest.outputs,
        rows,
    )
    with pytest.raises(ModelRefused, match="'log' holds NaN or infinity"):
        loaded(tmp_path / "b")


def test_a_graph_that_lies_about_its_output(tmp_path: Path) -> None:
    """The declared shape passes every static check; only running it shows."""
    model = digits_graph()
    model.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 11
    outputs = digits_interface()[1]
    wider = outputs[1].model_copy(update={"shape": ("batch", 11), "labels": None})
    make_bundle(tmp_path / "b", model, outputs=(outputs[0], wider))
    with pytest.raises(ModelRefused, match=r"'probabilities'"):
        loaded(tmp_path / "b")


def test_only_admitted_variants(tmp_path: Path, bundle: Path) -> None:
    make_bundle(tmp_path / "b", admitted=False)
    with pytest.raises(ModelRefused, match="variant 'fp32' was not admitted"):
        loaded(tmp_path / "b")
    with pytest.raises(ModelRefused, match="no variant 'int8'; admitted: fp32"):
        loaded(bundle, Settings(variant="int8"))
    variant = read(bundle).manifest.variants["fp32"]
    gate = Gate(name="accuracy", measured=0.8, limit=0.9, rule="at least", passed=False)
    slow = variant.model_copy(update={"admitted": False, "gates": (gate,)})
    make_bundle(tmp_path / "c", variants={"fp32": variant, "int8": slow})
    with pytest.raises(ModelRefused, match=r"'int8' was not admitted \(accuracy\)"):
        loaded(tmp_path / "c", Settings(variant="int8"))
    loaded(tmp_path / "c")


def test_a_process_refuses_what_is_not_proven(start: Callable[..., Live], tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", expected=off_by(0.25))
    server = start(tmp_path / "b", wait=False)
    assert server.process.wait(20) == 1
    assert server.told().count("\n") == 1
    assert server.told().startswith("error: ") and "0.25" in server.told()


def test_contract_of_two_inputs() -> None:
    image = digits_interface()[0][0]
    other = image.model_copy(update={"name": "other", "decoder": None})
    contract = Contract((image, other), digits_interface()[1], Settings())
    assert contract.told() == "'image' UINT8 [n,8,8,1], 'other' UINT8 [n,8,8,1]"


# Where it runs


def test_cuda_required_on_the_cpu_wheel_names_the_fix(bundle: Path) -> None:
    with pytest.raises(ModelRefused, match=r"built without CUDA.*slipway\[serve-cuda\]"):
        loaded(bundle, Settings(runtime=RuntimeSettings(provider="require")))


def test_cuda_preferred_is_told_in_metadata_and_loudly(
    start: Callable[..., Live], bundle: Path
) -> None:
    server = start(bundle, "--provider", "prefer")
    properties = server.json("GET", "/v2/models/digits-test")[1]["properties"]
    assert properties["provider_requested"] == "prefer"
    assert properties["provider"] == "CPUExecutionProvider"
    assert '"level":"warning"' in server.told() and "no CUDA" in server.told()
    refused = start(bundle, "--provider", "require", wait=False)
    assert refused.process.wait(20) == 1
    assert "CUDA is required" in refused.told() and "pip install" in refused.told()


def test_heavy_operators_left_on_the_cpu_are_seen() -> None:
    """Had in name only: what this wheel's CPU runs is what `require` must notice."""
    session = runtime.onnxruntime.InferenceSession(
        digits_graph().SerializeToString(),
        runtime._options(RuntimeSettings(provider="prefer")),
        providers=[providers.CPU],
    )
    parts: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        parts.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    placed = providers.place("require", providers.CUDA, providers.CUDA, parts)
    assert placed.fell_back and placed.nodes == {providers.CPU: 5}
    with pytest.raises(ModelRefused, match=r"CUDA is required.*Gemm would run on the CPU"):
        runtime.check_placement(placed)
    preferred = runtime.open_session(
        digits_graph().SerializeToString(), RuntimeSettings(provider="prefer")
    ).placement
    assert preferred.fell_back and preferred.heavy_on_cpu == ("Gemm",)
    assert preferred.nodes == {providers.CPU: 5} and preferred.wanted == providers.CUDA


def test_both_wheels_at_once_are_an_error_with_the_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_installed", lambda name: True)
    with pytest.raises(ModelRefused, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        runtime.open_session(digits_graph().SerializeToString())


def test_session_options_arrive() -> None:
    """ONNX Runtime takes unknown keys without a word, so ours are read back."""
    settings = RuntimeSettings(intra_threads=2, provider="prefer", spin_microseconds=50)
    options = runtime._options(settings)
    assert options.intra_op_num_threads == 2 and options.inter_op_num_threads == 1
    for key in (
        "optimization.constant_folding_max_output_size_in_bytes",
        "session.function_expansion_node_limit",
        "session.record_ep_graph_assignment_info",
        "session.intra_op.allow_spinning",
        "session.intra_op.spin_duration_us",
    ):
        assert options.get_session_config_entry(key).isdigit()


def test_telemetry_is_off_before_the_import() -> None:
    code = (
        "import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "class Watch:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import serving.inference.runtime"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert told.stdout.split() == ["1"]


def graph_of(kind: Any, name: str = "x") -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    ).SerializeToString()


def test_sessions_speak_of_their_tensors() -> None:
    session = runtime.open_session(graph_of(TensorProto.FLOAT))
    (port,) = session.inputs
    assert (port.name, port.type.protocol, port.shape) == ("x", "FP32", (None, 2))
    rows = np.ones((3, 2), np.float32)
    assert (session.run({"x": rows})["y"] == rows).all()
    with pytest.raises(BackendFailure, match="the model failed"):
        session.run({"x": np.ones((3, 5), np.float32)})


def gathering(kind: Any) -> runtime.Session:
    """A table of 5 rows, of which a number chooses one."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["row"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["y"], name="embedding/Gather_7"),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 2])],
        [helper.make_tensor("table", TensorProto.FLOAT, [5, 2], [0.0] * 10)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return runtime.open_session(model.SerializeToString())


def test_a_failed_run_is_told_without_the_requests_values(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """An index is its sender's fault only where the model takes whole numbers."""
    with pytest.raises(InvalidRequest, match="embedding/Gather_7") as whole:
        gathering(TensorProto.INT64).run({"x": np.array([[424242424242]])})
    with pytest.raises(BackendFailure, match=r"the model failed: .*embedding/Gather_7") as broken:
        gathering(TensorProto.DOUBLE).run({"x": np.array([[424242424242.0]])})
    told = f"{whole.value} {broken.value} {capfd.readouterr()}"
    assert "4242" not in told and "idx=..." in told
    assert runtime._without_values("no parse: \"secret\" or 'word' at 7e-5, 0x1F") == (
        "no parse: ... or ... at ..., ..."
    )


@pytest.mark.parametrize("payload", [b"", b"garbage", graph_of(TensorProto.FLOAT)[:-10]])
def test_what_cannot_be_loaded(payload: bytes) -> None:
    with pytest.raises(ModelRefused, match="ONNX Runtime cannot load the graph"):
        runtime.open_session(payload)


def test_types_the_protocol_cannot_carry() -> None:
    with pytest.raises(ModelRefused, match=r"'x' is tensor.bfloat16.*cannot carry"):
        runtime.open_session(graph_of(TensorProto.BFLOAT16))


def test_serving_wakes_neither_torch_nor_the_training_half() -> None:
    """Nor pandas, mlflow, or Pillow before there is a picture."""
    code = (
        "import sys, serving.app, serving.commands.serve\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(roots & {'torch', 'mlflow', 'dvc', 'pandas', 'PIL', 'sklearn', 'stages'}))\n"
        "print(*sorted(n for n in sys.modules if n.startswith('pipeline.')))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=dict(os.environ),
    ).stdout.splitlines()
    assert told[0] == ""
    allowed = ("pipeline.bundle", "pipeline.cli", "pipeline.config")
    assert all(name.startswith(allowed) for name in told[1].split())


def test_a_session_does_not_hold_the_bytes_it_was_loaded_from() -> None:
    """They are as large as its weights."""
    payload = digits_graph().SerializeToString()
    before = sys.getrefcount(payload)
    session = runtime.open_session(payload)
    assert session.inputs and sys.getrefcount(payload) == before
