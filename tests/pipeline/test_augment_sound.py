"""Augmentation of sounds: known sounds changed by known amounts, and never longer than they are."""

from __future__ import annotations

import pytest
import torch

from pipeline.augment import Augment, augmented, check
from pipeline.augment import sound as kind
from pipeline.config import ConfigError

SAMPLES = 4000


def tones(rows: int = 60, length: int = 3000, hertz: float = 50.0) -> torch.Tensor:
    """A tone of so many cycles a thousand samples, and zeros after it."""
    wave = 8000 * torch.sin(2 * torch.pi * hertz / 1000 * (torch.arange(SAMPLES) + 0.5))
    wave[length:] = 0
    return wave.round().to(torch.int16).repeat(rows, 1)


def changed(**settings: float) -> torch.Tensor:
    torch.manual_seed(3)
    found = augmented({"waveform": tones()}, Augment(**settings))["waveform"]
    assert found.dtype == torch.int16
    return found


def power(sound: torch.Tensor) -> torch.Tensor:
    return sound.double().square().sum(1)


def test_nothing_asked_for_changes_nothing_and_draws_nothing():
    before = torch.random.get_rng_state()
    assert torch.equal(kind.augmented(tones(), kind.Settings()), tones())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_gain_is_within_so_many_decibels():
    decibels = 10 * torch.log10(power(changed(gain=6)) / power(tones()))
    assert decibels.abs().max() <= 6.01 and decibels.min() < -4 and decibels.max() > 4
    assert changed(gain=60).abs().max() == 32767  # clipped, and not wrapped around


def test_noise_keeps_to_its_ratio_and_within_the_sound():
    noisy = changed(noise=10)
    added = power(noisy.double() - tones().double())
    ratio = 10 * torch.log10(power(tones()) / added)
    assert 9 < ratio.min() < 15 and 32 < ratio.max() < 41
    assert not noisy[:, 3000:].any()


def test_a_shift_moves_a_sound_later_or_cuts_its_beginning():
    length = kind.lengths(changed(time_shift=0.2))
    assert 2390 <= length.min() < 2600 and 3400 < length.max() <= 3600
    torch.manual_seed(0)
    moved, lengths = kind.time_shift(tones(20).float(), torch.full((20,), 3000), 0.2)
    for sound, end in zip(moved, lengths, strict=True):  # the end is kept whole
        assert torch.equal(sound[end - 2000 : end], tones(1)[0, 1000:3000].float())


def test_speed_changes_length_and_pitch_together():
    played = changed(speed=0.2)
    length = kind.lengths(played)
    assert 2450 < length.min() < 2650 and 3500 < length.max() < 3760
    crossings = (played[:, 1:].sign() != played[:, :-1].sign()).sum(1)
    assert ((crossings - 300).abs() <= 3).all()  # 150 cycles, however fast


def test_a_stretch_is_blanked():
    still = (changed(time_mask=0.5)[:, :3000] == 0).sum(1)
    assert still.max() <= 1501 and still.max() > 1200 and still.min() < 300


def test_a_band_is_taken_out():
    narrow = power(changed(frequency_mask=0.2)) / power(tones())
    taken = narrow < 0.2
    assert 0 < taken.sum() < 30 and narrow[~taken].min() > 0.5


@pytest.mark.parametrize("setting", kind.Settings.model_fields)
def test_a_sound_is_changed_only_within_itself_and_by_its_own_draw(setting):
    found = changed(**{setting: 0.3 if setting not in ("noise", "gain") else 10})
    assert not torch.equal(found, torch.nn.functional.pad(tones(), (0, found.shape[1] - SAMPLES)))
    assert len(torch.unique(found, dim=0)) > 30
    empty = kind.augmented(torch.zeros(4, 9, dtype=torch.int16), Augment(**{setting: 0.3}))
    assert not empty.any()


def test_a_change_of_sounds_is_refused_for_pictures():
    with pytest.raises(ConfigError, match=r"train.augment.time_mask: changes the input waveform"):
        check(Augment(time_mask=0.1), ["image"])
    check(Augment(time_mask=0.1), ["waveform"])
