"""Reading gRPC requests at a glance says what the strict reading says, of whatever bytes."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.codecs import proto_templates
from serving.codecs.codec_proto import CHUNK, decode, field_head, parse
from serving.codecs.json_templates import MAX_KNOWN
from serving.codecs.proto_fields import (
    CONTENTS,
    INPUTS,
    MAX_VALUES,
    OUTPUTS,
    SHAPE,
    fields,
    model_of,
)
from serving.codecs.proto_templates import Reader
from serving.errors import InvalidRequest, ServingError
from serving.protocol import InferRequest
from tests.serving.rpc_client import infer_request
from tests.serving.test_malformed_rpc import FUZZED, changed, damaged, disturbed, seeds

ANYTHING: Any = SimpleNamespace(check=lambda name, datatype, shape: None)
"""A contract that every tensor fits."""

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def glance(reader: Reader, payload: bytes) -> tuple[str, str | None, InferRequest]:
    model, version, read = reader.read(payload)
    return model, version, read(ANYTHING)


def strictly(payload: bytes) -> tuple[str, str | None, InferRequest]:
    asked = parse(payload)
    return asked.model_name, asked.model_version or None, decode(asked)


def plain(found: tuple[str, str | None, InferRequest]) -> Any:
    """All of it, comparable, NaN included."""
    model, version, r = found
    tensors = [(t.name, t.datatype, t.array.shape, repr(t.array.tolist())) for t in r.inputs]
    return model, version, tensors, r.outputs, r.binary, r.id, r.timeout, r.priority


def told(ask: Any, *given: Any) -> Any:
    try:
        return plain(ask(*given))
    except ServingError as error:
        return type(error), str(error)


def only_at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be read strictly."""

    def parse(payload: bytes) -> Any:
        raise AssertionError("read strictly")

    monkeypatch.setattr(proto_templates, "parse", parse)


def test_what_came_before_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    request = changed(model_version="10")
    request.outputs.add(name="logits")
    request.parameters["timeout"].int64_param = 10_000_000
    request.parameters["priority"].int64_param = 3
    two = infer_request("m", {"a": VALUES, "b": VALUES.astype(np.int64)})
    before = [plain(glance(reader, r.SerializeToString())) for r in (request, two)]
    only_at_a_glance(monkeypatch)
    assert [plain(glance(reader, r.SerializeToString())) for r in (request, two)] == before
    two.raw_input_contents[0] = (VALUES + 1).tobytes()
    for identity in ("a", "é" * 60, "x" * 1000):  # lengths of one and two bytes
        two.id = identity
        _, _, found = glance(reader, two.SerializeToString())
        assert found.id == identity and np.array_equal(found.inputs[0].array, VALUES + 1)
        assert found.inputs[0].array.flags.aligned


def test_the_values_are_views_of_the_message() -> None:
    reader = Reader()
    payload = infer_request("m", {"a": VALUES.astype(np.uint8)}).SerializeToString()
    for _ in range(2):
        array = glance(reader, payload)[2].inputs[0].array
    assert not array.flags.owndata and np.shares_memory(array, np.frombuffer(payload, np.uint8))


def test_every_message_is_read_as_strictly() -> None:
    """Damaged and odd ones among good ones, so that all heads are known that can be."""
    chance = random.Random(5)
    reader, starts = Reader(), seeds()
    starts.append(changed(id="i" * 200).SerializeToString())
    agreed = 0
    for _ in range(10 * FUZZED):
        payload = chance.choice(starts)
        for change in chance.choices((damaged, disturbed, None), (2, 1, 2), k=2):
            if change is damaged or (change and payload in starts):
                payload = change(payload, chance)
        expected = told(strictly, payload)
        assert told(glance, reader, payload) == expected, payload
        assert told(glance, reader, payload) == expected, payload
        agreed += type(expected[0]) is str
    assert agreed > FUZZED


def test_what_is_kept_is_bounded() -> None:
    reader = Reader()
    for number in range(MAX_KNOWN + 10):
        glance(reader, infer_request(f"m{number}", {"a": VALUES}).SerializeToString())
    assert 0 < len(reader._known) <= MAX_KNOWN
    for odd in (
        infer_request("m" * 3000, {"a": VALUES}),
        infer_request("typed", {"a": VALUES}, typed=True),
        infer_request("empty", {"a": VALUES[:, :0]}),
    ):
        known = len(reader._known)
        glance(reader, odd.SerializeToString())
        assert len(reader._known) == known


def test_more_fields_than_any_client_needs_are_refused_before_they_are_objects() -> None:
    """Two bytes each, where protobuf makes ninety of them; wherever they stand, and in whatever."""
    begun = "the message: expected at most 16384 fields"
    tensor = b"\x2a\x00" * 100_000
    inner = b"\x22\x00" * 100_000  # parameters
    texts = b"\x42\x00" * (MAX_VALUES + 1)
    for payload, words in (
        (tensor, begun),
        (b"\x0a\x01m\x4b" + tensor, begun),  # behind the mark of a group
        (b"\xaa\x00\x00" * 100_000, begun),  # a tag longer than it need be
        (_field(INPUTS, inner), begun),
        (_field(OUTPUTS, inner), begun),
        (_field(INPUTS, _field(SHAPE, bytes(100_000))), "shape: expected at most 1024 bytes"),
        (_field(INPUTS, _field(CONTENTS, texts)), "expected at most 1048576 texts"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            parse(payload)
    with pytest.raises(InvalidRequest, match="expected at most 16384 fields"):
        model_of(tensor)


def test_fields_are_those_that_protobuf_finds() -> None:
    chance = random.Random(13)
    starts = [request for request in seeds() if request]
    for _ in range(FUZZED):
        payload = chance.choice((damaged, disturbed))(chance.choice(starts), chance)
        try:
            asked = parse(payload)
        except ServingError:
            list(fields(payload, 0, len(payload)))
            continue
        assert model_of(payload) == (asked.model_name, asked.model_version or None)
        found = [number for number, _, _ in fields(payload, 0, len(payload))]
        if 3 not in {byte & 7 for byte in payload}:  # no group, whose fields count as well
            assert found.count(INPUTS) >= len(asked.inputs)


@pytest.mark.parametrize("kind", ["bool", "int8", "int64", "uint64", "float32", "float64"])
def test_many_typed_values_are_those_that_were_sent(kind: str) -> None:
    """More than become Python's at a time."""
    values = (np.arange(CHUNK + 3) % 100).astype(kind)
    found = strictly(infer_request("m", {"a": values}, typed=True).SerializeToString())[2]
    np.testing.assert_array_equal(found.inputs[0].array, values)
    assert found.inputs[0].array.dtype == kind


def _field(number: int, content: bytes) -> bytes:
    return field_head(number << 3 | 2, len(content)) + content
