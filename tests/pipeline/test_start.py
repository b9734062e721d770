"""Fine-tuning: what is taken of an earlier run, what is left new, what is held, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import prepared, start
from pipeline.checkpoint import load_weights, save_weights
from pipeline.config import ConfigError
from stages import network as networks
from tests.pipeline.experiments import Trained, experiment, train

CNN: dict[str, Any] = {
    "model.name": "cnn",
    "model.depth": 2,
    "model.convolutions": 1,
    "model.width": 8,
    "model.dropout": 0.2,
    "train.epochs": 3,
    "train.optimiser": {"name": "adamw", "weight_decay": 0.1},
    "train.penalty.l2": 1e-4,
    "train.early_stopping.keep": "last",
}
HEAD = ("body.9.weight", "body.9.bias")
HELD = ("body.0.weight", "body.1.weight", "body.1.bias")
STATISTICS = ("body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked")


@pytest.fixture(scope="module")
def earlier(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that tells the ten digits apart."""
    folder = tmp_path_factory.mktemp("earlier")
    run = train(digits, folder, CNN)
    save_weights(folder / "weights.safetensors", run.network.state_dict(), run.notes.packed())
    return folder / "weights.safetensors"


@pytest.fixture(scope="module")
def parities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits once more, and only whether each is even or odd."""
    data = experiment().data
    raw = data.module.load(data.config, Path())
    told = dataclasses.replace(raw, target=raw.target % 2, labels=("even", "odd"))
    folder = tmp_path_factory.mktemp("parities")
    prepared.prepare("digits", told, data.config.split, folder)
    return folder


def tuning(earlier: Path, **changes: Any) -> dict[str, Any]:
    return CNN | {"model.init_from": str(earlier), "model.freeze": ["body.[01].*"]} | changes


@pytest.fixture(scope="module")
def tuned(parities: Path, earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(parities, tmp_path_factory.mktemp("tuned"), tuning(earlier))


def test_a_fine_tuned_network_starts_better_than_a_new_one(tuned, parities, tmp_path):
    new = train(parities, tmp_path, CNN)
    first, scratch = (run.progress.history[0] for run in (tuned, new))
    assert first["validation_loss"] < 0.8 * scratch["validation_loss"]
    assert first["validation_accuracy"] > scratch["validation_accuracy"]


def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(tuned, earlier):
    before, after = load_weights(earlier), tuned.network.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {*HELD, *STATISTICS, "frontend.scale", "frontend.shift"}
    state = torch.load(tuned.checkpoints / "last.pt", weights_only=True)
    (optimiser,) = state["optimisers"].values()
    learning = [p for p in tuned.network.parameters() if p.requires_grad]
    assert len(optimiser["state"]) == len(learning) == 5


def test_what_was_taken_is_told_and_kept_with_the_weights(tuned, earlier, tmp_path):
    origin = tuned.notes.origin
    assert origin.new == HEAD and origin.frozen == HELD
    assert {*origin.taken, *HEAD} == tuned.network.state_dict().keys()
    assert "new: body.9.weight, body.9.bias; frozen: body.0.weight" in origin.told()
    path = tmp_path / "weights.safetensors"
    save_weights(path, tuned.network.state_dict(), tuned.notes.packed())
    assert start.notes(path) == tuned.notes
    assert start.notes(earlier) == start.Notes()
    later = json.dumps({"numbering": "words", "written_by": "a later version"})
    save_weights(path, {}, {start.NOTES: later})
    assert start.notes(path) == start.Notes("words")
    for torn in ("{", "[]", '{"origin": {"file": 3}}', '{"numbering": 3}'):
        save_weights(path, {}, {start.NOTES: torn})
        with pytest.raises(ConfigError, match="its metadata 'slipway' is not what a training"):
            start.notes(path)


def test_a_fine_tuning_that_was_stopped_goes_on_to_the_same_end(tuned, parities, earlier, tmp_path):
    def stop(line: dict[str, float]) -> None:
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parities, tmp_path, tuning(earlier), log=stop)
    assert train(parities, tmp_path, tuning(earlier)).weights == tuned.weights


def test_other_first_weights_are_another_training(earlier, tmp_path):
    other = tmp_path / "other.safetensors"
    chosen = experiment({"model.init_from": str(other)})
    keys = {experiment().train_key("data")}
    for value in (0.0, 1.0):
        save_weights(other, {"a": torch.tensor(value)})
        keys.add(chosen.train_key("data"))
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model.width": 4}, r"body\.0\.weight: expected \[4, 1, 3, 3\], got \[8, 1, 3, 3\]"),
        ({"model.depth": 1}, r"body\.4\.weight \[16, 8, 3, 3\] of the file is not in this network"),
        ({"model.depth": 3}, r"body\.13\.weight \[2, 128\] is not in the file"),
        ({"model.freeze": ["bodi.0.weight"]}, r"freeze\.0: nothing fits .*mean 'body\.0\.weight'"),
        ({"model.freeze": ["*", "!head"]}, r"freeze\.1: nothing fits 'head'; there are body\.0\.w"),
        (
            {"model.freeze": ["*"]},
            r"freeze: body\.9\.bias, body\.9\.weight would .* add \"!body\.9\.\*\"$",
        ),
        ({"model.init_except": ["body.7"]}, r"init_except\.0: nothing fits 'body\.7'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parities, earlier, tmp_path, changes, why):
    with pytest.raises(ConfigError, match=why):
        train(parities, tmp_path, tuning(earlier, **changes))
    assert not list(tmp_path.iterdir())


def test_a_network_with_nothing_left_to_learn_is_refused(digits, earlier, tmp_path):
    with pytest.raises(ConfigError, match="nothing of the network is left to train"):
        train(digits, tmp_path, tuning(earlier, **{"model.freeze": ["*"]}))


def test_what_shall_not_be_taken_is_left_new(parities, earlier, tmp_path):
    changes = {"model.depth": 3, "model.init_except": ["body.[5-9]*", "body.1[0-9].*"]}
    run = train(parities, tmp_path, tuning(earlier, **changes) | {"train.epochs": 1})
    assert set(run.notes.origin.taken) == {
        *HELD,
        *STATISTICS,
        "body.4.weight",
        "frontend.scale",
        "frontend.shift",
    }


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"init_from": "digits-cnn"}, r"weights are build/digits-cnn/weights\.safetensors"),
        ({"init_from": "old.pt"}, r"a \.safetensors file, got 'old\.pt'$"),
        ({"init_from": "build/small/weights.safetensors"}, "is what this training writes"),
        ({"init_from": "build/gone/weights.safetensors"}, "no experiment makes build/gone"),
        ({"freeze": ["*"]}, "freeze needs weights to start from: init_from"),
        ({"init_form": "x"}, "unknown key, did you mean 'init_from'"),
    ],
)
def test_settings_that_cannot_be_are_told_before_any_work(model, why):
    with pytest.raises(ConfigError, match=why):
        experiment({f"model.{key}": value for key, value in model.items()})


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet", "recurrent", "transformer"])
def test_the_head_of_any_network_is_what_the_number_of_answers_sizes(digits, parities, model):
    chosen = experiment({"model": {"name": model}})
    data = prepared.read_manifest(parities)
    ten = networks.fresh(chosen, prepared.read_manifest(digits)).state_dict()
    network, other = networks.fresh(chosen, data), networks.resized(chosen, data).state_dict()
    shapes = {name: tensor.shape for name, tensor in other.items()}
    taken, new = start.take(network, shapes, ten, start.Start())
    assert len(new) == 2 and all(ten[name].shape[0] == 10 for name in new)
    assert {*taken, *new} == ten.keys()


def test_a_second_network_of_the_same_kind_draws_nothing(digits):
    data = prepared.read_manifest(digits)
    torch.manual_seed(3)
    networks.resized(experiment(), data)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(3)))


def test_other_words_under_the_same_numbers_are_refused(tmp_path):
    network = torch.nn.ModuleDict(
        {"frontend": torch.nn.Embedding(5, 2), "body": torch.nn.Linear(2, 2)}
    )
    path = tmp_path / "weights.safetensors"
    save_weights(path, network.state_dict(), start.Notes(numbering="theirs").packed())

    def begun(numbers: str, config: start.Start) -> start.Origin:
        weights = load_weights(path)
        return start.begin(network, network, start.Notes(numbers), path, weights, config)

    idle = start.Start(init_from=str(path), init_except=("body.bias",))
    for config, patterns in ((start.Start(), ""), (idle, r'"body\.bias", ')):
        with pytest.raises(
            ConfigError, match=rf'numbered otherwise.*: \[{patterns}"frontend\.\*"\]'
        ):
            begun("ours", config)
    spared = start.Start(init_from=str(path), init_except=("frontend.*",))
    assert begun("ours", spared).new == ("frontend.weight",)
    assert begun("theirs", start.Start()).taken


def test_columns_of_other_names_or_in_another_order_are_refused_by_name(tmp_path):
    random = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{a - b:.3f}" for a, b in random.normal((40, 900), (9, 200), (80, 2))]

    def trained(names: str, **model: Any) -> Trained:
        path = tmp_path / f"{names}.csv"
        path.write_text("\n".join([f"{names},y", *rows]))
        changes = {
            "data": {"name": "table", "path": str(path), "target": "y", "teaches": "number"},
            "model": {"name": "mlp", "depth": 1, "width": 4} | model,
            "task": {"name": "regression"},
            "metrics": ["r2"],
            "train.epochs": 1,
            "train.batch_size": 8,
        }
        data = experiment(changes).data
        raw = data.module.load(data.config, Path())
        prepared.prepare("table", raw, data.config.split, tmp_path / names)
        return train(tmp_path / names, tmp_path / "checkpoints", changes)

    first, path = trained("age,income"), tmp_path / "weights.safetensors"
    save_weights(path, first.network.state_dict(), first.notes.packed())
    assert trained("age,income", init_from=str(path)).notes.origin.new == ()
    with pytest.raises(ConfigError, match="columns are age, income, and this data's age, wage; "):
        trained("age,wage", init_from=str(path))
    for idle in ([], ["body.*bias*"], ["frontend.*"], ["body.0.*"]):
        with pytest.raises(ConfigError, match="age, income, and this data's income, age") as caught:
            trained("income,age", init_from=str(path), init_except=idle)
    patterns = json.loads(re.search(r"\[.*\]$", str(caught.value)).group())
    assert patterns == ["body.0.*", "frontend.*"]
    spared = trained("income,age", init_from=str(path), init_except=patterns).notes.origin
    assert spared.taken == ("body.2.weight", "body.2.bias")


def test_whatever_is_frozen_keeps_its_statistics_and_a_turn_does_not_let_go():
    from pipeline.tasks.adversarial import _still

    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4))
    free = torch.nn.BatchNorm1d(4)
    frozen = torch.nn.Sequential(
        spectral, torch.nn.Dropout(), torch.nn.BatchNorm1d(4, affine=False)
    )
    network = torch.nn.Sequential(frozen, free)
    start.freeze(network, ["0.*"], new=())
    with _still(network):
        assert not any(p.requires_grad for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
    start.settle(network.train())
    before = json.dumps({name: t.tolist() for name, t in frozen.state_dict().items()})
    network(torch.randn(8, 4))
    assert json.dumps({name: t.tolist() for name, t in frozen.state_dict().items()}) == before
    assert free.num_batches_tracked == 1 and frozen[1].training
