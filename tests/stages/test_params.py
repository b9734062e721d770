"""`params.yaml`: what is read, and how every mistake in it is told, by every stage."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline import plugins
from pipeline.config import ConfigError
from stages import params

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "params.yaml").read_text()
STAGES = ("prepare", "train", "evaluate", "export", "verify", "benchmark", "track")
EXPERIMENT = "digits-cnn"
AT = f"experiments.{EXPERIMENT}"
SECONDS = 3.0
MODELS = ", ".join(plugins.names("model"))
SETTINGS = YAML(typ="safe").load(SHIPPED)


def with_setting(path: str, value: object) -> str:
    """The shipped settings with one of the experiment's changed; `...` takes it out."""
    settings = copy.deepcopy(SETTINGS)
    *steps, last = path.split(".")
    section = settings["experiments"][EXPERIMENT]
    for step in steps:
        section = section.setdefault(step, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return json.dumps(settings)  # JSON is YAML


def replaced(old: str, new: str) -> str:
    """The shipped file with its first `old` written as `new`."""
    assert old in SHIPPED
    return SHIPPED.replace(old, new, 1)


def load(text: str | bytes, folder: Path) -> dict[str, params.Experiment]:
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return params.load(path)


def test_the_shipped_file_loads():
    experiments = params.load(ROOT / "params.yaml")
    assert {"digits-cnn", "digits-mlp"} <= experiments.keys()
    for name, experiment in experiments.items():
        assert experiment.name == name
        assert experiment.resolved()["train"]["lr"] == experiment.train.lr
        json.dumps(experiment.resolved())


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads(recipe, tmp_path):
    entry = YAML(typ="safe").load(recipe)
    assert load(json.dumps({"experiments": {"from-recipe": entry}}), tmp_path)


MISTAKES = [
    # A typo at every level.
    (
        replaced("experiments:", "experiment:"),
        "experiment: unknown key, did you mean 'experiments'?",
    ),
    (with_setting("trian", {}), f"{AT}.trian: unknown key, did you mean 'train'?"),
    (with_setting("data.nmae", 1), f"{AT}.data.nmae: unknown key, did you mean 'name'?"),
    (with_setting("data.split.sed", 1), f"{AT}.data.split.sed: unknown key, did you mean 'seed'?"),
    (with_setting("model.widht", 1), f"{AT}.model.widht: unknown key, did you mean 'width'?"),
    (
        with_setting("task.label_smooting", 0),
        f"{AT}.task.label_smooting: unknown key, did you mean 'label_smoothing'?",
    ),
    (with_setting("train.lrr", 1), f"{AT}.train.lrr: unknown key, did you mean 'lr'?"),
    (
        with_setting("train.optimiser.momentun", 1),
        f"{AT}.train.optimiser.momentun: unknown key, did you mean 'momentum'?",
    ),
    (
        with_setting("train.augment.rotation", 1),
        f"{AT}.train.augment.rotation: unknown key, did you mean 'rotate'?",
    ),
    (
        with_setting("export.opsets", 1),
        f"{AT}.export.opsets: unknown key, did you mean 'opset'?",
    ),
    # The wrong type.
    (with_setting("train.lr", "fast"), f"{AT}.train.lr: expected a valid number, got 'fast'"),
    (with_setting("train.lr", "0.1"), f"{AT}.train.lr: expected a valid number, got '0.1'"),
    (with_setting("train.epochs", 1.5), f"{AT}.train.epochs: expected a valid integer, got 1.5"),
    (with_setting("train.epochs", True), f"{AT}.train.epochs: expected a valid integer, got True"),
    (with_setting("train.epochs", None), f"{AT}.train.epochs: expected a valid integer, got None"),
    (with_setting("train", [1]), f"{AT}.train: expected a mapping of settings, got [1]"),
    (with_setting("train.augment", 3), f"{AT}.train.augment: expected an object, got 3"),
    (with_setting("metrics", "accuracy"), f"{AT}.metrics: expected a list of metrics"),
    (with_setting("metrics", []), f"{AT}.metrics: expected a list of metrics, got []"),
    # YAML 1.2: `no` is a word.
    (
        replaced("batch_norm: true", "batch_norm: no"),
        f"{AT}.model.batch_norm: expected a valid boolean, got 'no'",
    ),
    # Out of range.
    (with_setting("train.lr", 0), f"{AT}.train.lr: expected greater than 0, got 0"),
    (replaced("lr: 0.003", "lr: .inf"), f"{AT}.train.lr: expected a finite number, got inf"),
    (
        with_setting("train.batch_size", -1),
        f"{AT}.train.batch_size: expected greater than or equal",
    ),
    (with_setting("data.split.test", 1.2), f"{AT}.data.split.test: expected less than 1, got 1.2"),
    (with_setting("export.opset", 17), f"{AT}.export.opset: expected greater than or equal to 18"),
    (with_setting("train.device", "tpu"), f"{AT}.train.device: expected 'auto', 'cpu' or 'cuda'"),
    (
        with_setting("model.activation", "rellu"),
        f"{AT}.model.activation: expected 'relu', 'leaky_relu'",
    ),
    # Settings that do nothing together.
    (
        with_setting("train.optimiser.name", "sgd"),
        f"{AT}.train.optimiser: sgd does not use weight_decay",
    ),
    # Missing.
    (with_setting("train", ...), f"{AT}.train: missing; every experiment has the same sections"),
    (with_setting("train.lr", ...), f"{AT}.train.lr: missing"),
    (with_setting("data.path", ...), f"{AT}.data.path: missing"),
    (with_setting("model.name", ...), f"{AT}.model.name: missing; one of {MODELS}"),
    (with_setting("model", None), f"{AT}.model.name: missing; one of {MODELS}"),
    # No such thing.
    (
        with_setting("data.name", "digit"),
        f"{AT}.data.name: no data named 'digit', did you mean 'digits'?",
    ),
    (
        with_setting("model.name", "cn"),
        f"{AT}.model.name: no model named 'cn', did you mean 'cnn'?",
    ),
    (with_setting("model.name", 3), f"{AT}.model.name: no model named 3; known: {MODELS}"),
    (
        with_setting("task.name", "classify"),
        f"{AT}.task.name: no task named 'classify', did you mean 'classification'?",
    ),
    (
        with_setting("metrics", ["accuracy", "acuracy"]),
        f"{AT}.metrics: no metric named 'acuracy', did you mean 'accuracy'?",
    ),
    (with_setting("metrics", ["accuracy"] * 2), f"{AT}.metrics: a metric is listed twice"),
    (
        with_setting("train.early_stopping.metric", "los"),
        f"{AT}.train.early_stopping.metric: no metric named 'los'",
    ),
    # The file itself.
    ("", "expected a mapping, got NoneType"),
    ("[1, 2]", "expected a mapping, got list"),
    ("experiments:", "experiments: expected a mapping of experiments"),
    ("experiments: {}", "experiments: expected a mapping of experiments"),
    ("experiments: {one: 1}", "experiments.one: expected a mapping with data, model, task"),
    ("experiments: {a b: {}}", "experiments.a b: a name is 1 to 64 letters"),
    ("experiments: {7: {}}", "experiments.7: a name is 1 to 64 letters"),
    (
        replaced("      depth: 2", "      depth: 2\n      depth: 3"),
        'not YAML: .*found duplicate key "depth"',
    ),
    (replaced("  digits-mlp:", "  digits-cnn:"), 'not YAML: .*found duplicate key "digits-cnn"'),
    ("experiments: [", "not YAML: "),
    ("a: 1\n---\nb: 2", "not YAML: "),
    ("experiments: !!python/object/apply:os.getcwd []", "not YAML: "),
    (b"experiments: \xff\xfe", "not YAML: "),
]


@pytest.mark.parametrize(
    ("text", "message"), MISTAKES, ids=[message[:60] for _, message in MISTAKES]
)
def test_a_mistake_is_told_with_its_place(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path)
    told = str(caught.value)
    if "not YAML: " in message:
        assert "params.yaml: not YAML: " in told
        assert message.rpartition(".*")[2].removeprefix("not YAML: ") in told
    else:
        assert any(message in line for line in told.splitlines()), told


def test_every_mistake_of_every_experiment_is_told_at_once(tmp_path):
    settings = YAML(typ="safe").load(SHIPPED)
    settings["experiments"]["digits-cnn"]["train"]["lrr"] = 1
    settings["experiments"]["digits-cnn"]["model"]["width"] = 0
    settings["experiments"]["digits-mlp"]["export"]["opset"] = "new"
    with pytest.raises(ConfigError) as caught:
        load(json.dumps(settings), tmp_path)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "experiments.digits-cnn.model.width",
        "experiments.digits-cnn.train.lrr",
        "experiments.digits-mlp.export.opset",
    ]


def test_a_circle_of_first_weights_is_told_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = YAML(typ="safe").load(SHIPPED)["experiments"]["digits-mlp"]
    own = tmp_path / "build" / "d" / "weights.safetensors"

    def told(bases: dict[str, str]) -> list[str]:
        entries = {
            name: entry | {"model": entry["model"] | {"init_from": first}}
            for name, first in bases.items()
        }
        with pytest.raises(ConfigError) as caught:
            load(json.dumps({"experiments": entries}), tmp_path)
        return str(caught.value).splitlines()

    a, b, c = (f"build/{name}/weights.safetensors" for name in "abc")
    (line,) = told({"a": b, "b": a, "c": a, "d": "data/new-weights"})
    assert line.startswith("experiments.a.model.init_from: a -> b -> a is a circle")
    (line,) = told({"a": b, "b": str(tmp_path / c), "c": f"build/../{a}"})
    assert "a -> b -> c -> a is a circle" in line
    (line,) = told({"d": str(own)})
    assert line.startswith(f"experiments.d.model.init_from: {own} is what this training writes")
    (line,) = told({"a": str(own)})
    assert "no experiment makes" in line


def test_no_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="not found; run this in the project's folder"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"params\.yaml: cannot be read"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(("written", "read"), [("1e-3", 1e-3), ("2E-4", 2e-4), ("1", 1.0)])
def test_numbers_are_yaml_1_2(tmp_path, written, read):
    assert load(replaced("lr: 0.003", f"lr: {written}"), tmp_path)[EXPERIMENT].train.lr == read


def test_a_label_may_look_like_a_switch(tmp_path):
    recipe = YAML(typ="safe").load(ROOT / "recipes" / "mnist-cnn.yaml")
    del recipe["data"]["labels"]
    text = json.dumps({"experiments": {"one": recipe}})
    text = text.replace('"name": "idx"', '"name": idx, "labels": [yes, no, off, y, "1"]')
    config = load(text, tmp_path)["one"].data.config
    assert config.labels == ("yes", "no", "off", "y", "1")


def run_stage(
    stage: str, folder: Path, experiment: str = EXPERIMENT
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"stages.{stage}", experiment],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SLIPWAY_TRACKING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )


def refused(stage: str, folder: Path, code: int) -> str:
    """What a stage says to standard error in this process, which has torch awake; it must leave.

    That a process ends as its command does is seen where `run_stage` starts one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SLIPWAY_TRACKING", "off")
        done = CliRunner().invoke(import_module(f"stages.{stage}").command, [EXPERIMENT])
    assert isinstance(done.exception, SystemExit) and done.exit_code == code, done.exception
    return done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_tells_a_mistake_at_once_and_without_torch(stage, tmp_path):
    (tmp_path / "params.yaml").write_text(with_setting("train.lrr", 0.1))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run_stage(stage, tmp_path)
        seconds.append(time.perf_counter() - start)
        if min(seconds) < SECONDS:
            break
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert told == [f"error: {AT}.train.lrr: unknown key, did you mean 'lr'?"]
    assert not done.stdout and sorted(p.name for p in tmp_path.iterdir()) == ["params.yaml"]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in imported  # the list is what it seems
    assert not imported & {"torch", "onnx", "onnxruntime", "mlflow", "sklearn", "matplotlib"}
    assert min(seconds) < SECONDS


def test_an_unknown_experiment_lists_those_there_are(tmp_path):
    (tmp_path / "params.yaml").write_text(SHIPPED)
    done = run_stage("prepare", tmp_path, "digits-cn")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    names = ", ".join(YAML(typ="safe").load(SHIPPED)["experiments"])
    assert f"error: experiments: no 'digits-cn'; there are {names}" in done.stderr


def test_an_experiment_must_be_named(tmp_path):
    (tmp_path / "params.yaml").write_text(SHIPPED)
    done = run_stage("prepare", tmp_path, "--unknown")
    assert done.returncode == 2 and "Usage:" in done.stderr and "Traceback" not in done.stderr


def test_work_that_cannot_be_done_is_told_without_a_traceback(tmp_path):
    (tmp_path / "params.yaml").write_text(SHIPPED)
    assert "no prepared data; run `dvc repro`" in refused("evaluate", tmp_path, 1)
    base = "build/digits-mlp/weights.safetensors"
    (tmp_path / "params.yaml").write_text(with_setting("model.init_from", base))
    done = run_stage("train", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{base}: no weights" in done.stderr
    assert "digits-mlp makes them: run `dvc repro train@digits-cnn`" in done.stderr


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `train` is the next stage; small pictures of another data set beside."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "params.yaml").write_text(SHIPPED)
    (folder / "data" / "builtin").mkdir(parents=True)
    assert run_stage("prepare", folder).returncode == 0
    for name, rows in (("train", 40), ("t10k", 10)):
        head = b"".join(number.to_bytes(4, "big") for number in (rows, 4, 4))
        images = b"\0\0\x08\x03" + head + bytes(range(16)) * rows
        labels = b"\0\0\x08\x01" + rows.to_bytes(4, "big") + bytes(i % 10 for i in range(rows))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    return folder


SMALL = {"name": "idx", "path": ".", "title": "t", "licence": "l", "fit": {"margin": 2}}


@pytest.mark.parametrize(
    ("stage", "path", "value", "message"),
    [
        ("prepare", "data.split.test", 0.95, "data.split: validation and test take 1.05, nothing"),
        ("prepare", "data", SMALL, "data.fit.margin: 2 pixels on each side leave nothing of"),
        ("train", "train.batch_size", 1, "train.batch_size: 1 row, which batch normalisation"),
        ("train", "train.batch_size", 5000, "train.batch_size: 5000 rows, but only"),
        ("train", "model.depth", 5, "model.depth: 5 stages halve 8x8 pixels to nothing"),
        ("train", "train.device", "cuda", "train.device: 'cuda' asked for, but torch"),
    ],
)
def test_what_only_the_work_can_tell_has_its_whole_path(
    prepared_folder, stage, path, value, message
):
    import torch

    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    (prepared_folder / "params.yaml").write_text(with_setting(path, value))
    told = refused(stage, prepared_folder, 2).splitlines()
    assert [line for line in told if line.startswith("error: ")] == told[-1:]
    assert told[-1].startswith(f"error: {AT}.{message}")


def test_a_learning_rate_beyond_all_bounds_is_told_in_a_sentence(prepared_folder):
    text = with_setting("train.lr", 1e300).replace("adamw", "adam")
    (prepared_folder / "params.yaml").write_text(text.replace(', "weight_decay": 0.05', ""))
    told = refused("train", prepared_folder, 1).splitlines()
    assert told[-1].startswith("error: a step of epoch 1 is beyond what float32 holds")


def test_what_no_memory_holds_is_told_in_a_sentence(prepared_folder):
    (prepared_folder / "params.yaml").write_text(with_setting("train.augment", {"crop": 1_000_000}))
    told = refused("train", prepared_folder, 1).splitlines()
    assert told[-1].startswith("error: there is not enough memory for digits-cnn here: ")


def test_every_line_gets_its_path_once_and_other_lines_none():
    from stages.entry import placed

    assert placed("train.lr: high\nmodel: none\nSLIPWAY_TRACKING: typo", "one") == (
        "experiments.one.train.lr: high\nexperiments.one.model: none\nSLIPWAY_TRACKING: typo"
    )
    assert placed("experiments.one.train.lr: high", "one") == "experiments.one.train.lr: high"
