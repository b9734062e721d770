"""Every mistake in a gRPC message is answered with a code and a sentence; the next call is answered.

`SLIPWAY_FUZZ=10000 python -m pytest tests/serving/test_malformed_rpc.py` sends that many damaged
messages instead of a few hundred.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving.codecs.codec_proto import CONTENTS, decode, parse
from serving.codecs.proto_templates import LONG_BYTES
from serving.errors import ServingError
from serving.proto.inference import INFERENCE
from tests.endurance.figures import report
from tests.serving.bundles import TYPES, digits_rows
from tests.serving.live import Live
from tests.serving.rpc_client import Client, InferRequest, infer_request

ROW = digits_rows(1)
GOOD = infer_request("digits-test", {"image": ROW})
WANTED = "expected UINT8 [n,8,8,1]"
FUZZED = int(os.environ.get("SLIPWAY_FUZZ", "400"))
SERVER_FAULTS = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED"}

Case = tuple[str, Any, str, tuple[str, ...]]


def changed(**fields: Any) -> Any:
    """The good request with other fields."""
    request = InferRequest()
    request.CopyFrom(GOOD)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def with_input(typed: bool = False, raw: list[bytes] | None = None, **fields: Any) -> Any:
    """The good request with another input, typed or raw."""
    request = infer_request("digits-test", {"image": ROW}, typed)
    item = request.inputs[0]
    for name, value in fields.items():
        if name == "shape":
            item.shape[:] = value
        elif name.endswith("_contents"):
            getattr(item.contents, name)[:] = value
        elif name in ("region", "value"):
            item.parameters["shared_memory_region" if name == "region" else name].string_param = "a"
        else:
            setattr(item, name, value)
    if raw is not None:
        request.raw_input_contents[:] = raw
    return request


def types_request(typed: bool, skip: str = "", **values: Any) -> Any:
    """Every input of the `types` model; `values` replace one's typed contents."""
    arrays = {f"in_{t}": np.ones((1, 2, 2), t) for t in TYPES if not typed or t != "float16"}
    arrays.pop(f"in_{skip}", None)
    request = infer_request("types", arrays, typed)
    for item in request.inputs:
        if item.name in values:
            field, given = values[item.name]
            item.ClearField("contents")
            getattr(item.contents, field)[:] = given
    return request


def cases() -> Iterator[Case]:
    """(id, request or bytes, code, what the details must say)."""
    yield from messages()
    yield from models()
    yield from heads()
    yield from raw_values()
    yield from typed_values()
    yield from outputs()


def messages() -> Iterator[Case]:
    no = "no inference.ModelInferRequest"
    for name, payload in (
        ("text", b"hello, server"),
        ("json", b'{"inputs": []}'),
        ("cut", GOOD.SerializeToString()[:-3]),
        ("endless-varint", b"\x0a" + b"\xff" * 20),
        ("length-lies", b"\x0a\xff\xff\xff\xff\x07abc"),
        ("bad-utf8", b"\x0a\x02\xff\xfe"),
        ("group", b"\x0b\x0a\x01a"),
        ("deep", b"\x2a\x7f" * 200),
    ):
        yield name, payload, "INVALID_ARGUMENT", (no,)
    yield "empty", b"", "NOT_FOUND", ("no model named ''",)
    yield "other-message", b"\x08\x01", "NOT_FOUND", ("no model",)


def models() -> Iterator[Case]:
    for name, fields, code, told in (
        ("unknown-model", {"model_name": "digit-test"}, "NOT_FOUND", ("did you mean",)),
        ("no-model", {"model_name": ""}, "NOT_FOUND", ("''",)),
        ("traversal", {"model_name": "../../etc/passwd"}, "NOT_FOUND", ()),
        ("long-model", {"model_name": "a" * 100_000}, "NOT_FOUND", ("aaa",)),
        ("unknown-version", {"model_version": "3"}, "NOT_FOUND", ("'3'", "1, 10")),
        ("text-version", {"model_version": "latest"}, "NOT_FOUND", ("'latest'",)),
        ("huge-version", {"model_version": "9" * 5000}, "NOT_FOUND", ()),
        ("broken-model", {"model_name": "broken"}, "UNAVAILABLE", ("failed", "model.onnx")),
        ("long-id", {"id": "x" * 1025}, "INVALID_ARGUMENT", ("id", "1024")),
    ):
        yield name, changed(**fields), code, told
    request = changed()
    request.parameters["timeout"].string_param = "soon"
    yield "timeout-text", request, "INVALID_ARGUMENT", ("timeout", "microseconds", '"soon"')
    request = changed()
    request.parameters["timeout"].int64_param = -5
    yield "timeout-negative", request, "INVALID_ARGUMENT", ("timeout", "-5")
    request = changed()
    request.parameters["timeout"].bool_param = True
    yield "timeout-bool", request, "INVALID_ARGUMENT", ("timeout", "true")
    request = changed()
    request.parameters["timeout"].double_param = float("nan")
    yield "timeout-nan", request, "INVALID_ARGUMENT", ("timeout",)


def heads() -> Iterator[Case]:
    bad = "INVALID_ARGUMENT"
    yield "no-inputs", InferRequest(model_name="digits-test"), bad, ("inputs", "got none")
    yield "no-name", with_input(name=""), bad, ("inputs[0]", "name")
    yield "unknown-input", with_input(name="picture"), bad, ("'picture'", "not an input", "'image'")
    yield "no-datatype", with_input(datatype=""), bad, ("'image'", "datatype", 'got ""')
    yield "wrong-datatype", with_input(datatype="FP32"), bad, (WANTED, "got FP32 [1, 8, 8, 1]")
    yield "lower-case", with_input(datatype="uint8"), bad, ('got "uint8"', "UINT8")
    yield "bf16", with_input(datatype="BF16"), bad, ("'image'", "BF16", "FP16")
    yield "no-shape", with_input(shape=[]), bad, (WANTED, "got UINT8 []")
    yield "short-shape", with_input(shape=[8, 8, 1]), bad, (WANTED, "the first axis counts rows")
    yield "wrong-shape", with_input(shape=[1, 8, 8, 3]), bad, (WANTED, "got UINT8 [1, 8, 8, 3]")
    yield "negative", with_input(shape=[-1, 8, 8, 1]), bad, ("from 0", "[-1,8,8,1]")
    yield "no-rows", with_input(shape=[0, 8, 8, 1], raw=[b""]), bad, ("1 to 1024 rows", "got 0")
    yield "many-rows", with_input(shape=[1025, 8, 8, 1]), bad, ("1 to 1024 rows", "got 1025")
    yield "overflow", with_input(shape=[2**62, 2**62, 8, 1]), bad, ("at most 2147483647",)
    yield "rank", with_input(shape=[1] * 9), bad, ("up to 8",)
    yield "shared-memory", with_input(region="r"), "UNIMPLEMENTED", ("'image'", "shared memory")
    twice = changed()
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    yield "twice", twice, bad, ("'image'", "once", "2 times")
    crowd = changed()
    crowd.inputs.extend([crowd.inputs[0]] * 300)
    yield "crowd", crowd, bad, ("at most 256", "got 301")
    yield "missing-input", types_request(False, skip="int8"), bad, ("'in_int8'", "missing")


def raw_values() -> Iterator[Case]:
    bad = "INVALID_ARGUMENT"
    yield "too-few-bytes", with_input(raw=[b"\0" * 63]), bad, ("'image'", "64 bytes", "got 63")
    yield "too-many-bytes", with_input(raw=[b"\0" * 65]), bad, ("'image'", "64 bytes", "got 65")
    yield "no-bytes", with_input(raw=[b""]), bad, ("'image'", "64 bytes", "got 0")
    yield "nothing", with_input(raw=[]), bad, ("'image'", "64 values", "got 0")
    yield "raw-count", with_input(raw=[bytes(64)] * 2), bad, ("expected 1", "got 2", "'image'")
    yield "both", with_input(uint_contents=[1] * 64), bad, ("'image'", "got both")
    fewer = types_request(False)
    del fewer.raw_input_contents[-1]
    yield "raw-fewer", fewer, bad, (f"expected {len(TYPES)}", f"got {len(TYPES) - 1}")
    truth = types_request(False)
    truth.raw_input_contents[0] = b"\x02\0\0\0"
    yield "no-bool", truth, bad, ("'in_bool'", "0 or 1")
    nan = infer_request("series", {"values": np.array([[1, np.nan]], np.float32)})
    yield "nan", nan, bad, ("'values'", "finite")
    mixed = types_request(False)
    mixed.inputs[3].contents.uint_contents[:] = [1, 1, 1, 1]
    yield "one-typed", mixed, bad, ("'in_uint32'", "got both")


def typed_values() -> Iterator[Case]:
    bad = "INVALID_ARGUMENT"
    yield (
        "few-values",
        with_input(True, uint_contents=[1] * 63),
        bad,
        ("'image'", "64 values", "got 63"),
    )
    yield (
        "wrong-list",
        with_input(True, uint_contents=[], fp32_contents=[1.0] * 64),
        bad,
        ("'image'", "uint_contents for UINT8", "got fp32_contents"),
    )
    yield (
        "two-lists",
        with_input(True, fp32_contents=[1.0] * 64),
        bad,
        ("'image'", "uint_contents for UINT8", "got fp32_contents"),
    )
    yield (
        "range",
        with_input(True, uint_contents=[256] * 64),
        bad,
        ("'image'", "UINT8 values from 0 to 255", "got 256"),
    )
    for name, low in (("int8", -129), ("int16", -32769)):
        yield (
            f"range-{name}",
            types_request(True, **{f"in_{name}": ("int_contents", [low] * 4)}),
            bad,
            (f"'in_{name}'", f"got {low}"),
        )
    half = types_request(True)
    half.inputs.add(name="in_float16", datatype="FP16", shape=[1, 2, 2])
    yield "fp16-nothing", half, bad, ("'in_float16'", "FP16 in raw_input_contents", "got nothing")
    typed = types_request(True)
    item = typed.inputs.add(name="in_float16", datatype="FP16", shape=[1, 2, 2])
    item.contents.fp32_contents[:] = [1, 1, 1, 1]
    yield "fp16-typed", typed, bad, ("'in_float16'", "raw_input_contents", "got fp32_contents")
    infinite = infer_request("series", {"values": np.array([[1, np.inf]], np.float32)}, True)
    yield "infinity", infinite, bad, ("'values'", "finite")


def outputs() -> Iterator[Case]:
    for name, outputs, code, told in (
        ("unknown-output", ["logit"], "INVALID_ARGUMENT", ("'logit'", "'logits'")),
        ("no-output-name", [""], "INVALID_ARGUMENT", ("outputs[0]", "name")),
        ("output-twice", ["logits", "logits"], "INVALID_ARGUMENT", ("'logits'", "once")),
        ("many-outputs", ["logits"] * 257, "INVALID_ARGUMENT", ("at most 256", "got 257")),
    ):
        request = changed()
        for output in outputs:
            request.outputs.add(name=output)
        yield name, request, code, told
    for extension in ("classification", "shared_memory_region"):
        request = changed()
        request.outputs.add(name="logits").parameters[extension].string_param = "1"
        yield extension, request, "UNIMPLEMENTED", ("'logits'", "not offered")


CASES = list(cases())


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Client]:
    with Client(server.grpc_port) as client:
        yield client


def test_there_are_enough_mistakes() -> None:
    assert len(CASES) >= 60 and len({case[0] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_mistake_is_told(client: Client, case: Case) -> None:
    _, request, code, told = case
    found, details = client.failure(request)
    assert found == code, details
    for part in told:
        assert part in details, details
    assert len(details) < 2100 and "Traceback" not in details
    assert client.infer(GOOD)


def test_long_messages_are_read_apart(client: Client) -> None:
    """Typed and long: the same answer as raw, and the same sentences."""
    values = np.linspace(0, 1, 2 * 50_000, dtype=np.float32).reshape(2, -1)
    long = infer_request("series", {"values": values}, typed=True)
    assert long.ByteSize() > LONG_BYTES
    raw = client.infer(infer_request("series", {"values": values}))
    for name, array in client.infer(long).items():
        np.testing.assert_array_equal(array, raw[name])
    for fields, code, told in (
        ({"model_name": "serie"}, "NOT_FOUND", "did you mean"),
        ({"model_version": "9"}, "NOT_FOUND", "'9'"),
        ({"id": "x" * 1025}, "INVALID_ARGUMENT", "1024"),
    ):
        request = InferRequest()
        request.CopyFrom(long)
        for name, value in fields.items():
            setattr(request, name, value)
        found, details = client.failure(request)
        assert found == code and told in details
    long.inputs[0].shape[1] += 1
    assert client.failure(long) == (
        "INVALID_ARGUMENT",
        "input 'values': contents: expected 100002 values for shape [2, 50001], got 100000",
    )
    with pytest.raises(grpc.RpcError, match="in at most 262144 bytes, got 300000"):
        client.raw(f"/{INFERENCE}/ModelReady", bytes(300_000))
    code, details = client.failure(b"\x0a\x06series" + b"\x2a\x00" * 1_000_000)
    assert code == "INVALID_ARGUMENT" and "at most 16384 fields" in details


def test_bytes_are_texts(client: Client) -> None:
    """No bundle here has texts, so their mistakes are told without a server."""
    for raw, told in (
        (b"\xff\xff\xff\xff", "beyond the data"),
        (b"\1\0", "its length in 4 bytes, got 2"),
        (b"\1\0\0\0a\1\0\0\0b", "got more"),
        (b"\1\0\0\0\xff", "UTF-8"),
        (b"", "got 0"),
    ):
        request = InferRequest(model_name="m", raw_input_contents=[raw])
        request.inputs.add(name="t", datatype="BYTES", shape=[1])
        with pytest.raises(ServingError, match=f"'t'.*{told}"):
            decode(request)
    request = InferRequest(model_name="m")
    request.inputs.add(name="t", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        b"\xff"
    )
    with pytest.raises(ServingError, match=r"'t'.*UTF-8"):
        decode(request)


def damaged(payload: bytes, chance: random.Random) -> bytes:
    """A message with bytes flipped, cut out, doubled, or put in."""
    found = bytearray(payload)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(found)) if found else 0
        kind = chance.randrange(5)
        if kind == 0 and found:
            found[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and found:
            found[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del found[place : place + chance.randint(1, 8)]
        elif kind == 3:
            found[place:place] = found[place : place + chance.randint(1, 16)]
        else:
            found[place:place] = chance.randbytes(chance.randint(1, 8))
    return bytes(found)


def disturbed(payload: bytes, chance: random.Random) -> bytes:
    """A message that is one, with fields that no client would send together."""
    request = InferRequest.FromString(payload)
    for _ in range(chance.randint(1, 3)):
        item = chance.choice(request.inputs) if request.inputs else request.inputs.add()
        kind = chance.randrange(9)
        if kind == 0:
            item.shape[:] = [
                chance.choice((-1, 0, 1, 2, 8, 2**31, 2**62)) for _ in range(chance.randint(0, 9))
            ]
        elif kind == 1:
            item.datatype = chance.choice([*(p for _, p in TYPES.values()), "BYTES", "BF16", "é"])
        elif kind == 2:
            item.name = chance.choice(["image", "in_int8", "", "\x00", "n" * 5000])
        elif kind == 3:
            getattr(item.contents, chance.choice(list(CONTENTS.values())[:7])).append(1)
        elif kind == 4:
            item.contents.bytes_contents.append(chance.randbytes(3))
        elif kind == 5:
            request.raw_input_contents.append(chance.randbytes(chance.randint(0, 64)))
        elif kind == 6 and request.raw_input_contents:
            del request.raw_input_contents[chance.randrange(len(request.raw_input_contents))]
        elif kind == 7:
            request.outputs.add(name=chance.choice(["logits", "out_int8", "", "y"]))
        else:
            request.inputs.add().CopyFrom(item)
    return bytes(request.SerializeToString())


def seeds() -> list[bytes]:
    wanted = changed(id="a", model_version="10")
    wanted.outputs.add(name="logits")
    wanted.parameters["timeout"].int64_param = 10_000_000
    found = [GOOD, wanted, with_input(True), types_request(False), types_request(True)]
    found.append(infer_request("series", {"values": np.ones((2, 3), np.float32)}))
    return [request.SerializeToString() for request in found]


def test_damaged_messages_never_harm_the_server(client: Client) -> None:
    chance = random.Random(7)
    starts = seeds()
    ask = client.channel.unary_unary(f"/{INFERENCE}/ModelInfer")
    codes: dict[str, int] = {}
    idle = _seconds(lambda: ask(starts[0], timeout=20), 50)
    waits = []
    for number in range(FUZZED):
        payload = chance.choice((damaged, disturbed))(chance.choice(starts), chance)
        try:
            ask(payload, timeout=20)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
            assert error.details(), payload
            # A damaged name may be that of the model that failed, a damaged timeout a short one.
            if code in SERVER_FAULTS:
                assert _allowed(code, error.details()), (code, error.details(), payload)
        codes[code] = codes.get(code, 0) + 1
        if number % 10 == 0:
            waits += _seconds(lambda: ask(starts[0], timeout=20), 1)
    report(
        "fuzz: gRPC",
        requests=FUZZED,
        codes=codes,
        good_wrong=0,
        idle_p50_ms=_ms(idle, 50),
        idle_p99_ms=_ms(idle, 99),
        p50_ms=_ms(waits, 50),
        p99_ms=_ms(waits, 99),
    )
    assert codes.get("INVALID_ARGUMENT", 0) > FUZZED / 4
    assert client.infer(GOOD)


def _allowed(code: str, details: str) -> bool:
    return code == "DEADLINE_EXCEEDED" and "request's timeout" in details


def _seconds(ask: Callable[[], object], count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        found.append(time.perf_counter() - began)
    return found


def _ms(seconds: list[float], percent: float) -> float:
    return float(np.percentile(seconds, percent)) * 1000


def test_damaged_messages_are_a_request_or_a_sentence() -> None:
    """The same without a channel, so many more."""
    chance = random.Random(11)
    starts = seeds()
    for _ in range(10 * FUZZED):
        try:
            payload = chance.choice((damaged, disturbed))(chance.choice(starts), chance)
            found = decode(parse(payload))
        except ServingError as error:
            assert str(error)
        else:
            assert found.inputs


def test_every_typed_list_is_known() -> None:
    assert set(CONTENTS) == {protocol for _, protocol in TYPES.values()} - {"FP16"} | {"BYTES"}
