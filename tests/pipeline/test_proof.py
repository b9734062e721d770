"""The comparison of two runtimes' answers: what it passes and what it must not."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from pipeline import export, prepared, proof
from pipeline.bundle import golden
from pipeline.bundle.manifest import read, sha256
from pipeline.metrics import METRICS
from stages.verify import _otherwise, command
from tests.pipeline.experiments import NAME, settings

NAMES = ("accuracy", "log_loss", "calibration_error")
CLASSES = 4


def answers(rows: int = 50) -> dict[str, np.ndarray]:
    """Logits without a near tie, and their softmax."""
    random = np.random.default_rng(0)
    logits = np.array([random.permutation(CLASSES) for _ in range(rows)], np.float32) * 3
    odds = np.exp(logits)
    return {"logits": logits, "probabilities": odds / odds.sum(1, keepdims=True)}


TARGET = answers()["logits"].argmax(1)
TARGET[:10] = (TARGET[:10] + 1) % CLASSES


def scores(given: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: METRICS[name](given["probabilities"], TARGET) for name in NAMES}


def prove(
    given: dict[str, np.ndarray], reference: dict[str, np.ndarray] | None = None
) -> proof.Proof:
    reference = reference or answers()
    return proof.prove(reference, given, TARGET, "logits", (scores(reference), scores(given)))


def failed(proven: proof.Proof) -> set[str]:
    assert not proven.holds
    told = proven.failures().splitlines()
    names = {gate.name for gate in proven.gates if not gate.passed}
    assert len(told) == len(names) and all(any(t.startswith(n) for n in names) for t in told)
    proven.parity.model_dump_json()  # a report is written of a failure, too
    return names


def test_equal_answers_pass():
    proven = prove(answers())
    assert proven.holds and not proven.failures()
    assert proven.parity.rows == 50
    assert proven.parity.max_abs_difference == {"logits": 0, "probabilities": 0}
    assert (proven.parity.argmax_agreement, proven.parity.ties) == (1, 0)
    assert proven.parity.metrics_torch == proven.parity.metrics_onnx
    assert len(proven.gates) == 2 + 1 + len(NAMES)


def test_a_difference_within_the_tolerance_passes():
    given = answers()
    given["logits"][7, 1] += 5e-6
    assert prove(given).holds


def test_one_perturbed_logit_fails():
    given = answers()
    given["logits"][7, 1] += 2e-4
    proven = prove(given)
    assert failed(proven) == {"largest difference of logits"}
    assert proven.parity.max_abs_difference["logits"] == pytest.approx(2e-4, rel=0.01)


def test_the_tolerance_grows_with_the_answers():
    large = {name: array * 1000 for name, array in answers().items()}
    given = {name: array.copy() for name, array in large.items()}
    given["logits"][7, 1] += 0.01
    assert prove(given, large).holds
    given["logits"][7, 1] += 0.2
    assert "largest difference of logits" in failed(prove(given, large))


def test_one_flipped_answer_fails():
    given = answers()
    best, second = given["logits"][20].argsort()[::-1][:2]
    given["logits"][20, [best, second]] = given["logits"][20, [second, best]]
    assert failed(prove(given)) == {
        "largest difference of logits",
        "argmax agreement outside ties",
    }


def test_a_flip_between_two_equals_is_a_tie():
    reference = answers()
    reference["logits"][20] = (9, 9, 0, 0)
    given = {name: array.copy() for name, array in reference.items()}
    given["logits"][20, 1] += 1e-6
    proven = prove(given, reference)
    assert proven.holds and proven.parity.ties == 1


def test_a_metric_that_differs_fails():
    reference = answers()
    ours, theirs = scores(reference), scores(reference)
    theirs["accuracy"] -= 1 / 50
    proven = proof.prove(reference, answers(), TARGET, "logits", (ours, theirs))
    assert failed(proven) == {"difference in accuracy"}


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["logits", "probabilities"])
def test_answers_that_are_no_numbers_fail(wrong, name):
    given = answers()
    given[name][3, 2] = wrong
    with np.errstate(invalid="ignore"):
        assert f"largest difference of {name}" in failed(prove(given))
    with np.errstate(invalid="ignore"):  # a reference that is broken proves nothing
        assert f"largest difference of {name}" in failed(prove(given, given))


@pytest.mark.parametrize("part", [np.s_[:-1], np.s_[:, :-1]])
def test_answers_of_another_shape_fail(part):
    given = {name: array[part] for name, array in answers().items()}
    proven = proof.prove(answers(), given, TARGET, "logits", ({}, {}))
    assert len(failed(proven)) == len(proven.gates) == 3


def test_unranked_answers_have_no_agreement():
    proven = proof.prove({"y": np.ones((3, 1))}, {"y": np.ones((3, 1))}, TARGET[:3], None, ({}, {}))
    assert proven.holds and proven.parity.argmax_agreement is None


def project(folder: Path, digits: Path, trick: str) -> Path:
    """A project whose `verify` is next, with a linear network whose export plays a trick."""
    weights = np.random.default_rng(0).normal(0, 0.01, (64, 10)).astype(np.float32)
    constant = partial(helper.make_node, "Constant", [])
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        constant(["flat"], value_ints=[-1, 64]),
        helper.make_node("Reshape", ["floats", "flat"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "weights"], ["plain"]),
        constant(["nan"], value_float=float("nan")),
        constant(["one"], value_ints=[7 if trick == "nan for seven rows" else 1]),
        helper.make_node("Shape", ["image"], ["rows"], start=0, end=1),
        helper.make_node("Equal", ["rows", "one"], ["alone"]),
        {
            "none": helper.make_node("Identity", ["plain"], ["logits"]),
            "nan for single rows": helper.make_node("Where", ["alone", "nan", "plain"], ["logits"]),
            "nan for seven rows": helper.make_node("Where", ["alone", "nan", "plain"], ["logits"]),
            "one answer for all": helper.make_node("ReduceMax", ["plain"], ["logits"], axes=[0]),
            "another answer": helper.make_node("Neg", ["plain"], ["logits"]),
        }[trick],
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "linear",
        [value("image", TensorProto.UINT8, ["batch", 8, 8, 1])],
        [value(name, TensorProto.FLOAT, ["batch", 10]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(weights, "weights")],
    )
    build = folder / "build" / NAME
    shutil.copytree(digits, build / "data")
    opset = 20 if trick == "none" else 17  # the tricks end in the proof, before that is looked at
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    save_file({"weights": weights}, build / "weights.safetensors")
    told = export.metadata(NAME, "classification", tuple("0123456789"))
    told["slipway.weights"] = sha256((build / "weights.safetensors").read_bytes())
    helper.set_model_props(model, told)
    (build / "model.onnx").write_bytes(model.SerializeToString())
    image = np.array(prepared.read(digits, "test").arrays["image"])
    logits = image.reshape(-1, 64).astype(np.float32) @ weights
    odds = np.exp(logits - logits.max(1, keepdims=True))
    reference = {"logits": logits, "probabilities": odds / odds.sum(1, keepdims=True)}
    save_file(reference, build / "answers.safetensors", {"weights": told["slipway.weights"]})
    rows = golden.pack({"image": image[:2]}, {name: a[:2] for name, a in reference.items()})
    (build / "golden.npz").write_bytes(rows)
    report = {"test": {}, "intervals": {}}
    (folder / "reports" / NAME).mkdir(parents=True)
    (folder / "reports" / NAME / "metrics.json").write_text(json.dumps(report))
    (folder / "params.yaml").write_text(json.dumps({"experiments": {NAME: settings()}}))
    return folder


def verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(folder)
    return CliRunner().invoke(command, [NAME])


def test_a_proven_export_becomes_a_bundle(tmp_path, digits, monkeypatch):
    done = verify(project(tmp_path, digits, "none"), monkeypatch)
    assert done.exit_code == 0, done.output
    bundle = read(tmp_path / "bundles" / NAME)
    variant = bundle.manifest.variants["fp32"]
    assert variant.admitted and all(gate.passed for gate in variant.gates)
    assert f"bundle {bundle.digest}" in done.output
    assert (tmp_path / "reports" / NAME / "parity.json").is_file()


@pytest.mark.parametrize(
    ("trick", "why"),
    [
        ("nan for single rows", "largest difference of logits: measured 1e+30"),
        ("nan for seven rows", "largest difference of logits: measured 1e+30"),
        (
            "one answer for all",
            "the export answers [10, 10] to 64 rows in batches of 7 and [6, 10]",
        ),
        ("another answer", "argmax agreement outside ties: measured 0"),
    ],
)
def test_without_a_proof_there_is_no_bundle(tmp_path, digits, monkeypatch, trick, why):
    done = verify(project(tmp_path, digits, trick), monkeypatch)
    assert done.exit_code == 1 and why in done.output, done.output
    assert "Traceback" not in done.output and "no bundle was written" in done.output
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("weights", "made of other weights"),
        ("golden", "golden.npz: logits differs by"),
        ("name", "the graph says slipway.name 'evil'"),
        ("opset", "opset: asked for 20"),
    ],
)
def test_files_that_do_not_belong_together_make_no_bundle(
    tmp_path, digits, monkeypatch, change, why
):
    build = project(tmp_path, digits, "none") / "build" / NAME
    model = onnx.load(build / "model.onnx")
    if change == "weights":
        (build / "weights.safetensors").write_bytes(b"trained again")
    elif change == "golden":
        inputs, expected = golden.unpack((build / "golden.npz").read_bytes())
        turned = {name: rows[::-1] for name, rows in expected.items()}
        (build / "golden.npz").write_bytes(golden.pack(inputs, turned))
    elif change == "name":
        next(p for p in model.metadata_props if p.key == "slipway.name").value = "evil"
    else:
        model.opset_import[0].version = 21
    onnx.save(model, build / "model.onnx")
    done = verify(tmp_path, monkeypatch)
    assert done.exit_code == 1 and why in done.output, done.output
    assert not (tmp_path / "bundles").exists()


def test_rows_of_free_length_are_asked_about_at_three_lengths():
    ids = np.tril(np.ones((20, 40), np.int64))
    asked = _otherwise(prepared.Rows({"ids": ids}, np.arange(20), {"ids": 0}), 20)
    shapes = {what: [batch["ids"].shape for batch in batches] for what, batches in asked.items()}
    assert shapes == {
        "rows in batches of 7": [(7, 7), (7, 14), (6, 20)],
        "single rows": [(1, length) for length in range(1, 21)],
        "rows of full length": [(1, 40)] * 20,
    }
