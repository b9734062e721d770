"""Tasks that make pictures: their losses and figures by hand, and the way from data to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline import plugins, prepared
from pipeline.bundle import golden
from pipeline.bundle.manifest import Input, read
from pipeline.config import ConfigError
from pipeline.layers import doubling, halved, halving
from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.generative import latents
from pipeline.tasks._shared.judge import Judge, distance
from tests.pipeline import exporter
from tests.pipeline.experiments import experiment, settings, train
from tests.pipeline.test_pictures import classes

VAE: dict[str, Any] = {
    "model": {"name": "vae", "widths": [8, 16]},
    "task": {"name": "reconstruction", "latent": 6},
    "train.epochs": 4,
    "metrics": ["bound", "reconstruction", "divergence", "active"],
}
GAN: dict[str, Any] = {
    "model": {"name": "gan", "generator_widths": [8, 16], "dropout": 0.2},
    "task": {"name": "adversarial", "latent": 6},
    "train.epochs": 4,
    "train.optimiser": {"name": "adam", "beta1": 0.5},
    "metrics": ["distance", "recognised", "recognised_real", "coverage"],
}
LABELLED = GAN | {"task": {"name": "adversarial", "latent": 12, "labelled": True}}
IMAGE = Input(name="image", dtype="uint8", shape=("batch", 8, 8, 1), units="grey level")


def task(changes: dict[str, Any], data: Path) -> Any:
    chosen, manifest = experiment(changes), prepared.read_manifest(data)
    return chosen.task.module.Task(chosen.task.config, manifest.target, manifest.inputs)


def test_what_halves_a_picture_of_any_size_is_undone():
    for height in range(1, 9):
        size = (height, 10 - height)
        half = halving(2, 3, size, bias=True)(torch.zeros(1, 2, *size))
        assert half.shape == (1, 3, *halved(size))
        assert doubling(3, 2, size, bias=True)(half).shape == (1, 2, *size)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_bound_is_what_it_is_by_hand(likelihood):
    class Body(torch.nn.Module):
        """Takes mean and half the log variance from two pixels, and makes all pixels of the first."""

        def encode(self, features):
            flat = features.flatten(1)
            return flat[:, :2], flat[:, 2:4] / 2

        def decode(self, latent):
            return (latent[:, :1] * torch.linspace(-1, 1, 64)).view(-1, 1, 8, 8)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def features(self, raw):
            return ((raw.permute(0, 3, 1, 2).float() / 255 - 0.5) * self.weight,)

    module = plugins.load("task", "reconstruction", "task.name")
    config = module.Config(name="reconstruction", latent=2, beta=3.0, likelihood=likelihood)
    judged = module.Task(config, Target(kind="number"), (IMAGE,))
    image = np.random.default_rng(1).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    rows, network = Rows({"image": image}, np.zeros(300, np.float32)), Network()
    found = judged.validate(network, rows, tuple(judged.measures))

    levels = (image / 255).reshape(300, 64)
    mean, log_variance = levels[:, :2] - 0.5, (levels[:, 2:4] - 0.5) / 2
    latent = mean + np.exp(log_variance / 2) * latents(300, 2)
    made = 1 / (1 + np.exp(-latent[:, :1] * np.linspace(-1, 1, 64)))
    if likelihood == "bernoulli":
        nats = -(levels * np.log(made) + (1 - levels) * np.log(1 - made))
    else:
        nats = (made - levels) ** 2 / 0.02 + np.log(0.1 * np.sqrt(2 * np.pi))
    divergence = (mean**2 + np.exp(log_variance) - log_variance - 1).sum(1).mean() / 2
    reconstruction = nats.sum(1).mean()
    assert found["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert found["divergence"] == pytest.approx(divergence, rel=1e-5)
    assert found["bound"] == pytest.approx(-reconstruction - divergence, rel=1e-5)
    assert found["loss"] == pytest.approx(reconstruction + 3 * divergence, rel=1e-5)
    assert found["active"] == 1.0


def test_an_autoencoder_learns(digits, tmp_path):
    history = train(digits, tmp_path, VAE).progress.history
    assert history[-1]["validation_loss"] < history[0]["validation_loss"] - 5
    told = [line["validation_reconstruction"] + line["validation_divergence"] for line in history]
    assert told == pytest.approx([line["validation_loss"] for line in history])


def test_two_players_go_on_where_they_were_interrupted(digits, tmp_path):
    whole = train(digits, tmp_path / "whole", GAN)
    folder = tmp_path / "part"

    def stop(line: dict[str, float]) -> None:
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(digits, folder, GAN, log=stop)
    again = train(digits, folder, GAN)
    assert again.weights == whole.weights
    assert again.progress.history == whole.progress.history


@pytest.mark.parametrize("settings", [GAN, LABELLED], ids=["plain", "labelled"])
def test_a_player_teaches_only_itself(digits, settings):
    from stages import network as networks

    chosen, manifest = experiment(settings), prepared.read_manifest(digits)
    network = networks.fresh(chosen, manifest)
    rows = prepared.read(digits, "train")
    raw = torch.from_numpy(rows.take(slice(0, 8))["image"])
    taught = [(1.0, torch.from_numpy(np.array(rows.target[:8])))]
    sides = {"generator": network.body.generator, "discriminator": network.body.discriminator}
    for player, loss in task(settings, digits).turns(network, [raw], taught):
        network.zero_grad(set_to_none=True)
        loss.backward()
        for name, side in sides.items():
            learns = [p.grad is not None for p in side.parameters()]
            assert all(learns) if name == player else not any(learns)
    assert all(p.requires_grad for side in sides.values() for p in side.parameters())


def test_the_largest_number_chooses_the_label(digits):
    from stages import network as networks

    chosen, manifest = experiment(LABELLED), prepared.read_manifest(digits)
    network, judged = networks.fresh(chosen, manifest), task(LABELLED, digits)
    generator = judged.deployable(network)
    asked = torch.zeros(3, 12)
    asked[:, :2] = torch.tensor([[3, 1], [0.2, 0], [0, 0.2]])
    made = generator(asked)[0]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])

    rows, told = prepared.read(digits, "train"), []
    raw = torch.from_numpy(rows.take(slice(0, 8))["image"])
    for off in (0, 1):
        torch.manual_seed(5)
        labels = torch.from_numpy((np.array(rows.target[:8]) + off) % 10)
        turns = judged.turns(network.eval(), [raw], [(1.0, labels)])
        told.append([loss.item() for _, loss in turns])
    # Only the discriminator is told of the labels of real pictures.
    assert told[0][0] != told[1][0] and told[0][1] == told[1][1]


def test_a_judge_knows_real_pictures_from_others_and_draws_nothing(digits):
    rows, manifest = prepared.read(digits, "train"), prepared.read_manifest(digits)
    before = torch.get_rng_state()
    judge = Judge(rows, "image", manifest.target)
    assert torch.equal(before, torch.get_rng_state())
    real, told = judge.looks(rows.arrays["image"])
    assert (told.argmax(1) == rows.target).mean() > 0.95
    noise = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 1), dtype=np.uint8)
    other, _ = judge.looks(noise)
    assert (
        distance(real, real) < 1e-6 < distance(real[::2], real[1::2]) < distance(real, other) / 20
    )
    # Of normals with the same axes it is known: squared distances of means and of deviations.
    one = np.random.default_rng(0).standard_normal((200_000, 2))
    assert distance(one, one * [3, 1] + [0, 2]) == pytest.approx(4 + 4, rel=0.02)


@pytest.mark.parametrize("kind", ["tags", "number"])
def test_a_judge_of_pictures_without_classes_has_features_only(kind):
    image = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    taught = image.reshape(64, 64)[:, :3] > 99 if kind == "tags" else image[:, 0, 0, 0] / 9
    rows = Rows({"image": image}, taught if kind == "tags" else taught.astype(np.float32))
    module = plugins.load("task", "adversarial", "task.name")
    target = Target(kind=kind, labels=tuple("abc") if kind == "tags" else ())
    judged = module.Task(module.Config(name="adversarial", latent=3), target, (IMAGE,))
    judged.study(rows)
    model = plugins.load("model", "gan", "model.name")
    body = model.build(model.Config(name="gan", generator_widths=(4,)), (1, 8, 8), 3)
    network = torch.nn.ModuleDict({"body": body})
    assert judged.watched == ()
    assert judged.validate(network, rows, ["distance"])["loss"] > 0
    with pytest.raises(ConfigError, match=r"metrics: recognised counts classes"):
        judged.validate(network, rows, ["recognised"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"export.part": "decoder"}, r"export\.part: classification ships one thing; take it out"),
        (
            VAE | {"export.part": "decodr"},
            r"export\.part: reconstruction has no part 'decodr', did",
        ),
        (VAE | {"metrics": ["accuracy"]}, r"metrics: reconstruction measures no 'accuracy'; known"),
        (
            VAE | {"train.early_stopping.metric": "bond"},
            r"early_stopping\.metric: .* no 'bond', did you mean 'bound'",
        ),
        (
            VAE | {"model": {"name": "mlp"}},
            r"model\.name: mlp gives answers, and reconstruction needs autoencoder: vae$",
        ),
        ({"model": {"name": "gan"}}, r"model\.name: gan gives adversaries, and classification"),
        (
            VAE | {"task": {"name": "reconstruction", "deviation": 0.2}},
            r"task: bernoulli does not use deviation",
        ),
    ],
)
def test_what_fits_nothing_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        experiment(changes)


@pytest.mark.parametrize(
    ("latent", "target", "told"),
    [
        (3, Target(kind="class", labels=tuple("abc")), r"task\.latent: 3, of which the first 3"),
        (3, Target(kind="number"), r"task\.labelled: the data's target is a number, not a class"),
    ],
)
def test_labels_that_cannot_be_chosen_are_refused(latent, target, told):
    module = plugins.load("task", "adversarial", "task.name")
    with pytest.raises(ConfigError, match=told):
        module.Task(
            module.Config(name="adversarial", latent=latent, labelled=True), target, (IMAGE,)
        )


def test_data_without_pictures_is_refused():
    module = plugins.load("task", "adversarial", "task.name")
    numbers = Input(name="numeric", dtype="float32", shape=("batch", 3), units="-")
    with pytest.raises(ConfigError, match=r"makes pictures, and this data has numeric float32 \[3"):
        module.Task(module.Config(name="adversarial"), Target(kind="number"), (numbers,))


COLOUR: dict[str, Any] = {
    "data": {"name": "pictures", "path": "colour", "height": 10, "width": 8},
    "train.batch_size": 16,
}
SHIPPED = {
    "decoder": (VAE | COLOUR, ["latent"], ["image"]),
    "encoder": (VAE, ["image"], ["mean", "log_variance"]),
    "autoencoder": (VAE, ["image", "noise"], ["reconstruction", "mean", "log_variance"]),
    "generator": (LABELLED | COLOUR, ["latent"], ["image"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A project whose experiments are all of `SHIPPED`."""
    exporter.once()
    path = tmp_path_factory.mktemp("generators")
    classes(path / "colour", count=50)
    once = {"train.epochs": 1}
    experiments = {
        part: settings(changes | once | ({} if part == "generator" else {"export.part": part}))
        for part, (changes, *_) in SHIPPED.items()
    }
    (path / "params.yaml").write_text(json.dumps({"experiments": experiments}))
    return path


@pytest.mark.parametrize("part", SHIPPED)
def test_a_part_goes_from_data_to_a_proven_bundle(part, folder, monkeypatch):
    from serving.config import Settings
    from serving.errors import Unsupported
    from serving.inference import prediction
    from serving.inference.model import load
    from stages import evaluate, export, prepare, verify
    from stages import train as training
    from stages.commands.summary import describe
    from stages.layout import Layout

    monkeypatch.chdir(folder)
    monkeypatch.setenv("SLIPWAY_TRACKING", "off")
    for stage in (prepare, training, evaluate, export, verify):
        done = CliRunner().invoke(stage.command, [part])
        assert not done.exit_code, f"{done.output}\n{done.exception!r}"
    changes, asked, given = SHIPPED[part]
    layout = Layout(part)
    bundle = read(layout.bundle)
    assert [i.name for i in bundle.manifest.inputs] == asked
    assert [o.name for o in bundle.manifest.outputs] == given
    # Figures that no answer tells are those of the report.
    report = json.loads(layout.metrics.read_bytes())["test"]
    assert bundle.manifest.metrics == report and list(report) == sorted(changes["metrics"])
    assert all(name in "\n".join(describe(layout)) for name in changes["metrics"])
    profile = json.loads(bundle.contents["profile.json"])
    assert set(profile["inputs"]) == set(asked) and set(profile["predictions"]) == set(given)
    assert (
        bundle.manifest.variants["fp32"].parity.rows
        == prepared.read_manifest(layout.data).rows["test"]
    )
    inputs, _ = golden.unpack(bundle.contents["golden.npz"])
    assert list(inputs) == sorted(asked) and {len(rows) for rows in inputs.values()} == {16}
    assert layout.pictures.joinpath("samples.png").read_bytes().startswith(b"\x89PNG")
    model = load(bundle, Settings())
    answers = model.session.run(inputs)
    assert all(np.isfinite(answer).all() for answer in answers.values())
    with pytest.raises(Unsupported, match=r"use \.\.\./infer"):
        prediction.answering(bundle.manifest)
