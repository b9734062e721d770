"""The training loop. It knows neither models nor tasks: a stage looks both up and passes them in.

Torch wakes inside the functions, so that the settings below can be checked without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from pipeline import augment, optimise
from pipeline.augment import Augment, augmented, mixup
from pipeline.bar import Bar
from pipeline.config import ConfigError, Section
from pipeline.prepared import Rows
from pipeline.start import settle

if TYPE_CHECKING:
    import torch
    from torch import nn

Turns = Callable[..., Iterator[tuple[str, "torch.Tensor"]]]
"""`turns(network, raw, taught)`: for a batch, a player's name and the loss of its next step, in turn.

`taught` are targets, each with the share of the loss that it counts for.
"""


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
    """Everything that a training knows beyond weights; what a checkpoint holds beside them.

    `history` has a line for each epoch; `best_value` is the watched figure of `best_epoch`, its
    sign turned where higher is better.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float = math.inf
    finished: bool = False

    def add(self, line: dict[str, float], value: float) -> bool:
        """Take in an epoch's line; whether `value`, of which less is better, is the best so far."""
        self.history.append(line)
        if not value < self.best_value:  # not `>=`: NaN is no better
            return False
        self.best_value, self.best_epoch = value, self.epoch
        return True


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
    turns: Turns,
    score: Callable[[nn.Module, Rows], dict[str, float]],
    better: Mapping[str, Literal["higher", "lower"]],
    log: Callable[[dict[str, float]], None],
    folder: Path,
    key: str,
) -> Progress:
    """Train `network` in place and leave the kept epoch's weights in it.

    `players` are the parts that are trained, each with an optimiser of its own, and `turns` says what
    each learns of a batch. Curves show the sum of the losses. `score(network, rows)` gives the watched
    metrics and `loss` of a split; `better` says which way each improves. `log` is called with one dict
    of numbers per epoch, `epoch` first. `folder` receives `last.pt` and `best.pt` after every epoch; a
    later call with the same `key` goes on from an unfinished `last.pt`. Raises `ConfigError` where the
    settings do not fit the rows or the network, and `TrainingError` on a loss that is no number.
    """
    from pipeline.checkpoint import Checkpoints

    _check(config, network, train, players, better)
    watched = config.early_stopping.metric
    sign = 1 if better[watched] == "lower" else -1
    trainer = _Trainer(network, config, players, turns)
    checkpoints = Checkpoints(folder, key, network, trainer.optimisers)
    progress = Progress(**checkpoints.resume())
    if progress.epoch:
        print(f"resuming after epoch {progress.epoch} of {config.epochs}", flush=True)
        for line in progress.history:
            log(line)

    steps = len(train) // config.batch_size
    bar = Bar(config.epochs, steps, progress.epoch)
    while progress.epoch < config.epochs and not _patience_ended(progress, config.early_stopping):
        progress.epoch += 1
        line = trainer.epoch(progress.epoch, train, bar.step)
        line |= _judged(score(network, validation), line)
        if progress.add(line, sign * line[f"validation_{watched}"]):
            checkpoints.save_best()
        checkpoints.save(vars(progress))
        log(line)
        bar.epoch(line)
    bar.close()

    if config.early_stopping.keep == "best" and not checkpoints.restore_best():
        raise TrainingError(f"{folder / 'best.pt'} is gone; delete the folder and train again")
    progress.finished = True
    checkpoints.save(vars(progress))
    return progress


def _check(
    config: Config,
    network: nn.Module,
    train: Rows,
    players: Mapping[str, nn.Module],
    known: Collection[str],
) -> None:
    """Raise `ConfigError` for settings that these rows, figures or parts cannot be trained with."""
    augment.check(config.augment, list(train.arrays))
    watched = config.early_stopping.metric
    if watched not in known:
        raise ConfigError(f"train.early_stopping.metric: {watched!r} is not among {sorted(known)}")
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


def _normalises_batches(network: nn.Module) -> bool:
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return any(isinstance(part, kinds) for part in network.modules())


class _Trainer:
    """The steps of a training: whose turn it is, at what learning rate, by which optimiser."""

    def __init__(
        self,
        network: nn.Module,
        config: Config,
        players: Mapping[str, nn.Module],
        turns: Turns,
    ) -> None:
        self.network, self.config, self.players, self.turns = network, config, players, turns
        self.device = next(network.parameters()).device
        self.optimisers = {
            name: optimise.build(config.optimiser, config.lr, part)
            for name, part in players.items()
        }

    def epoch(self, epoch: int, train: Rows, stepped: Callable[[], None]) -> dict[str, float]:
        """One pass over the rows, `stepped` called after each batch; the epoch's line of the curves.

        `lr` is that of its last step, `train_loss` the mean over its batches. Raises `TrainingError`.
        """
        import torch

        self.network.train()
        settle(self.network)
        steps = len(train) // self.config.batch_size
        lr, losses = 0.0, torch.zeros((), device=self.device)
        for number, (inputs, taught) in enumerate(_shuffled(train, self.config, epoch)):
            lr = self._set_lr((epoch - 1) * steps + number, steps)
            raw = [tensor.to(self.device) for tensor in inputs]
            batch = [(share, target.to(self.device)) for share, target in taught]
            turns = self.turns(self.network, raw, batch)
            for player, loss in _cast(turns, self.config.precision, self.device):
                losses += loss.detach()
                self._learn(player, loss, epoch, lr)
            stepped()
        line = {"epoch": epoch, "lr": lr, "train_loss": float(losses) / steps}
        _refuse_infinite("training loss", line["train_loss"], line)
        return line

    def _set_lr(self, step: int, steps_per_epoch: int) -> float:
        """Bring every optimiser to the learning rate of this step of the training, and return it."""
        steps = self.config.epochs * steps_per_epoch
        lr = self.config.lr * optimise.factor(self.config.schedule, step, steps, steps_per_epoch)
        for group in (g for o in self.optimisers.values() for g in o.param_groups):
            group["lr"] = lr
        return lr

    def _learn(self, player: str, loss: torch.Tensor, epoch: int, lr: float) -> None:
        """One step of one player. Raises `TrainingError` where it is too large to be a float32."""
        import torch

        part, optimiser = self.players[player], self.optimisers[player]
        optimiser.zero_grad(set_to_none=True)
        (loss + optimise.penalty(self.config.penalty, part)).backward()
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(part.parameters(), self.config.clip_norm)
        try:
            optimiser.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise TrainingError(
                f"a step of epoch {epoch} is beyond what float32 holds (lr {lr:.3g}); lower train.lr"
            ) from None


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


def _judged(scores: Mapping[str, float], line: Mapping[str, float]) -> dict[str, float]:
    """What the validation split says, as the curves name it. Raises `TrainingError`."""
    _refuse_infinite("validation loss", scores["loss"], line)
    return {f"validation_{name}": value for name, value in scores.items()}


def _refuse_infinite(what: str, value: float, line: Mapping[str, float]) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} became {value} in epoch {line['epoch']} (lr {line['lr']:.3g}); "
            "lower train.lr, or set train.clip_norm to 1"
        )


def _patience_ended(progress: Progress, config: EarlyStopping) -> bool:
    return 0 < config.patience <= progress.epoch - progress.best_epoch
