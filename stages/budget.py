"""A network and a training that suit so many pictures and end within a few minutes on a CPU.

Plain rules, for a first experiment: what they choose is written out in `params.yaml`, to be changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.dataset import counted

SECONDS = 240.0
"""What a proposed training may take on one thread; a slower machine than ours has a minute to spare."""

RATE = 40e9
"""Floating-point operations a second that one thread trains at: two thirds of what a server core of
2023 was seen to do, with normalisation and activation, which are not counted, in the time."""

SECONDS_PER_VALUE = 6e-8
"""What augmentation takes for one number of one picture, twice what was measured."""

SMALL_SET = 2000
"""Pictures to train on below which a plain CNN with dropout is chosen, and more passes."""

SIDES = (128, 96, 64, 48, 32)
MIN_EPOCHS = 10
MAX_EPOCHS = {True: 80, False: 40}
"""By whether the set is a small one."""


@dataclass(frozen=True)
class Choice:
    """What was chosen."""

    height: int
    width: int
    model: dict[str, Any]
    epochs: int
    batch_size: int
    minutes: float
    """What the training is expected to take, at most."""

    @property
    def duration(self) -> str:
        """`3 minutes`, at least one."""
        return counted(max(1, round(self.minutes)), "minute")


def choose(
    rows: int,
    classes: int,
    size: tuple[int, int],
    channels: int,
    *,
    resize: bool = True,
    before: float = 0.0,
) -> Choice:
    """For `rows` pictures to train on, usually of `size` (height, width).

    `before` is what one takes before it reaches the network, in seconds.

    The largest pictures, and for them the widest network, that leave time for `MIN_EPOCHS` passes;
    the smallest pictures with as many passes as there is time for, where none does.
    """
    small = rows < SMALL_SET
    tried = [
        (place, width)
        for place in (_sizes(size) if resize else [size])
        for width in ((16, 8) if small else (32, 16, 8))
    ]
    for height_width, width in tried:
        model = _model(small, min(height_width), width)
        seconds = rows * (before + _seconds(model, height_width, channels, classes))
        epochs = min(MAX_EPOCHS[small], int(SECONDS / seconds))
        if epochs >= MIN_EPOCHS:
            break
    epochs = max(1, epochs)
    batch = 32 if small else 64 if rows < 10_000 else 128
    return Choice(*height_width, model, epochs, min(batch, rows), epochs * seconds / 60)


def _sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes of the same proportions, none larger than the pictures are, the largest first."""
    longest = max(size)
    sides = [side for side in SIDES if side < longest] or [longest]
    if longest <= SIDES[0]:
        sides = [longest, *(side for side in sides if side != longest)]
    return [
        (max(8, round(size[0] * side / longest)), max(8, round(size[1] * side / longest)))
        for side in sides
    ]


def _model(small: bool, side: int, width: int) -> dict[str, Any]:
    stages = 1
    while side >> stages >= 5 and stages < 5:
        stages += 1
    if small:
        return {
            "name": "cnn",
            "depth": stages,
            "convolutions": 1 if side > 40 else 2,
            "width": width,
            "batch_norm": True,
            "dropout": 0.4,
        }
    large = side > 96
    return {
        "name": "resnet",
        "depth": min(4, stages - 1 if large else stages),
        "blocks": 1,
        "width": width,
        "stem": "large" if large else "small",
        "dropout": 0.1,
    }


def _seconds(model: dict[str, Any], size: tuple[int, int], channels: int, classes: int) -> float:
    """What one picture of one epoch takes: forward and backward are three times forward."""
    operations = _operations(tuple(model.items()), (channels, *size), classes)
    values = channels * size[0] * size[1]
    return 3 * operations / RATE + values * SECONDS_PER_VALUE


@lru_cache
def _operations(
    model: tuple[tuple[str, Any], ...], shape: tuple[int, int, int], classes: int
) -> float:
    """Floating-point operations of one picture forward, counted on a network without numbers."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline import plugins

    settings = dict(model)
    module = plugins.load("model", settings["name"], "model.name")
    with torch.device("meta"):
        body = module.build(module.Config(**settings), shape, classes)
        with FlopCounterMode(display=False) as counted:
            body(torch.zeros(2, *shape))
    return counted.get_total_flops() / 2
