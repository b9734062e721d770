"""Models that come, change and go while a real server answers."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.config import load
from tests.endurance.figures import report
from tests.project import ROOT
from tests.serving.bundles import (
    answers,
    digits_graph,
    digits_rows,
    make_bundle,
    make_series_bundle,
)
from tests.serving.live import Live, tensor

WARM = 8
"""Cycles after which all is there that is kept for good."""

PAGE = ROOT / "docs" / "serving.md"
ROW = digits_rows(1)
ASKED = {"inputs": [tensor("image", ROW, "UINT8")], "outputs": [{"name": "logits"}]}
INFER = "/v2/models/digits-test/infer"

Start = Callable[..., Live]


def expected(seed: int) -> list[float]:
    """The logits of the digits graph with that seed."""
    return answers(digits_graph(seed).SerializeToString(), {"image": ROW})["logits"][0].tolist()


def operator(server: Live) -> Live:
    """The same server by its control plane."""
    found = re.search(r"^control: .* on http://127\.0\.0\.1:(\d+)$", server.told(), re.M)
    assert found, server.told()
    other = copy.copy(server)
    other.port = int(found[1])
    return other


def change(server: Live, what: str, model: str = "digits-test", **parameters: Any) -> Any:
    """(status, answer) of a load or unload."""
    body = {"parameters": parameters} if parameters else {}
    return operator(server).json("POST", f"/v2/repository/models/{model}/{what}", body)


def index(server: Live) -> dict[tuple[str, str], tuple[str, str]]:
    """(state, reason) by name and version."""
    entries = server.json("POST", "/v2/repository/index")[1]
    return {(e["name"], e["version"]): (e["state"], e["reason"]) for e in entries}


def version_that_answers(server: Live) -> str:
    status, answer = server.json("POST", INFER, ASKED)
    assert status == 200, answer
    return str(answer["model_version"])


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with `digits-test` version 1."""
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    return tmp_path / "r"


def settings(tmp_path: Path, text: str) -> tuple[str, str]:
    (tmp_path / "serve.toml").write_text(text)
    return "--config", str(tmp_path / "serve.toml")


# Load


def test_a_new_version_is_loaded_and_answers(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    assert version_that_answers(server) == "1"
    digest = make_bundle(folder / "digits-test" / "2", digits_graph(seed=2))
    assert version_that_answers(server) == "1"
    status, told = change(server, "load")
    assert status == 200 and told["name"] == "digits-test"
    assert told["versions"][1] == {"version": "2", "bundle": digest}
    assert version_that_answers(server) == "2"
    old = server.json("POST", "/v2/models/digits-test/versions/1/infer", ASKED)[1]
    assert old["outputs"][0]["data"] == pytest.approx(expected(0), abs=1e-5)
    assert index(server)["digits-test", "2"] == ("READY", "")
    assert server.json("GET", "/v2/models/digits-test")[1]["versions"] == ["1", "2"]


def test_a_new_model_is_loaded(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    make_series_bundle(folder / "series" / "3")
    assert server.json("GET", "/v2/models/series")[0] == 404
    assert change(server, "load", "series")[0] == 200
    assert server.json("GET", "/v2/models/series/ready")[0] == 200


def test_one_version_alone(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    for number in ("2", "3"):
        make_bundle(folder / "digits-test" / number)
    assert change(server, "load", version="2")[0] == 200
    assert {v for _, v in index(server)} == {"1", "2"}
    status, told = change(server, "load", version="7")
    assert status == 404 and "known: 1, 2, 3" in told["error"]


def test_a_swap_under_load_mixes_nothing_and_loses_nothing(start: Start, folder: Path) -> None:
    """Every answer is the old bundle's or the new one's and says which; none is missing."""
    server = start(folder, "--control-port", "0")
    digests = {server.json("POST", INFER, ASKED)[1]["parameters"]["bundle"]: expected(0)}
    stop = threading.Event()
    wrong: list[Any] = []
    seen: list[str] = []

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        while not stop.is_set():
            connection.request("POST", INFER, json.dumps(ASKED))
            answer = connection.getresponse()
            body = json.loads(answer.read())
            if answer.status != 200:
                wrong.append(body)
                continue
            bundle = body["parameters"]["bundle"]
            seen.append(bundle)
            if not np.allclose(body["outputs"][0]["data"], digests[bundle], atol=1e-5):
                wrong.append(body)
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    for seed in range(1, 9):
        fresh = folder / f".{seed}"
        digest = make_bundle(fresh, digits_graph(seed))
        digests[digest] = expected(seed)
        shutil.rmtree(folder / "digits-test" / "1")
        fresh.rename(folder / "digits-test" / "1")
        assert change(server, "load")[1]["versions"] == [{"version": "1", "bundle": digest}]
        body = server.json("POST", INFER, ASKED)[1]
        assert body["parameters"]["bundle"] == digest
    stop.set()
    for thread in clients:
        thread.join()
    assert not wrong
    assert len(set(seen)) >= 5 and len(seen) > 100


def test_an_unchanged_bundle_is_left_alone(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    assert change(server, "load")[0] == 200
    assert "model loaded" not in server.told()


def test_a_failed_load_touches_nothing(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    place = folder / "digits-test" / "1"
    place.rename(folder / ".good")
    make_bundle(place, digits_graph(seed=3))
    graph = place / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    status, told = change(server, "load")
    assert status == 400 and "model.onnx" in told["error"] and "goes on" in told["error"]
    body = server.json("POST", INFER, ASKED)[1]
    assert body["outputs"][0]["data"] == pytest.approx(expected(0), abs=1e-5)
    state, reason = index(server)["digits-test", "1"]
    assert state == "READY" and "model.onnx" in reason
    assert server.json("GET", "/v2/health/ready")[0] == 200
    graph.write_bytes(whole)
    assert change(server, "load")[0] == 200
    body = server.json("POST", INFER, ASKED)[1]
    assert body["outputs"][0]["data"] == pytest.approx(expected(3), abs=1e-5)
    assert index(server)["digits-test", "1"] == ("READY", "")


def test_a_new_version_that_fails_leaves_the_older_one(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    make_bundle(folder / "digits-test" / "2", admitted=False)
    status, told = change(server, "load")
    assert status == 400 and "not admitted" in told["error"]
    assert version_that_answers(server) == "1"
    assert index(server)["digits-test", "2"][0] == "UNAVAILABLE"
    assert server.json("GET", "/v2/health/ready")[0] == 200
    assert "nonetheless" not in told["error"]


def test_what_loads_beside_a_version_that_fails_is_told(start: Start, folder: Path) -> None:
    make_bundle(folder / "digits-test" / "2", admitted=False)
    make_bundle(folder / "digits-test" / "3")
    server = start(folder, "--control-port", "0")
    fault = index(server)["digits-test", "2"][1]
    for _ in range(2):  # also what was unloaded already keeps its fault
        assert change(server, "unload")[0] == 200
        reasons = {version: reason for (_, version), (_, reason) in index(server).items()}
        assert reasons == {
            "1": "unloaded by request",
            "2": f"unloaded by request; it had failed: {fault}",
            "3": "unloaded by request",
        }
    status, told = change(server, "load")
    assert status == 400 and "loaded nonetheless: 1, 3; serving now: 1, 3" in told["error"]
    assert version_that_answers(server) == "3"
    assert index(server)["digits-test", "2"] == ("UNAVAILABLE", fault)


def test_what_is_not_there_cannot_be_loaded(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    for name in ("nothing", "%2e%2e", "..%2fdigits-test", "digits-test%2f1", ".", "a" * 300):
        status, told = change(server, "load", name)
        assert status == 404, told
    assert len(index(server)) == 1


def test_a_single_bundle_is_swapped_too(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    server = start(tmp_path / "bundle", "--control-port", "0")
    make_bundle(tmp_path / "bundle", digits_graph(seed=4))
    assert change(server, "load")[0] == 200
    body = server.json("POST", INFER, ASKED)[1]
    assert body["outputs"][0]["data"] == pytest.approx(expected(4), abs=1e-5)


# Unload


def test_unloading_and_loading_again(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0")
    make_bundle(folder / "digits-test" / "2", digits_graph(seed=2))
    assert change(server, "load")[0] == 200
    path = "/v2/repository/models/digits-test/unload"
    status, told = operator(server).json("POST", path, {"version": "2"})
    assert status == 400 and "field 'version'; put it under 'parameters'" in told["error"]
    assert version_that_answers(server) == "2"
    assert change(server, "unload", version="2")[0] == 200
    assert version_that_answers(server) == "1"  # a rollback in one command
    state, reason = index(server)["digits-test", "2"]
    assert state == "UNAVAILABLE" and reason == "unloaded by request"
    status, told = server.json("POST", "/v2/models/digits-test/versions/2/infer", ASKED)
    assert status == 404 and "not loaded: unloaded by request" in told["error"]
    assert change(server, "unload", unload_dependents=False)[0] == 200
    assert server.json("POST", INFER, ASKED)[0] == 404
    assert server.json("GET", "/v2/models/digits-test/ready")[0] == 404
    assert server.json("GET", "/v2/health/ready")[0] == 503
    assert change(server, "load")[0] == 200
    assert version_that_answers(server) == "2"
    assert change(server, "unload", "nothing")[0] == 404


def test_what_is_in_flight_is_answered(start: Start, folder: Path) -> None:
    make_series_bundle(folder / "series" / "1")
    server = start(folder, "--control-port", "0")
    values = np.ones((1, 2_000_000), np.float32)
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "values",
                    "shape": list(values.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": values.nbytes},
                }
            ],
            "outputs": [{"name": "sum"}],
        }
    ).encode()
    results: list[tuple[int, bytes]] = []
    started = threading.Barrier(9)

    def client() -> None:
        started.wait()
        for _ in range(8):
            status, _, body = server.ask(
                "POST",
                "/v2/models/series/infer",
                header + values.tobytes(),
                {"Inference-Header-Content-Length": str(len(header))},
            )
            results.append((status, body))

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    started.wait()
    until(lambda: len(results) > 4)
    assert change(server, "unload", "series")[0] == 200
    for thread in clients:
        thread.join()
    statuses = [status for status, _ in results]
    assert set(statuses) == {200, 404}, set(statuses)
    assert all(b"2000000" in body for status, body in results if status == 200)
    assert "in flight" not in server.told()


# Several workers


def test_a_change_is_made_in_every_worker_before_it_is_answered(start: Start, folder: Path) -> None:
    server = start(folder, "--control-port", "0", "--workers", "2")
    first = server.json("GET", "/v2/models/digits-test")[1]["properties"]["bundle"]

    def everywhere() -> set[str]:
        return {version_that_answers(server) for _ in range(40)}  # a connection each

    make_bundle(folder / "digits-test" / "2", digits_graph(seed=2))
    assert change(server, "load")[0] == 200
    assert everywhere() == {"2"}
    make_bundle(folder / "digits-test" / "3", admitted=False)
    status, told = change(server, "load")
    assert status == 400 and "not admitted" in told["error"]
    assert everywhere() == {"2"}
    status, told = change(server, "unload", version="2")
    assert told == {"name": "digits-test", "versions": [{"version": "1", "bundle": first}]}
    assert everywhere() == {"1"}


# Which versions


def test_the_latest_versions_that_load(start: Start, folder: Path, tmp_path: Path) -> None:
    for number in ("2", "3"):
        make_bundle(folder / "digits-test" / number)
    make_bundle(folder / "digits-test" / "4", admitted=False)
    options = settings(tmp_path, "[repository]\nversions = 'latest 1'\n")
    server = start(folder, "--control-port", "0", *options)
    assert version_that_answers(server) == "3"
    states = {v: state for (_, v), (state, _) in index(server).items()}
    assert states == {"1": "UNAVAILABLE", "2": "UNAVAILABLE", "3": "READY", "4": "UNAVAILABLE"}
    assert "latest 1" in index(server)["digits-test", "2"][1]
    make_bundle(folder / "digits-test" / "5")
    assert change(server, "load")[0] == 200
    assert version_that_answers(server) == "5"
    until(lambda: index(server)["digits-test", "3"][0] == "UNAVAILABLE")
    assert change(server, "load", version="2")[0] == 200  # asked for by name: the policy gives way
    assert change(server, "load")[0] == 200
    assert version_that_answers(server) == "5"


def test_listed_versions_and_a_default(start: Start, folder: Path, tmp_path: Path) -> None:
    for number in ("2", "3"):
        make_bundle(folder / "digits-test" / number)
    options = settings(
        tmp_path, "[models.digits-test]\nversions = [1, 2, 9]\ndefault_version = 1\n"
    )
    server = start(folder, "--control-port", "0", *options)
    assert server.json("GET", "/v2/models/digits-test")[1]["versions"] == ["1", "2"]
    assert version_that_answers(server) == "1"
    policy = server.json("GET", "/v2/models/digits-test/config")[1]["version_policy"]
    assert policy == {"specific": {"versions": [1, 2, 9]}}


def test_limits_of_one_model(start: Start, folder: Path, tmp_path: Path) -> None:
    make_bundle(folder / "other" / "1")
    options = settings(
        tmp_path,
        "[batching]\nrequest_rows = 5\n[models.digits-test.batching]\nrequest_rows = 2\n",
    )
    server = start(folder, *options, "--port", "0")
    three = {"inputs": [tensor("image", digits_rows(3), "UINT8")]}
    status, told = server.json("POST", INFER, three)
    assert status == 400 and "1 to 2 rows" in told["error"]
    assert server.json("POST", "/v2/models/other/infer", three)[0] == 200
    assert server.json("GET", "/v2/models/digits-test/config")[1]["max_batch_size"] == 2
    assert server.json("GET", "/v2/models/other/config")[1]["max_batch_size"] == 5


def test_settings_of_a_model_that_is_not_there(start: Start, folder: Path, tmp_path: Path) -> None:
    options = settings(tmp_path, "[models.digit-test]\nvariant = 'int8'\n")
    server = start(folder, *options, wait=False)
    assert server.process.wait(20) == 2
    assert "models.digit-test" in server.told() and "did you mean 'digits-test'" in server.told()


def test_a_default_version_that_is_not_there(start: Start, folder: Path, tmp_path: Path) -> None:
    """It is refused; where it may come later, whoever asks meanwhile is told whose version it is."""
    options = settings(tmp_path, "[models.digits-test]\ndefault_version = 9\n")
    server = start(folder, *options, wait=False)
    assert server.process.wait(20) == 2
    assert "models.digits-test.default_version: expected a version in" in server.told()
    server = start(folder, *options, "--control-port", "0")
    assert "default_version: expected a version in" in server.told()
    status, told = server.json("POST", INFER, ASKED)
    assert status == 404
    assert "no version '9' (default_version in the settings); known: 1" in told["error"]
    make_bundle(folder / "digits-test" / "9")
    assert change(server, "load")[0] == 200
    assert version_that_answers(server) == "9"
    assert change(server, "unload", version="9")[0] == 200
    status, told = server.json("POST", INFER, ASKED)
    assert status == 404 and "9 (default_version in the settings) is not loaded" in told["error"]


# Following the folder


def test_the_folder_is_followed(start: Start, folder: Path, tmp_path: Path) -> None:
    options = settings(tmp_path, "[repository]\npoll_seconds = 0.1\n")
    server = start(folder, *options)
    make_bundle(folder / "digits-test" / "2", digits_graph(seed=2))
    until(lambda: version_that_answers(server) == "2")
    make_bundle(folder / "digits-test" / "3", admitted=False)
    until(lambda: ("digits-test", "3") in index(server))
    until(lambda: index(server)["digits-test", "3"][0] == "UNAVAILABLE")
    tried = server.told().count("model failed")
    time.sleep(0.5)
    assert server.told().count("model failed") == tried == 1  # not again until its files change
    shutil.rmtree(folder / "digits-test" / "2")
    until(lambda: version_that_answers(server) == "1")
    until(lambda: ("digits-test", "2") not in index(server))
    shutil.rmtree(folder / "digits-test")
    until(lambda: "holds nothing any more" in server.told())
    assert version_that_answers(server) == "1"


def test_an_empty_repository_that_is_followed(start: Start, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    options = settings(tmp_path, "[repository]\npoll_seconds = 0.1\n")
    server = start(tmp_path / "r", *options, wait=False)
    until(lambda: "no model yet" in server.told())
    server.port = int(server.told().rsplit(":", 1)[1])
    assert server.json("GET", "/v2/health/ready")[0] == 503
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    until(lambda: server.json("GET", "/v2/health/ready")[0] == 200)
    assert version_that_answers(server) == "1"


# Who may


def test_the_public_door_changes_nothing(start: Start, folder: Path) -> None:
    server = start(folder)
    for path in (
        "/v2/repository/models/digits-test/load",
        "/v2/repository/models/digits-test/unload",
        "/v2/repository/any/models/digits-test/unload",
    ):
        status, told = server.json("POST", path, {})
        assert status == 403 and "--control-port" in told["error"]
    assert server.json("GET", "/v2/repository/models/digits-test/load")[0] == 405
    assert version_that_answers(server) == "1"


def test_a_page_of_a_browser_changes_nothing(start: Start, folder: Path) -> None:
    """It could send this from wherever the operator surfs, without asking first."""
    server = operator(start(folder, "--control-port", "0"))
    path = "/v2/repository/models/digits-test/unload"
    headers = {"Origin": "https://elsewhere.example", "Content-Type": "text/plain"}
    status, _, body = server.ask("POST", path, b"{}", headers)
    assert status == 403 and b"Origin" in body
    assert server.json("GET", "/v2/models/digits-test/ready")[0] == 200


def test_the_control_plane_in_the_form_with_a_repository(start: Start, folder: Path) -> None:
    server = operator(start(folder, "--control-port", "0"))
    path = "/v2/repository/main/models/digits-test"
    assert server.ask("POST", f"{path}/unload", b"")[0] == 200
    assert server.ask("POST", f"{path}/load", b"")[0] == 200
    assert server.json("GET", "/v2/models/digits-test/ready")[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"parameters": {"config": "{}"}}, 501, "slipway pull"),
        ({"parameters": {"file:1/model.onnx": "AAAA"}}, 501, "slipway pull"),
        ({"parameters": {"url": "http://example.org/model"}}, 400, "expected 'version'"),
        ({"parameters": {"unload_dependents": "yes"}}, 400, "unload_dependents"),
        ({"parameters": {"version": 1}}, 400, 'such as "2"'),
        ({"parameters": {"version": "../1"}}, 404, "no version"),
        ({"parameters": []}, 200, ""),
        ({"parameters": [1]}, 400, "object"),
        ([], 400, "the body"),
        ({"param": {"version": "1"}}, 400, "unknown field 'param', did you mean 'parameters'?"),
        ({"versoin": "5"}, 400, "unknown field 'versoin', did you mean 'version'?"),
    ],
)
def test_nothing_comes_from_elsewhere(control: Live, body: Any, status: int, told: str) -> None:
    answer = control.json("POST", "/v2/repository/models/digits-test/load", body)
    assert answer[0] == status, answer
    assert told in json.dumps(answer[1], ensure_ascii=False).replace("\\", "")
    assert version_that_answers(control) == "1"


@pytest.fixture(scope="module")
def control(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A control plane that nobody changes."""
    live = Live(bundle, tmp_path_factory.mktemp("control"), "--control-port", "0")
    yield operator(live)
    assert live.stop() == 0


def test_strangers_cannot_reach_the_control_plane(
    start: Start, bundle: Path, tmp_path: Path
) -> None:
    options = settings(tmp_path, "[control]\nhost = '0.0.0.0'\nport = 0\n")
    server = start(bundle, *options, wait=False)
    assert server.process.wait(20) == 2
    assert "control.host" in server.told()


# Over and over


def resources(pid: int) -> tuple[int, int, int]:
    """(resident KiB, open descriptors, threads) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return (
        int(re.search(r"VmRSS:\s+(\d+)", status)[1]),  # type: ignore[index]
        len(list(Path(f"/proc/{pid}/fd").iterdir())),
        int(re.search(r"Threads:\s+(\d+)", status)[1]),  # type: ignore[index]
    )


@pytest.mark.slow
def test_cycles_of_load_and_unload_leave_nothing_behind(
    start: Start, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Each cycle loads, answers, swaps and unloads; a session left behind weighs 4 MB and more."""
    cycles = request.config.getoption("--cycles")
    ballast = np.random.default_rng(0).normal(size=(1 << 20,)).astype(np.float32)
    bundles = [folder / ".a", folder / ".b"]
    for seed, place in enumerate(bundles):
        graph = digits_graph(seed)
        with_ballast(graph, ballast + seed)
        make_bundle(place, graph)
    server = start(folder, "--control-port", "0", "--no-access-log")
    place = folder / "digits-test" / "2"
    measured = []
    for cycle in range(cycles + WARM):
        for bundle in bundles:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(bundle, place)
            assert change(server, "load")[0] == 200
            assert version_that_answers(server) == "2"
        assert change(server, "unload", version="2")[0] == 200
        assert version_that_answers(server) == "1"
        if cycle >= WARM:
            measured.append(resources(*server.workers()))
    resident, descriptors, threads = np.array(measured).T
    steps = [(resident[j] - resident[i]) / (j - i) for j in range(cycles) for i in range(j)]
    slope = float(np.median(steps))  # of all pairs: a jump now and then is no slope
    report(
        "load and unload",
        cycles=cycles,
        kib_a_cycle=slope,
        memory_kib=f"{resident[0]} to {resident[-1]}",
        descriptors=f"{descriptors[0]} to {descriptors[-1]}",
        threads=f"{threads[0]} to {threads[-1]}",
    )
    assert abs(descriptors[-1] - descriptors[0]) <= 2
    assert threads[-1] <= threads[0] + 1
    assert slope < 20 + 3000 / cycles  # KiB; the allocator's noise shrinks as cycles grow


def with_ballast(model: Any, values: np.ndarray) -> None:
    """Add weights that the graph uses and that change nothing: their sum times zero."""
    from onnx import helper, numpy_helper

    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(values, "ballast"))
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    logits = next(node for node in graph.node if node.output[0] == "logits")
    logits.output[0] = "pure"
    softmax = graph.node.pop()
    graph.node.extend(
        [
            helper.make_node("ArgMax", ["pure"], ["likeliest"], axis=1, keepdims=1),
            helper.make_node("Gather", ["ballast", "likeliest"], ["some"]),
            helper.make_node("Mul", ["some", "nothing"], ["zero"]),
            helper.make_node("Add", ["pure", "zero"], ["logits"]),
            softmax,
        ]
    )


# The page


@pytest.mark.parametrize(
    "command",
    [
        line
        for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
        for line in block.splitlines()
        if line.startswith("curl")
    ],
)
def test_the_pages_commands(start: Start, tmp_path: Path, command: str) -> None:
    for number in ("2", "3"):
        make_bundle(tmp_path / "r" / "digits-cnn" / number)
    server = operator(start(tmp_path / "r", "--control-port", "0"))
    command = command.replace("127.0.0.1:8003", f"127.0.0.1:{server.port}")
    done = subprocess.run(
        ["bash", "-ec", command.replace("curl", "curl -sSf", 1)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "digits-cnn" in done.stdout


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S))
def test_the_pages_settings(block: str, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(block)
    load(tmp_path / "serve.toml")
