"""Graphs that swell or never finish loading, within bounds of time and memory.

Each runs in a process of its own: the figures are that process's. The checks before the session
refuse all of these (test_graph_limits.py); here they are waived, as for a graph nobody thought of.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.bundle.manifest import Input, Output, read
from serving.config import GraphSettings, RuntimeSettings, Settings
from serving.errors import ModelRefused
from serving.inference.model import load
from serving.models import trial
from tests.serving.bundles import make_bundle
from tests.serving.graphs import chain, doubling, functions, growing
from tests.serving.live import ROOT, Live

WAIVED = {"nodes": 10**9, "expanded_nodes": 2**62, "forbidden_operators": ()}
PROGRAM = """
import json, pathlib, sys, threading, time
import numpy
from serving.config import RuntimeSettings
from serving.errors import ServingError
from serving.inference.runtime import open_session
from tests.memory import peak_bytes
path, settings, shape = sys.argv[1:]
ticks, over = [], threading.Event()
def tick():
    while not over.wait(0.01):
        ticks.append(time.monotonic())
beside = threading.Thread(target=tick)
beside.start()
began = time.monotonic()
try:
    settings = RuntimeSettings.model_validate_json(settings)
    session = open_session(pathlib.Path(path).read_bytes(), settings)
    session.run({'x': numpy.ones(json.loads(shape), numpy.float32)})
    told = 'answered'
except ServingError as error:
    told = f'{type(error).__name__}: {error}'
seconds = time.monotonic() - began
over.set()
beside.join()
peak = peak_bytes() >> 20
gap = max(later - earlier for earlier, later in zip(ticks, ticks[1:])) if ticks[1:] else seconds
print(json.dumps({'told': told, 'seconds': seconds, 'peak_mb': peak, 'gap': gap}))
"""


def tried(
    tmp_path: Path, model: onnx.ModelProto, shape: list[int], **settings: Any
) -> dict[str, Any]:
    """What became of loading and running a graph: told, seconds, peak_mb, and the longest time
    that another thread did not get its turn.
    """
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    path, given = str(tmp_path / "model.onnx"), json.dumps(settings)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, given, json.dumps(shape)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("make", "limit"),
    [(lambda: chain(100_000), 1.0), (lambda: functions(17), 0.5)],
    ids=["100,000 nodes", "2^17 nodes by functions"],
)
def test_a_load_that_takes_too_long_is_ended(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], limit: float
) -> None:
    found = tried(tmp_path, make(), [2, 4], load_seconds=limit)
    assert found["told"].startswith("ModelRefused: ONNX Runtime did not load the graph in time")
    assert limit <= found["seconds"] < limit + 10
    assert found["gap"] < 3, "the other threads wait while a graph is loaded"


def test_what_folds_to_gigabytes_stays_small(tmp_path: Path) -> None:
    """Loaded without being folded; what running it takes is the arena's matter."""
    found = tried(tmp_path, doubling(28, constant=True), [2, 1], arena_bytes=256 << 20)
    assert found["told"].startswith("BackendFailure") and "memory" in found["told"].lower()
    assert found["peak_mb"] < 600 and found["seconds"] < 10


@pytest.mark.parametrize(
    ("model", "shape"),
    [(doubling(30, constant=False), [16, 1]), (growing(), [2, 4])],
    ids=["doubling", "growing loop"],
)
def test_a_run_that_swells_is_an_error_and_not_the_end(
    tmp_path: Path, model: onnx.ModelProto, shape: list[int]
) -> None:
    found = tried(tmp_path, model, shape, arena_bytes=256 << 20, run_seconds=20)
    assert found["told"].startswith("BackendFailure"), found
    assert found["peak_mb"] < 1200


def test_a_growing_loop_ends_with_its_time(tmp_path: Path) -> None:
    found = tried(tmp_path, growing(), [2, 4], run_seconds=0.3)
    assert found["told"].startswith("DeadlineExceeded") and found["seconds"] < 5


def test_one_arena_for_the_process(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\n"
        "from serving.config import RuntimeSettings\n"
        "from serving.inference.runtime import open_session\n"
        "model = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "a = open_session(model, RuntimeSettings(arena_bytes=1 << 28))\n"
        "b = open_session(model, RuntimeSettings(arena_bytes=1 << 28))\n"
        "open_session(model, RuntimeSettings(arena_bytes=1 << 29))"
    )
    (tmp_path / "model.onnx").write_bytes(chain(3).SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModelRefused: runtime.arena_bytes is one for the whole process" in done.stderr


# In a process that is thrown away


def hanging(folder: Path) -> None:
    """2^31 nodes by functions: ONNX Runtime looks at no flag while it inlines them."""
    swelling(folder, functions(31))


def swelling(folder: Path, model: onnx.ModelProto) -> None:
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    rows = np.ones((8, width), np.float32)
    make_bundle(
        folder,
        model,
        (Input(name="x", dtype="float32", shape=("batch", width), units="none"),),
        (Output(name="y", dtype="float32", shape=("batch", width), units="none"),),
        {"x": rows},
        {"y": rows},
        name="strange",
        task="none",
    )


def settings(**runtime: Any) -> Settings:
    return Settings(
        graph=GraphSettings.model_validate(WAIVED), runtime=RuntimeSettings(trial=True, **runtime)
    )


def test_a_sound_bundle_passes_its_trial(bundle: Path) -> None:
    began = time.monotonic()
    trial.run(read(bundle), Settings(runtime=RuntimeSettings(trial=True)))
    assert time.monotonic() - began < 10


def test_a_trial_tells_the_childs_reason(tmp_path: Path) -> None:
    swelling(tmp_path / "b", chain(5))  # its golden rows say that it gives back what it gets
    found = read(tmp_path / "b")
    make_bundle(tmp_path / "c", expected={"logits": np.zeros((8, 10), np.float32)})
    trial.run(found, settings())
    with pytest.raises(ModelRefused, match=r"model\.onnx: golden rows: output 'logits' differs"):
        trial.run(read(tmp_path / "c"), settings())


def test_a_graph_that_hangs_even_a_cancelled_load(tmp_path: Path) -> None:
    hanging(tmp_path / "b")
    began = time.monotonic()
    with pytest.raises(ModelRefused, match=r"trial: did not load within 1 s"):
        trial.run(read(tmp_path / "b"), settings(load_seconds=1, function_nodes=2**31 - 1))
    assert time.monotonic() - began < 1 + trial.SPARE_SECONDS + 3


def test_a_graph_that_swells_while_loading(tmp_path: Path) -> None:
    swelling(tmp_path / "b", doubling(30, constant=True))
    with pytest.raises(ModelRefused, match=r"bad_alloc|Failed to allocate memory"):
        trial.run(read(tmp_path / "b"), settings(constant_folding_bytes=2**62, trial_bytes=1 << 30))


def test_a_server_beside_a_hanging_graph(start: Callable[..., Live], tmp_path: Path) -> None:
    make_bundle(tmp_path / "repository" / "digits-test" / "1")
    hanging(tmp_path / "repository" / "strange" / "1")
    (tmp_path / "s.toml").write_text(
        "[graph]\nexpanded_nodes = 4611686018427387904\n"
        "[runtime]\ntrial = true\nload_seconds = 1.0\nfunction_nodes = 2147483647\n"
    )
    server = start(tmp_path / "repository", "--config", str(tmp_path / "s.toml"))
    index = server.json("POST", "/v2/repository/index", {})[1]
    reasons = {entry["name"]: entry.get("reason", "") for entry in index}
    assert "trial: did not load within 1 s" in reasons["strange"]
    assert server.json("GET", "/v2/models/digits-test/ready")[0] == 200


def test_without_a_trial_the_checks_refuse_it_at_once(tmp_path: Path) -> None:
    hanging(tmp_path / "b")
    began = time.monotonic()
    with pytest.raises(ModelRefused, match="nodes once local functions are inlined"):
        load(read(tmp_path / "b"), Settings())
    assert time.monotonic() - began < 2
