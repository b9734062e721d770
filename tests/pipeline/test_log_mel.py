"""Log-mel spectrograms: the arithmetic, what padding may not change, and the graph it becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline import export, plugins
from pipeline.bundle.decode.sound import SoundDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import ConfigError
from pipeline.frontends import log_mel
from pipeline.network import joined, predict
from pipeline.statistics import Channel
from pipeline.target import Target
from pipeline.tasks.classification import Config, Task
from serving.inference.runtime import open_session

RATE, MELS = 8000, 24
INPUT = Input(
    name="waveform",
    dtype="int16",
    shape=("batch", "samples"),
    decoder=SoundDecoder(rate=RATE, seconds=1),
    padding=0,
    units="level",
)
PLAIN = {"waveform": (Channel(mean=0, std=1),) * MELS}


def config(**settings: Any) -> log_mel.Config:
    return log_mel.Config(name="log_mel", mels=MELS, **settings)


def noise(rows: int, samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3000, (rows, samples)).astype(np.int16)


def run(module: torch.nn.Module, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        bands, there = module(torch.from_numpy(rows))
    return bands.numpy(), there.numpy()


def test_a_frame_is_the_energy_of_its_windowed_fourier_transform_by_band():
    module = log_mel.build(config(low=100, high=3500), [INPUT], PLAIN)
    row = noise(1, 3000)
    bands, there = run(module, row)
    assert bands.shape == (1, 3000 // 128 + 1, MELS) and module.features.shape == (MELS,)
    frame = row[0, 5 * 128 : 5 * 128 + 256] / 32768 * np.hanning(258)[1:-1]
    energy = np.abs(np.fft.rfft(frame)) ** 2
    frequency = np.arange(129) * RATE / 256
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (100, 3500))
    edges = 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)
    expected = [
        np.log(1e-6 + energy @ np.interp(frequency, edges[i : i + 3], [0, 1, 0]))
        for i in range(MELS)
    ]
    np.testing.assert_allclose(bands[0, 5], expected, atol=1e-4)
    assert there[0].sum() == -(-(3000 - 256) // 128) + 1 and there[0, : there[0].sum()].all()


@pytest.mark.parametrize("normalise", ["data", "loudness", "sound"])
@pytest.mark.parametrize("samples", [1, 2, 200, 257, 5000])
def test_padding_changes_nothing_and_the_shortest_sound_has_a_frame(normalise, samples):
    module = log_mel.build(config(normalise=normalise), [INPUT], PLAIN)
    alone, there = run(module, noise(2, samples))
    assert there.any(1).all() and np.isfinite(alone).all()
    padded, also = run(module, np.pad(noise(2, samples), ((0, 0), (0, 3333))))
    assert not also[:, there.shape[1] :].any() and not padded[:, there.shape[1] :].any()
    np.testing.assert_array_equal(also[:, : there.shape[1]], there)
    np.testing.assert_allclose(padded[:, : alone.shape[1]], alone, atol=1e-5)


def test_silence_is_one_quiet_frame():
    bands, there = run(log_mel.build(config(), [INPUT], PLAIN), np.zeros((1, 900), np.int16))
    assert there.tolist() == [[True] + [False] * (there.shape[1] - 1)]
    np.testing.assert_allclose(bands[0, 0], np.log(1e-6), rtol=1e-6)


def test_bands_are_standardised_over_the_frames_of_the_training_rows():
    rows = noise(700, 1000)
    rows[350:] //= 50
    rows[::2, 300:] = 0
    rows[600:] = 32767  # never looked at
    chosen = np.arange(600)
    statistics = log_mel.measure(config(), [INPUT], {"waveform": rows}, chosen)
    bands, there = run(log_mel.build(config(), [INPUT], statistics), rows[chosen])
    heard = bands[there]
    assert np.abs(heard.mean(0)).max() < 1e-3 and np.abs(heard.std(0) - 1).max() < 1e-3


def test_loudness_and_colour_of_a_recording_can_be_taken_off():
    loud = noise(1, 4000)
    quiet = np.round(loud / 10).astype(np.int16)
    for normalise, same in (("data", False), ("loudness", True), ("sound", True)):
        module = log_mel.build(config(normalise=normalise), [INPUT], PLAIN)
        apart = np.abs(run(module, loud)[0] - run(module, quiet)[0]).max()
        assert (apart < 0.2) == same, normalise


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"high": 5000}, "a sound at 8000 samples a second holds 0 to 4000 Hz"),
        ({"low": 4000}, "bands from 4000 to 4000 Hz"),
        ({"window": 0.004}, "narrower than a window of 0.004 s can tell"),
    ],
)
def test_bands_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        log_mel.build(config(**settings), [INPUT], PLAIN)


def test_an_input_without_a_rate_is_refused():
    with pytest.raises(ConfigError, match="needs the rate of 'waveform'"):
        log_mel.build(config(), [INPUT.model_copy(update={"decoder": None})], PLAIN)


@pytest.mark.parametrize("name", ["cnn", "recurrent"])
def test_the_graph_answers_as_torch_does_at_any_batch_and_length(name, ready_to_export):
    """Recurrent layers too, behind which exporters freeze the number of frames."""
    torch.manual_seed(0)
    model = plugins.load("model", name, "model.name")
    task = Task(Config(name="classification"), Target(kind="class", labels=tuple("abc")), (INPUT,))
    frontend = log_mel.build(config(normalise="sound", segments=12), [INPUT], PLAIN)
    network = joined(frontend, model, model.Config(name=name, width=8), task.outputs)
    module = task.deployable(network)
    session = open_session(export.export(module, [INPUT], task.declared(), 20, {}))
    worst = 0.0
    for rows, samples in ((1, 1), (7, 300), (64, 4000)):
        raw = {"waveform": noise(rows, samples)}
        raw["waveform"][::2, samples // 2 + 1 :] = 0
        expected, answers = predict(module, raw, ("logits", "probabilities")), session.run(raw)
        padded = session.run({"waveform": np.pad(raw["waveform"], ((0, 0), (0, 777)))})
        for output, wanted in expected.items():
            worst = max(worst, np.abs(answers[output] - wanted).max())
            worst = max(worst, np.abs(padded[output] - wanted).max())
    assert worst < log_mel.RELATIVE
