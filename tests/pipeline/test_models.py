"""What is particular to one architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config import ConfigError
from pipeline.models import cnn, mlp


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in module.modules())


def test_an_mlp_has_the_layers_asked_for():
    config = mlp.Config(name="mlp", depth=3, width=7, dropout=0.5, batch_norm=True)
    body = mlp.build(config, (2, 3, 4), 5)
    shapes = [tuple(p.shape) for p in body.parameters() if p.ndim == 2]
    assert shapes == [(7, 24), (7, 7), (7, 7), (5, 7)]
    assert count(body, nn.Dropout) == count(body, nn.BatchNorm1d) == count(body, nn.ReLU) == 3
    assert body(torch.randn(4, 2, 3, 4)).shape == (4, 5)


def test_an_mlp_without_hidden_layers_is_a_linear_map():
    body = mlp.build(mlp.Config(name="mlp", depth=0), (1, 2, 2), 3)
    assert [tuple(p.shape) for p in body.parameters()] == [(3, 4), (3,)]


def test_a_cnn_has_the_stages_asked_for():
    config = cnn.Config(name="cnn", depth=3, convolutions=2, width=4, batch_norm=False)
    body = cnn.build(config, (3, 13, 8), 5)
    channels = [m.out_channels for m in body.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [4, 4, 8, 8, 16, 16]
    assert count(body, nn.MaxPool2d) == 2 and count(body, nn.BatchNorm2d) == 0
    assert body[-1].in_features == 16 * (13 // 4) * (8 // 4)
    assert body(torch.randn(2, 3, 13, 8)).shape == (2, 5)


def test_a_cnn_too_deep_for_its_pictures_is_refused():
    with pytest.raises(ConfigError, match=r"model\.depth: 5 stages halve 8x8 pixels to nothing"):
        cnn.build(cnn.Config(name="cnn", depth=5, width=1), (1, 8, 8), 10)


def test_a_cnn_reads_pictures_only():
    with pytest.raises(ConfigError, match=r"cnn reads pictures .* got \[40\]"):
        cnn.build(cnn.Config(name="cnn"), (40,), 10)
