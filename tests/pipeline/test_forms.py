"""Features in one form read as another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.forms import Features, adapted

SEQUENCE = Features("sequence", (3,), segments=4)


def sequence(lengths: list[int], padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps that differ, then what is padded with: numbers that must not count."""
    steps = torch.full((len(lengths), padded, 3), 1e6)
    there = torch.zeros(len(lengths), padded, dtype=torch.bool)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(row)
        steps[row, :length] = torch.randn(length, 3, generator=generator)
        there[row, :length] = True
    return steps, there


@pytest.mark.parametrize(
    ("given_", "wanted", "shape"),
    [
        (Features("vector", (7,)), "vector", (7,)),
        (Features("grid", (2, 3, 5)), "grid", (2, 3, 5)),
        (Features("grid", (2, 3, 5)), "vector", (30,)),
        (Features("grid", (2, 3, 5)), "sequence", (10,)),
        (SEQUENCE, "sequence", (3,)),
        (SEQUENCE, "vector", (12,)),
        (SEQUENCE, "grid", (1, 3, 4)),
    ],
)
def test_a_body_is_given_the_shape_that_comes(given_, wanted, shape):
    tensors = {
        "vector": (torch.randn(6, 7),),
        "grid": (torch.randn(6, 2, 3, 5),),
        "sequence": sequence([1, 2, 3, 4, 5, 9], 11),
    }[given_.form]
    form, told = adapted(given_, wanted)
    assert told == shape
    first, *mask = form(tensors)
    if wanted == "sequence":
        assert first.shape[::2] == (6, *shape) and mask[0].shape == first.shape[:2]
    else:
        assert first.shape == (6, *shape) and not mask


@pytest.mark.parametrize("wanted", ["grid", "sequence"])
def test_what_has_no_such_form_is_told(wanted):
    with pytest.raises(ConfigError, match=f"model.name: reads a {wanted}, and this data gives a"):
        adapted(Features("vector", (7,)), wanted)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), more=st.integers(0, 20))
def test_padding_changes_no_segment(lengths, more):
    form, _ = adapted(SEQUENCE, "vector")
    tight, wide = (form(sequence(lengths, max(lengths) + n))[0] for n in (0, more))
    torch.testing.assert_close(tight, wide, rtol=1e-5, atol=1e-5)


def test_a_row_without_steps_is_nothing():
    form, _ = adapted(SEQUENCE, "vector")
    assert not form(sequence([0, 2], 3))[0][0].any()


def test_segments_are_means_of_equal_parts():
    form, _ = adapted(Features("sequence", (1,), segments=2), "vector")
    steps = torch.tensor([[[1.0], [2.0], [6.0], [0.0]]])
    there = torch.tensor([[True, True, True, False]])
    # Of three steps, each half has one and a half.
    np.testing.assert_allclose(form((steps, there))[0], [[(1 + 1) / 1.5, (1 + 6) / 1.5]], rtol=1e-6)
