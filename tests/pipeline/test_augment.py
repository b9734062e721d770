"""Augmentation: known pictures moved by known amounts."""

from __future__ import annotations

import pytest
import torch

from pipeline.augment import Augment, augmented, check, mixup
from pipeline.augment.image import Affine, affine, colour, crop, erase, flip
from pipeline.config import ConfigError

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


def noise(rows: int = 200, channels: int = 3) -> torch.Tensor:
    torch.manual_seed(99)
    return torch.randint(0, 256, (rows, SIZE, SIZE, channels), dtype=torch.uint8)


def test_a_crop_moves_by_whole_pixels():
    torch.manual_seed(0)
    image = crop(dot(), 2)
    assert image.shape == dot().shape and image.dtype == torch.uint8
    offsets = centres(image) - 7
    assert torch.equal(offsets, offsets.round())
    assert len(offsets.unique(dim=0)) == 25 and offsets.abs().max() == 2
    assert (image.amax((1, 2, 3)) == 250).all()
    white = crop(torch.full((100, 4, 6, 3), 255, dtype=torch.uint8), 1)
    assert set(white.unique().tolist()) == {0, 255}


def test_a_flip_exchanges_left_and_right_in_half_of_the_pictures():
    torch.manual_seed(0)
    image = noise()
    flipped = flip(image)
    turned = (flipped == image.flip(2)).all((1, 2, 3))
    kept = (flipped == image).all((1, 2, 3))
    assert (turned ^ kept).all() and 70 < turned.sum() < 130


def test_brightness_multiplies():
    torch.manual_seed(0)
    image = colour(torch.full((200, 3, 3, 1), 100, dtype=torch.uint8), 0.3, 0, 0)
    assert image.min() >= 70 and image.max() <= 130
    assert image.min() < 75 and image.max() > 125
    assert (image == image[:, :1, :1]).all()
    bright = colour(torch.full((200, 3, 3, 1), 250, dtype=torch.uint8), 0.3, 0, 0)
    assert bright.max() == 255  # cut off, not wrapped round


def test_contrast_spreads_about_the_mean():
    torch.manual_seed(0)
    half = torch.zeros((200, 2, 2, 1), dtype=torch.uint8)
    half[:, 0], half[:, 1] = 80, 120
    image = colour(half, 0, 0.5, 0).float()
    assert (image.mean((1, 2, 3)) - 100).abs().max() <= 0.5
    spread = (image[:, 1] - image[:, 0]).flatten()
    assert 19 <= spread.min() < 23 and 57 < spread.max() <= 61


def test_saturation_moves_colours_about_their_grey_and_leaves_grey_alone():
    torch.manual_seed(0)
    coloured = torch.tensor([200, 100, 50], dtype=torch.uint8).expand(200, 2, 2, 3)
    image = colour(coloured, 0, 0, 0.5).float()
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert ((image * weights).sum(-1) - (coloured * weights).sum(-1)).abs().max() < 1
    gap = image[..., 0] - image[..., 2]
    assert gap.min() < 85 and gap.max() > 215
    grey = torch.full((9, 2, 2, 3), 77, dtype=torch.uint8)
    assert torch.equal(colour(grey, 0, 0, 0.9), grey)
    assert torch.equal(colour(grey[..., :1], 0, 0, 0.9), grey[..., :1])


def test_an_erased_rectangle_holds_the_mean_and_is_no_larger_than_asked():
    torch.manual_seed(0)
    image = noise()
    erased = erase(image, 0.4)
    changed = (erased != image).any(-1)
    mean = image.float().mean((1, 2)).round().to(torch.uint8)
    told = erased[changed]
    assert torch.equal(told, mean[:, None, None].expand_as(erased)[changed])
    share = changed.float().mean((1, 2))
    assert 60 < (share > 0).sum() < 130
    assert 0.3 < share.max() < 0.5  # whole pixels: a little more than asked
    for picture in changed[share > 0]:
        rows, columns = picture.any(1).nonzero(), picture.any(0).nonzero()
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert picture.sum() >= area - 3  # filled (a pixel may have been the mean before)


def test_mixup_mixes_pictures_and_their_targets_by_one_share():
    torch.manual_seed(0)
    image, target = noise(16), torch.arange(16)
    (mixed,), taught = mixup([image], target, 0.8)
    (share, one), (rest, other) = taught
    assert share + rest == pytest.approx(1) and 0 < share < 1
    assert torch.equal(one, target) and sorted(other.tolist()) == target.tolist()
    expected = share * image.float() + rest * image[other].float()
    assert mixed.dtype == torch.uint8 and (mixed.float() - expected).abs().max() <= 0.5


def test_mixup_of_numbers_keeps_what_is_behind_the_point():
    torch.manual_seed(0)
    numbers = torch.rand(16, 3)
    numbers[0, 0] = float("nan")
    (mixed,), ((share, _), (_, partner)) = mixup([numbers], torch.arange(16), 0.8)
    expected = share * numbers + (1 - share) * numbers[partner]
    torch.testing.assert_close(mixed, expected, equal_nan=True)


EVERY = {
    "crop": 2,
    "flip": True,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "erase": 0.3,
    "rotate": 20,
}


@pytest.mark.parametrize("settings", [EVERY, *({name: value} for name, value in EVERY.items())])
def test_each_change_happens_when_asked_for_and_the_seed_decides(settings):
    image = noise(32)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(augmented({"image": image}, Augment(**settings))["image"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2]) and not torch.equal(made[0], image)
    assert torch.equal(image, noise(32))  # what was handed in is left alone


def test_what_is_not_asked_for_draws_nothing():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    image = noise(4)
    torch.set_rng_state(before)
    assert torch.equal(augmented({"image": image}, Augment())["image"], image)
    assert torch.equal(torch.get_rng_state(), before)


def test_mixup_reaches_the_training_and_repeats(digits, tmp_path):
    from tests.pipeline.experiments import train

    settings = {"train.epochs": 1, "train.augment": {"mixup": 0.4, "flip": True}}
    weights = [
        train(digits, tmp_path / name, chosen).weights
        for name, chosen in (("one", settings), ("two", settings), ("plain", {"train.epochs": 1}))
    ]
    assert weights[0] == weights[1] != weights[2]


def test_a_setting_that_changes_nothing_of_the_data_is_refused():
    check(Augment(rotate=3), ["image"])
    check(Augment(), ["numeric", "categorical"])
    with pytest.raises(ConfigError, match=r"train\.augment\.rotate: changes the input image"):
        check(Augment(rotate=3), ["numeric", "categorical"])
    with pytest.raises(ConfigError, match=r"train\.augment\.mixup: token_ids"):
        check(Augment(mixup=0.2), ["token_ids"])


def test_what_is_of_another_kind_is_left_alone():
    ids = torch.arange(12).view(3, 4)
    assert torch.equal(augmented({"token_ids": ids}, Augment(rotate=9))["token_ids"], ids)
