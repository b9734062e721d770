"""The loop: it learns, repeats itself to the bit, survives being killed, and says why it stops."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import prepared
from pipeline.config import ConfigError
from pipeline.train import TrainingError
from tests.pipeline.experiments import Trained, train

# Everything that draws random numbers or keeps state between epochs.
RESTLESS = {
    "train.epochs": 10,
    "model.dropout": 0.2,
    "model.batch_norm": True,
    "train.augment": {"rotate": 10, "shift": 0.5},
    "train.schedule": {"name": "one_cycle"},
    "train.penalty.l1": 1e-5,
    "train.clip_norm": 1.0,
}


@pytest.fixture(scope="module")
def restless(digits: Path, tmp_path_factory) -> Trained:
    return train(digits, tmp_path_factory.mktemp("restless"), RESTLESS)


def copied(run: Trained, folder: Path, **state) -> Path:
    """The checkpoints of a finished run as if it had not finished; `state` changes the last one."""
    for name in ("last.pt", "best.pt"):
        saved = torch.load(run.checkpoints / name, weights_only=True)
        if name == "last.pt":
            saved["progress"]["finished"] = False
            saved |= state
        torch.save(saved, folder / name)
    return folder


def test_it_learns(trained):
    losses = [line["train_loss"] for line in trained.progress.history]
    assert losses[-1] < losses[0] / 3
    assert trained.progress.history[-1]["validation_accuracy"] > 0.9


def test_every_epoch_is_logged_and_kept_in_history(restless):
    assert restless.logged == restless.progress.history
    assert [line["epoch"] for line in restless.logged] == list(range(1, 11))
    assert set(restless.logged[0]) == {
        "epoch",
        "lr",
        "train_loss",
        "validation_accuracy",
        "validation_loss",
    }


def test_a_repetition_is_the_same_to_the_bit(digits, restless, tmp_path):
    again = train(digits, tmp_path, RESTLESS)
    assert again.weights == restless.weights
    assert again.progress.history == restless.progress.history


def test_another_seed_is_another_training(digits, restless, tmp_path):
    assert train(digits, tmp_path, RESTLESS | {"train.seed": 2}).weights != restless.weights


def test_killed_and_resumed_it_ends_the_same_to_the_bit(digits, restless, tmp_path, capsys):
    command = [sys.executable, "-m", "tests.pipeline.training", str(digits), str(tmp_path)]
    dice = random.Random()
    # (epoch, seconds after its end): anywhere in the next epochs, or between two of them.
    deaths = [(dice.randint(1, 2), dice.random() / 20), (dice.randint(3, 5), dice.random() / 20)]
    told = ""
    for epoch, delay in deaths:
        done = subprocess.run(
            [*command, json.dumps(RESTLESS), str(epoch), str(delay)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, (deaths, told, done)
        told += done.stdout
    last = train(digits, tmp_path, RESTLESS)
    told += capsys.readouterr().out
    assert told.count("resuming after epoch") == 2, (deaths, told)
    assert last.weights == restless.weights, (deaths, told)
    assert last.progress.history == restless.progress.history


def test_a_resumed_training_logs_its_past_again(digits, restless, tmp_path):
    from pipeline.checkpoint import load_state

    # As it was after epoch 10 of 10, before the end was written: nothing is left to do.
    resumed = train(digits, copied(restless, tmp_path), RESTLESS)
    assert resumed.logged == restless.logged
    assert resumed.weights == restless.weights
    state = load_state(tmp_path / "last.pt")
    assert state is not None and state["progress"]["finished"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_a_damaged_checkpoint_starts_anew_and_says_so(digits, restless, tmp_path, capsys, damage):
    last = copied(restless, tmp_path) / "last.pt"
    sound = last.read_bytes()
    middle = len(sound) // 2
    last.write_bytes(
        {
            "cut": sound[:middle],
            "flipped": sound[:64] + bytes(b ^ 255 for b in sound[64:600]) + sound[600:],
            "text": b"not a checkpoint",
            "empty": b"",
        }[damage]
    )
    again = train(digits, tmp_path, RESTLESS)
    told = capsys.readouterr().out
    assert "last.pt: not a readable checkpoint" in told and "training starts anew" in told
    assert "resuming" not in told and again.weights == restless.weights


class Touch:
    """What a hostile checkpoint could run while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(digits, tmp_path, capsys):
    torch.save({"key": "key", "progress": Touch(tmp_path / "touched")}, tmp_path / "last.pt")
    train(digits, tmp_path, {"train.epochs": 1})
    assert "not a readable checkpoint" in capsys.readouterr().out
    assert not (tmp_path / "touched").exists()


def test_another_key_starts_anew(digits, restless, tmp_path, capsys):
    again = train(digits, copied(restless, tmp_path), RESTLESS, key="other")
    assert "resuming" not in capsys.readouterr().out
    assert len(again.logged) == 10 and again.weights == restless.weights


def test_a_finished_training_is_trained_anew(digits, restless, tmp_path, capsys):
    one = train(digits, tmp_path, {"train.epochs": 2})
    capsys.readouterr()
    two = train(digits, tmp_path, {"train.epochs": 2})
    told = capsys.readouterr().out
    assert "resuming" not in told and "epoch 1/2" in told
    assert one.weights == two.weights


STUBBORN = {"train.lr": 0.5, "train.epochs": 40, "train.schedule.name": "constant"}


def test_patience_stops_early_and_the_best_epoch_is_kept(digits, tmp_path):
    run = train(digits, tmp_path, STUBBORN | {"train.early_stopping.patience": 3})
    losses = [line["validation_loss"] for line in run.progress.history]
    assert len(losses) < 40 and run.progress.epoch == len(losses)
    assert run.progress.best_epoch == int(np.argmin(losses)) + 1 == len(losses) - 3
    best = torch.load(tmp_path / "best.pt", weights_only=True)["network"]
    for name, tensor in run.network.state_dict().items():
        assert torch.equal(tensor, best[name])


def test_the_last_epoch_is_kept_when_asked(digits, tmp_path):
    settings = STUBBORN | {"train.epochs": 6, "train.early_stopping.keep": "last"}
    run = train(digits, tmp_path, settings)
    assert run.progress.best_epoch < 6
    last = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
    for name, tensor in run.network.state_dict().items():
        assert torch.equal(tensor, last[name])


def test_a_metric_that_should_rise_is_watched_upwards(digits, tmp_path):
    settings = {"train.epochs": 4, "train.early_stopping.metric": "balanced_accuracy"}
    run = train(digits, tmp_path, settings)
    watched = [line["validation_balanced_accuracy"] for line in run.progress.history]
    assert run.progress.best_epoch == int(np.argmax(watched)) + 1 != int(np.argmin(watched)) + 1


def test_a_loss_that_is_no_number_names_the_epoch(digits, tmp_path):
    settings = {"train.lr": 1e30, "train.schedule.name": "constant", "train.epochs": 3}
    with pytest.raises(
        TrainingError, match=r"training loss became (nan|inf) in epoch 1 .*train\.lr"
    ):
        train(digits, tmp_path, settings | {"train.optimiser.name": "sgd"})


def test_a_last_step_into_nothing_names_the_epoch(digits, tmp_path):
    # One step an epoch: the loss is taken before it, and only the validation sees what it did.
    rows = len(prepared.read(digits, "train"))
    settings = {"train.lr": 1e38, "train.batch_size": rows, "train.optimiser.name": "sgd"}
    settings |= {"train.epochs": 1, "train.early_stopping.keep": "last"}
    with pytest.raises(TrainingError, match="validation loss became nan in epoch 1"):
        train(digits, tmp_path, settings)


def test_a_batch_larger_than_the_data_is_refused(digits, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.batch_size: 5000 rows, but only 12\d\d to train"
    ):
        train(digits, tmp_path, {"train.batch_size": 5000})


BF16 = {
    "model": {"name": "cnn", "convolutions": 1, "width": 8, "dropout": 0.2},
    "train.precision": "bf16",
}


def test_bf16_learns_as_well_keeps_weights_in_fp32_and_repeats_itself(digits, tmp_path):
    cast, again, full = (
        train(digits, tmp_path / name, BF16 | {"train.precision": precision, "train.epochs": 4})
        for name, precision in (("one", "bf16"), ("other", "bf16"), ("full", "fp32"))
    )
    assert cast.weights == again.weights != full.weights
    assert {t.dtype for t in cast.network.state_dict().values()} == {torch.float32, torch.int64}
    last, exact = (run.progress.history[-1]["validation_loss"] for run in (cast, full))
    assert last == pytest.approx(exact, rel=0.1)
    rows = prepared.read(digits, "validation")
    image = torch.from_numpy(np.array(rows.arrays["image"]))
    assert cast.network(image).dtype == torch.float32


@pytest.mark.parametrize("model", ["mlp", "resnet", "recurrent", "transformer", "vae", "gan"])
def test_any_network_learns_in_bf16_and_its_frontend_stays_exact(digits, tmp_path, model):
    task = {"vae": "reconstruction", "gan": "adversarial"}.get(model, "classification")
    metrics = {"vae": ["bound"], "gan": ["distance"]}.get(model, ["accuracy"])
    settings = {"model": {"name": model}, "task": {"name": task}, "metrics": metrics}
    seen = set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, out: (
            seen.add((type(module).__name__, out.dtype))
            if isinstance(out, torch.Tensor) and module.training
            else None
        )
    )
    try:
        run = train(digits, tmp_path, settings | {"train.epochs": 1, "train.precision": "bf16"})
    finally:
        hook.remove()
    assert ("Pixels", torch.float32) in seen and torch.bfloat16 in {dtype for _, dtype in seen}
    assert np.isfinite(run.progress.history[0]["train_loss"])


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_batch_normalisation_over_one_row_is_refused(digits, tmp_path, model):
    alone = {"model.name": model, "model.batch_norm": True, "train.batch_size": 1}
    with pytest.raises(ConfigError, match=r"train\.batch_size: 1 row, .* model\.batch_norm"):
        train(digits, tmp_path, alone)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("lr", [1e38, 1e300])
def test_a_learning_rate_beyond_float32_ends_in_a_sentence(digits, tmp_path, optimiser, lr):
    settings = {"train.lr": lr, "train.optimiser.name": optimiser}
    with pytest.raises(
        TrainingError, match=r"in epoch 1 .*lower train\.lr|of epoch 1 .*lower train\.lr"
    ):
        train(digits, tmp_path, settings)


@pytest.mark.parametrize(
    ("columns", "environment", "bar"),
    [(80, {}, True), (0, {}, False), (80, {"COLUMNS": "0"}, False)],
)
def test_a_terminal_without_columns_gets_plain_lines(
    digits, tmp_path, monkeypatch, capsys, columns, environment, bar
):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = bytearray()

    def look() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(ours, 1 << 16):
                shown.extend(chunk)

    looking = threading.Thread(target=look)
    looking.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        train(digits, tmp_path, {"train.epochs": 3})
    looking.join()
    os.close(ours)
    assert (b"epoch 3/3" in shown) == bar
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("epoch 3/3  lr ") for line in lines) == (not bar)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_not_had_is_refused(digits, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.device: 'cuda' asked for, but torch .* sees no"):
        train(digits, tmp_path, {"train.device": "cuda"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_learns_on_cuda(digits, tmp_path):
    cuda = {"train.device": "cuda", "train.epochs": 8}
    cast = train(digits, tmp_path / "cast", BF16 | cuda)
    assert cast.progress.history[-1]["validation_accuracy"] > 0.85
    run = train(digits, tmp_path, cuda)
    assert run.progress.history[-1]["validation_accuracy"] > 0.85
