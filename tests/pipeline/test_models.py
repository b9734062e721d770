"""What is particular to one architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config import ConfigError, build
from pipeline.models import cnn, mlp, recurrent, resnet, transformer


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in module.modules())


def test_an_mlp_has_the_layers_asked_for():
    config = mlp.Config(name="mlp", depth=3, width=7, dropout=0.5, batch_norm=True)
    body = mlp.build(config, (24,), 5)
    shapes = [tuple(p.shape) for p in body.parameters() if p.ndim == 2]
    assert shapes == [(7, 24), (7, 7), (7, 7), (5, 7)]
    assert count(body, nn.Dropout) == count(body, nn.BatchNorm1d) == count(body, nn.ReLU) == 3
    assert body(torch.randn(4, 24)).shape == (4, 5)


def test_an_mlp_without_hidden_layers_is_a_linear_map():
    body = mlp.build(mlp.Config(name="mlp", depth=0), (4,), 3)
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


def test_a_resnet_has_the_blocks_asked_for():
    config = resnet.Config(name="resnet", depth=3, blocks=2, width=4, dropout=0.1)
    body = resnet.build(config, (3, 13, 8), 5)
    convolutions = [m for m in body.modules() if isinstance(m, nn.Conv2d)]
    # A stem, 3 stages of 2 blocks of 2, and a projection where a stage widens.
    assert len(convolutions) == 1 + 12 + 2
    assert [m.kernel_size for m in convolutions].count((1, 1)) == 2
    assert body[-1].in_features == 16 and count(body, nn.Dropout) == 1
    maps: list[tuple[int, ...]] = []
    for block in body[1:7]:
        block.register_forward_hook(lambda module, given, made: maps.append(tuple(made.shape[1:])))
    assert body(torch.randn(2, 3, 13, 8)).shape == (2, 5)
    assert maps == [(4, 13, 8)] * 2 + [(8, 7, 4)] * 2 + [(16, 4, 2)] * 2


@pytest.mark.parametrize(("stem", "size"), [("small", (32, 32)), ("large", (8, 8))])
def test_a_resnets_stem_keeps_or_quarters_the_size(stem, size):
    body = resnet.build(resnet.Config(name="resnet", width=4, depth=1, stem=stem), (3, 32, 32), 5)
    assert tuple(body[0](torch.randn(2, 3, 32, 32)).shape[2:]) == size


@pytest.mark.parametrize("zero_scale", [True, False])
def test_a_resnets_blocks_begin_as_nothing_added(zero_scale):
    config = resnet.Config(name="resnet", width=4, depth=1, blocks=1, zero_scale=zero_scale)
    stem, block = resnet.build(config, (3, 8, 8), 5).eval()[:2]
    seen = stem(torch.randn(2, 3, 8, 8))
    assert torch.equal(block(seen), seen) is zero_scale


def test_an_mlp_may_narrow():
    body = mlp.build(mlp.Config(name="mlp", widths=(8, 4)), (6,), 5)
    assert [tuple(p.shape) for p in body.parameters() if p.ndim == 2] == [(8, 6), (4, 8), (5, 4)]


@pytest.mark.parametrize("settings", [{"depth": 1}, {"width": 9}, {"widths": [0]}])
def test_an_mlps_widths_say_it_all(settings):
    with pytest.raises(ConfigError, match=r"model: widths"):
        build(mlp.Config, {"name": "mlp", "widths": [8, 4], **settings}, "model")


def test_an_initialisation_draws_each_gate_on_its_own():
    config = recurrent.Config(name="recurrent", width=8, initialisation="orthogonal")
    body = recurrent.build(config, (8,), 2)
    own = dict(body.layers[0].passes[1].named_parameters())
    for gate in own["weight_hh_l0"].split(8):
        assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)
    assert not own["bias_ih_l0"].any()


@pytest.mark.parametrize("settings", [{"width": 10, "heads": 4}, {"width": 9, "heads": 3}])
def test_a_transformers_width_divides(settings):
    with pytest.raises(ConfigError, match=r"model: width: \d+ "):
        build(transformer.Config, {"name": "transformer", **settings}, "model")


def test_steps_beyond_the_learned_positions_share_the_last():
    config = transformer.Config(
        name="transformer", width=8, depth=1, positions="learned", longest=3, dropout=0
    )
    positions = transformer.build(config, (4,), 2).positions(torch.zeros(1, 6, 8))[0]
    assert not torch.equal(positions[1], positions[2])
    assert torch.equal(positions[2], positions[3]) and torch.equal(positions[3], positions[5])
