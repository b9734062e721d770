"""Sessions on a CUDA device: where they run, and that they answer as the CPU does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bundle.manifest import read
from serving.config import RuntimeSettings, Settings
from serving.errors import DeadlineExceeded, ServingError
from serving.inference.model import load
from serving.inference.providers import CUDA, TENSORRT, cuda_options
from serving.inference.runtime import Session, machine, onnxruntime, open_session
from tests.serving.bundles import digits_graph, digits_rows, make_bundle
from tests.serving.graphs import counting, doubling

TOLERANCE = 1e-5


def settings(**values: Any) -> RuntimeSettings:
    return RuntimeSettings.model_validate({"provider": "require"} | values)


def session(**values: Any) -> Session:
    return open_session(digits_graph().SerializeToString(), settings(**values))


def check_answers(found: Session, counts: tuple[int, ...]) -> None:
    plain = open_session(digits_graph().SerializeToString())
    for count in counts:
        rows = digits_rows(count, seed=count)
        answers, wanted = found.run({"image": rows}), plain.run({"image": rows})
        for name in wanted:
            assert answers[name].shape == wanted[name].shape
            np.testing.assert_allclose(answers[name], wanted[name], rtol=0, atol=TOLERANCE)


def test_it_runs_where_it_was_asked_to() -> None:
    placement = session().placement
    assert placement.provider == CUDA and not placement.fell_back
    assert placement.nodes[CUDA] and not placement.heavy_on_cpu


def test_options_are_those_that_were_asked_for() -> None:
    asked = settings(cuda={"gpu_mem_limit": 1 << 30, "cudnn_conv_algo_search": "HEURISTIC"})
    found = open_session(digits_graph().SerializeToString(), asked)
    had = found._session.get_provider_options()[CUDA]
    assert {key: had.get(key) for key in cuda_options(asked)} == cuda_options(asked)


CUDA_GRAPHS = {"cuda": {"enable_cuda_graph": True}, "buckets": [1, 4, 8]}


@pytest.mark.parametrize(
    "values",
    [{"cuda": {"io_binding": False}}, {}, {"buckets": [1, 4, 8]}],
    ids=["plain", "bound", "buckets"],
)
def test_answers_are_those_of_the_cpu(values: dict[str, Any]) -> None:
    check_answers(session(**values), (1, 2, 3, 4, 8, 9, 30, 1))


def test_graphs_replay_what_they_are_given_now() -> None:
    """A graph replays addresses: what is in the buffers then must be this run's rows."""
    found = session(**CUDA_GRAPHS)
    found.warm({"image": digits_rows(8)})
    for _ in range(5):
        check_answers(found, (1, 2, 4, 8, 30))


def test_a_bundle_is_proven_on_the_device(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    for values in ({}, CUDA_GRAPHS):
        model = load(read(tmp_path / "b"), Settings(runtime=settings(**values)))
        assert max(model.replay.differences.values()) <= TOLERANCE
        model.self_test()
        model.close()


def test_more_memory_than_allowed_is_an_error_and_not_the_end() -> None:
    found = open_session(
        doubling(30, constant=False).SerializeToString(), settings(cuda={"gpu_mem_limit": 1 << 28})
    )
    with pytest.raises(ServingError):
        found.run({"x": np.ones((16, 1), np.float32)})
    check_answers(session(), (4,))


def test_a_run_without_end_is_ended() -> None:
    found = open_session(
        counting().SerializeToString(),
        RuntimeSettings(provider="prefer", run_seconds=0.5),
    )
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        found.run({"steps": np.array([[2**40]])})
    assert time.monotonic() - began < 2


def test_loading_again_and_again_takes_no_more_memory() -> None:
    rows = {"image": digits_rows(8)}
    free = []
    for _ in range(20):
        found = session()
        found.run(rows)
        del found
        free.append(_free_bytes())
    assert free[4] - free[-1] < 64 << 20


def _free_bytes() -> int:
    import ctypes

    driver = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    assert not driver.cuInit(0)
    assert not driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    assert not driver.cuCtxSetCurrent(context)
    assert not driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return free.value


def test_the_driver_tells_what_engines_are_tied_to(tmp_path: Path) -> None:
    found = machine(settings(tensorrt={"cache": str(tmp_path)}))
    assert "sm" in found.device and found.cuda


def test_engines_are_kept(tmp_path: Path) -> None:
    asked = settings(
        tensorrt={"enabled": True, "cache": str(tmp_path / "engines")}, buckets=[1, 4, 8]
    )
    if TENSORRT not in onnxruntime.get_available_providers() or not machine(asked).tensorrt:
        pytest.skip("TensorRT is not installed: pip install tensorrt")
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        found = open_session(digits_graph().SerializeToString(), asked, digest="ab" * 32)
        found.warm({"image": digits_rows(8)})
        seconds.append(time.monotonic() - began)
        check_answers(found, (1, 3, 8))
    assert list((tmp_path / "engines").rglob("*.engine")) and seconds[1] < seconds[0]
