"""`slipway init FOLDER`: what it sees, what it chooses, and that the choice works."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline import cli
from stages import budget
from stages.params import load
from tests.pipeline import test_sounds as sounds
from tests.pipeline.test_idx import write_set
from tests.pipeline.test_pictures import classes, picture
from tests.project import QUICK, ROOT, Project, new_project, through
from tests.serving.live import Live

STAGES = ("prepare", "train", "evaluate", "export", "verify", "benchmark")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["init", *arguments])


def added(name: str) -> dict[str, Any]:
    return load()[name].resolved()


def test_a_folder_becomes_an_experiment_of_its_name(folder: Path) -> None:
    classes(folder / "My pets!", count=12)
    done = init("My pets!")
    assert done.exit_code == 0, done.output
    assert "added experiments.My-pets; next: dvc repro track@My-pets" in done.output
    assert "24 pictures of 2 classes" in done.output and "--name" in done.output
    data = added("My-pets")["data"]
    assert (data["path"], data["name"]) == ("My pets!", "pictures")
    assert (data["height"], data["width"], data["channels"]) == (16, 20, 3)
    assert "      # The one size that every picture" in (folder / "params.yaml").read_text()
    assert "reports/My-pets/latency.json" in (folder / "dvc.yaml").read_text()


def test_another_name_and_a_second_time(folder: Path) -> None:
    classes(folder / "pets")
    assert init("pets", "--name", "ours").exit_code == 0
    assert init("pets", "--name", "ours").exit_code == 2
    assert init("pets").exit_code == 0
    assert [name for name in load() if "digits" not in name] == ["ours", "pets"]
    assert init("pets", "--name", "no spaces").exit_code == 2


def test_grey_pictures_are_seen_in_whatever_mode(folder: Path) -> None:
    classes(folder / "set")
    from PIL import Image

    for path in (folder / "set").rglob("*.png"):
        with Image.open(path) as file:
            grey = file.convert("L").convert("RGB")
        grey.save(path.with_suffix(".jpg"), quality=60)
        path.unlink()
    assert init("set").exit_code == 0
    settings = added("set")
    assert settings["data"]["channels"] == 1 and not settings["train"]["augment"]["flip"]


@pytest.mark.parametrize(
    ("sizes", "height_width", "fit"),
    [
        ([(640, 480)], (96, 128), "crop"),
        ([(640, 480), (480, 640)], (128, 128), "crop"),
        ([(2000, 100), (100, 2000)], (128, 128), "pad"),
        ([(30, 30)], (30, 30), "crop"),
        ([(3, 3)], (8, 8), "crop"),
    ],
)
def test_one_size_is_chosen_for_many(folder, sizes, height_width, fit) -> None:
    for number in range(20):
        picture(
            folder / "set" / "ab"[number % 2] / f"{number}.png",
            number,
            sizes[number // 2 % len(sizes)],
        )
    done = init("set")
    assert done.exit_code == 0, done.output
    data = added("set")["data"]
    assert (data["height"], data["width"]) == height_width and data["fit"]["fit"] == fit


def test_a_telephones_pictures_are_measured_upright(folder: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(20):
        picture(folder / "set" / "ab"[number % 2] / f"{number}.jpg", number, (40, 20), exif=exif)
    assert init("set").exit_code == 0
    assert (added("set")["data"]["height"], added("set")["data"]["width"]) == (40, 20)


@pytest.mark.parametrize("count", [3, 4, 5, 7, 12])
def test_small_classes_have_a_row_in_every_part(folder: Path, count: int) -> None:
    from pipeline import prepared

    classes(folder / "set", count=count)
    assert init("set").exit_code == 0
    chosen = load()["set"].data
    raw = chosen.module.load(chosen.config, folder)
    manifest, _ = prepared.prepare("set", raw, chosen.config.split, folder / "out")
    assert all(min(rows) >= 1 for rows in manifest.rows_by_label.values())


def test_classes_too_small_to_deal_are_named(folder: Path) -> None:
    classes(folder / "set", labels="ab", count=9)
    classes(folder / "set", labels="c", count=1, seed=777)
    done = init("set")
    assert done.exit_code == 1 and "in every part, each needs 3 pictures:\n" in done.stderr
    assert "c: 1 picture\n" in done.stderr and "a: " not in done.stderr


def test_a_few_that_cannot_be_opened_are_named_and_one_is_one(folder: Path) -> None:
    classes(folder / "set", count=9)
    (folder / "set" / "a" / "torn.png").write_bytes(b"no")
    (folder / "set" / "notes.txt").write_text("x")
    (folder / "set" / "a" / "none.png").touch()
    (folder / "set" / "b" / "scan.tiff").write_bytes(b"II")
    done = init("set")
    assert done.exit_code == 0 and "2 files ignored: 1 .tiff, 1 .txt" in done.output
    assert "at most 1 minute on" in done.output
    assert "20 pictures of 2 classes: a 11, b 9; " in done.output
    warned = [line for line in done.output.splitlines() if line.startswith("  warning: ")]
    assert "not read; convert them: 1 .tiff" in warned[0]
    assert "mend or remove: set/a/none.png: an empty file, and 1 more of 20" in warned[1]


def test_data_elsewhere_is_said_to_stay_there(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "pets"
    classes(elsewhere)
    assert "lies outside the project: this works here alone" in init(str(elsewhere)).output


def test_a_set_whose_name_is_mistyped_is_no_class(folder: Path) -> None:
    classes(folder / "set" / "trian")
    classes(folder / "set" / "test", seed=500)
    done = init("set")
    assert done.exit_code == 1 and "trian/: beside test/, did you mean 'train'?" in done.stderr


def test_a_class_may_be_called_as_a_set_is(folder: Path) -> None:
    classes(folder / "set")
    (folder / "set" / "a").rename(folder / "set" / "train")
    assert init("set").exit_code == 0


def test_dates_are_no_labels_and_few_labels_go_first(folder: Path) -> None:
    rows = [
        f"a note of some words {n},{('gut', 'schlecht')[n % 2]},room {n % 5},2024-01-0{1 + n % 4}"
        for n in range(60)
    ]
    Path("notes.csv").write_text("\n".join(["Kommentar,Stimmung,Ort,Tag", *rows]))
    done = init("notes.csv", "--text", "Kommentar")
    assert done.exit_code == 0, done.output
    assert "2 labels in the column 'Stimmung' (--target COLUMN, such as Ort)" in done.output


def test_a_column_with_gaps_is_not_taken_for_the_target(folder: Path) -> None:
    rows = [f"{n % 9},{n * 1.5},{'old' if n % 3 else ''}" for n in range(60)]
    Path("flats.csv").write_text("\n".join(["rooms,rent,band", *rows]))
    done = init("flats.csv")
    assert done.exit_code == 0 and "target rent: the last column" in done.output, done.output


def test_idx_files_become_an_experiment(folder: Path) -> None:
    write_set(folder / "mine")
    done = init("mine")
    assert done.exit_code == 0, done.output
    settings = added("mine")
    assert settings["data"]["name"] == "idx" and settings["data"]["labels"] == ["0", "1", "2"]


def _empty(folder: Path) -> None:
    folder.mkdir()


def _texts(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("x")


def _loose(folder: Path) -> None:
    picture(folder / "1.png", 1)


def _unreadable(folder: Path) -> None:
    classes(folder, count=4)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no")


@pytest.mark.parametrize(
    ("make", "code", "told"),
    [
        (lambda folder: None, 2, "set: does not exist"),
        (_empty, 2, "nothing here that is known; expected one of: "),
        (_texts, 2, "a folder with one folder of pictures for each class"),
        (_loose, 1, "no folders of classes, but 1 picture directly in it"),
        (_unreadable, 1, "pictures that cannot be opened:"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_changed(folder, make, code, told) -> None:
    make(folder / "set")
    before = (folder / "params.yaml").read_text()
    done = init("set")
    assert done.exit_code == code and told in done.stderr
    assert (folder / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.tar", "own: nothing but a.tar; give the archive itself, own/a.tar"),
        ("a.tar.gz", "own: nothing but a.tar.gz; unpack it, or decompress it"),
    ],
)
def test_an_archive_in_a_folder_is_likely_the_data(folder: Path, name: str, told: str) -> None:
    (folder / "own").mkdir()
    (folder / "own" / name).write_bytes(b"")
    done = init("--recipe", "cifar-resnet", "--data", "own")
    assert done.exit_code == 1 and told in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["set", "--recipe", "mnist-cnn"], ["set", "--data", "set"], ["--data", "set"]]
)
def test_a_folder_or_a_recipe(folder: Path, arguments: list[str]) -> None:
    done = init(*arguments)
    assert done.exit_code == 2 and "either a folder or file of data, or --recipe" in done.stderr


@pytest.mark.parametrize("rows", [10, 300, 5_000, 60_000, 1_000_000])
@pytest.mark.parametrize("size", [(28, 28), (112, 92), (480, 640), (20, 400)])
def test_a_training_fits_into_five_minutes(rows: int, size: tuple[int, int]) -> None:
    choice = budget.choose(rows, 10, size, 3)
    assert choice.minutes <= 5 or choice.epochs == 1
    assert max(choice.height, choice.width) <= 128
    assert (choice.model["name"] == "cnn") == (rows < budget.SMALL_SET)
    assert choice.batch_size <= rows


def test_more_pictures_mean_smaller_ones_and_fewer_passes() -> None:
    few, many = budget.choose(3_000, 10, (480, 640), 3), budget.choose(300_000, 10, (480, 640), 3)
    assert few.height > many.height and few.epochs > many.epochs


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_an_experiment_and_says_what_it_reads(folder: Path, recipe: str) -> None:
    sounds.named(classes(write_set(folder / "own")))
    header = "text,label,median_house_value,ocean_proximity,total_rooms,total_bedrooms,"
    header += "population,households,median_income\n"
    (folder / "own.csv").write_text(header + "1,2,3,4,5,6,7,8,9\n")
    own = "own.csv" if recipe.startswith(("houses", "reviews", "spam")) else "own"
    done = init("--recipe", recipe, "--data", own)
    assert done.exit_code == 0, done.output
    assert load()[recipe].data.config.path == own
    text = (ROOT / "recipes" / f"{recipe}.yaml").read_text()
    assert (text.startswith("#") and "https://" in text) or "http://" in text
    done = init("--recipe", recipe, "--name", "as-it-is")
    if "url:" in text:
        assert done.exit_code == 0, done.output
    else:
        assert done.exit_code == 2 and "say where it is with --data" in done.stderr


def table(path: Path, count: int = 400) -> Path:
    """Flats: numbers with gaps, a category, an id, and a price that follows from them."""
    random = np.random.default_rng(0)
    size, city = random.uniform(20, 150, count), random.integers(0, 3, count)
    price = 3000 * size + 50_000 * city + random.normal(0, 5000, count)
    lines = [
        f"{i},{'' if i % 9 == 0 else round(s, 1)},{'ABC'[c]},{i % 3 == 0:d},{i % 2:d},{p:.0f}\n"
        for i, (s, c, p) in enumerate(zip(size, city, price, strict=True))
    ]
    path.write_text("id,size,city,lift,balcony,price\n" + "".join(lines))
    return path


@pytest.mark.parametrize(
    ("options", "task", "target"),
    [
        ([], "regression", "price"),
        (["--target", "city"], "classification", "city"),
        (["--target", "balcony", "--task", "regression"], "regression", "balcony"),
        (["--target", "lift,balcony"], "multilabel", ["lift", "balcony"]),
    ],
)
def test_a_table_becomes_an_experiment(folder, options, task, target) -> None:
    table(folder / "flats.csv")
    done = init("flats.csv", *options)
    assert done.exit_code == 0, done.output
    assert "ignored: 'id', counts the rows" in done.output and "--target" in done.output
    settings = added("flats")
    assert (settings["task"]["name"], settings["data"]["target"]) == (task, target)
    assert settings["data"].get("units") == (target if task == "regression" else "")
    assert "at most 1 minute on" in done.output
    chosen = load()["flats"].data
    raw = chosen.module.load(chosen.config, folder)
    assert len(raw.target) == 400


def test_a_table_of_one_text_and_a_label_is_none_of_columns(folder) -> None:
    """Another kind reads it; here it is not taken for ids and an answer without a question."""
    from stages.proposals import Hints
    from stages.proposals.table import propose

    words = "the film that I saw on that evening was number"
    rows = "".join(f"{words} {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))
    (folder / "reviews.csv").write_text("text,label\n" + rows)
    assert propose(folder / "reviews.csv", Hints()) is None
    assert propose(table(folder / "flats.csv"), Hints(text="city")) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--target", "prize"], "--target: no column 'prize', did you mean 'price'?"),
        (["--task", "regresion"], "did you mean 'regression'?"),
        (["--task", "multilabel"], "name its columns"),
    ],
)
def test_a_table_that_is_asked_for_what_it_has_not(folder, options, told) -> None:
    table(folder / "flats.csv")
    done = init("flats.csv", *options)
    assert done.exit_code == 2 and told in done.stderr


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text.replace(",", ";").replace(".", ","), "decimal point"),
        (lambda text: text.replace("city", "st\xe4dt"), "line 1: byte 0xe4"),
    ],
)
def test_what_the_stage_would_refuse_is_refused_at_once(folder: Path, spoil, told) -> None:
    path = table(folder / "flats.csv")
    path.write_bytes(spoil(path.read_text()).encode("latin-1"))
    before = (folder / "params.yaml").read_bytes()
    done = init("flats.csv")
    assert done.exit_code == 1 and told in done.stderr
    assert (folder / "params.yaml").read_bytes() == before


def test_a_column_that_is_the_target_over_again_is_left_out(folder: Path) -> None:
    path = table(folder / "flats.csv")
    head, *lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([f"cents,{head}", *(f"{line.split(',')[-1]}00,{line}" for line in lines)])
    )
    done = init("flats.csv")
    assert done.exit_code == 0 and "ignored: 'cents', the target over again" in done.output
    chosen = load()["flats"].data
    assert len(chosen.module.load(chosen.config, folder).target) == 400


def test_only_a_table_that_names_sounds_has_its_neighbours_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie among a million files, or beside a folder that is closed."""
    from pipeline.folders import source

    def refused(*_: object) -> None:
        raise AssertionError("looked at the folder")

    monkeypatch.setattr(source, "find", refused)
    assert init(str(table(folder / "flats.csv"))).exit_code == 0


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("iris.data.csv", "5.1,3.{},setosa\n4.9,3.{},virginica\n"),
        (
            "sms.tsv",
            "ham\tthis is what one of them says at {}\nspam\tand {} is what another says after it\n",
        ),
    ],
)
def test_a_first_row_is_not_taken_for_names(folder: Path, name: str, lines: str) -> None:
    text = "".join(lines.replace("{}", str(number)) for number in range(40))
    (folder / name).write_text(text)
    done = init(name)
    assert done.exit_code == 1 and "is a row like the others" in done.stderr
    header = "label\ttext\n" if name.endswith(".tsv") else "length,width,kind\n"
    (folder / name).write_text(header + text)
    assert init(name).exit_code == 0


def test_texts_between_semicolons(folder: Path) -> None:
    rows = "".join(f"this, as was said, is text {i};{'np'[i % 2]}\n" for i in range(40))
    (folder / "said.csv").write_text("text;label\n" + rows)
    done = init("said.csv")
    assert done.exit_code == 0 and "2 labels in the column 'label'" in done.output
    chosen = load()["said"].data
    assert len(chosen.module.load(chosen.config, folder).target) == 40


def test_a_pipe_among_pictures_is_not_waited_for(folder: Path) -> None:
    classes(folder / "set")
    os.mkfifo(folder / "set" / "a" / "pipe.png")
    done = init("set")
    assert done.exit_code == 0 and "pipe.png: no regular file" in done.output


def test_classes_of_a_number_that_should_be_estimated(folder: Path) -> None:
    table(folder / "flats.csv")
    done = init("flats.csv", "--target", "price", "--task", "classification")
    assert done.exit_code == 1 and "flats.csv: price has " in done.stderr
    assert " 1 row; a label needs 3, " in done.stderr and "--task regression" in done.stderr


def assert_files_are_answered(project: Project, name: str, folder: Path) -> None:
    """A server answers every raw file of the test split as the runtime answers its prepared row."""
    from benchmarks.bench_files import compare

    live = Live(project.folder / "bundles" / name, folder / "logs")
    try:
        experiment = load(project.folder / "params.yaml")[name]
        found = compare(experiment, project.folder, f"http://127.0.0.1:{live.port}")
    finally:
        assert live.stop() == 0
    assert found.files and found.equal == found.identical == found.files, found.wrong


@pytest.mark.slow
def test_a_table_to_an_answer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every row of the test split as a file gets the answer that its prepared tensor got."""
    from pipeline.bundle.manifest import read

    table(folder / "flats.csv")
    assert init("flats.csv").exit_code == 0
    Project(folder).edit("flats", "train.epochs", 12)
    through(folder, "flats", *STAGES)
    assert_files_are_answered(Project(folder), "flats", tmp_path_factory.mktemp("logs"))
    bundle = read(folder / "bundles" / "flats")
    report = json.loads((folder / "reports" / "flats" / "metrics.json").read_text())
    low, high = report["intervals"]["r2"]
    assert low < report["test"]["r2"] < high and report["interval"] == f"r2 {low:g} to {high:g}"
    assert (
        f"| r2 | {report['test']['r2']:.6g} | {low:g} to {high:g} |"
        in bundle.contents["card.md"].decode()
    )
    samples = [path.name for path in (folder / "reports" / "flats" / "samples").iterdir()]
    assert samples and all(name.removesuffix(".csv").isdigit() for name in samples), samples
    shown = CliRunner().invoke(cli.main, ["summary"]).output
    assert "  test r2 " in shown and "rmse" in shown and "predict flats reports/flats/sam" in shown
    assert (folder / "reports" / "flats" / "pictures" / "residuals.png").is_file()


@pytest.mark.slow
def test_a_folder_to_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`slipway init FOLDER`, every stage, and the file that was put in asks the bundle.

    The stages run here rather than below DVC, which then finds all that it waits for.
    """
    from PIL import Image

    project = new_project(tmp_path / "project")
    random = np.random.default_rng(0)
    for label, colour in (
        ("red", (220, 30, 30)),
        ("green", (30, 220, 30)),
        ("blue", (30, 30, 220)),
    ):
        (project.folder / "colours" / label).mkdir(parents=True)
        for number in range(16):
            size = (random.integers(20, 60), random.integers(20, 60), 3)
            levels = np.clip(random.normal(colour, 25, size), 0, 255).astype(np.uint8)
            Image.fromarray(levels).save(project.folder / "colours" / label / f"{number}.jpg")
    monkeypatch.chdir(project.folder)
    assert init("colours").exit_code == 0
    project.edit("colours", "train.epochs", 12)
    through(project.folder, "colours", *STAGES)
    project.run("dvc", "commit", "-q", "-f", "-d", "benchmark@colours")
    assert "Running stage" not in project.repro("benchmark@colours")
    samples = sorted((project.folder / "reports" / "colours" / "samples").iterdir())
    assert [path.name for path in samples] == ["blue.jpg", "green.jpg", "red.jpg"]
    assert_files_are_answered(project, "colours", tmp_path)
    originals = [path.read_bytes() for path in (project.folder / "colours").rglob("*.jpg")]
    for path in samples:
        assert path.read_bytes() in originals
        done = CliRunner().invoke(cli.main, ["predict", "colours", str(path)])
        assert path.stem in done.stdout.splitlines()[0]
    told = CliRunner().invoke(cli.main, ["summary", "colours"]).stdout
    assert "slipway predict colours reports/colours/samples/blue.jpg" in told
    assert "test rows: one row is" in told and QUICK not in told
    assert QUICK in (project.folder / "params.yaml").read_text()


def test_a_folder_of_sounds_becomes_an_experiment(folder: Path) -> None:
    sounds.classes(folder / "birds", count=12)
    sounds.sound(folder / "birds" / "low" / "x.ogg", 99, rate=44100, seconds=0.4)
    done = init("birds")
    assert done.exit_code == 0, done.output
    assert "25 sounds of 2 classes (by folder)" in done.output
    assert "8000 samples a second (they usually have 8000), at most 0.4 s" in done.output
    data = added("birds")["data"]
    assert (data["name"], data["rate"], data["cut"]["seconds"]) == ("sounds", 8000, 0.4)


def test_sounds_in_one_folder_are_told_apart_by_their_names(folder: Path) -> None:
    sounds.packed(sounds.named(folder / "words"))
    for source, name in (("words", "words"), ("words.tar", "words-tar")):
        done = init(source, "--name", name)
        assert done.exit_code == 0, done.output
        assert "40 sounds of 2 classes (by what stands before the first _" in done.output
        assert added(name)["data"]["label_from"] == "{label}_*"
    for path in (folder / "words").iterdir():
        path.rename(path.with_name(path.name.replace("_", "")))
    assert (
        "put each sound into a folder named after its class" in init("words", "--name", "w").output
    )


def test_a_table_of_sounds_becomes_an_experiment(folder: Path) -> None:
    sounds.table(folder)
    done = init("set/list.csv", "--name", "listed")
    assert done.exit_code == 0, done.output
    data = added("listed")["data"]
    assert data["path"] == "set"
    assert data["table"] == {"file": "list.csv", "path": "file", "label": "digit", "split": "split"}
