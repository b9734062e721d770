"""The document and the page of the models: valid, true of this server, safe to open."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from pipeline.bundle.manifest import Input, Output
from serving.doors.access import Scope, generated
from serving.doors.http.openapi import ERRORS
from serving.doors.http.status import STATUS
from tests.serving.bundles import digits_graph, make_bundle, make_series_bundle
from tests.serving.live import Live
from tests.serving.test_control import change, until

Start = Callable[..., Live]
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def document(server: Live) -> dict[str, Any]:
    status, told = server.json("GET", "/openapi.json")
    assert status == 200
    return dict(told)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def page(server: Live, path: str = "/docs", **headers: str) -> tuple[str, dict[str, str]]:
    status, got, body = server.ask("GET", path, None, BROWSER | headers)
    assert status == 200 and got["content-type"] == "text/html; charset=utf-8"
    return body.decode(), got


# The document


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_it_names_what_serves_and_nothing_else(document: dict[str, Any], server: Live) -> None:
    for path in (
        "/v2/models/digits-test/infer",
        "/v2/models/digits-test/predict",
        "/v2/models/digits-test/versions/1/infer",
        "/v2/models/digits-test/versions/10/infer",
        "/v2/models/types/infer",
        "/v2/models/series/config",
    ):
        assert path in document["paths"], path
    assert "/v2/models/types/predict" not in document["paths"]  # reads no files
    assert not [path for path in document["paths"] if "broken" in path]
    default = document["paths"]["/v2/models/digits-test/infer"]["post"]
    assert "version 10" in default["summary"]


def test_every_path_answers_as_told(document: dict[str, Any], server: Live) -> None:
    for method, path, operation in operations(document):
        if method == "GET":
            assert server.json("GET", path)[0] == 200, path
        elif path.endswith("/predict"):
            assert server.json("POST", path)[0] == 400, path  # no file: the path is there
        assert "200" in operation["responses"]


def test_every_example_is_answered_as_shown(document: dict[str, Any], server: Live) -> None:
    shown = 0
    for _, path, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" not in content:
            continue
        told = operation["responses"]["200"]["content"]["application/json"]
        validator(document, content["schema"]).validate(content["example"])
        validator(document, told["schema"]).validate(told["example"])
        status, answer = server.json("POST", path, content["example"])
        assert status == 200, answer
        validator(document, told["schema"]).validate(answer)
        wanted = told["example"]
        assert {k: v for k, v in answer.items() if k != "outputs"} == {
            k: v for k, v in wanted.items() if k != "outputs"
        }
        for got, expected in zip(answer["outputs"], wanted["outputs"], strict=True):
            np.testing.assert_allclose(got.pop("data"), expected["data"], atol=1e-5)
            assert got == {k: v for k, v in expected.items() if k != "data"}
        shown += 1
    assert (
        shown == 7
    )  # digits-test twice and once more without a version, types, series: twice each


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def test_schemas_refuse_what_the_server_refuses(document: dict[str, Any], server: Live) -> None:
    operation = document["paths"]["/v2/models/digits-test/infer"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    check = validator(document, content["schema"])
    for mistake in (
        lambda v: v.pop("inputs"),
        lambda v: v["inputs"][0].update(name="picture"),
        lambda v: v["inputs"][0].update(datatype="FP32"),
        lambda v: v["inputs"][0].update(shape=[1, 8, 8]),
        lambda v: v["inputs"][0].update(shape=[0, 8, 8, 1]),
        lambda v: v["inputs"][0]["data"].__setitem__(0, 256),
        lambda v: v["inputs"][0]["data"].__setitem__(0, "x"),
        lambda v: v.update(outputs=[{"name": "loggits"}]),
    ):
        value = json.loads(json.dumps(content["example"]))
        mistake(value)
        assert not check.is_valid(value)
        assert server.json("POST", "/v2/models/digits-test/infer", value)[0] == 400


def test_every_status_is_explained() -> None:
    assert {int(status) for status in STATUS.values()} <= set(ERRORS)


def test_keys_are_told_where_they_are_needed(document: dict[str, Any], server: Live) -> None:
    from serving.doors.http.openapi import document as make

    told = make((), "0", keys=True)
    OpenAPIV31SpecValidator(told).validate()
    assert told["security"] == [{"bearer": []}, {"header": []}]
    assert told["paths"]["/v2/health/live"]["get"]["security"] == []
    assert "security" not in document


def test_it_follows_a_swap(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "r" / "digits-test" / "1")
    server = start(tmp_path / "r", "--control-port", "0")
    first = server.json("GET", "/openapi.json")[1]
    make_series_bundle(tmp_path / "r" / "series" / "1")
    make_bundle(tmp_path / "r" / "digits-test" / "1", digits_graph(seed=9))
    for name in ("series", "digits-test"):
        assert change(server, "load", name)[0] == 200
    second = server.json("GET", "/openapi.json")[1]
    assert "/v2/models/series/infer" in second["paths"]
    path = "/v2/models/digits-test/infer"
    before, after = (
        d["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["example"]
        for d in (first, second)
    )
    assert before["parameters"] != after["parameters"] and before["outputs"] != after["outputs"]
    assert change(server, "unload", "series")[0] == 200
    until(lambda: "/v2/models/series/infer" not in server.json("GET", "/openapi.json")[1]["paths"])


def test_rows_too_large_to_read_have_no_example(start: Start, tmp_path: Path) -> None:
    make_series_bundle(tmp_path / "b")
    large = tmp_path / "large"
    make_series_bundle(large)
    shutil.rmtree(large)
    from tests.serving import bundles

    rows = np.ones((2, 5000), np.float32)
    graph, inputs, outputs = series_parts()
    bundles.make_bundle(large, graph, inputs, outputs, {"values": rows}, name="large", task="sums")
    server = start(large)
    told = server.json("GET", "/openapi.json")[1]
    content = told["paths"]["/v2/models/large/infer"]["post"]["requestBody"]["content"]
    assert "example" not in content["application/json"]
    assert "request.json" not in page(server)[0].split("<script>")[0]


def series_parts() -> tuple[Any, tuple[Input, ...], tuple[Output, ...]]:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["values"], ["same"])],
        "model",
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", "length"])],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, ["batch", "length"])],
    )
    shape = ("batch", "length")
    return (
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        (Input(name="values", dtype="float32", shape=shape, units="none"),),
        (Output(name="same", dtype="float32", shape=shape, units="none"),),
    )


# The page


def test_a_browser_is_led_to_the_page(server: Live) -> None:
    status, headers, _ = server.ask("GET", "/", None, BROWSER)
    assert status == 307 and headers["location"] == "/docs"
    status, told = server.json("GET", "/")
    assert status == 404 and "/docs" in told["error"]


def test_the_page_brings_all_it_needs_and_runs_nothing_else(server: Live) -> None:
    for path in ("/docs", "/docs/digits-test", "/docs/types", "/docs/series"):
        text, headers = page(server, path)
        assert len(text) < 100_000
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        for kind in ("script", "style"):
            (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.S)
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        body = text.split("<script>")[0]
        assert not re.findall(r"\son[a-z]+=|\sstyle=|javascript:", body)
        for address in re.findall(r'(?:src|href)="([^"]*)"', body):
            assert address.startswith(("data:", "/")) and not address.startswith("//"), address
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_without_javascript_says_how_to_ask(server: Live) -> None:
    text = page(server, "/docs/digits-test")[0]
    place = f"http://127.0.0.1:{server.port}/v2/models/digits-test"
    assert f"curl {place}/predict --data-binary @picture.png" in text
    shown = re.findall(r'<pre class="wrap">(\{.*?\})</pre>', text)
    request, answer = (json.loads(unescape(block)) for block in shown)
    got = server.json("POST", "/v2/models/digits-test/infer", request)[1]
    np.testing.assert_allclose(got["outputs"][0]["data"], answer["outputs"][0]["data"], atol=1e-5)
    program = unescape(re.findall(r"<pre>(import json.*?)</pre>", text, re.S)[0])
    compile(program, "page", "exec")
    assert ("grey level 0-255" in text and "&quot;error&quot;" in text) or '{"error"' in text


def test_the_list_leads_to_every_model(server: Live) -> None:
    text = page(server)[0]
    for name in ("digits-test", "types", "series"):
        assert f'href="/docs/{name}"' in text
    assert "broken" not in text
    assert server.json("GET", "/docs/broken")[0] == 404
    assert server.json("GET", "/docs/%3Cscript%3E")[0] == 404


def test_one_model_needs_no_list(start: Start, bundle: Path) -> None:
    text = page(start(bundle))[0]
    assert 'data-path="/v2/models/digits-test"' in text


def test_a_made_up_host_is_not_repeated(server: Live) -> None:
    text = page(server, "/docs", Host='x"><script>alert(1)</script>')[0]
    assert "alert(1)" not in text


def test_what_a_bundle_says_cannot_break_out(start: Start, tmp_path: Path) -> None:
    hostile = '</pre><script>alert("1")</script>'
    labels = (hostile, *"123456789")
    from pipeline.bundle.decode.image import ImageDecoder

    shape = ("batch", 10)
    source = Input(
        name="image",
        dtype="uint8",
        shape=("batch", 8, 8, 1),
        decoder=ImageDecoder(height=8, width=8, channels=1),
        units=hostile,
    )
    outputs = tuple(
        Output(name=name, dtype="float32", shape=shape, labels=labels, units=hostile)
        for name in ("logits", "probabilities")
    )
    graph = digits_graph()
    del graph.metadata_props[:]
    make_bundle(tmp_path / "b", graph, inputs=(source,), outputs=outputs, task=hostile)
    text = page(start(tmp_path / "b"))[0]
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


# With keys


def test_a_browser_is_asked_for_a_key_and_programs_for_a_bearers(
    start: Start, bundle: Path, tmp_path: Path
) -> None:
    text, key = generated("reader", [Scope.INFER])
    keys = tmp_path / "keys.txt"
    keys.write_text(key.line())
    keys.chmod(0o600)
    server = start(bundle, "--keys", str(keys))
    password = {"Authorization": "Basic " + base64.b64encode(f"me:{text}".encode()).decode()}
    for path in ("/", "/docs", "/docs/digits-test", "/openapi.json"):
        status, headers, _ = server.ask("GET", path, None, BROWSER)
        assert status == 401 and headers["www-authenticate"].startswith("Basic ")
        assert server.ask("GET", path)[1]["www-authenticate"].startswith("Bearer ")
        assert server.ask("GET", path, None, BROWSER | password)[0] in (200, 307)
        wrong = {"Authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}
        assert server.ask("GET", path, None, BROWSER | wrong)[0] == 401
        assert server.ask("GET", path, None, BROWSER | {"Authorization": "Basic !"})[0] == 401
    shown = page(server, "/docs", **password)[0]
    assert "-H &#x27;Authorization: Bearer KEY&#x27;" in shown and 'id="key"' in shown
    document = server.json("GET", "/openapi.json", headers=password)[1]
    assert document["security"] == [{"bearer": []}, {"header": []}]
    example = document["paths"]["/v2/models/digits-test/infer"]["post"]["requestBody"]["content"]
    body = example["application/json"]["example"]
    # What a browser repeats by itself, other sites can have it send: it runs nothing.
    assert server.json("POST", "/v2/models/digits-test/infer", body, headers=password)[0] == 401
    bearer = {"Authorization": f"Bearer {text}"}
    assert server.json("POST", "/v2/models/digits-test/infer", body, headers=bearer)[0] == 200
