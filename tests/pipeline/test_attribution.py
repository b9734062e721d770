"""What decided an answer: shares that add up, nothing for what is not used, and what was planted found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import attribution, plugins, prepared
from pipeline.bundle.decode import named
from pipeline.bundle.decode.text import TOKENIZER, TextDecoder
from pipeline.config import build
from pipeline.network import assemble
from pipeline.tasks._shared.cases import CASES, WRONG, chosen
from pipeline.tasks._shared.contract import Case
from pipeline.tokens import Vocabulary, trained
from pipeline.views import AGAINST, FOR, Bars, Chart, Map, legible
from stages import evaluate, prepare
from stages import network as networks
from stages import train as training
from stages.layout import Layout
from stages.params import load

ROWS = 160
PIXEL = (5, 2)
RATE, FIRST, LAST = 8000, 0.1, 0.15
"""Samples a second, and the seconds in which a sound tells its class."""


def pictures(folder: Path, random: np.random.Generator) -> None:
    """Noise; one pixel says the class."""
    for row in range(ROWS):
        levels = random.integers(60, 190, (8, 8), np.uint8)
        levels[PIXEL] = 255 * (row % 2)
        path = folder / "pictures" / ("dark", "light")[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)


def texts(folder: Path, random: np.random.Generator) -> None:
    """Words of no meaning; one of them, somewhere, says the class."""
    lines = ["text,label"]
    for row in range(ROWS):
        words = list(random.choice(["la", "lo", "lu", "\u010d\u00edslo", "\u4e2d"], 7))
        words[random.integers(7)] = ("awful", "lovely")[row % 2]
        lines.append(f"{' '.join(words)} {row},{('bad', 'good')[row % 2]}")
    (folder / "texts.csv").write_text("\n".join(lines))


def sounds(folder: Path, random: np.random.Generator) -> None:
    """Noise; for a moment a tone says the class."""
    import soundfile

    time = np.arange(round(0.3 * RATE)) / RATE
    for row in range(ROWS // 2):
        heard = random.normal(0, 0.02, len(time))
        tone = np.sin(2 * np.pi * (500, 2500)[row % 2] * time)
        heard += 0.5 * tone * ((time >= FIRST) & (time < LAST))
        path = folder / "sounds" / ("deep", "high")[row % 2] / f"{row}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, heard, RATE)


def table(folder: Path, random: np.random.Generator) -> None:
    """Two columns make the price, one of numbers and one of categories; two say nothing."""
    lines = ["size,noise,kind,colour,price"]
    for row in range(ROWS):
        size, kind = random.normal(50, 10), ("flat", "villa")[random.integers(2)]
        price = 3 * size + 60 * (kind == "villa")
        noise, colour = random.normal(), ("red", "blue")[random.integers(2)]
        lines.append(f"{size:.3f},{noise:.3f},{kind},{colour},{price:.2f}")
        if row % 20 == 0:
            lines.append(f",{noise:.3f},{kind},{colour},{150 + 60 * (kind == 'villa')}")
    (folder / "table.csv").write_text("\n".join(lines))


MAKE: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "pictures": pictures,
    "texts": texts,
    "sounds": sounds,
    "table": table,
}
CLASSES = {"task": {"name": "classification"}, "metrics": ["accuracy"]}
TRAIN = {"lr": 0.01, "epochs": 10, "batch_size": 16, "seed": 1, "device": "cpu"}
SETTINGS: dict[str, dict[str, Any]] = {
    "pictures": {
        **CLASSES,
        "data": {"path": "pictures", "height": 8, "width": 8, "channels": 1},
        "model": {"name": "mlp", "depth": 1, "width": 16},
    },
    "texts": {
        **CLASSES,
        "data": {"path": "texts.csv", "vocabulary": {"least": 2}, "embedding": {"width": 8}},
        "model": {"name": "recurrent", "cell": "gru", "width": 8},
    },
    "sounds": {
        **CLASSES,
        "data": {"path": "sounds", "rate": RATE, "frontend": {"mels": 12, "segments": 8}},
        "model": {"name": "cnn", "depth": 2, "convolutions": 1, "width": 8},
    },
    "table": {
        "task": {"name": "regression"},
        "metrics": ["r2"],
        "data": {
            "path": "table.csv",
            "target": "price",
            "teaches": "number",
            "encoding": {"categories": "embedding", "waves": 2},
        },
        "model": {"name": "mlp", "depth": 1, "width": 32, "activation": "gelu"},
        "train": {"lr": 0.02, "epochs": 40},
    },
}
SMALL = {"width": 8, "heads": 2, "depth": 1}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with an experiment for each kind of data, prepared."""
    folder = tmp_path_factory.mktemp("planted")
    experiments = {}
    for name, settings in SETTINGS.items():
        MAKE[name](folder, np.random.default_rng(0))
        experiments[name] = {
            **settings,
            "data": {"name": name, **settings["data"]},
            "train": TRAIN | settings.get("train", {}),
            "export": {},
        }
    (folder / "params.yaml").write_text(json.dumps({"experiments": experiments}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SLIPWAY_TRACKING", "off")
        for name in SETTINGS:
            run(prepare, name)
    return folder


@pytest.fixture
def inside(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setenv("SLIPWAY_TRACKING", "off")
    return project


def run(stage: Any, name: str) -> None:
    done = CliRunner().invoke(stage.command, [name])
    assert not done.exit_code, f"{done.output}\n{done.exception!r}"


def looked_into(
    name: str, network: Any, strength: Any, cases: list[Case]
) -> list[attribution.Looked]:
    layout = Layout(name)
    manifest = prepared.read_manifest(layout.data)
    files = {file: (layout.data / file).read_bytes() for file in manifest.files}
    rows = prepared.read(layout.data, "test")
    return attribution.looked(network, manifest, strength, rows, cases, files)


@pytest.mark.parametrize("name", SETTINGS)
def test_shares_add_up_whatever_the_data_and_the_network(name, inside):
    experiment = load(Path("params.yaml"))[name]
    manifest = prepared.read_manifest(Layout(name).data)
    task = networks.task(experiment, manifest)
    cases = [Case(1, 0, True, "a case", "units")]
    for model in plugins.names("model"):
        module = plugins.load("model", model, "model.name")
        if plugins.gives(module) != task.body or (name == "table" and module.READS != "vector"):
            continue
        known = {key: value for key, value in SMALL.items() if key in module.Config.model_fields}
        torch.manual_seed(0)
        config = build(module.Config, {"name": model, **known}, "model")
        network = assemble(manifest, module, config, task.outputs).eval()
        for looked in looked_into(name, network, task.strength, cases):
            shares = looked.shares
            size, total = np.abs(shares.values).sum(), shares.values.sum()
            assert total == pytest.approx(
                shares.after - shares.before, rel=attribution.MISSED, abs=0.002 * size
            ), model
            assert shares.missed <= attribution.MISSED, model
            assert looked.view.shares.sum() == pytest.approx(total, rel=1e-6, abs=1e-9)


def test_what_is_not_used_has_no_share_and_a_straight_line_is_exact():
    features, nothing = torch.randn(1, 6), torch.randn(1, 6)
    weight = torch.tensor([3.0, -1.0, 0.0, 0.0, 2.0, 0.5])
    shares = attribution.integrated(lambda given: given @ weight, nothing, features)
    assert shares == pytest.approx(((features - nothing) * weight).numpy(), abs=1e-6)
    curved = attribution.integrated(lambda given: (given[:, :2] ** 3).sum(1), nothing, features)
    assert not curved[:, 2:].any()
    sizes = []

    def noted(given: torch.Tensor) -> torch.Tensor:
        sizes.append(len(given))
        return (given[:, :2] ** 3).sum(1)

    few = attribution.integrated(noted, nothing, features, batch=5)
    assert few == pytest.approx(curved, abs=1e-6) and sum(sizes) == 32 and max(sizes) == 5
    assert curved.sum() == pytest.approx(float(((features**3) - nothing**3)[:, :2].sum()), rel=1e-5)


def decided(name: str) -> list[attribution.Looked]:
    """A trained network's cases."""
    run(training, name)
    layout, experiment = Layout(name), load(Path("params.yaml"))[name]
    manifest = prepared.read_manifest(layout.data)
    task = networks.task(experiment, manifest)
    network = networks.trained(experiment, manifest, layout.weights)
    cases = [Case(row, row % task.outputs, True, "a case", "units") for row in range(6)]
    return looked_into(name, network, task.strength, cases)


def test_the_pixel_that_decides_is_found(inside):
    for looked in decided("pictures"):
        assert isinstance(looked.view, Map)
        strongest = np.abs(looked.view.shares).argmax()
        assert np.unravel_index(strongest, (8, 8)) == PIXEL


def test_the_moment_that_decides_is_found(inside):
    for looked in decided("sounds"):
        assert isinstance(looked.view, Chart)
        # The busiest fifth of the frames lies where the tone is heard, to a frame.
        frames = np.abs(looked.view.shares).sum(0)
        busiest = np.argsort(-frames)[: len(frames) // 5] * 0.016
        assert (busiest > FIRST - 0.033).all() and (busiest < LAST + 0.017).all()
        assert looked.view.horizontal.ticks[0][1] in ("0", "0.05", "0.1")
        assert [text for _, text in looked.view.vertical.ticks] == ["200", "500", "1000", "2000"]


def test_the_columns_that_decide_are_found(inside):
    for looked in decided("table"):
        assert isinstance(looked.view, Bars)
        shares = {part.split()[0]: abs(share) for part, share in looked.view.named()}
        assert max(shares["noise"], shares["colour"]) < max(shares["size"], shares["kind"]) / 3
        assert len(shares) == 4


def test_the_word_that_decides_is_found_by_the_stage(inside):
    run(training, "texts")
    run(evaluate, "texts")
    layout = Layout("texts")
    assert Image.open(layout.pictures / "attributions.png").width > 1000
    told = list(csv.DictReader(io.StringIO((layout.tables / "attributions.csv").read_text())))
    by_row: dict[str, list[dict[str, str]]] = {}
    for line in told:
        by_row.setdefault(line["row"], []).append(line)
    assert len(by_row) == CASES
    for lines in by_row.values():
        strongest = max(lines, key=lambda line: abs(float(line["contribution"])))
        assert strongest["part"] in ("awful", "lovely") and len(lines) >= 8
    assert {"\u010d\u00edslo", "\u4e2d", "[unknown]"} <= {line["part"] for line in told}


def test_rows_are_the_worst_mistakes_and_right_ones_of_many_sorts():
    sure = np.array([0.9, 0.8, 0.99, 0.7, 0.6, 0.95, 0.5, 0.5, 0.97, 0.96])
    right = np.array([True, True, True, False, False, True, True, True, True, False])
    sort = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    assert chosen(right, sure, sort) == [9, 3, 4, 2, 5, 8, 0, 6]
    many = chosen(np.ones(40, bool), np.ones(40), np.arange(40) // 2)
    assert len(many) == CASES and len({row // 2 for row in many}) == CASES
    assert chosen(np.zeros(9, bool), np.arange(9) / 9, np.zeros(9)) == [8, 7, 6, 5]
    assert WRONG == 4


def test_parts_of_words_are_shown_as_words():
    corpus = ["unlucky lucky unhappy happy luckily happily"] * 3
    content = trained(corpus, Vocabulary(kind="wordpiece", most=30, least=1))
    decoder = TextDecoder(longest=50, vocabulary=30)
    files = {TOKENIZER: content}
    from pipeline.bundle.decode import decode

    row = decode(decoder, b"unhappily zzz lucky", files)
    told = named(decoder, np.append(row, [0, 0]), files)
    assert [word for word, _ in told] == ["unhappily", "[unknown]", "lucky"]
    assert sum(places for _, places in told) == len(row)


def test_a_heat_map_colours_what_speaks_for_and_against():
    from matplotlib.colors import to_rgb

    shares = np.zeros((4, 4))
    shares[0, 0], shares[3, 3] = 1.0, -1.0
    heat = Map(np.full((4, 4), 255, np.uint8), shares).heat()
    for place, colour in (((0, 0), FOR), ((3, 3), AGAINST), ((1, 1), "#ffffff")):
        assert heat[place] / 255 == pytest.approx(np.array(to_rgb(colour)), abs=0.01)
    # Of a large one, neighbours are taken together and nothing is lost at the edge.
    large = np.zeros((70, 41))
    large[69, 40] = 5.0
    assert (Map(np.full((70, 41), 255, np.uint8), large).heat()[69, 40] < 250).any()


def test_what_no_font_has_is_a_box():
    assert legible("na\u00efve \u4e2d\n\u0416 $5") == "na\u00efve \u25af \u0416 $5"
