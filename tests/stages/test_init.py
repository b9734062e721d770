"""`slipway init`: what it writes reads as if a person had written it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from pipeline import cli
from stages.params import load

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "params.yaml").read_text()
GRAPH = (ROOT / "dvc.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["init", *arguments])


def test_what_was_there_stays_to_the_byte_and_the_recipe_is_set_in(folder: Path) -> None:
    assert init("--recipe", "mnist-cnn").exit_code == 0
    written = (folder / "params.yaml").read_text()
    assert written.startswith(SHIPPED)
    recipe = (ROOT / "recipes" / "mnist-cnn.yaml").read_text()
    heading = [line for line in recipe.splitlines() if line.startswith("#")]
    settings = [line for line in recipe.splitlines() if not line.startswith("#")]
    assert written[len(SHIPPED) :].splitlines() == [
        "",
        *(f"  {line}" for line in heading),
        "  mnist-cnn:",
        *(f"    {line}" for line in settings),
    ]
    assert (folder / "dvc.yaml").read_text() == GRAPH + "  - reports/mnist-cnn/latency.json\n"


def test_own_data_and_a_second_one(folder: Path) -> None:
    for name in ("mine", "other"):
        done = init("--recipe", "mnist-cnn", "--name", name, "--data", "own")
        assert done.exit_code == 0, done.output
    written = (folder / "params.yaml").read_text()
    added = written.removeprefix(SHIPPED)
    assert "\n\n  other:\n    data:\n" in added
    assert "70,000" not in added and "ossci" not in added
    assert "      # The digits were fitted into 20x20 pixels" in added
    assert load()["other"].data.config.path == "own"


@pytest.mark.parametrize(
    "params",
    [
        "{experiments: {}}",
        "experiments:\n",
        "experiments:\n    deep:\n        data: {}\n",
        "experiments: {one: {data: {}}}\n",
    ],
)
def test_other_layouts_keep_what_they_hold(folder: Path, params: str) -> None:
    """Set in or written anew, the file holds what it held and the recipe; or nothing is changed."""
    (folder / "params.yaml").write_text(params)
    done = init("--recipe", "mnist-cnn")
    written = (folder / "params.yaml").read_text()
    if "data" in params:  # `one` and `deep` lack sections: refused, and put back
        assert done.exit_code == 2 and "missing" in done.stderr
        assert written == params and (folder / "dvc.yaml").read_text() == GRAPH
    else:
        assert done.exit_code == 0, done.output
        recipe = YAML(typ="safe").load(ROOT / "recipes" / "mnist-cnn.yaml")
        assert YAML(typ="safe").load(written) == {"experiments": {"mnist-cnn": recipe}}


def test_wider_indents_are_kept(folder: Path) -> None:
    yaml = YAML()
    yaml.indent(mapping=4, sequence=6, offset=4)
    yaml.dump(yaml.load(SHIPPED), folder / "params.yaml")
    assert init("--recipe", "mnist-cnn").exit_code == 0
    assert list(load()) == ["digits-cnn", "digits-mlp", "mnist-cnn"]


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ("[", "not YAML"),
        ("experiments: 3", "expected a mapping of experiments, got 3"),
        (None, "params.yaml: not found; run this in the project's folder"),
    ],
)
def test_a_file_that_cannot_be_added_to(folder: Path, params: str | None, told: str) -> None:
    (folder / "params.yaml").unlink()
    if params is not None:
        (folder / "params.yaml").write_text(params)
    done = init("--recipe", "mnist-cnn")
    assert done.exit_code == 2 and told in done.stderr
    assert (folder / "params.yaml").exists() == (params is not None)


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = init("--recipe", "mnist-cnn")
    assert done.exit_code == 2 and "run this in the project's folder" in done.stderr


HOST = """
import sys
from importlib.machinery import PathFinder

class Host(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in ("torch", "dvc", "mlflow", "ruamel", "safetensors", "onnx"):
            return super().find_spec(name, path, target)

sys.meta_path = [Host if finder is PathFinder else finder for finder in sys.meta_path]
from pipeline.cli import main
main(sys.argv[1:], prog_name="slipway")
"""
"""The `slipway` command where only the serving half is installed."""


def on_a_host(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HOST, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["init", "--recipe", "x"],
        ["summary"],
        ["check"],
        ["register", "digits-cnn"],
        ["serve", "nowhere"],
        ["verify", "nowhere"],
        ["inspect", "nowhere"],
        ["predict", "nowhere", __file__],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_host_names_the_half_it_lacks(tmp_path: Path, arguments: list[str]) -> None:
    done = on_a_host(tmp_path, *arguments)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert "needs the training half" in done.stderr
    assert "pip install 'slipway[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_both_halves_are_the_way_to_a_bundle_is_another(folder: Path) -> None:
    done = CliRunner().invoke(cli.main, ["inspect", "nowhere"])
    assert done.exit_code == 2 and "dvc repro" in done.stderr
    assert "training half" not in done.stderr
