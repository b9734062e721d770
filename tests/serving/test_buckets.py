"""Batches padded to row counts: the arithmetic, and that nobody's answer shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError, build
from serving.config import RuntimeSettings
from serving.errors import BackendFailure
from serving.inference.binding import GRAPH_ID, NO_GRAPH
from serving.inference.buckets import padded, pieces, run_padded
from serving.inference.runtime import Session, bound, onnxruntime, open_session
from tests.serving.bundles import digits_graph, digits_rows, make_series_bundle

buckets = st.sets(st.integers(1, 50), min_size=1).map(sorted)


@given(st.integers(1, 500), buckets)
def test_every_row_is_in_one_piece_and_no_piece_is_larger_than_needed(
    rows: int, sizes: list[int]
) -> None:
    cut = list(pieces(rows, sizes))
    assert [row for start, stop, _ in cut for row in range(start, stop)] == list(range(rows))
    for start, stop, bucket in cut:
        assert bucket in sizes and stop - start <= bucket
        assert not any(stop - start <= smaller < bucket for smaller in sizes)
    assert len(cut) == -(-rows // sizes[-1])


@given(st.integers(1, 200), buckets)
def test_rows_come_back_as_they_went(rows: int, sizes: list[int]) -> None:
    seen = []

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(arrays["x"]))
        return {"y": arrays["x"] * 2}

    x = np.arange(rows * 3).reshape(rows, 3)
    assert (run_padded(run, {"x": x}, sizes)["y"] == x * 2).all()
    assert set(seen) <= set(sizes)


def test_what_is_padded_is_real() -> None:
    x = np.array([[1.5, 2], [3, 4]], np.float32)
    assert padded(x, 4).tolist() == [[1.5, 2], [3, 4], [3, 4], [3, 4]]
    assert padded(x, 4).dtype == x.dtype and padded(x, 2) is x


def test_an_output_without_rows_is_the_models_fault() -> None:
    with pytest.raises(BackendFailure, match=r"'y': expected 4 rows, the model gave shape \[\]"):
        run_padded(lambda arrays: {"y": np.array(1)}, {"x": np.ones(3)}, [4])


@pytest.mark.parametrize("sizes", [[4, 2], [2, 2], [0], [-1]])
def test_buckets_that_are_none(sizes: list[int]) -> None:
    with pytest.raises(ConfigError, match="buckets"):
        build(RuntimeSettings, {"buckets": sizes}, "runtime")


@pytest.fixture(scope="module")
def plain() -> Session:
    return open_session(digits_graph().SerializeToString())


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 8, 9, 30])
def test_padded_answers_of_a_real_session(plain: Session, rows: int) -> None:
    """Equal to those of the same rows in a batch of that size, within a bit of those alone."""
    settings = RuntimeSettings(buckets=(2, 4, 8))
    session = open_session(digits_graph().SerializeToString(), settings)
    images = digits_rows(rows, seed=rows)
    session.warm({"image": digits_rows(3)})
    answers, wanted = session.run({"image": images}), plain.run({"image": images})
    for name in wanted:
        assert answers[name].shape == wanted[name].shape
        np.testing.assert_allclose(answers[name], wanted[name], rtol=0, atol=2e-6)
    for start, stop, bucket in pieces(rows, settings.buckets) if rows else ():
        whole = plain.run({"image": padded(images[start:stop], bucket)})
        assert (answers["logits"][start:stop] == whole["logits"][: stop - start]).all()


# Buffers, on the device that every machine has


def runner(model: bytes, **cuda: object):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    ports = Session(session)
    settings = RuntimeSettings.model_validate({"buckets": [2], "cuda": cuda})
    return bound(session, ports.inputs, ports.outputs, "cpu", settings)


def bound_run(runs, arrays: Mapping[str, np.ndarray], recording: bool = False):
    options = onnxruntime.RunOptions()
    return runs.run(arrays, options, recording), options


def test_bound_answers_are_those_of_plain_runs_and_stay(plain: Session) -> None:
    """A second run fills the same buffers; what the first one gave must not change with it."""
    runs = runner(digits_graph().SerializeToString())
    first, second = digits_rows(3, seed=1), digits_rows(3, seed=2)
    kept, _ = bound_run(runs, {"image": first})
    after, _ = bound_run(runs, {"image": second})
    for images, answers in ((first, kept), (second, after)):
        wanted = plain.run({"image": images})
        assert all((a == w).all() for a, w in zip(answers, wanted.values(), strict=True))
    assert runs.shapes == 1
    bound_run(runs, {"image": digits_rows(3)[:, :, :, ::1].copy(order="F")})


def test_outputs_of_unknown_size_are_bound_too(tmp_path: Path) -> None:
    make_series_bundle(tmp_path / "b")
    runs = runner((tmp_path / "b" / "model.onnx").read_bytes())
    for length in (3, 5, 3):
        values = np.full((2, length), 2, np.float32)
        (total, log), _ = bound_run(runs, {"values": values})
        assert total.tolist() == [[2 * length]] * 2 and log.shape == (2, length)
    assert runs.shapes == 2


def test_buffers_of_few_shapes_are_kept() -> None:
    runs = runner(digits_graph().SerializeToString(), bound_shapes=3)
    for rows in (1, 2, 3, 4, 5, 4, 1):
        bound_run(runs, {"image": digits_rows(rows)})
    assert runs.shapes == 3


def test_a_graph_for_each_warmed_shape_and_none_for_a_strangers() -> None:
    """The number of its graph goes with each run; without a device there is nothing to record."""
    runs = runner(digits_graph().SerializeToString(), enable_cuda_graph=True, bound_shapes=2)

    def graph(rows: int, recording: bool = False) -> str:
        options = bound_run(runs, {"image": digits_rows(rows)}, recording)[1]
        return options.get_run_config_entry(GRAPH_ID)

    assert graph(2) == NO_GRAPH  # the golden rows come before the warming
    assert graph(2, recording=True) == "1" and graph(4, recording=True) == "2"
    assert [graph(2), graph(4), graph(3)] == ["1", "2", NO_GRAPH]
    assert [graph(9), graph(8), graph(2), graph(4)] == [NO_GRAPH, NO_GRAPH, "1", "2"]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "'image' is missing"),
        ({"image": digits_rows(2).astype(np.float32)}, "expected uint8 .* got float32"),
        ({"image": digits_rows(2)[:, :4]}, r"got uint8 \[2, 4, 8, 1\]"),
        ({"image": digits_rows(2)[0]}, r"got uint8 \[8, 8, 1\]"),
    ],
)
def test_bytes_of_another_type_are_never_copied(
    arrays: Mapping[str, np.ndarray], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        bound_run(runner(digits_graph().SerializeToString()), arrays)
