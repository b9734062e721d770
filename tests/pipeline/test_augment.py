"""Augmentation: known pictures moved by known amounts."""

from __future__ import annotations

import pytest
import torch

from pipeline.augment import Affine, affine

SIZE = 15


def dot(row: int = 7, column: int = 7, pictures: int = 200, channels: int = 1) -> torch.Tensor:
    """One bright pixel in each of many pictures."""
    image = torch.zeros((pictures, SIZE, SIZE, channels), dtype=torch.uint8)
    image[:, row, column] = 250
    return image


def moved(config: Affine, image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return affine(image, config)


def centres(image: torch.Tensor) -> torch.Tensor:
    """Centre of brightness by picture, `[pictures, 2]` as (row, column)."""
    grey = image[..., 0].double()
    place = torch.arange(SIZE, dtype=torch.double)
    total = grey.sum((1, 2))
    return torch.stack([grey.sum(2) @ place / total, grey.sum(1) @ place / total], 1)


def test_without_settings_it_is_inactive():
    assert not Affine().active
    assert all(Affine(**{name: 0.1}).active for name in Affine.model_fields)


def test_nothing_asked_for_changes_nothing():
    image = torch.randint(0, 256, (8, 9, 11, 3), dtype=torch.uint8)
    assert torch.equal(affine(image, Affine()), image)


def test_a_shift_moves_a_pixel_by_up_to_so_many_pixels_each_way():
    image = moved(Affine(shift=2), dot())
    assert image.dtype == torch.uint8 and image.shape == (200, SIZE, SIZE, 1)
    offsets = centres(image) - 7
    assert offsets.abs().max() <= 2.05
    for axis in (0, 1):
        assert offsets[:, axis].min() < -1.5 and offsets[:, axis].max() > 1.5
    assert offsets.unique(dim=0).shape[0] > 150  # each picture on its own
    # The brightness is kept, spread over four pixels.
    assert (image.sum((1, 2, 3)) - 250).abs().max() <= 2


def test_a_rotation_turns_about_the_middle():
    image = moved(Affine(rotate=90), dot(row=7, column=12))
    offsets = centres(image) - 7
    assert offsets.norm(dim=1).sub(5).abs().max() < 0.2
    angles = torch.atan2(offsets[:, 0], offsets[:, 1]).rad2deg()
    assert angles.abs().max() <= 91 and angles.min() < -70 and angles.max() > 70
    assert torch.equal(moved(Affine(rotate=90), dot())[:, 7, 7], dot()[:, 7, 7])


def test_a_scale_moves_along_the_ray():
    offsets = centres(moved(Affine(scale=0.2), dot(row=7, column=12))) - 7
    assert offsets[:, 0].abs().max() < 1e-6
    assert 3.9 < offsets[:, 1].min() < 4.6 and 5.6 < offsets[:, 1].max() < 6.5


def test_a_shear_moves_sideways_what_lies_below():
    offsets = centres(moved(Affine(shear=0.5), dot(row=11, column=7))) - 7
    assert (offsets[:, 0] - 4).abs().max() < 1e-6
    assert offsets[:, 1].abs().max() <= 2.05 and offsets[:, 1].abs().max() > 1.7


def test_what_comes_in_from_outside_is_black():
    white = torch.full((50, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    image = moved(Affine(shift=6), white)
    assert image[:, 7, 7].min() == 255 and (image[:, 0, 0] == 0).any()
    assert torch.equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("same", [True, False])
def test_the_seed_decides(same):
    config = Affine(rotate=10, scale=0.1, shear=0.1, shift=1)
    one, other = moved(config, dot()), moved(config, dot(), seed=0 if same else 1)
    assert torch.equal(one, other) is same
