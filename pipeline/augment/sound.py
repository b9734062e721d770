"""Sounds: moved, played faster, made louder, noisier, and blanked in parts, on raw samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.config import Section

if TYPE_CHECKING:
    import torch

INPUT = "waveform"
LOUDEST, QUIETEST = 32767, -32768
NOISE_RANGE = 30.0
"""Decibels above the smallest signal-to-noise ratio within which one is drawn."""


class Settings(Section):
    """What happens to training sounds at random, in this order; all 0: nothing."""

    speed: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share by which a sound is played faster or slower, its pitch with it",
    )
    time_shift: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of its length by which a sound begins later, or is cut at its start",
    )
    frequency_mask: float = Field(
        0.0, ge=0, lt=1, description="widest share of the frequencies that is taken out of a sound"
    )
    time_mask: float = Field(
        0.0, ge=0, lt=1, description="longest share of a sound that is blanked"
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=100,
        description="smallest ratio of a sound to the noise that is added, in decibels, drawn up to "
        "30 above it; 0: no noise",
    )
    gain: float = Field(0.0, ge=0, le=60, description="decibels louder or quieter")


def augmented(waveform: torch.Tensor, config: Settings) -> torch.Tensor:
    """int16 `[batch, samples]` -> the same or a little longer, changed as asked for."""
    active = any(getattr(config, name) for name in Settings.model_fields)
    if not active:
        return waveform
    sound, length = waveform.float(), lengths(waveform)
    if config.speed:
        sound, length = speed(sound, length, config.speed)
    if config.time_shift:
        sound, length = time_shift(sound, length, config.time_shift)
    if config.frequency_mask:
        sound = frequency_mask(sound, config.frequency_mask)
    if config.time_mask:
        sound = time_mask(sound, length, config.time_mask)
    if config.noise:
        sound = noise(sound, length, config.noise)
    if config.gain:
        sound = gain(sound, config.gain)
    # Beyond its end a sound stays what rows are filled up with.
    levels = sound.round().clamp(QUIETEST, LOUDEST) * _within(sound, length)
    return levels.to(waveform.dtype)


def lengths(waveform: torch.Tensor) -> torch.Tensor:
    """int64 `[batch]`: samples up to the last that is not 0."""
    import torch

    place = torch.arange(1, waveform.shape[1] + 1, device=waveform.device)
    return torch.where(waveform != 0, place, 0).amax(1)


def speed(
    sound: torch.Tensor, length: torch.Tensor, most: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sound read at its own pace, between its samples in a straight line."""
    import torch

    pace = (1 + (torch.rand(len(sound)) * 2 - 1) * most).to(sound.device)
    samples = sound.shape[1]
    longer = int(samples / (1 - most)) + 1
    place = torch.arange(longer, device=sound.device) * pace[:, None]  # [batch, longer]
    before = place.long().clamp(max=samples - 1)
    after = (before + 1).clamp(max=samples - 1)
    share = (place - before).clamp(0, 1)
    played = sound.gather(1, before) * (1 - share) + sound.gather(1, after) * share
    played_length = (length / pace).ceil().long().clamp(max=longer)
    return played[:, : int(played_length.max())], played_length


def time_shift(
    sound: torch.Tensor, length: torch.Tensor, most: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sound later, with silence before it, or without its beginning; its end is kept."""
    import torch

    shift = (((torch.rand(len(sound)) * 2 - 1) * most).to(sound.device) * length).long()
    moved_length = length + shift
    place = torch.arange(int(moved_length.max()), device=sound.device) - shift[:, None]
    moved = sound.gather(1, place.clamp(0, sound.shape[1] - 1))
    return moved * ((place >= 0) & (place < length[:, None])), moved_length


def frequency_mask(sound: torch.Tensor, most: float) -> torch.Tensor:
    """One stretch of each sound's frequencies taken out."""
    import torch

    wide, where = torch.rand(2, len(sound), 1).to(sound.device)
    spectrum = torch.fft.rfft(sound)
    wide = wide * most
    low = where * (1 - wide)
    share = torch.linspace(0, 1, spectrum.shape[1], device=sound.device)
    taken = (share >= low) & (share < low + wide)
    return torch.fft.irfft(spectrum * ~taken, n=sound.shape[1])


def time_mask(sound: torch.Tensor, length: torch.Tensor, most: float) -> torch.Tensor:
    """One stretch of each sound set to 0."""
    import torch

    wide, where = torch.rand(2, len(sound), 1).to(sound.device)
    wide = wide * most * length[:, None]
    start = where * (length[:, None] - wide)
    place = torch.arange(sound.shape[1], device=sound.device)
    return sound * ~((place >= start) & (place < start + wide))


def noise(sound: torch.Tensor, length: torch.Tensor, least: float) -> torch.Tensor:
    """White noise, `least` decibels quieter than the sound, or up to `NOISE_RANGE` more."""
    import torch

    ratio = (least + torch.rand(len(sound), 1) * NOISE_RANGE).to(sound.device)
    drawn = torch.randn(sound.shape).to(sound.device)
    power = sound.square().sum(1, keepdim=True) / length[:, None].clamp(min=1)
    return sound + drawn * (power * 10 ** (-ratio / 10)).sqrt()


def gain(sound: torch.Tensor, most: float) -> torch.Tensor:
    """Each sound louder or quieter by up to so many decibels."""
    import torch

    decibels = ((torch.rand(len(sound), 1) * 2 - 1) * most).to(sound.device)
    return sound * 10 ** (decibels / 20)


def _within(sound: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.arange(sound.shape[1], device=sound.device) < length[:, None]
