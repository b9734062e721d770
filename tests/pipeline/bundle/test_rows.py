"""A row of a table as CSV or JSON, and what of it becomes numbers and categories."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.bundle.decode import DecodeError, decode, encode, hint
from pipeline.bundle.decode.categorical import CategoricalDecoder
from pipeline.bundle.decode.numeric import NumericDecoder

NUMBERS = NumericDecoder(columns=("age", "income"), others=("city", "price"))
CITIES = CategoricalDecoder(
    columns=("city",), others=("age", "income", "price"), values=(("Bonn", "Köln, Rhein"),)
)


@pytest.mark.parametrize(
    "payload",
    [
        'age,city,income\n3,"Köln, Rhein",-1e3\n',
        '\ufeffincome,age,city,price\r\n -1e3 ,+3.,"Köln, Rhein",77\r\n',
        "age;city;income\n3;Köln, Rhein;-1e3",
        "age\tcity\tincome\n3\tKöln, Rhein\t-1000.0\n\n",
        '{"age": 3, "city": "Köln, Rhein", "income": -1000.0}',
        ' [{"city": "Köln, Rhein", "income": "-1e3", "age": "3", "price": null}]',
    ],
)
def test_one_row_in_any_dress_is_the_same_row(payload):
    np.testing.assert_array_equal(decode(NUMBERS, payload.encode()), np.float32([3, -1000]))
    assert decode(CITIES, payload.encode()).tolist() == [3]


@pytest.mark.parametrize(
    ("payload", "number", "category"),
    [
        ("age,income,city\n,NA,\n", np.nan, 0),
        ("age,income,city\nnull,2,Ulm\n", np.nan, 1),
        ('{"age": null, "income": 2, "city": null}', np.nan, 0),
        ('{"age": 1, "income": 2, "city": 7}', 1, 1),
        ('{"age": 1, "income": 2, "city": true}', 1, 1),
    ],
)
def test_gaps_and_values_never_seen_have_places(payload, number, category):
    np.testing.assert_array_equal(decode(NUMBERS, payload.encode())[0], np.float32(number))
    assert decode(CITIES, payload.encode()).tolist() == [category]


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ("age,income,city\n1.234,5,x,y\n", "3 columns in the header, 4 values"),
        ('age,income\n"1,234",5\n', "'1,234' is no number; write it without thousands"),
        ("age;income\n1,5;5\n", "'1,5' is no number; write it with a decimal point"),
        ("age,income\n1 234,5\n", "without thousands separators"),
        ("age,income\nold,5\n", "expected a notation such as 1234.5"),
        ("age,income\n1_000,5\n", "'1_000' is no number"),
        ("age,income\n0x10,5\n", "'0x10' is no number"),
        ("age,income\ninf,5\n", "leave it empty where the value is not known"),
        ("age,income\n1e39,5\n", "beyond what float32 holds"),
        ("age,incme\n1,5\n", "unknown columns: 'incme' (did you mean 'income'?)"),
        ("age\n1\n", "missing columns: 'income'"),
        ("age,age,income\n1,2,5\n", "columns named twice: 'age'"),
        ("age,income\n", "expected a header and one row of values"),
        ("hello", "expected a header and one row of values"),
        ("age,income\n1,2\n3,4\n", "2 rows below the header"),
        ('{"age": 1, "age": 2, "income": 3}', "key 'age' is given twice"),
        ('{"age": NaN, "income": 3}', "NaN is no number of JSON"),
        ('{"age": [1], "income": 3}', "column 'age': expected a text, a number or null"),
        ('{"age": true, "income": 3}', "'true' is no number"),
        ('{"age": 1', "not a JSON object of column -> value"),
        ("[1, 2]", "one row at a time"),
        ("[" * 100_000, "not a JSON object"),
        ('{"age": ' + "1" * 5000 + ', "income": 1}', "not a JSON object"),
        ("age,income\n" + "1" * 200_000 + ",2\n", "field larger than field limit"),
        ("age,income\n" + "1" * (1 << 20) + ",2\n", "at most 1048576 are read"),
        ("", "expected a header and one row"),
    ],
)
def test_what_is_no_row_is_refused_with_what_is_wrong(payload, told):
    with pytest.raises(DecodeError) as caught:
        decode(NUMBERS, payload.encode())
    assert told in str(caught.value) and len(str(caught.value)) < 400


def test_bytes_that_are_no_text():
    with pytest.raises(DecodeError, match="byte 11 is not UTF-8"):
        decode(NUMBERS, b"age,income\n\xff,2")


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_decode_or_be_refused(payload):
    for decoder in (NUMBERS, CITIES):
        with suppress(DecodeError):
            assert decode(decoder, payload).shape == decoder.row


@given(st.lists(st.floats(width=32, allow_infinity=False), min_size=2, max_size=2))
@example([0.0, float(np.finfo(np.float32).max)])
def test_numbers_come_back_to_the_last_bit(values):
    row = np.array(values, np.float32)
    suffix, payload = encode(NUMBERS, row)
    assert suffix == ".csv"
    np.testing.assert_array_equal(decode(NUMBERS, payload), row)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_categories_come_back(number):
    row = np.array([number], np.int64)
    assert decode(CITIES, encode(CITIES, row)[1]).tolist() == [number]


def test_a_person_is_told_of_values_never_seen():
    assert "city 'Ulm'" in str(hint(CITIES, b"city\nUlm\n"))
    assert hint(CITIES, b"city\nBonn\n") is None and hint(NUMBERS, b"age,income\n1,2\n") is None
    assert "gap" in str(hint(NUMBERS, b"age,income\n,\n"))
    names = [f"c{number}" for number in range(12)]
    many = CategoricalDecoder(columns=names, values=[()] * 12)
    told = str(hint(many, "\n".join([",".join(names), ",".join(["x" * 50_000] * 12)]).encode()))
    assert len(told) < 700 and "c9 'xxx" in told and "' and 2 more; the answer" in told


@pytest.mark.parametrize(
    "wrong",
    [
        {"columns": ("a", "a"), "values": ((), ())},
        {"columns": ("a",), "others": ("a",), "values": ((),)},
        {"columns": ("a",), "values": ((), ())},
        {"columns": ("a",), "values": (("x", "x"),)},
        {"columns": (), "values": ()},
    ],
)
def test_a_decoder_that_contradicts_itself(wrong):
    with pytest.raises(ValueError):
        CategoricalDecoder(**wrong)


@pytest.mark.parametrize(
    "payload",
    [
        '{"age": "' + "1" * 900_000 + 'x", "income": "1"}',
        ",".join(f"c{n}" for n in range(90_000)) + ",c0\n" + "," * 90_000 + "\n",
        "{" + ",".join(f'"c{n % 60_000}": 1' for n in range(60_001)) + "}",
    ],
    ids=["digits", "columns", "keys"],
)
def test_a_long_row_is_refused_in_no_time(payload: str) -> None:
    """What took the square of a row's length would not end before the test's time is over."""
    with pytest.raises(DecodeError):
        decode(NUMBERS, payload.encode())
