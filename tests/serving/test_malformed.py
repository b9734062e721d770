"""Every mistake a client can make is answered with what was expected and what came.

And the next client never notices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving.codecs import codec_json
from serving.errors import InvalidRequest
from serving.protocol import TensorSpec
from tests.serving.bundles import digits_rows
from tests.serving.live import Live, binary, framed, tensor

INFER = "/v2/models/digits-test/infer"
TYPES = "/v2/models/types/infer"
SERIES = "/v2/models/series/infer"
PREDICT = "/v2/models/digits-test/predict"
ROW = digits_rows(1)
GOOD = tensor("image", ROW, "UINT8")
LENGTH = "Inference-Header-Content-Length"

Case = tuple[str, str, str, bytes | None, dict[str, str], int, tuple[str, ...]]


def cases() -> Iterator[Case]:
    """(id, method, path, body, headers, status, what the message must say)."""
    yield from paths()
    yield from documents()
    yield from tensors()
    yield from values()
    yield from frames()
    yield from files()


def paths() -> Iterator[Case]:
    for name, method, path, status, told in (
        ("root", "GET", "/", 404, ("/v2",)),
        ("elsewhere", "GET", "/v1/models", 404, ("/v2",)),
        ("deep", "GET", "/v2/models/digits-test/versions/1/infer/more", 404, ()),
        ("unknown-model", "GET", "/v2/models/digit-test", 404, ("'digits-test'", "did you mean")),
        ("unknown-model-infer", "POST", "/v2/models/nothing/infer", 404, ("'nothing'",)),
        (
            "unknown-version",
            "POST",
            "/v2/models/digits-test/versions/3/infer",
            404,
            ("'3'", "1, 10"),
        ),
        ("text-version", "GET", "/v2/models/digits-test/versions/one", 404, ("'one'",)),
        ("zero-version", "GET", "/v2/models/digits-test/versions/01", 404, ("'01'",)),
        ("huge-version", "GET", "/v2/models/digits-test/versions/" + "9" * 4000, 404, ()),
        ("traversal", "GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404, ()),
        ("dots", "GET", "/v2/models/../../etc/passwd", 404, ()),
        ("nul", "GET", "/v2/models/digits-test%00", 404, ()),
        ("bad-utf8", "GET", "/v2/models/%ff%fe", 404, ()),
        ("long-name", "GET", "/v2/models/" + "a" * 3000, 404, ()),
        ("broken-model", "POST", "/v2/models/broken/infer", 503, ("failed", "model.onnx")),
        ("get-infer", "GET", INFER, 405, ("GET", "POST")),
        ("put-infer", "PUT", INFER, 405, ("PUT", "POST")),
        ("delete-model", "DELETE", "/v2/models/digits-test", 405, ("DELETE", "GET")),
        ("post-health", "POST", "/v2/health/live", 405, ("POST", "GET")),
        ("get-index", "GET", "/v2/repository/index", 405, ("GET", "POST")),
        ("load-is-off", "POST", "/v2/repository/models/digits-test/load", 403, ("control",)),
    ):
        yield name, method, path, (b"{}" if method == "POST" else None), {}, status, told


def documents() -> Iterator[Case]:
    for name, body, told in (
        ("empty", b"", ("not JSON",)),
        ("text", b"hello", ("not JSON",)),
        ("pickle", b"\x80\x04\x95", ("not JSON",)),
        ("list", b"[]", ("object", "a list")),
        ("number", b"5", ("object", "a number")),
        ("null", b"null", ("object", "nothing")),
        ("cut", b'{"inputs": [', ("not JSON",)),
        ("two", b"{}{}", ("not JSON",)),
        ("bom", b"\xef\xbb\xbf{}", ("not JSON",)),
        ("bad-utf8", b'{"id": "\xff"}', ("not JSON",)),
        ("surrogate", b'{"id": "\\ud800"}', ("not JSON",)),
        ("nan", b'{"inputs": [NaN]}', ("not JSON",)),
        ("infinity", b'{"inputs": [Infinity]}', ("not JSON",)),
        ("1e999", b'{"inputs": [1e999]}', ("not JSON",)),
        ("5000-digits", b'{"id": ' + b"9" * 5000 + b"}", ("not JSON",)),
        ("deep", b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ("not JSON",)),
        ("no-inputs", b"{}", ("inputs", "nothing")),
        ("inputs-object", b'{"inputs": {}}', ("inputs", "list")),
        ("inputs-empty", b'{"inputs": []}', ("inputs", "at least one")),
        ("inputs-numbers", b'{"inputs": [1]}', ("inputs[0]", "object")),
        ("many-inputs", b'{"inputs": [' + b"{}," * 300 + b"{}]}", ("inputs", "256", "301")),
        ("no-name", b'{"inputs": [{}]}', ("inputs[0]", "name")),
        ("name-number", b'{"inputs": [{"name": 3}]}', ("name", "3")),
        ("id-nested", b'{"id": ' + b"[" * 300 + b"]" * 300 + b"}", ("id", "a list")),
        ("id-deep-object", b'{"id": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}", ("an object",)),
        ("id-number", b'{"id": 7, "inputs": []}', ("id", "7")),
        ("parameters-list", b'{"parameters": [], "inputs": []}', ("parameters", "a list")),
        ("flag-text", b'{"parameters": {"binary_data_output": "yes"}}', ("binary_data_output",)),
    ):
        yield f"document-{name}", "POST", INFER, body, {}, 400, told
    for name, type_ in (
        ("multipart", "multipart/form-data; boundary=x"),
        ("pickle", "application/x-python-pickle"),
        ("xml", "text/xml"),
    ):
        headers = {"Content-Type": type_}
        yield (
            f"type-{name}",
            "POST",
            INFER,
            body_of(GOOD),
            headers,
            415,
            ("Content-Type", type_[:9]),
        )
    headers = {"Content-Encoding": "gzip"}
    yield "no-gzip", "POST", INFER, body_of(GOOD), headers, 400, ("not gzip data",)
    for coding in ("br", "gzip, gzip"):
        headers = {"Content-Encoding": coding}
        yield f"coding-{coding}", "POST", INFER, body_of(GOOD), headers, 415, ("identity", coding)
    yield "index-text", "POST", "/v2/repository/index", b"x", {}, 400, ("JSON",)
    yield "index-flag", "POST", "/v2/repository/index", b'{"ready": 1}', {}, 400, ("ready",)


def body_of(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def tensors() -> Iterator[Case]:
    shape = "UINT8 [n,8,8,1]"
    for name, change, told in (
        ("wrong-type", {"datatype": "FP32"}, (shape, "FP32 [1, 8, 8, 1]")),
        ("no-batch", {"shape": [8, 8, 1]}, (shape, "[8, 8, 1]", "rows")),
        ("transposed", {"shape": [1, 1, 8, 8]}, (shape, "[1, 1, 8, 8]")),
        ("flat", {"shape": [1, 64]}, (shape, "[1, 64]")),
        ("no-shape", {"shape": None}, ("shape",)),
        ("text-shape", {"shape": "1,8,8,1"}, ("shape", "1,8,8,1")),
        ("float-shape", {"shape": [1.0, 8, 8, 1]}, ("shape", "1.0")),
        ("bool-shape", {"shape": [True, 8, 8, 1]}, ("shape", "true")),
        ("negative", {"shape": [-1, 8, 8, 1]}, ("shape", "-1")),
        ("overflow", {"shape": [2**62, 8, 8, 1]}, ("shape", "2147483647", str(2**62))),
        ("overflow-to-64", {"shape": [2**58 + 1, 8, 8, 1]}, ("shape", "2147483647")),
        ("empty-and-huge", {"shape": [0, 2**64 - 1], "data": []}, ("shape", "2147483647")),
        ("empty-and-wide", {"shape": [0, 2**62, 2**62], "data": []}, ("shape", "2147483647")),
        ("many-rows", {"shape": [500_000, 8, 8, 1]}, ("1 to 1024 rows", "got 500000")),
        ("rank-0", {"shape": []}, (shape, "UINT8 []")),
        ("rank-9", {"shape": [1] * 9}, ("shape", "8")),
        ("two-rows", {"shape": [2, 8, 8, 1]}, ("128", "64")),
        ("no-rows", {"shape": [0, 8, 8, 1], "data": []}, ("1 to 1024 rows", "got 0")),
        ("no-datatype", {"datatype": None}, ("datatype", "UINT8")),
        ("numpy-datatype", {"datatype": "uint8"}, ("datatype", "UINT8", "uint8")),
        ("bf16", {"datatype": "BF16"}, ("datatype", "BF16")),
        ("data-missing", {"data": ...}, ("data",)),
        ("data-object", {"data": {}}, ("data", "list")),
        ("data-text", {"data": "AAAA"}, ("data", "list")),
        ("data-number", {"data": 1}, ("data", "list")),
        ("ragged", {"data": [[[[1]] * 8] * 7 + [[[1]] * 7]]}, ("data", "8", "7")),
        ("too-nested", {"data": [[[[[1]]] * 8] * 8]}, ("data", "whole numbers")),
        ("half-nested", {"data": [[[[1]] * 8] * 7 + [5]]}, ("data", "nested")),
        ("both", {"parameters": {"binary_data_size": 64}}, ("'data'", "both")),
        ("shared-memory", {"parameters": {"shared_memory_region": "r"}}, ("shared memory",)),
        ("parameters-text", {"parameters": "x"}, ("parameters", "object")),
    ):  # fmt: skip
        item = {key: value for key, value in (GOOD | change).items() if value is not ...}
        status = 501 if name == "shared-memory" else 400
        yield f"tensor-{name}", "POST", INFER, body_of(item), {}, status, ("'image'", *told)
    other = GOOD | {"name": "picture"}
    yield "unknown-input", "POST", INFER, body_of(other), {}, 400, ("'picture'", "'image'", shape)
    yield "extra-input", "POST", INFER, body_of(GOOD, other), {}, 400, ("'picture'", "'image'")
    yield "twice", "POST", INFER, body_of(GOOD, GOOD), {}, 400, ("'image'", "once", "2 times")
    only = tensor("in_bool", np.ones((1, 2, 2), bool), "BOOL")
    yield (
        "missing",
        "POST",
        TYPES,
        body_of(only),
        {},
        400,
        ("'in_uint8'", "missing", "UINT8 [n,2,2]"),
    )
    wide = {"name": "values", "shape": [1025, 1], "datatype": "FP32", "data": [1.0] * 1025}
    yield "too-many-rows", "POST", SERIES, body_of(wide), {}, 400, ("'values'", "1024", "1025")
    for name, wanted, told in (
        ("object", {}, ("outputs", "list")),
        ("number", [1], ("outputs[0]", "object")),
        ("unnamed", [{}], ("outputs[0]", "name")),
        ("unknown", [{"name": "logit"}], ("'logit'", "'logits'")),
        ("twice", [{"name": "logits"}] * 2, ("'logits'", "once")),
        ("flag", [{"name": "logits", "parameters": {"binary_data": 1}}], ("binary_data", "1")),
    ):
        status = 400
        yield f"outputs-{name}", "POST", INFER, body_of(GOOD, outputs=wanted), {}, status, told


def values() -> Iterator[Case]:
    for value, got in (
        (256, "256"),
        (-1, "-1"),
        (2**63, "9223372036854775808"),
        (2**70, "1.18"),
        (1.5, "1.5"),
        (1.0, "1.0"),
        (True, "true"),
        (None, "null"),
        ("1", '"1"'),
        ({}, "{}"),
    ):
        item = GOOD | {"data": [*GOOD["data"][:-1], value]}
        yield f"uint8-{got}", "POST", INFER, body_of(item), {}, 400, ("'image'", "UINT8", got)
    for value, got in (("x", '"x"'), (True, "true"), (None, "null"), (1e39, "1e+39"), ([1], "[1]")):
        item = {"name": "values", "shape": [1, 2], "datatype": "FP32", "data": [1.0, value]}
        yield f"fp32-{got}", "POST", SERIES, body_of(item), {}, 400, ("'values'", "expected", got)
    for datatype, value in (
        ("BOOL", 2),
        ("INT8", 128),
        ("INT16", -32769),
        ("UINT32", 2**32),
        ("INT64", 2**63),
        ("UINT64", -1),
        ("FP16", 70000),
    ):
        name = f"in_{datatype.lower().replace('fp', 'float')}"
        item = {"name": name, "shape": [1, 2, 2], "datatype": datatype, "data": [value] * 4}
        told = (f"'{name}'", "data", str(value))
        yield f"range-{datatype}", "POST", TYPES, body_of(item), {}, 400, told


def frames() -> Iterator[Case]:
    header, payload = {"inputs": [binary("image", ROW, "UINT8")]}, ROW.tobytes()
    body, framing = framed(header, payload)
    for length in (
        "-1",
        "+5",
        "abc",
        "1e3",
        "0x10",
        str(len(body) + 1),
        "9" * 18,
        "9" * 400,
        "1 2",
    ):
        yield f"frame-length-{length[:20]}", "POST", INFER, body, {LENGTH: length}, 400, (LENGTH,)
    yield "frame-short", "POST", INFER, body, {LENGTH: "10"}, 400, ("not JSON",)
    yield "frame-absent", "POST", INFER, json.dumps(header).encode(), {}, 400, ("'image'", LENGTH)
    yield "frame-spare", "POST", INFER, body + b"x", framing, 400, ("1 bytes more",)
    yield "frame-cut", "POST", INFER, body[:-1], framing, 400, ("'image'", "63", "64")
    for size, told in (
        (-1, "-1"),
        (2**70, "1.18"),
        ("64", '"64"'),
        (True, "true"),
        (63, "63"),
        (0, "0"),
    ):
        item = binary("image", ROW, "UINT8") | {"parameters": {"binary_data_size": size}}
        sized, headers = framed({"inputs": [item]}, payload)
        yield f"frame-size-{told}", "POST", INFER, sized, headers, 400, ("'image'", told)
    odd, headers = framed(
        {"inputs": [binary("in_bool", np.full((1, 2, 2), 2, np.uint8), "BOOL")]}, b"\2" * 4
    )
    yield "frame-bool-2", "POST", TYPES, odd, headers, 400, ("'in_bool'", "0 or 1")
    nan = np.array([[np.nan, 1]], "<f4")
    broken, headers = framed({"inputs": [binary("values", nan, "FP32")]}, nan.tobytes())
    yield "frame-nan", "POST", SERIES, broken, headers, 400, ("'values'", "finite", "NaN")
    yield "raw-short", "POST", INFER, b"123", {LENGTH: "0"}, 400, ("'image'", "64", "3")
    yield "raw-empty", "POST", INFER, b"", {LENGTH: "0"}, 400, ("'image'", "64", "0")
    yield "raw-uneven", "POST", SERIES, b"12345", {LENGTH: "0"}, 400, ("'values'", "5")
    octets = {"Content-Type": "application/octet-stream"}
    told = ("not JSON", "for raw bytes send Inference-Header-Content-Length: 0")
    yield "raw-no-header", "POST", INFER, b"\7" * 64, octets, 400, told
    yield "raw-no-header-long", "POST", INFER, b"\7" * (300 << 10), octets, 400, told[1:]
    yield "raw-many", "POST", TYPES, b"1", {LENGTH: "0"}, 400, ("'in_bool'", "one input")


def files() -> Iterator[Case]:
    for name, body, headers, query, status, told in (
        ("empty", b"", {}, "", 400, ("file", "nothing")),
        ("text", b"hello", {}, "", 400, ("not a readable picture",)),
        ("png-head", b"\x89PNG\r\n\x1a\n", {"Content-Type": "image/png"}, "", 400, ("picture",)),
        ("svg", b"<svg/>", {"Content-Type": "image/svg+xml"}, "", 400, ("picture",)),
        (
            "multipart",
            b"x",
            {"Content-Type": "multipart/form-data"},
            "",
            415,
            ("multipart", "--data-binary"),
        ),
        ("json", b"{}", {"Content-Type": "application/json"}, "", 415, ("application/json",)),
        ("pickle", b"x", {"Content-Type": "application/x-pickle"}, "", 415, ("pickle",)),
        ("invert-maybe", b"x", {}, "?invert=maybe", 400, ("invert", "maybe")),
        ("inverse", b"x", {}, "?inverse=true", 400, ("invert", "inverse")),
        ("many-queries", b"x", {}, "?" + "invert=1&" * 50, 400, ("query",)),
    ):
        yield f"file-{name}", "POST", PREDICT + query, body, headers, status, told
    yield (
        "file-tensors-only",
        "POST",
        "/v2/models/series/predict",
        b"x",
        {},
        501,
        ("'series'", "infer"),
    )


TABLE = list(cases())


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len({case[0] for case in TABLE}) == len(TABLE) >= 80


@pytest.mark.parametrize("case", TABLE, ids=[case[0] for case in TABLE])
def test_told_and_forgotten(server: Live, case: Case) -> None:
    _, method, path, body, headers, status, told = case
    got, answered, text = server.ask(method, path, body, headers)
    assert got == status, text
    assert answered["content-type"] == "application/json"
    answer = json.loads(text)
    assert set(answer) <= {"error", "ready", "name"} and answer["error"]
    for part in told:
        assert part in answer["error"]
    assert len(text) < 2000 and b"Traceback" not in text
    if status == 405:
        assert answered["allow"]
    if status == 503:
        assert int(answered["retry-after"]) > 0

    status, answer = server.json("POST", INFER, {"inputs": [GOOD]})
    assert status == 200 and answer["outputs"][1]["shape"] == [1, 10]
    assert abs(sum(answer["outputs"][1]["data"]) - 1) < 1e-5


@pytest.mark.parametrize("body", [b"hello", b"h", b""])
def test_a_raw_body_is_one_text_or_refused(body: bytes) -> None:
    asked = codec_json.decode_raw(body, [TensorSpec("x", "BYTES", (-1, 1))])
    assert asked.inputs[0].array.tolist() == [[body.decode()]]
    for row in ((-1,), (2,), (1, -1), (0,)):
        with pytest.raises(InvalidRequest, match="'x': raw bytes are one text"):
            codec_json.decode_raw(body, [TensorSpec("x", "BYTES", (-1, *row))])
