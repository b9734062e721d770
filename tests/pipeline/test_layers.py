"""Activations and initialisations by name."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from pipeline.layers import Activation, Initialisation, activation, initialise

FUNCTIONS = {
    "relu": torch.relu,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "tanh": torch.tanh,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("name", get_args(Activation))
def test_an_activation_is_what_its_name_says(name):
    x = torch.linspace(-4, 4, 81)
    torch.testing.assert_close(activation(name)(x), FUNCTIONS[name](x))


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))


@pytest.mark.parametrize("how", get_args(Initialisation)[1:])
def test_an_initialisation_draws_weights_anew_and_zeroes_biases(how):
    plain, drawn = body(), initialise(body(), how, "relu")
    for before, after in zip(plain, drawn, strict=True):
        if isinstance(after, (nn.Conv2d, nn.Linear)):
            assert not torch.equal(before.weight, after.weight)
            assert not after.bias.any()
    assert torch.equal(drawn[1].weight, torch.ones(8))


def test_default_keeps_torchs_own():
    for before, after in zip(
        body().parameters(), initialise(body(), "default", "relu").parameters(), strict=True
    ):
        assert torch.equal(before, after)


def test_the_draws_have_the_published_spread():
    layer = lambda how, kind: initialise(nn.Linear(400, 200), how, kind).weight.detach()  # noqa: E731
    torch.manual_seed(0)
    assert layer("kaiming", "relu").std() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert layer("xavier", "relu").std() == pytest.approx(2**0.5 * (2 / 600) ** 0.5, rel=0.02)
    assert layer("xavier", "tanh").std() == pytest.approx(5 / 3 * (2 / 600) ** 0.5, rel=0.02)
    square = layer("orthogonal", "sigmoid")
    torch.testing.assert_close(square @ square.T, torch.eye(200), atol=1e-5, rtol=0)
