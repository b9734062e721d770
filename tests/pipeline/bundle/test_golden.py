"""Golden rows: what is packed is unpacked, with the same bytes every time, and no pickles."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.bundle import golden
from pipeline.bundle.manifest import BundleError

some_arrays = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
    arrays.arrays(
        st.sampled_from(["uint8", "int16", "int64", "float32"]),
        arrays.array_shapes(max_dims=3, max_side=4),
    ),
    min_size=1,
    max_size=3,
)


@given(inputs=some_arrays, outputs=some_arrays)
def test_what_is_packed_is_unpacked(inputs, outputs):
    payload = golden.pack(inputs, outputs)
    assert golden.pack(dict(reversed(inputs.items())), outputs) == payload
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    for packed, unpacked in zip((inputs, outputs), golden.unpack(payload), strict=True):
        assert packed.keys() == unpacked.keys()
        for name, array in packed.items():
            assert array.dtype == unpacked[name].dtype
            np.testing.assert_array_equal(array, unpacked[name])


def npz(**entries: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in entries.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=True)
            archive.writestr(name.replace("__", "/") + ".npy", content.getvalue())
    return buffer.getvalue()


ROWS = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "not readable"),
        (b"PK nonsense", "not readable"),
        (npz(in__x=ROWS, out__y=ROWS)[:-40], "not readable"),
        (npz(in__x=ROWS, out__y=np.array([{}], object)), "not readable"),
        (npz(in__x=ROWS, elsewhere__y=ROWS), "not readable"),
        (npz(in__x=ROWS), "no inputs or no outputs"),
        (npz(out__x=ROWS), "no inputs or no outputs"),
    ],
)
def test_anything_else_is_refused(payload, why):
    with pytest.raises(BundleError, match=f"golden rows: {why}"):
        golden.unpack(payload)


@given(place=st.integers(0), value=st.integers(0, 255))
def test_damage_is_rows_or_a_refusal(place, value):
    payload = bytearray(golden.pack({"x": ROWS}, {"y": ROWS}))
    payload[place % len(payload)] = value
    with suppress(BundleError):
        golden.unpack(bytes(payload))


def test_texts_come_back_as_objects():
    texts = np.array([["a", "é"], ["", "日本\n"]], object)
    inputs, outputs = golden.unpack(golden.pack({"t": texts}, {"y": ROWS}))
    assert inputs["t"].dtype == object and inputs["t"].tolist() == texts.tolist()
    assert outputs["y"].dtype == ROWS.dtype
