"""The frontend's arithmetic, and the seam that everything scored satisfies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import prepared
from pipeline.evaluate import answers, significant
from pipeline.frontends.pixels import pixels
from pipeline.network import predict
from pipeline.statistics import Channel
from stages import network as networks
from tests.pipeline.experiments import experiment

NAMES = ("logits", "probabilities")


def test_pixels_are_brought_to_mean_0_and_deviation_1():
    image = torch.randint(0, 256, (50, 6, 5, 3), dtype=torch.uint8)
    planes = image.permute(0, 3, 1, 2).float()
    channels = tuple(
        Channel(mean=planes[:, c].mean().item(), std=planes[:, c].std().item()) for c in range(3)
    )
    features = pixels(channels, (3, 6, 5))(image)
    assert features.shape == (50, 3, 6, 5) and features.dtype == torch.float32
    torch.testing.assert_close(features.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_a_constant_channel_is_0_and_not_nan():
    image = torch.full((2, 4, 4, 1), 7, dtype=torch.uint8)
    assert not pixels((Channel(mean=7, std=0),), (1, 4, 4))(image).any()


def test_the_statistics_travel_with_the_weights():
    assert set(pixels((Channel(mean=1, std=2),), (1, 4, 4)).state_dict()) == {"scale", "shift"}


def test_a_fresh_network_follows_from_seed_and_data(digits):
    manifest = prepared.read_manifest(digits)
    torch.manual_seed(0)
    network = networks.fresh(experiment(), manifest)
    assert network(torch.zeros((3, 8, 8, 1), dtype=torch.uint8)).shape == (3, 10)
    (channel,) = manifest.statistics["image"]
    assert network.frontend.scale.item() == pytest.approx(1 / channel.std)


def test_trained_weights_come_back_and_drop_nothing(trained, digits, tmp_path):
    from pipeline.checkpoint import save_weights

    save_weights(tmp_path / "w.safetensors", trained.network.state_dict())
    network = networks.trained(trained.experiment, trained.manifest, tmp_path / "w.safetensors")
    assert not network.training
    module = networks.task(trained.experiment, trained.manifest).deployable(network)
    rows = prepared.read(digits, "test")
    scored = answers(lambda raw: predict(module, raw, NAMES), rows)
    assert (scored["logits"].argmax(1) == rows.target).mean() > 0.9


def test_answers_do_not_depend_on_the_batch(trained, digits):
    rows = prepared.read(digits, "validation")
    module = networks.task(trained.experiment, trained.manifest).deployable(trained.network)
    one, other = (
        answers(lambda raw: predict(module, raw, NAMES), rows, batch=size) for size in (7, 256)
    )
    for name in NAMES:
        assert one[name].shape == (len(rows), 10)
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


def test_a_report_keeps_six_digits():
    assert significant(0.123456789) == 0.123457
    assert significant(123456789.0, 3) == 123000000.0
    assert significant(0.0) == 0.0
