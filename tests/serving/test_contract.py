"""What a model accepts, without a server."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.inference.contract import MAX_SQUARED, is_finite


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(data=st.data())
def test_whatever_is_no_number_is_found_in_any_floats(dtype: type, data: st.DataObject) -> None:
    """Large numbers are numbers, though the sum of their squares is none."""
    few = st.integers(0, 40)
    many = st.sampled_from([MAX_SQUARED, MAX_SQUARED + 1])
    array = np.zeros(data.draw(few | many), dtype)
    largest = float(np.finfo(dtype).max)
    odd = st.sampled_from([np.nan, np.inf, -np.inf, largest, -largest, 1.0])
    for place in data.draw(st.lists(st.integers(0, max(len(array) - 1, 0)), max_size=3)):
        if len(array):
            array[place] = data.draw(odd)
    assert is_finite(array) == all(math.isfinite(value) for value in array.tolist())
