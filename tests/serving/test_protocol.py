"""The Open Inference Protocol as both families of official clients speak it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.serving.bundles import LABELS, TYPES, answers, digits_graph, digits_rows
from tests.serving.live import Live, binary, framed, outputs, tensor

INFER = "/v2/models/digits-test/infer"


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return digits_rows(3, seed=7)


@pytest.fixture(scope="module")
def expected(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What version 10, the newest, must answer."""
    return answers(digits_graph(seed=5).SerializeToString(), {"image": rows})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"live": True, "ready": True}),
        ("/v2/models/digits-test/ready", {"name": "digits-test", "ready": True}),
        ("/v2/models/digits-test/versions/1/ready", {"name": "digits-test", "ready": True}),
        ("/v2/models", {"models": ["broken", "digits-test", "series", "types"]}),
    ],
)
def test_health_and_lists(server: Live, path: str, body: object) -> None:
    status, headers, answer = server.ask("GET", path)
    assert (status, json.loads(answer)) == (200, body)
    assert headers["content-type"] == "application/json"
    status, headers, nothing = server.ask("HEAD", path)
    assert (status, nothing) == (200, b"")
    assert headers["content-length"] == str(len(answer))


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(server: Live, path: str) -> None:
    status, told = server.json("GET", path)
    assert status == 200
    assert told["name"] == "slipway" and "binary_tensor_data" in told["extensions"]


def test_model_metadata(server: Live) -> None:
    status, told = server.json("GET", "/v2/models/digits-test")
    assert status == 200
    assert told["versions"] == ["1", "10"] and told["platform"] == "onnx_onnxv1"
    assert told["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}]
    properties = told["properties"]
    assert all(isinstance(value, str) for value in properties.values())
    assert json.loads(properties["labels"]) == list(LABELS)
    assert json.loads(properties["decoder"])["kind"] == "image"
    assert properties["provider"] == "CPUExecutionProvider"
    assert len(properties["bundle"]) == 64
    older = server.json("GET", "/v2/models/digits-test/versions/1")[1]
    assert older["properties"]["bundle"] != properties["bundle"]


def test_index_tells_why_a_model_is_not_served(server: Live) -> None:
    status, index = server.json("POST", "/v2/repository/index")
    assert status == 200
    states = {(entry["name"], entry["version"]): entry for entry in index}
    assert states["digits-test", "10"]["state"] == "READY"
    assert states["broken", "2"]["state"] == "UNAVAILABLE"
    assert "model.onnx" in states["broken", "2"]["reason"]
    ready = server.json("POST", "/v2/repository/index", {"ready": True})[1]
    assert ("broken", "2") not in {(e["name"], e["version"]) for e in ready} and len(ready) == 4
    status, told = server.json("GET", "/v2/models/broken/ready")
    assert status == 503 and told["ready"] is False and "model.onnx" in told["error"]


def test_newest_version_by_number_and_any_by_name(
    server: Live, rows: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    request = {"inputs": [tensor("image", rows, "UINT8")]}
    status, newest = server.json("POST", INFER, request)
    assert status == 200 and newest["model_version"] == "10"
    np.testing.assert_allclose(newest["outputs"][0]["data"], expected["logits"].ravel(), atol=1e-5)
    older = server.json("POST", "/v2/models/digits-test/versions/1/infer", request)[1]
    assert older["model_version"] == "1"
    old = answers(digits_graph().SerializeToString(), {"image": rows})
    np.testing.assert_allclose(older["outputs"][0]["data"], old["logits"].ravel(), atol=1e-5)


def test_answer_says_id_bundle_and_version(server: Live, rows: np.ndarray) -> None:
    request = {"id": "mine", "model_name": "ignored", "inputs": [tensor("image", rows, "UINT8")]}
    answer = server.json("POST", INFER, request)[1]
    digest = server.json("GET", "/v2/models/digits-test")[1]["properties"]["bundle"]
    assert answer["id"] == "mine" and answer["model_name"] == "digits-test"
    assert answer["parameters"] == {"bundle": digest}


def test_every_form_gives_the_same_bytes(server: Live, rows: np.ndarray) -> None:
    """JSON flat and nested, binary in and out, and what tritonclient and kserve send."""
    flat = {"inputs": [tensor("image", rows, "UINT8")]}
    nested = {"inputs": [{**flat["inputs"][0], "data": rows.tolist()}]}
    header = {"inputs": [binary("image", rows, "UINT8")]}
    all_binary = {"parameters": {"binary_data_output": True}}
    one_binary = {
        "outputs": [
            {"name": "probabilities"},
            {"name": "logits", "parameters": {"binary_data": True}},
        ]
    }
    forms: list[tuple[bytes, dict[str, str]]] = [
        (json.dumps(flat).encode(), {}),
        (json.dumps(nested).encode(), {"Content-Type": "application/json; charset=utf-8"}),
        (json.dumps(flat | all_binary).encode(), {}),
        (json.dumps(flat | one_binary).encode(), {}),
        framed(header, rows.tobytes()),
        framed(header | all_binary, rows.tobytes()),
        framed(header | all_binary | one_binary, rows.tobytes()),
    ]
    seen = []
    for body, headers in forms:
        status, told, answer = server.ask("POST", INFER, body, headers)
        assert status == 200, answer
        seen.append(outputs(told, answer))
    for found in seen[1:]:
        for name in ("logits", "probabilities"):
            assert found[name].tobytes() == seen[0][name].tobytes()


def test_outputs_come_as_asked_for(server: Live, rows: np.ndarray) -> None:
    wanted = [{"name": "probabilities"}, {"name": "logits", "parameters": {"binary_data": False}}]
    request = {
        "inputs": [tensor("image", rows, "UINT8")],
        "outputs": wanted,
        "parameters": {"binary_data_output": True, "priority": 3, "unknown": "x"},
    }
    status, headers, body = server.ask("POST", INFER, json.dumps(request).encode())
    assert status == 200 and headers["content-type"] == "application/octet-stream"
    told = json.loads(body[: int(headers["inference-header-content-length"])])
    assert [o["name"] for o in told["outputs"]] == ["probabilities", "logits"]
    assert "data" not in told["outputs"][0] and "data" in told["outputs"][1]


def test_raw_mode(server: Live, rows: np.ndarray, expected: dict[str, np.ndarray]) -> None:
    one = rows[:1].tobytes()
    status, headers, body = server.ask("POST", INFER, one, {"Inference-Header-Content-Length": "0"})
    assert status == 200, body
    np.testing.assert_allclose(outputs(headers, body)["logits"], expected["logits"][:1], atol=1e-5)
    values = np.array([1, 2, 3, 4], "<f4").tobytes()
    series = "/v2/models/series/infer"
    status, headers, body = server.ask(
        "POST", series, values, {"Inference-Header-Content-Length": "0"}
    )
    assert status == 200 and outputs(headers, body)["sum"].tolist() == [[10.0]]


def test_every_type_survives_json_and_binary_in_any_order(server: Live) -> None:
    arrays = {t: np.array([[[0, 1], [1, 0]]]).astype(t) for t in TYPES}
    inputs, payloads = [], []
    for number, (name, array) in enumerate(reversed(arrays.items())):
        datatype = TYPES[name][1]
        if number % 2:
            inputs.append(tensor(f"in_{name}", array, datatype))
        else:
            inputs.append(binary(f"in_{name}", array, datatype))
            payloads.append(array.tobytes())
    body, headers = framed({"inputs": inputs}, *payloads)
    status, told, answer = server.ask("POST", "/v2/models/types/infer", body, headers)
    assert status == 200, answer
    found = outputs(told, answer)
    for name, array in arrays.items():
        assert found[f"out_{name}"].tobytes() == array.tobytes(), name


def test_what_json_cannot_say_is_an_error_never_null(server: Live) -> None:
    request = {"inputs": [tensor("values", np.array([[-1.0, 1.0]]), "FP32")]}
    status, told = server.json("POST", "/v2/models/series/infer", request)
    assert status == 500
    assert "'log'" in told["error"] and "binary_data_output" in told["error"]
    only_sum = request | {"outputs": [{"name": "sum"}]}
    assert server.json("POST", "/v2/models/series/infer", only_sum)[0] == 200
    exact = request | {"parameters": {"binary_data_output": True}}
    status, headers, body = server.ask(
        "POST", "/v2/models/series/infer", json.dumps(exact).encode()
    )
    assert status == 200 and np.isnan(outputs(headers, body)["log"][0, 0])


def test_names_arrive_percent_encoded(server: Live, rows: np.ndarray) -> None:
    request = {"inputs": [tensor("image", rows, "UINT8")]}
    assert server.json("POST", "/v2/models/digits%2Dtest/infer", request)[0] == 200


def test_request_id_passes_through_into_answer_and_log(server: Live) -> None:
    _, headers, _ = server.ask("GET", "/v2", headers={"X-Request-ID": "abc-123"})
    assert headers["x-request-id"] == "abc-123"
