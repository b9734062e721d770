"""`slipway init`: what it writes reads as if a person had written it."""

from __future__ import annotations

import difflib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from pipeline import cli
from stages import editing
from stages.params import load
from tests.pipeline.test_idx import write_set
from tests.pipeline.test_pictures import classes, picture

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "params.yaml").read_text()
GRAPH = (ROOT / "dvc.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    write_set(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def slipway(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def init(*arguments: str) -> Result:
    return slipway("init", *arguments)


def test_what_was_there_stays_to_the_byte_and_the_recipe_is_set_in(folder: Path) -> None:
    assert init("--recipe", "mnist-cnn").exit_code == 0
    written = (folder / "params.yaml").read_text()
    assert written.startswith(SHIPPED)
    recipe = (ROOT / "recipes" / "mnist-cnn.yaml").read_text()
    heading = [line for line in recipe.splitlines() if line.startswith("#")]
    added = written[len(SHIPPED) :].splitlines()
    first = len(heading) + 1
    assert added[: first + 1] == ["", *(f"  {line}" for line in heading), "  mnist-cnn:"]
    comments = [line.strip() for line in recipe.splitlines() if line.startswith("  #")]
    assert comments == [line.strip() for line in added[first:] if line.startswith("      #")]
    data = YAML(typ="safe").load(recipe)
    assert YAML(typ="safe").load(written)["experiments"]["mnist-cnn"] == data
    lines = list(difflib.ndiff(GRAPH.splitlines(), (folder / "dvc.yaml").read_text().splitlines()))
    assert not [line for line in lines if line.startswith("- ")]
    assert lines[-1] == "+   - reports/mnist-cnn/latency.json"


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


def test_an_experiment_of_dvc_changes_the_line_that_it_sets_and_no_other(folder: Path) -> None:
    """`dvc exp run -S` reads and writes the whole file; here by DVC's own code."""
    for name in ("mnist-cnn", "faces", "cifar-resnet"):
        classes(folder / "own")
        assert init("--recipe", name, "--data", "own").exit_code == 0
    assert init("own", "--name", "looked-at").exit_code == 0
    before = (folder / "params.yaml").read_text().splitlines()
    program = "from dvc.utils.hydra import apply_overrides as set; set('params.yaml', [{!r}])"
    change = program.format("experiments.digits-mlp.train.lr=0.125")
    subprocess.run([sys.executable, "-c", change], check=True)
    after = (folder / "params.yaml").read_text().splitlines()
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert changed == [("      lr: 0.002", "      lr: 0.125")]


def test_an_experiment_is_taken_out_again_to_the_byte(folder: Path) -> None:
    """Whichever is taken out first, and once more what only dvc.yaml still lists."""
    assert init("--recipe", "mnist-cnn").exit_code == 0
    between = [(folder / file).read_text() for file in ("params.yaml", "dvc.yaml")]
    assert init("--recipe", "mnist-mlp", "--data", "own").exit_code == 0
    (folder / "reports" / "mnist-cnn").mkdir(parents=True)
    done = slipway("remove", "mnist-cnn")
    assert done.exit_code == 0 and "rm -r reports/mnist-cnn\n" in done.output
    assert "70,000" not in (folder / "params.yaml").read_text()
    assert list(load()) == ["digits-cnn", "digits-mlp", "mnist-mlp"]
    assert slipway("remove", "mnist-mlp").exit_code == 0
    assert (folder / "params.yaml").read_text() == SHIPPED
    assert (folder / "dvc.yaml").read_text() == GRAPH
    (folder / "dvc.yaml").write_text(between[1])
    (folder / "data" / "builtin").parent.mkdir()
    (folder / "data" / "builtin").touch()
    warned = slipway("check")
    assert warned.exit_code == 0 and "there is no experiments.mnist-cnn" in warned.stderr
    assert slipway("remove", "mnist-cnn").exit_code == 0
    assert (folder / "dvc.yaml").read_text() == GRAPH
    well = slipway("check")
    assert (well.stdout, well.stderr) == ("params.yaml: 2 experiments, well-formed\n", "")
    assert (folder / "reports" / "mnist-cnn").is_dir()


def test_what_others_begin_from_is_not_taken_out(folder: Path) -> None:
    weights = folder / "build" / "digits-cnn" / "weights.safetensors"
    for first in ("build/digits-cnn/weights.safetensors", str(weights)):
        settings = YAML(typ="safe").load(SHIPPED)
        settings["experiments"]["digits-mlp"]["model"]["init_from"] = first
        YAML().dump(settings, folder / "params.yaml")
        before = (folder / "params.yaml").read_text()
        refused = slipway("remove", "digits-cnn")
        assert refused.exit_code == 2 and "digits-mlp would have nothing" in refused.stderr
        assert (folder / "params.yaml").read_text() == before
    assert slipway("remove", "digits-mlp").exit_code == 0
    assert list(load()) == ["digits-cnn"]


@pytest.mark.parametrize(
    ("graph", "told"),
    [
        (None, "dvc.yaml: not found; run this in the project's folder"),
        (f"<<<<<<< HEAD\n{GRAPH}", "dvc.yaml: not YAML"),
        ("- 1", "dvc.yaml: expected a mapping, got list"),
        ("plots: 3", "dvc.yaml: plots: expected a list of files, got 3"),
    ],
)
def test_a_broken_graph_is_told_and_changes_nothing(
    folder: Path, graph: str | None, told: str
) -> None:
    (folder / "dvc.yaml").unlink()
    if graph is not None:
        (folder / "dvc.yaml").write_text(graph)
    (folder / "data").mkdir()
    (folder / "data" / "builtin").touch()
    for arguments in (["init", "--recipe", "mnist-cnn"], ["remove", "digits-cnn"], ["check"]):
        done = slipway(*arguments)
        assert done.exit_code == 2 and told in done.stderr, done.output
        assert (folder / "params.yaml").read_text() == SHIPPED


def test_what_fails_on_the_way_leaves_no_half_of_an_experiment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(editing, "_with_lines", fail)
    failed = init("--recipe", "mnist-cnn")
    assert failed.exit_code == 1 and "no space left" in failed.output
    assert (folder / "params.yaml").read_text() == SHIPPED


def test_an_experiment_in_another_layout_and_the_last_one(folder: Path) -> None:
    yaml = YAML()
    yaml.indent(mapping=4, sequence=6, offset=4)
    yaml.dump(yaml.load(SHIPPED), folder / "params.yaml")
    wrong = slipway("remove", "digits-cn")
    assert wrong.exit_code == 2 and "did you mean 'digits-cnn'" in wrong.stderr
    assert slipway("remove", "digits-cnn").exit_code == 0
    assert list(load()) == ["digits-mlp"]
    assert "reports/digits-cnn" not in (folder / "dvc.yaml").read_text()
    last = slipway("remove", "digits-mlp")
    assert last.exit_code == 2 and "add another first" in last.stderr


def test_a_folder_outside_the_project_is_named_whole(folder: Path) -> None:
    """A queued experiment runs in a copy elsewhere, from which `../` leads to nothing."""
    outside = write_set(folder.parent / f"{folder.name}-outside")
    assert init(f"../{outside.name}", "--name", "far").exit_code == 0
    assert init(str(folder / "own"), "--name", "near").exit_code == 0
    assert init("--recipe", "mnist-mlp", "--data", f"../{outside.name}").exit_code == 0
    paths = [experiment.data.config.path for experiment in load().values()]
    assert paths[2:] == [str(outside), "own", str(outside)]


def test_what_the_queue_would_lack_is_told(folder: Path) -> None:
    told = "`dvc add own && git add own.dvc`; or give them `-C own`"
    assert told not in init("own", "--name", "without-git").output
    subprocess.run(["git", "init", "-q"], check=True)
    assert told in init("own", "--name", "unknown").output
    subprocess.run(["git", "add", "own"], check=True)
    assert told not in init("own", "--name", "known-to-git").output
    subprocess.run(["git", "rm", "-rq", "--cached", "own"], check=True)
    (folder / "own.dvc").touch()
    assert told in init("own", "--name", "known-to-dvc-alone").output
    subprocess.run(["git", "add", "own.dvc"], check=True)
    assert told not in init("own", "--name", "known-to-dvc").output


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("mnist-cnn", "expected train-images-idx3-ubyte"),
        ("faces", "no folders of classes, but 1 picture directly in it"),
        ("spam", "own: expected a file of texts"),
        ("houses", "own: expected a file named .csv"),
    ],
)
def test_a_recipe_looks_at_the_data_first(folder: Path, recipe: str, told: str) -> None:
    shutil.rmtree(folder / "own")
    picture(folder / "own" / "1.png", 1)
    done = init("--recipe", recipe, "--data", "own")
    assert done.exit_code == 1 and told in done.stderr
    assert (folder / "params.yaml").read_text() == SHIPPED


def test_a_recipe_of_a_table_or_of_texts_asks_for_its_columns(folder: Path) -> None:
    (folder / "other.csv").write_text("label,median_house_value\nx,1\ny,2\n")
    (folder / "cut.csv.gz").write_bytes(b"no gzip")
    for recipe, data, told in (
        ("spam", "other.csv", "other.csv: no column 'text'"),
        ("spam", "/dev/null", "/dev/null: expected a file of texts"),
        ("houses", "other.csv", "other.csv: no column 'ocean_proximity'"),
        ("houses", "cut.csv.gz", "cut.csv.gz: cannot be read"),
    ):
        done = init("--recipe", recipe, "--data", data)
        assert done.exit_code == 1 and told in done.stderr, done.output
    done = init("cut.csv.gz")
    assert done.exit_code == 1 and "cut.csv.gz: cannot be read" in done.stderr
    assert (folder / "params.yaml").read_text() == SHIPPED


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
