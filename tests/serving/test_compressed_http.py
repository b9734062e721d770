"""Compressed bodies over HTTP, both ways, and what a bomb does to a server."""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.bundles import digits_rows
from tests.serving.live import Live, binary, framed, outputs, tensor

INFER = "/v2/models/digits-test/infer"
LIMIT = 64 << 20

Start = Callable[..., Live]


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


WAYS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
}


def json_request(rows: int) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"inputs": [tensor("image", digits_rows(rows), "UINT8")]}).encode(), {}


def binary_request(rows: int) -> tuple[bytes, dict[str, str]]:
    image = digits_rows(rows)
    head: dict[str, Any] = {
        "inputs": [binary("image", image, "UINT8")],
        "parameters": {"binary_data_output": True},
    }
    return framed(head, image.tobytes())


def inflated(headers: dict[str, str], body: bytes) -> bytes:
    coding = headers.get("content-encoding")
    if coding == "gzip":
        return gzip.decompress(body)
    return zlib.decompress(body) if coding == "deflate" else body


def memory(server: Live, what: str) -> int:
    status = Path(f"/proc/{server.workers()[0]}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) << 10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("request_of", [json_request, binary_request])
@pytest.mark.parametrize("rows", [1, 1000])
def test_compressed_requests_mean_the_same(
    server: Live,
    way: str,
    request_of: Callable[[int], tuple[bytes, dict[str, str]]],
    rows: int,
) -> None:
    """`Inference-Header-Content-Length` counts what was before compression."""
    body, headers = request_of(rows)
    coding, compress = WAYS[way]
    status, plain_headers, plain = server.ask("POST", INFER, body, headers)
    assert status == 200
    sent = headers | {"Content-Encoding": coding}
    status, told, answer = server.ask("POST", INFER, compress(body), sent)
    assert status == 200
    assert "content-encoding" not in told
    expected, got = outputs(plain_headers, plain), outputs(told, answer)
    assert expected.keys() == got.keys()
    for name in expected:
        assert np.array_equal(expected[name], got[name])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_large_answers_are_compressed_for_who_asks(server: Live, coding: str) -> None:
    body, headers = json_request(1000)
    _, _, plain = server.ask("POST", INFER, body, headers)
    status, told, answer = server.ask("POST", INFER, body, {"Accept-Encoding": coding})
    assert status == 200
    assert told["content-encoding"] == coding and told["vary"] == "Accept-Encoding"
    assert len(answer) == int(told["content-length"]) < 0.7 * len(plain)
    assert json.loads(inflated(told, answer))["outputs"] == json.loads(plain)["outputs"]


def test_binary_answers_keep_their_header_length(server: Live) -> None:
    zeros, _ = framed(
        {
            "inputs": [binary("image", np.zeros_like(digits_rows(1000)), "UINT8")],
            "parameters": {"binary_data_output": True},
        },
        bytes(digits_rows(1000).nbytes),
    )
    length = str(zeros.index(b"\0"))
    asked = {"Inference-Header-Content-Length": length}
    _, plain_headers, plain = server.ask("POST", INFER, zeros, asked)
    assert len(plain) > 64 << 10
    status, told, answer = server.ask("POST", INFER, zeros, asked | {"Accept-Encoding": "gzip"})
    assert status == 200 and told["content-encoding"] == "gzip"
    name = "inference-header-content-length"
    assert told[name] == plain_headers[name]
    assert inflated(told, answer) == plain


def test_small_answers_and_other_wishes_travel_as_they_are(server: Live) -> None:
    small, headers = json_request(1)
    large, _ = json_request(1000)
    for body, wish in ((small, "gzip, deflate"), (large, "br"), (large, "gzip;q=0"), (large, "")):
        status, told, answer = server.ask("POST", INFER, body, headers | {"Accept-Encoding": wish})
        assert status == 200 and "content-encoding" not in told
        json.loads(answer)


def test_settings_turn_it_off_and_on(start: Start, bundle: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[compression]\nanswer_bytes = 0\nlevel = 9\nrequests = false\n")
    server = start(bundle, "--config", str(config))
    body, _ = json_request(1)
    _, told, answer = server.ask("POST", INFER, body, {"Accept-Encoding": "gzip"})
    assert told["content-encoding"] == "gzip" and json.loads(gzip.decompress(answer))
    status, told, answer = server.ask(
        "POST", INFER, gzip.compress(body), {"Content-Encoding": "gzip"}
    )
    assert status == 415 and "compression.requests" in json.loads(answer)["error"]
    config.write_text("[compression]\nanswers = false\n")
    server = start(bundle, "--config", str(config))
    body, _ = json_request(1000)
    _, told, _ = server.ask("POST", INFER, body, {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in told and "vary" not in told


@pytest.mark.parametrize(
    ("coding", "change", "status", "told"),
    [
        ("br", lambda body: body, 415, "Content-Encoding: expected gzip, deflate or identity"),
        ("gzip, gzip", gzip.compress, 415, "Content-Encoding"),
        ("gzip", lambda body: body, 400, "not gzip data"),
        ("deflate", lambda body: body, 400, "not deflate data"),
        ("gzip", lambda body: gzip.compress(body)[:-1], 400, "cut off"),
        ("gzip", lambda body: gzip.compress(body) + b"\0", 400, "cut off"),
        ("deflate", lambda body: zlib.compress(body) + b"x", 400, "something else"),
        ("gzip", lambda body: gzip.compress(b"[" * 100_000), 400, "JSON"),
        ("gzip", lambda body: gzip.compress(b""), 400, "JSON"),
    ],
)
def test_what_is_refused(
    server: Live, coding: str, change: Callable[[bytes], bytes], status: int, told: str
) -> None:
    body = change(json_request(1)[0])
    got, _, raw = server.ask("POST", INFER, body, {"Content-Encoding": coding})
    assert got == status
    assert told in json.loads(raw)["error"]


def test_the_header_length_is_held_against_the_inflated_body(server: Live) -> None:
    body, headers = binary_request(1)
    body += b"x"
    status, _, answer = server.ask(
        "POST", INFER, gzip.compress(body), headers | {"Content-Encoding": "gzip"}
    )
    assert status == 400 and "1 bytes more" in json.loads(answer)["error"]


def test_files_may_be_compressed_too(server: Live) -> None:
    path = "/v2/models/digits-test/predict"
    status, answer = server.json("POST", path, headers={"Content-Encoding": "gzip"})
    assert status == 400 and "expected a file" in answer["error"]
    status, _, raw = server.ask(
        "POST", path, gzip.compress(b"no picture"), {"Content-Encoding": "gzip"}
    )
    assert status == 400 and "cut off" not in json.loads(raw)["error"]


def bomb() -> bytes:
    """A GB of zeros, a MB of bytes."""
    stream = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    return b"".join(stream.compress(zeros) for _ in range(1 << 10)) + stream.flush()


def test_bombs_are_refused_within_bounded_memory(start: Start, bundle: Path) -> None:
    server = start(bundle)
    body, headers = json_request(1)
    assert server.ask("POST", INFER, body, headers)[0] == 200
    before, peak = memory(server, "VmRSS"), memory(server, "VmHWM")
    payload = bomb()
    for _ in range(3):
        status, _, answer = server.ask("POST", INFER, payload, {"Content-Encoding": "gzip"})
        assert status == 413
        assert f"at most {LIMIT} bytes are accepted once inflated" in json.loads(answer)["error"]
    grown = memory(server, "VmHWM") - max(before, peak)
    assert grown < LIMIT + (16 << 20)
    assert server.ask("POST", INFER, body, headers)[0] == 200


def test_bombs_do_not_hold_up_others(start: Start, bundle: Path) -> None:
    server = start(bundle)
    body, headers = json_request(1)
    payload, stop = bomb(), threading.Event()
    statuses: list[int] = []

    def attack() -> None:
        while not stop.is_set():
            statuses.append(server.ask("POST", INFER, payload, {"Content-Encoding": "gzip"})[0])

    attackers = [threading.Thread(target=attack) for _ in range(4)]
    for attacker in attackers:
        attacker.start()
    slowest = 0.0
    for _ in range(50):
        begun = time.monotonic()
        assert server.ask("POST", INFER, body, headers)[0] == 200
        slowest = max(slowest, time.monotonic() - begun)
    grown = memory(server, "VmHWM")
    stop.set()
    for attacker in attackers:
        attacker.join()
    assert set(statuses) == {413}
    assert slowest < 1  # one bomb takes 0.2 s and more of a processor
    assert grown < 600 << 20


@pytest.mark.parametrize("way", WAYS)
def test_a_large_sound_body_is_inflated_in_a_thread(server: Live, way: str) -> None:
    coding, compress = WAYS[way]
    text = json_request(1)[0] + b" " * (8 << 20)
    status, _, answer = server.ask("POST", INFER, compress(text), {"Content-Encoding": coding})
    assert status == 200 and json.loads(answer)["outputs"]
