"""Requests as no client should send them: valid ones with damaged bytes, and ones from a grammar."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from tests.endurance.conftest import GOOD_BODY
from tests.serving.bundles import digits_rows
from tests.serving.live import binary, framed

INFER = b"POST /v2/models/exact/infer HTTP/1.1\r\nHost: x\r\n"
PATHS = (
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/exact",
    "/v2/models/exact/config",
    "/v2/models/exact/ready",
    "/v2/models/exact/infer",
    "/v2/models/exact/versions/1/infer",
    "/v2/models/types/infer",
    "/v2/models/exact/predict",
    "/v2/repository/index",
    "/v2/repository/models/exact/unload",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/",
)


def sized(body: bytes, *headers: bytes, head: bytes = INFER) -> bytes:
    """A request with the length of its body."""
    fields = b"".join(header + b"\r\n" for header in headers)
    return head + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes, size: int, head: bytes = INFER) -> bytes:
    """A request whose body comes in chunks, with an extension and a trailer."""
    chunks = b"".join(
        b"%x;a=1\r\n%b\r\n" % (len(body[i : i + size]), body[i : i + size])
        for i in range(0, len(body), size)
    )
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-T: 1\r\n\r\n"


def valid() -> list[bytes]:
    """One of each kind that a client may send."""
    rows = digits_rows(2)
    joint, fields = framed({"inputs": [binary("image", rows, "UINT8")]}, rows.tobytes())
    length = b"Inference-Header-Content-Length: " + next(iter(fields.values())).encode()
    raw = digits_rows(1).tobytes()
    return [
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/models/exact HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n",
        b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        sized(GOOD_BODY),
        sized(GOOD_BODY, b"Content-Type: application/json", b"X-Request-ID: abc"),
        sized(GOOD_BODY, b"Expect: 100-continue"),
        sized(joint, length),
        sized(raw, b"Inference-Header-Content-Length: 0"),
        sized(gzip.compress(GOOD_BODY), b"Content-Encoding: gzip"),
        sized(gzip.compress(joint), b"Content-Encoding: gzip", length),
        chunked(GOOD_BODY, 50),
        chunked(gzip.compress(GOOD_BODY), 30, INFER + b"Content-Encoding: gzip\r\n"),
        sized(b"{}", head=b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n"),
        sized(raw, head=b"POST /v2/models/exact/predict HTTP/1.1\r\nHost: x\r\n"),
        sized(GOOD_BODY) * 3,
    ]


def damaged(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A valid request in which bytes were flipped, cut out, doubled, or taken from another one."""
    found = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(found)) if found else 0
        match chance.randrange(7):
            case 0 if found:
                found[place] ^= 1 << chance.randrange(8)
            case 1 if found:
                found[place] = chance.choice(b'\0\r\n \t:,{}[]"0129-e\x7f\x80\xff')
            case 2:
                del found[place : place + chance.randint(1, 40)]
            case 3:
                found[place:place] = found[place : place + chance.randint(1, 200)]
            case 4:
                found[place:place] = chance.randbytes(chance.randint(1, 40))
            case 5:
                other = chance.choice(seeds)
                start = chance.randrange(len(other))
                found[place:] = other[start:]
            case _:
                found[place:place] = chance.choice(
                    (b"\r\n", b"\r\n\r\n", b"9" * 20, b"[" * 600, b'{"a":' * 300, b"-1", b"1e999")
                )
    return bytes(found)


def resized(chance: random.Random) -> bytes:
    """A whole request whose body alone is damaged, so that it gets past the framing."""
    body = bytearray(GOOD_BODY)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(body))
        body[place : place + chance.randint(0, 6)] = chance.choice(
            (b"null", b"{}", b"[]", b'"', b"true", b"1e400", b"-0", b"\xff", b"", b"9" * 30, b"NaN")
        )
    if chance.random() < 0.3:
        packed = bytearray(gzip.compress(body))
        packed[chance.randrange(len(packed))] ^= 1 << chance.randrange(8)
        return sized(bytes(packed), b"Content-Encoding: gzip")
    return chunked(bytes(body), chance.randint(1, 200)) if chance.random() < 0.3 else sized(body)


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """So many damaged requests, the same for the same seed."""
    chance, seeds = random.Random(seed), valid()
    for _ in range(count):
        yield resized(chance) if chance.random() < 0.4 else damaged(chance, seeds)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["image", "logits", "UINT8", "FP32", "BYTES", "exact"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
SHAPES = st.lists(st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**63])), max_size=6)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "classification", "priority", "x"]),
    SCALARS,
    max_size=2,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "logits", "in_int8", ""]) | SCALARS,
        "datatype": st.sampled_from(["UINT8", "FP32", "BYTES", "BOOL", "FP16"]) | SCALARS,
        "shape": SHAPES | SCALARS,
        "data": st.lists(st.integers(-1, 256), max_size=70) | VALUES,
        "parameters": PARAMETERS | SCALARS,
    },
)
BODIES = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "id": SCALARS,
            "inputs": st.lists(TENSORS, max_size=3) | VALUES,
            "outputs": st.lists(TENSORS, max_size=3) | VALUES,
            "parameters": PARAMETERS | VALUES,
        },
    ).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
    st.just(np.zeros((1, 8, 8, 1), np.uint8).tobytes()),
    st.just(GOOD_BODY),
)
NAMES = st.sampled_from(
    [
        b"Host",
        b"Accept",
        b"Accept-Encoding",
        b"Content-Type",
        b"Content-Encoding",
        b"Connection",
        b"Expect",
        b"Upgrade",
        b"Inference-Header-Content-Length",
        b"X-Request-ID",
        b"traceparent",
        b"Authorization",
        b"Range",
        b"Cookie",
    ]
)
TEXTS = (
    b" 0 12 -1 gzip deflate identity close keep-alive application/json image/png 100-continue "
    b"*/*;q=0 h2c \xff\xfe"
)
FIELD_VALUES = st.sampled_from(TEXTS.split(b" ")) | st.binary(max_size=20)
FIELDS = st.lists(st.tuples(NAMES, FIELD_VALUES), max_size=5)
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"post", b"X"])
TARGETS = st.one_of(
    st.sampled_from(PATHS).map(str.encode),
    st.lists(st.sampled_from(["v2", "models", "exact", "..", "%2e", "%00", "é", "infer", ""])).map(
        lambda steps: ("/" + "/".join(steps)).encode()
    ),
    st.tuples(st.sampled_from(PATHS), st.binary(max_size=20)).map(
        lambda pair: pair[0].encode() + b"?" + pair[1]
    ),
)


@st.composite
def grammatical(draw: st.DrawFn) -> bytes:
    """A request that is one by its form, and hardly ever by its meaning."""
    method = draw(st.just(b"POST") | METHODS)
    target = draw(st.sampled_from(PATHS[7:12]).map(str.encode) | TARGETS)
    version = draw(st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.12"]))
    fields = b"".join(b"%b: %b\r\n" % field for field in draw(FIELDS))
    head = b"%b %b %b\r\nHost: x\r\n%b" % (method, target, version, fields)
    body = draw(BODIES)
    if draw(st.booleans()):
        return sized(body, head=head)
    return chunked(body, draw(st.integers(1, 300)), head)
