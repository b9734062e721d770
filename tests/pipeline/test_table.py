"""Tables: what is read of them, what is refused, and what becomes of columns."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import prepared
from pipeline.bundle.decode import decode
from pipeline.config import ConfigError, build
from pipeline.data import table
from pipeline.dataset import DataError, RawData, Split
from pipeline.frontends import columns

GOOD = "a,b,y\n" + "".join(f"{i * 1.5},{'pqr'[i % 3]},{i * i % 17 + 0.5}\n" for i in range(40))
Load = Callable[..., RawData]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(content: str | bytes, name: str = "t.csv", **settings: Any) -> RawData:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        values = {"name": "table", "path": name, "target": "y", **settings}
        return table.load(build(table.Config, values, "data"), tmp_path)

    return load


def made(raw: RawData, rows: np.ndarray | None = None) -> dict[str, tuple[Any, np.ndarray]]:
    """(decoder, array) by input, its categories learnt of these rows."""
    assert callable(raw.rows)
    encoded = raw.rows(np.arange(len(raw.target)) if rows is None else rows)
    return {i.name: (i.decoder, np.asarray(encoded.arrays[i.name])) for i in encoded.inputs}


def rows(row: Callable[[int], object], count: int = 40) -> str:
    """Lines of CSV: a tuple of values for each row."""
    return "".join(",".join(map(str, row(i))) + "\n" for i in range(count))  # type: ignore[call-overload]


def other(i: int) -> float:
    """Numbers that follow no column."""
    return i * 7 % 19 + 0.5


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (GOOD + "1,2\n3,x,4,5\n1,p,2\n7\n", ["row 42: 2 values", "row 43: 4 values", "row 45"]),
        ("a,a,y\n1,2,3\n", ["columns named twice: 'a'"]),
        (GOOD + "1,p,\n2,q,NA\n", ["without a target", "row 42: no y", "row 43: no y"]),
        (GOOD + "abc,p,3\n1,p,3\n", ["row 42: a is 'abc'", "data.categorical"]),
        ("a,y\n" + rows(lambda i: (f'"1,{i:03d}"', i / 2)), ["without thousands", "and 20 more"]),
        ("a;y\n" + rows(lambda i: (i, f"5;{i}.5")), ["row 2: a is '0,5'; write it with a decimal"]),
        ("a;y\n0,125;1\n" + rows(lambda i: (i, f"5;{i}.5")), ["'0,125'; write it with a decimal"]),
        (
            "a,y\n" + rows(lambda i: (i * i % 23, ["1", "2", "1.0", "+2"][i % 4])),
            ["y: classes that are the same number", "'1' and '1.0'", "'2' and '+2'"],
        ),
        ("a, a ,y\n1,2,3\n", ["columns named twice: 'a'"]),
        (
            GOOD + "inf,p,3\n-Infinity,p,4\n1e39,p,4\n",
            ["row 42: a is 'inf'", "row 44: a is '1e39'"],
        ),
        (GOOD + "1,p,x\n2,p,inf\n", ["targets that are no finite number", "row 42", "row 43"]),
        ("a,b,y\n" + rows(lambda i: (i / 2, i * i % 11, 2 * i + 0.2)), ["a: tells the target"]),
        (
            "a,b,y\n" + rows(lambda i: (i * i % 7, "pqr"[i % 3], "xyz"[i % 3])),
            ["over again", "b: tells the target"],
        ),
        ("", ["empty; expected a header"]),
        ("a,b,y\n", ["no rows below the header"]),
        (b"a,b,y\n1,caf\xe9,2\n2,x,3\n", ["not UTF-8", "line 2: byte 0xe9"]),
        ("a,b,z\n1,2,3\n", ["no column 'y'"]),
        ("y\n1\n2\n3.5\n", ["no column is left to learn from"]),
        ("a,,y\n" + rows(lambda i: (i * 3 % 7, i * 7 % 11, "ab"[i % 2])), ["column 2 has no name"]),
        ("a,y\n" + rows(lambda i: (i, "x")), ["y is 'x' in every row"]),
        (
            "a,y\n" + rows(lambda i: (i * i % 9, f"t{i}"), 1100),
            ["1100 different values, at most 1000"],
        ),
        (GOOD + '1,"p,3\n2,q,4\n', ["row 42"]),
    ],
)
def test_dirty_tables_are_refused_by_name_and_row(
    load: Load, content: Any, told: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        load(content)
    message = str(caught.value)
    assert "t.csv: " in message.splitlines()[0]
    assert all(part in message for part in told), message
    assert len(message.splitlines()) <= 22


def test_the_mistakes_of_every_column_are_one_list(load: Load) -> None:
    text = "a,c,y\n" + rows(lambda i: (i / 2, i * i % 13, other(i))) + "x,1,3\n2,x,3\n"
    with pytest.raises(DataError) as caught:
        load(text)
    assert "row 42: a is 'x'" in str(caught.value) and "row 43: c is 'x'" in str(caught.value)


def test_mistakes_of_several_kinds_are_one_error(load: Load) -> None:
    text = "a,b,s,y\n" + rows(lambda i: (i * 1.5, "pqr"[i % 3], "train", other(i)))
    bad = "x,p,tryal,\n" * 30 + "2,q,test,inf\n"
    with pytest.raises(DataError) as caught:
        load(text + bad, numeric=["a"], split_column="s")
    message = str(caught.value)
    for part in (
        "rows without a target; fill or remove them:\n  row 42: no y",
        "mend or remove these rows:\n  row 72: y is 'inf'",
        "under data.gaps:\n  row 42: a is 'x'",
        "s is neither train, validation nor test:\n  row 42: 'tryal'",
    ):
        assert part in message, message
    assert message.count("... and 24 more") == 2 and "... and 23 more" in message
    assert message.count("\n  row ") == 20, "kinds share the twenty lines, to the last"
    with pytest.raises(DataError, match=r"no column 'u19'.*\n\.\.\. and 280 more\Z"):
        load(text, ignore=[f"u{number}" for number in range(300)])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target": "a", "ignore": ["a"]}, "column 'a' is named in two places"),
        ({"target": []}, "expected a column, or a list of columns"),
        ({"numeric": ["a"], "categorical": ["a"]}, "named in two places"),
    ],
)
def test_settings_that_contradict_each_other(load: Load, settings: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(GOOD, **settings)


def test_a_column_is_what_it_looks_like_unless_it_is_said(load: Load, capsys: Any) -> None:
    text = "id,k,day,zip,num,cat,note,y\n" + rows(
        lambda i: (
            *(i, 5, f"2020-01-{i % 28 + 1:02d}", i % 4 + 100, i / 2),
            *("uv"[i % 2], f"text {i}", other(i)),
        )
    )
    found = made(load(text, categorical=["zip"]))
    assert found["numeric"][0].columns == ("num",)
    assert found["categorical"][0].columns == ("zip", "cat")
    told = capsys.readouterr().out
    for part in ("'id' (counts the rows)", "'k' ('5' in every row)", "'day' (dates", "'note' (ids"):
        assert part in told
    # A person may send the whole row of the file: what is ignored is known by name.
    assert {"id", "note", "y"} <= set(found["numeric"][0].others)


def test_an_input_without_columns_is_left_out(load: Load) -> None:
    assert list(made(load("a,y\n" + rows(lambda i: (i * i % 23, other(i)))))) == ["numeric"]
    assert list(made(load("a,y\n" + rows(lambda i: ("pq"[i % 2], other(i)))))) == ["categorical"]


@pytest.mark.parametrize(
    ("value", "settings", "kind", "labels"),
    [
        (lambda i: "ab"[i % 2], {}, "i", ("a", "b")),
        (lambda i: [10, 9, 2][i % 3], {}, "i", ("2", "9", "10")),
        (lambda i: i % 30, {}, "f", ()),
        (lambda i: [10, 9, 2][i % 3], {"teaches": "number"}, "f", ()),
        (lambda i: i % 30 + 0.5, {}, "f", ()),
    ],
)
def test_a_target_is_of_classes_or_numbers(
    load: Load, value: Callable[[int], object], settings: Any, kind: str, labels: Any
) -> None:
    raw = load("a,y\n" + rows(lambda i: (i * i % 23, value(i)), 300), **settings)
    assert raw.target.dtype.kind == kind and raw.labels == labels


def test_several_targets_are_tags(load: Load) -> None:
    good = rows(lambda i: (i * i % 23, i % 2, "true" if i % 3 else "FALSE"))
    raw = load("a,p,q\n" + good, target=["p", "q"])
    assert raw.target.dtype == bool and raw.target[:3].tolist() == [[0, 0], [1, 1], [0, 1]]
    with pytest.raises(DataError, match="row 4: q is '2'"):
        load("a,p,q\n" + rows(lambda i: (i * i % 23, i % 2, i % 3)), target=["p", "q"])


def test_categories_are_learnt_of_the_training_rows_alone(load: Load) -> None:
    raw = load("a,y\n" + rows(lambda i: ("common" if i < 30 else "late", other(i))))
    decoder, numbers = made(raw, np.arange(20))["categorical"]
    assert decoder.values == (("common",),)
    assert numbers[:, 0].tolist() == [2] * 30 + [1] * 10
    assert made(raw)["categorical"][0].values == (("common", "late"),)


def test_the_commonest_values_have_places_and_rare_ones_none(load: Load) -> None:
    text = "a,y\n" + rows(lambda i: (("x" * 20 + "y" * 10 + "z" * 6 + "w" * 4)[i], other(i)))
    assert made(load(text))["categorical"][0].values == (("x", "y", "z"),)
    assert made(load(text, most_values=2))["categorical"][0].values == (("x", "y"),)
    assert made(load(text, least_rows=8))["categorical"][0].values == (("x", "y"),)


def test_every_row_as_a_file_decodes_to_its_tensors(load: Load) -> None:
    text = "a,b,y\n" + rows(
        lambda i: (i / 7 if i % 5 else "", "pqr"[i % 3] if i % 7 else "NA", i / 2)
    )
    raw = load(text, least_rows=12)
    assert raw.sample is not None
    for name, (decoder, array) in made(raw).items():
        for row in range(40):
            np.testing.assert_array_equal(decode(decoder, raw.sample(row)[1]), array[row], name)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("a, b,y ", ("a", "b")),
        ('\n"a","b\nof it",y', ("a", "b\nof it")),
        ('"a", b,y', ("a", "b")),
    ],
)
def test_a_header_is_read_alike_in_a_table_and_in_a_row(
    load: Load, header: str, names: tuple[str, str]
) -> None:
    """Blanks after commas, and names over two lines as spreadsheets write them."""
    line = "0.5,{},1"
    raw = load(f"{header}\n" + rows(lambda i: (i / 7, "True" if i % 3 else "False", other(i))))
    assert raw.sample is not None
    for name, (decoder, array) in made(raw).items():
        assert decoder.columns == names[name == "categorical" :][:1]
        np.testing.assert_array_equal(decode(decoder, raw.sample(1)[1]), array[1], name)
        own = decode(decoder, f"{header}\n{line.format('True')}\n".encode())
        assert own == ([0.5] if name == "numeric" else array[1]), "a row of the file itself"


def test_a_category_is_known_however_json_or_csv_spells_it(load: Load) -> None:
    values = [("True", "1.0", "007", "1", "1.50"), ("False", "2.0", "008", "1.0", "2.50")]
    raw = load(
        "t,n,c,d,e,y\n" + rows(lambda i: (*values[i % 2], other(i))), categorical=list("ncde")
    )
    decoder, array = made(raw)["categorical"]
    assert array.min() >= 2 and decoder.columns == ("t", "n", "c", "d", "e")

    def numbers(row: str) -> list[int]:
        return list(decode(decoder, row.encode()))

    assert numbers('{"t": true, "n": 1, "c": "007", "d": 1.0, "e": 1.5}') == array[0].tolist()
    assert numbers("t,n,c,d,e\nTRUE,1,007,1,1.5") == array[0].tolist()
    # A code is no number, and of two values that are the same none is meant.
    assert numbers('{"t": 1, "n": "one", "c": 7, "d": "1.00", "e": null}') == [1, 1, 1, 1, 0]


def test_a_rare_spelling_is_the_common_value_in_training_too(load: Load) -> None:
    text = "a,y\n" + rows(lambda i: (["true", "True"][i < 3] if i % 2 else "false", other(i)))
    raw = load(text)
    decoder, array = made(raw)["categorical"]
    assert decoder.values == (("false", "true"),) and array.min() == 2
    assert raw.sample is not None and decode(decoder, raw.sample(1)[1]) == array[1]


def test_a_column_that_never_changes_in_training_is_not_blown_up() -> None:
    from pipeline.statistics import by_channel

    column = np.full((1001, 2), 0.1, np.float32)
    column[-1] = 0.2
    column[:, 1] = np.nan
    constant, gaps = by_channel(column, np.arange(1000))
    assert (constant.mean, constant.std) == (pytest.approx(0.1), 0.0)  # rounding left 6e-9
    assert (gaps.mean, gaps.std) == (0.0, 0.0)


def test_numbers_that_float32_cannot_tell_apart_are_told(load: Load, capsys: Any) -> None:
    def text(first: int) -> str:
        return "t,a,y\n" + rows(lambda i: (first + i * i % 31, i * i % 23, other(i)))

    load(text(1_700_000_000))
    assert "t.csv: t: so large that float32" in capsys.readouterr().out
    load(text(1_700_000))
    assert "float32" not in capsys.readouterr().out


def test_rows_of_a_table_in_two_given_sets_are_told(
    load: Load, tmp_path: Path, capsys: Any
) -> None:
    """They may be alike by chance, and are not refused; but whoever copied some should know."""

    def text(*copies: int) -> str:
        parts = ["train"] * 30 + ["val"] * 5 + ["test"] * 5
        lines = [f"{i / 7},{'pqr'[i % 3]},{part},{i % 5}\n" for i, part in enumerate(parts)]
        return "a,b,s,y\n" + "".join(lines + [lines[i].replace("train", "test") for i in copies])

    for number, (copies, told) in enumerate([((3, 4), "2 rows of a given set are"), ((), "")]):
        raw = load(text(*copies), split_column="s")
        prepared.prepare("t", raw, Split(), tmp_path / str(number))
        out = capsys.readouterr().out
        assert (told + " also in another, target and all (row 5 and row 42" in out) == bool(told)
        assert ("warning" in out) == bool(told)


def test_parquet_says_the_same_as_csv(load: Load, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    values = {
        "f": pa.array([1.5, None, float("nan"), 2.25] * 10, pa.float32()),
        "h": pa.array(np.float16([1.5, 0.25, np.nan, 2.25] * 10), pa.float16()),
        "b": [True, False, None, True] * 10,
        "s": pa.array(["u", "v", None, " u"] * 10).dictionary_encode(),
        "t": [datetime.datetime(2020, 1, 1)] * 40,
        "l": [[1], [2], [3], [4]] * 10,
        "y": [1, 2, 3, 4] * 10,
    }
    parquet.write_table(pa.table(values), tmp_path / "t.parquet")
    raw = load((tmp_path / "t.parquet").read_bytes(), "t.parquet")
    found = made(raw)
    assert found["numeric"][0].columns == ("f", "h") and found["categorical"][0].columns == (
        "b",
        "s",
    )
    assert found["categorical"][0].values == (("true", "false"), ("u", "v"))
    expected = np.float32([[1.5, np.nan, np.nan, 2.25], [1.5, 0.25, np.nan, 2.25]])
    np.testing.assert_array_equal(found["numeric"][1][:4].T, expected)
    assert raw.row(0) == "row 1"
    with pytest.raises(DataError, match="not a Parquet file"):
        load(b"no", "u.parquet")
    named = pa.array([b"u" * 16], pa.uuid())
    parquet.write_table(pa.table({"y": [1], "u": named}), tmp_path / "t")
    with pytest.raises(DataError, match="column 'u': values of type extension"):
        load((tmp_path / "t").read_bytes(), "v.parquet")


def test_rows_that_are_alike_may_have_different_targets(load: Load, tmp_path: Path) -> None:
    text = "a,b,y\n" + rows(lambda i: (i % 7, "pqr"[i % 3], "uv"[i // 9 % 2]), 600)
    shares = Split(validation=0.2, test=0.2)
    manifest, chosen = prepared.prepare("t", load(text), shares, tmp_path / "one")
    # Few different rows: dealt one by one, so the shares are kept all the same.
    assert manifest.rows == {"train": 360, "validation": 120, "test": 120}
    assert prepared.prepare("t", load(text), shares, tmp_path / "two")[0] == manifest
    assert chosen["test"].tolist() != list(range(480, 600))


def test_a_column_may_deal_the_rows(load: Load) -> None:
    def text(test: str) -> str:
        return "a,s,y\n" + rows(lambda i: (i * i % 23, ["train", "val", test][i % 3], "uv"[i % 2]))

    raw = load(text("Test"), split_column="s")
    assert raw.given_test is not None and raw.given_validation is not None
    assert np.flatnonzero(raw.given_test)[:2].tolist() == [2, 5]
    with pytest.raises(DataError, match="row 4: 'Tst'"):
        load(text("Tst"), split_column="s")


def features(raw: RawData, **settings: Any) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    assert callable(raw.rows)
    every = np.arange(len(raw.target))
    encoded = raw.rows(every)
    config = columns.Config(name="columns", **settings)
    arrays = {name: np.asarray(array) for name, array in encoded.arrays.items()}
    measured = columns.measure(config, encoded.inputs, arrays, every)
    tensors = [torch.from_numpy(arrays[i.name]) for i in encoded.inputs]
    return columns.build(config, encoded.inputs, measured), tensors


def test_numbers_are_standardised_and_gaps_marked(load: Load) -> None:
    raw = load(
        "a,c,y\n" + rows(lambda i: (1_700_000_000 + i if i % 4 else "", i * i % 23, other(i)))
    )
    frontend, (numeric,) = features(raw)
    given = frontend(numeric)
    assert frontend.features.shape == (4,) and given.shape == (40, 4)
    known = ~torch.isnan(numeric[:, 0])
    assert torch.equal(given[:, 2], (~known).float()) and not given[~known, 0].any()
    assert float(given[:, 1].mean()) == pytest.approx(0, abs=1e-5)
    assert float(given[:, 1].std(correction=0)) == pytest.approx(1, rel=1e-4)
    clipped, _ = features(raw, clip=1.0)
    assert float(clipped(numeric)[:, :2].abs().max()) == 1


@pytest.mark.parametrize("categories", ["one_hot", "embedding"])
def test_every_value_has_a_place_and_wrong_numbers_are_unseen(load: Load, categories: str) -> None:
    raw = load("b,c,y\n" + rows(lambda i: ("pqr"[i % 3], "uv"[i % 2], other(i))))
    frontend, _ = features(raw, categories=categories)
    every = torch.tensor([[i, min(i, 3)] for i in range(5)])
    given = frontend(every)
    assert given.shape == (5, *frontend.features.shape)
    assert len({tuple(row) for row in given.tolist()}) == 5
    for wrong in (-1, 99, 2**40):
        assert torch.equal(frontend(torch.tensor([[wrong, 1]])), given[1:2])
    if categories == "one_hot":
        assert torch.equal(given.sum(1), torch.full((5,), 2.0))


def test_long_tails_are_shortened_and_waves_learn(load: Load) -> None:
    raw = load("a,b,y\n" + rows(lambda i: (1.5**i, i * i % 23, other(i))))
    frontend, (numeric,) = features(raw, log=("a",), waves=3)
    given = frontend(numeric)
    assert given.shape == (40, 16) and float(given[:, 0].detach().abs().max()) < 3
    plain, _ = features(raw, waves=3)
    assert float(plain(numeric)[:, 0].detach().abs().max()) > 4
    assert torch.equal(plain(numeric)[:, 1], given[:, 1])
    with pytest.raises(DataError, match=r"data\.encoding\.log: no column of numbers 'c'"):
        load("a,y\n" + rows(lambda i: (1.5**i, other(i))), encoding={"log": ["c"]})
    given.sum().backward()
    assert all(parameter.grad is not None for parameter in frontend.parameters())


def test_places_of_gaps_and_unseen_values_are_trained_where_asked() -> None:
    from pipeline.augment import Augment, augmented

    torch.manual_seed(0)
    raw = {"numeric": torch.ones(4000, 2), "categorical": torch.full((4000, 2), 5)}
    same = augmented(raw, Augment())
    assert all(torch.equal(same[name], raw[name]) for name in raw)
    changed = augmented(raw, Augment(gaps=0.1, unseen=0.2))
    assert torch.isnan(changed["numeric"]).float().mean() == pytest.approx(0.1, abs=0.02)
    assert (changed["categorical"] == 1).float().mean() == pytest.approx(0.2, abs=0.02)
