"""Sounds: raw samples to the logarithm of their energy in bands as wide as the ear's, in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from pipeline.bundle.decode.sound import FULL_SCALE, SoundDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import ConfigError, Named, Section
from pipeline.statistics import Channel, Statistics

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.forms import Frontend
    from pipeline.views import View

RELATIVE = 1e-4
"""Largest difference allowed between torch and the export, as a share of the largest answer: the
logarithm of a sum over a thousand products magnifies the last digits of the quietest bands."""

NOTHING = "a sound of average loudness in every band"

FLOOR = 1e-6
"""Energy added to every band, of a full scale of 1: what is quieter is no different from nothing."""

HERTZ = (100, 200, 500, 1000, 2000, 4000, 8000, 16000)
SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""What may be written along the sides of a spectrogram."""

ROWS = 256
"""Sounds that are measured at a time."""


class Settings(Section):
    """How samples become bands."""

    window: float = Field(0.032, ge=0.002, le=0.25, description="seconds of sound in a frame")
    hop: float = Field(0.016, ge=0.001, le=0.25, description="seconds from one frame to the next")
    mels: int = Field(40, ge=4, le=256, description="bands, narrow where deep and wide where high")
    low: float = Field(50.0, ge=0, description="lowest frequency, in hertz")
    high: float = Field(
        0.0, ge=0, description="highest frequency, in hertz; 0: half of the sound's rate"
    )
    normalise: Literal["data", "loudness", "sound"] = Field(
        "data",
        description="data: bands standardised over the training split; loudness: so, once each "
        "sound's own mean is taken off; sound: each band over the sound itself",
    )
    segments: int = Field(
        32, ge=1, le=1024, description="moments that a sound is cut into for mlp, cnn and resnet"
    )


class Config(Settings, Named):
    """The settings of the log-mel spectrogram."""


def measure(
    config: Config, inputs: Sequence[Input], arrays: Mapping[str, np.ndarray], rows: np.ndarray
) -> Statistics:
    """Mean and deviation of each band over the frames of these rows."""
    import torch

    declared = inputs[0]
    spectrogram = _spectrogram(config, _rate(declared))
    total, square, count = np.zeros(config.mels), np.zeros(config.mels), 0
    for start in range(0, len(rows), ROWS):
        some = np.array(arrays[declared.name][rows[start : start + ROWS]])
        with torch.inference_mode():
            bands, there = spectrogram(torch.from_numpy(some))
        heard = bands[there].double().numpy()  # [frames, mels]
        total, square, count = total + heard.sum(0), square + (heard**2).sum(0), count + len(heard)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    # Rounded to what the number of threads that summed them cannot change.
    return {
        declared.name: tuple(
            Channel(mean=float(f"{m:.5g}"), std=float(f"{s:.5g}"))
            for m, s in zip(mean, std, strict=True)
        )
    }


def build(config: Config, inputs: Sequence[Input], statistics: Statistics) -> Frontend:
    """int16 `[batch, samples]` -> float32 `[batch, frames, mels]`, bool `[batch, frames]`.

    Frames that lie wholly in the zeros at a row's end are not there, and 0.
    """
    import torch

    from pipeline.forms import Features, Frontend

    spectrogram = _spectrogram(config, _rate(inputs[0]))
    channels = statistics[inputs[0].name]

    class LogMel(Frontend):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.features = Features("sequence", (config.mels,), config.segments)
            self.spectrogram = spectrogram
            std = torch.tensor([c.std or 1.0 for c in channels])
            self.register_buffer("scale", 1 / std)
            self.register_buffer("shift", -torch.tensor([c.mean for c in channels]) / std)

        def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            bands, there = self.spectrogram(waveform)
            if config.normalise != "sound":
                bands = bands * self.scale + self.shift
            return bands * there[..., None], there

    return LogMel()


def view(
    config: Config,
    inputs: Sequence[Input],
    row: Mapping[str, np.ndarray],
    features: np.ndarray,
    shares: np.ndarray,
    files: Mapping[str, bytes],
) -> View:
    """Which moments and bands: the frames that there are, deep at the bottom, loud in white."""
    from pipeline.views import Axis, Chart

    there = np.flatnonzero(features.any(1))
    frames = there[-1] + 1 if len(there) else 1
    bands = features[:frames].T[::-1]  # [mels, frames]
    low, high = np.percentile(bands, (2, 99.5))
    levels = np.clip(255 * (bands - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
    rate = _rate(inputs[0])
    edges = np.linspace(_mel(config.low), _mel(config.high or rate / 2), config.mels + 2)
    heights = [f for f in HERTZ if _hertz(edges[1]) <= f <= _hertz(edges[-2])]
    places = config.mels - 1 - np.interp(_mel(np.array(heights)), edges[1:-1], range(config.mels))
    step = next(s for s in SECONDS if frames * config.hop / s <= 6 or s == SECONDS[-1])
    moments = np.arange(0, (frames - 1) * config.hop + config.window, step)
    return Chart(
        levels,
        shares[:frames].T[::-1],
        # A frame's place is its middle.
        Axis(
            "seconds",
            tuple(
                (float(place), f"{moment:g}")
                for moment, place in zip(
                    moments, (moments - config.window / 2) / config.hop, strict=True
                )
                if -0.5 <= place <= frames - 0.5
            ),
        ),
        Axis("Hz", tuple((float(p), str(f)) for p, f in zip(places, heights, strict=True))),
    )


def _rate(declared: Input) -> int:
    """Samples a second, which the input's decoder tells."""
    if not isinstance(declared.decoder, SoundDecoder):
        raise ConfigError(
            f"data: log_mel needs the rate of {declared.name!r}, which a decoder of sounds tells"
        )
    return declared.decoder.rate


def _spectrogram(config: Settings, rate: int) -> nn.Module:
    """int16 `[batch, samples]` -> the logarithms, and which frames there are."""
    import torch
    from torch import nn

    size, hop = max(2, round(config.window * rate)), max(1, round(config.hop * rate))
    waves, bands = _waves(config, rate, size)

    class Spectrogram(nn.Module):
        waves: torch.Tensor
        bands: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("waves", torch.from_numpy(waves))  # [2 * bins, 1, size]
            self.register_buffer("bands", torch.from_numpy(bands))  # [bins, mels]

        def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # A Fourier transform as a convolution: it exports with a free length, and to any device.
            padded = nn.functional.pad(waveform.float()[:, None] / FULL_SCALE, (0, size))
            parts = nn.functional.conv1d(padded, self.waves, stride=hop)
            real, imaginary = parts.chunk(2, 1)
            energy = (real * real + imaginary * imaginary).transpose(1, 2) @ self.bands
            logs = torch.log(energy + FLOOR)  # [batch, frames, mels]
            there = self._there(waveform, logs)
            if config.normalise != "data":
                logs = self._own(logs, there[..., None].float())
            return logs, there

        def _there(self, waveform: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
            """bool [batch, frames]: the first frame, and those with a sample that no earlier one has."""
            place = torch.arange(1, waveform.shape[1] + 1, device=waveform.device)
            length = torch.where(waveform != 0, place, 0).amax(1)
            # The sample after the last one of the frame before.
            begins = torch.arange(logs.shape[1], device=waveform.device) * hop + (size - hop)
            return (begins < length[:, None]) | (begins == size - hop)

        def _own(self, logs: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
            """Less the sound's own mean; with `sound`, of each band, and over its own deviation."""
            frames = there.sum(1, keepdim=True)
            mean = (logs * there).sum(1, keepdim=True) / frames  # [batch, 1, mels]
            if config.normalise == "loudness":
                return logs - mean.mean(2, keepdim=True)
            apart = logs - mean
            spread = (apart * apart * there).sum(1, keepdim=True) / frames
            return apart / (spread + 0.01).sqrt()

    return Spectrogram()


def _waves(config: Settings, rate: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines in a window, float32 `[2 * bins, 1, size]`, and weights `[bins, mels]`.

    Only the bins that a band weighs. Raises `ConfigError` for bands without any.
    """
    high = config.high or rate / 2
    if not config.low < high <= rate / 2:
        raise ConfigError(
            f"data.frontend: bands from {config.low:g} to {high:g} Hz; a sound at {rate} samples a "
            f"second holds 0 to {rate / 2:g} Hz"
        )
    length = 1 << (size - 1).bit_length()  # of the transform: finer steps than the window alone has
    frequency = np.arange(length // 2 + 1) * rate / length
    edges = _hertz(np.linspace(_mel(config.low), _mel(high), config.mels + 2))
    rising = (frequency[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequency[:, None]) / np.diff(edges)[1:]
    weights = np.maximum(0, np.minimum(rising, falling))  # [bins, mels]
    if (empty := int((weights.sum(0) == 0).sum())) > 0:
        raise ConfigError(
            f"data.frontend.mels: {empty} of {config.mels} bands between {config.low:g} and {high:g} Hz "
            f"are narrower than a window of {config.window:g} s can tell; take fewer, or a longer window"
        )
    used = np.flatnonzero(weights.any(1))
    phase = 2 * np.pi * used[:, None] * np.arange(size) / length
    window = np.hanning(size + 2)[1:-1]
    waves = np.concatenate([np.cos(phase) * window, np.sin(phase) * window])
    return waves[:, None].astype(np.float32), weights[used].astype(np.float32)


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)
