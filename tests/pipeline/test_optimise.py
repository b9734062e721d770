"""Optimisers, schedules and penalties against torch's own and against formulas by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import optimise
from pipeline.config import ConfigError, build
from pipeline.optimise import Optimiser, Penalty, Schedule


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def steps(net: nn.Module, optimiser: torch.optim.Optimizer, count: int = 4) -> list[torch.Tensor]:
    """The parameters after a few steps on fixed data."""
    torch.manual_seed(1)
    for _ in range(count):
        optimiser.zero_grad()
        net(torch.randn(6, 1, 4, 4)).square().sum().backward()
        optimiser.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (Optimiser(name="sgd", momentum=0.0), lambda p: torch.optim.SGD(p, 0.01)),
        (Optimiser(name="sgd", momentum=0.8), lambda p: torch.optim.SGD(p, 0.01, 0.8)),
        (
            Optimiser(name="sgd", momentum=0.8, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.01, 0.8, nesterov=True),
        ),
        (Optimiser(name="adam", beta2=0.9), lambda p: torch.optim.Adam(p, 0.01, (0.9, 0.9))),
        (Optimiser(), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0)),
    ],
)
def test_an_optimiser_steps_as_torchs(config, reference):
    ours, theirs = network(), network()
    pairs = zip(
        steps(ours, optimise.build(config, 0.01, ours)),
        steps(theirs, reference(theirs.parameters())),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def test_weight_decay_touches_matrices_and_kernels_only():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimiser = optimise.build(Optimiser(weight_decay=0.5), 0.1, net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for old, new in zip(before, net.parameters(), strict=True):
        expected = old * (1 - 0.1 * 0.5) if old.ndim >= 2 else old
        torch.testing.assert_close(new.detach(), expected)


@pytest.mark.parametrize(
    ("section", "values", "why"),
    [
        (Optimiser, {"name": "sgd", "weight_decay": 0.1}, "sgd does not use weight_decay"),
        (Optimiser, {"name": "adamw", "momentum": 0.5}, "adamw does not use momentum"),
        (Optimiser, {"name": "sgd", "momentum": 0.0, "nesterov": True}, "momentum above 0"),
        (Schedule, {"name": "cosine", "step_every": 3}, "cosine does not use step_every"),
    ],
)
def test_a_setting_without_effect_is_refused(section, values, why):
    with pytest.raises(ConfigError, match=why):
        build(section, values, "train")


def curve(config: Schedule, epochs: int = 20, per_epoch: int = 10) -> list[float]:
    total = epochs * per_epoch
    return [optimise.factor(config, step, total, per_epoch) for step in range(total)]


@given(
    name=st.sampled_from(["constant", "step", "cosine", "one_cycle"]),
    warmup=st.floats(0, 0.9),
    epochs=st.integers(1, 30),
    per_epoch=st.integers(1, 20),
)
def test_any_schedule_stays_between_0_and_its_peak(name, warmup, epochs, per_epoch):
    values = curve(Schedule(name=name, warmup=warmup), epochs, per_epoch)
    assert all(0 < value <= 1 for value in values)
    rise = next(i for i in range(len(values)) if i >= warmup * len(values) or i + 1 == len(values))
    assert values[:rise] == sorted(values[:rise])


def test_constant_is_constant():
    assert set(curve(Schedule(name="constant"))) == {1.0}


def test_warmup_rises_evenly_to_the_peak():
    values = curve(Schedule(name="constant", warmup=0.25))
    assert values[0] == pytest.approx(1 / 51) and values[50:] == [1.0] * 150
    assert values[:50] == pytest.approx([(step + 1) / 51 for step in range(50)])


def test_cosine_starts_high_and_ends_near_nothing():
    values = curve(Schedule(name="cosine"))
    assert values[0] == 1 and values == sorted(values, reverse=True)
    assert values[100] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 199 / 200)))


def test_one_cycle_rises_to_its_peak_and_falls_straight():
    values = curve(Schedule(name="one_cycle"))
    assert values.index(max(values)) == 60 and max(values) == 1
    falls = [a - b for a, b in pairwise(values[60:])]
    assert falls == pytest.approx([1 / 140] * 139)
    assert curve(Schedule(name="one_cycle", warmup=0.1)).index(1.0) == 20


def test_step_drops_after_whole_epochs():
    values = curve(Schedule(name="step", step_every=5, step_factor=0.5))
    assert values == [1.0] * 50 + [0.5] * 50 + [0.25] * 50 + [0.125] * 50


@pytest.mark.parametrize("l1, l2", [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_a_penalty_has_the_gradient_of_its_formula(l1, l2):
    net = network()
    value = optimise.penalty(Penalty(l1=l1, l2=l2), net)
    value.backward()
    matrices = [p.detach() for p in net.parameters() if p.ndim >= 2]
    assert value.item() == pytest.approx(
        sum(l1 * float(w.abs().sum()) + l2 / 2 * float((w**2).sum()) for w in matrices), rel=1e-5
    )
    for parameter in net.parameters():
        if parameter.ndim >= 2:
            torch.testing.assert_close(parameter.grad, l1 * parameter.sign() + l2 * parameter)
        else:
            assert parameter.grad is None


def test_no_penalty_adds_nothing():
    assert optimise.penalty(Penalty(), network()) == 0.0
