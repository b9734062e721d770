"""The training loop. It knows neither models nor tasks: a stage looks both up and passes them in.

Torch wakes inside the functions, so that the settings below can be checked without it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipeline import augment, optimise
from pipeline.augment import Augment, augmented, mixup
from pipeline.config import ConfigError, Section
from pipeline.prepared import Rows
from pipeline.start import settle

if TYPE_CHECKING:
    import torch
    from torch import nn


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to try."""


class EarlyStopping(Section):
    """When to stop, and which epoch's weights are kept."""

    metric: str = Field("loss", description="'loss' or a metric, of the validation split")
    patience: int = Field(0, ge=0, description="epochs without a better value; 0: never stop early")
    keep: Literal["best", "last"] = Field(
        "best", description="which epoch's weights are the result"
    )


class Config(Section):
    """How an experiment is trained."""

    lr: float = Field(gt=0, description="peak learning rate")
    epochs: int = Field(ge=1, le=1_000_000, description="passes over the training split")
    batch_size: int = Field(ge=1, description="rows; a last, smaller batch of an epoch is dropped")
    seed: int = Field(
        0, ge=0, lt=1 << 32, description="of weights, order, augmentation and dropout"
    )
    threads: int = Field(
        1, ge=0, le=1024, description="CPU threads; 0: all. Another number, other last digits"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one; cuda: an error where there is none"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of the arithmetic of training steps; bf16 is quicker on hardware made for it. "
        "Weights, frontends, evaluation and export are fp32 in any case",
    )
    optimiser: optimise.Optimiser = optimise.Optimiser()
    schedule: optimise.Schedule = optimise.Schedule()
    penalty: optimise.Penalty = optimise.Penalty()
    clip_norm: float = Field(
        0.0, ge=0, description="largest norm of the whole gradient; 0: no clipping"
    )
    augment: Augment = Augment()
    early_stopping: EarlyStopping = EarlyStopping()


@dataclass
class Progress:
    """Everything that a training knows beyond weights; what a checkpoint holds beside them."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float = math.inf
    finished: bool = False


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """'cpu' or 'cuda'. Raises `ConfigError` when CUDA is demanded and there is none."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"train.device: 'cuda' asked for, but torch {torch.__version__} sees no CUDA device; "
            "install a CUDA build of torch and a driver, or set it to 'auto' or 'cpu'"
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def fit(
    network: nn.Module,
    config: Config,
    train: Rows,
    validation: Rows,
    *,
    players: Mapping[str, nn.Module],
    turns: Callable[..., Iterator[tuple[str, torch.Tensor]]],
    score: Callable[[nn.Module, Rows], dict[str, float]],
    better: Mapping[str, Literal["higher", "lower"]],
    log: Callable[[dict[str, float]], None],
    folder: Path,
    key: str,
) -> Progress:
    """Train `network` in place and leave the kept epoch's weights in it.

    `players` are the parts that are trained, each with an optimiser of its own. For a batch,
    `turns(network, raw, taught)` gives a player's name and the loss of its next step, in turn; `taught`
    are targets, each with the share of the loss that it counts for. Curves show the sum of the losses.
    `score(network, rows)` gives the watched metrics and `loss` of a split; `better` says which way
    each improves. `log` is called with one dict of numbers per epoch, `epoch` first. `folder`
    receives `last.pt` and `best.pt` after every epoch; a later call with the same `key` goes on
    from an unfinished `last.pt`. Raises `TrainingError` on a loss that is no number.
    """
    import torch

    from pipeline.checkpoint import load_state, save_state

    augment.check(config.augment, list(train.arrays))
    watched = config.early_stopping.metric
    if watched not in better:
        raise ConfigError(f"train.early_stopping.metric: {watched!r} is not among {sorted(better)}")
    if config.batch_size > len(train):
        raise ConfigError(
            f"train.batch_size: {config.batch_size} rows, but only {len(train)} to train on"
        )
    if config.batch_size == 1 and _normalises_batches(network):
        raise ConfigError(
            "train.batch_size: 1 row, which batch normalisation has nothing to compare with; "
            "set it to 2 or more, or model.batch_norm to false"
        )
    for name, part in players.items():
        if not any(parameter.requires_grad for parameter in part.parameters()):
            raise ConfigError(f"model.freeze: nothing of the {name} is left to train")
    device = next(network.parameters()).device
    optimisers = {
        name: optimise.build(config.optimiser, config.lr, part) for name, part in players.items()
    }
    progress = Progress()
    state = load_state(folder / "last.pt")
    if state and state.get("key") == key and not state["progress"]["finished"]:
        _restore(state, network, optimisers)
        progress = Progress(**state["progress"])
        print(f"resuming after epoch {progress.epoch} of {config.epochs}", flush=True)
        for line in progress.history:
            log(line)

    steps_per_epoch = len(train) // config.batch_size
    bar = _Bar(config.epochs * steps_per_epoch, progress.epoch * steps_per_epoch)
    while progress.epoch < config.epochs and not _patience_ended(progress, config.early_stopping):
        progress.epoch += 1
        network.train()
        settle(network)
        losses = torch.zeros((), device=device)
        for number, (inputs, taught) in enumerate(_shuffled(train, config, progress.epoch)):
            step = (progress.epoch - 1) * steps_per_epoch + number
            share = optimise.factor(
                config.schedule, step, config.epochs * steps_per_epoch, steps_per_epoch
            )
            for group in (g for o in optimisers.values() for g in o.param_groups):
                group["lr"] = config.lr * share
            raw = [tensor.to(device) for tensor in inputs]
            batch = [(part, target.to(device)) for part, target in taught]
            for player, value in _cast(turns(network, raw, batch), config.precision, device):
                losses += value.detach()
                optimisers[player].zero_grad(set_to_none=True)
                (value + optimise.penalty(config.penalty, players[player])).backward()
                if config.clip_norm:
                    torch.nn.utils.clip_grad_norm_(players[player].parameters(), config.clip_norm)
                _step(optimisers[player], progress.epoch, config.lr * share)
            bar.step()
        line = _line(progress.epoch, config.lr * share, float(losses) / steps_per_epoch)
        scores = score(network, validation)
        _refuse_infinite("validation loss", scores["loss"], line)
        line |= {f"validation_{name}": value for name, value in scores.items()}
        progress.history.append(line)
        sign = 1 if better[watched] == "lower" else -1
        improved = sign * line[f"validation_{watched}"] < progress.best_value
        if improved:
            progress.best_value = sign * line[f"validation_{watched}"]
            progress.best_epoch = progress.epoch
            save_state(folder / "best.pt", {"key": key, "network": network.state_dict()})
        save_state(folder / "last.pt", _state(key, network, optimisers, progress))
        log(line)
        bar.epoch(line, config.epochs)
    bar.close()

    if config.early_stopping.keep == "best":
        best = load_state(folder / "best.pt")
        if best is None or best.get("key") != key:
            raise TrainingError(f"{folder / 'best.pt'} is gone; delete the folder and train again")
        network.load_state_dict(best["network"])
    progress.finished = True
    save_state(folder / "last.pt", _state(key, network, optimisers, progress))
    return progress


def _cast(
    turns: Iterator[tuple[str, torch.Tensor]], precision: str, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """The same turns, each forward pass and its loss in that precision; backward passes follow suit."""
    import torch

    while True:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            turn = next(turns, None)
        if turn is None:
            return
        yield turn


def _normalises_batches(network: nn.Module) -> bool:
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return any(isinstance(part, kinds) for part in network.modules())


def _step(optimiser: torch.optim.Optimizer, epoch: int, lr: float) -> None:
    """One step. Raises `TrainingError` where it is too large to be a float32."""
    try:
        optimiser.step()
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise TrainingError(
            f"a step of epoch {epoch} is beyond what float32 holds (lr {lr:.3g}); lower train.lr"
        ) from None


def _shuffled(
    train: Rows, config: Config, epoch: int
) -> Iterator[tuple[list[torch.Tensor], list[tuple[float, torch.Tensor]]]]:
    """One epoch's batches in an order that follows from seed and epoch alone.

    The inputs, and what they teach: targets, each with the share of the loss that it counts for.
    """
    import torch

    order = np.random.default_rng((config.seed, epoch)).permutation(len(train))
    for start in range(0, len(train) - config.batch_size + 1, config.batch_size):
        # Sorted, a batch is read from the map front to back; its order means nothing to the step.
        chosen = np.sort(order[start : start + config.batch_size])
        raw = {name: torch.from_numpy(array) for name, array in train.take(chosen).items()}
        inputs = list(augmented(raw, config.augment).values())
        target = torch.from_numpy(np.array(train.target[chosen]))
        if config.augment.mixup:
            yield mixup(inputs, target, config.augment.mixup)
        else:
            yield inputs, [(1.0, target)]


def _line(epoch: int, lr: float, loss: float) -> dict[str, float]:
    line = {"epoch": epoch, "lr": lr, "train_loss": loss}
    _refuse_infinite("training loss", loss, line)
    return line


def _refuse_infinite(what: str, value: float, line: dict[str, float]) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} became {value} in epoch {line['epoch']} (lr {line['lr']:.3g}); "
            "lower train.lr, or set train.clip_norm to 1"
        )


def _patience_ended(progress: Progress, config: EarlyStopping) -> bool:
    return 0 < config.patience <= progress.epoch - progress.best_epoch


def _state(
    key: str,
    network: nn.Module,
    optimisers: Mapping[str, torch.optim.Optimizer],
    progress: Progress,
) -> dict[str, Any]:
    import torch

    return {
        "key": key,
        "network": network.state_dict(),
        "optimisers": {name: each.state_dict() for name, each in optimisers.items()},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": vars(progress),
    }


def _restore(
    state: dict[str, Any], network: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer]
) -> None:
    import torch

    network.load_state_dict(state["network"])
    for name, optimiser in optimisers.items():
        optimiser.load_state_dict(state["optimisers"][name])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])


class _Bar:
    """A live bar on a terminal, one plain line per epoch elsewhere.

    A terminal that says it has no columns (a serial line, a build machine's) would show an empty
    bar, so it counts as elsewhere.
    """

    def __init__(self, total: int, done: int) -> None:
        from tqdm import tqdm

        self.live = sys.stderr.isatty() and _columns() > 0
        self.tqdm = tqdm(total=total, initial=done, unit="step", disable=not self.live, leave=True)

    def step(self) -> None:
        self.tqdm.update()

    def epoch(self, line: dict[str, float], epochs: int) -> None:
        if self.live:
            self.tqdm.set_description(f"epoch {line['epoch']}/{epochs}", refresh=False)
            self.tqdm.set_postfix_str(f"validation loss {line['validation_loss']:.4g}")
        else:
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in line.items() if k != "epoch")
            print(f"epoch {line['epoch']}/{epochs}  {numbers}", flush=True)

    def close(self) -> None:
        self.tqdm.close()


def _columns() -> int:
    """The width of the terminal that standard error is."""
    if os.environ.get("COLUMNS") == "0":
        return 0
    return os.get_terminal_size(sys.stderr.fileno()).columns
