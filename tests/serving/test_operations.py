"""What an operator sees of a real server: scraped, asked for statistics, read from its log."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from serving import errors
from serving.doors.access import Scope, generated
from serving.models.slot import State
from serving.observability import families
from serving.observability.call import OUTCOMES, Call
from serving.observability.cells import FAILED, STATES
from serving.proto.inference import INFERENCE, message
from tests.serving.bundles import digits_rows, make_bundle
from tests.serving.graphs import LOOPS_ALLOWED, make_counting_bundle
from tests.serving.live import Live, receive, tensor
from tests.serving.rpc_client import Client, infer_request

Start = Callable[..., Live]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INFER = "/v2/models/digits-test/infer"
FOREVER = 2**40


def body(rows: int = 1) -> dict[str, Any]:
    return {"inputs": [tensor("image", digits_rows(rows), "UINT8")]}


def scrape(server: Live, accept: str = "") -> dict[str, Metric]:
    status, headers, page = server.ask("GET", "/metrics", None, {"Accept": accept})
    assert status == 200
    parse = parse_text if headers["content-type"].startswith("text/plain") else parse_openmetrics
    return {metric.name: metric for metric in parse(page.decode())}


def value(found: dict[str, Metric], name: str, suffix: str = "", **labels: str) -> float:
    return sum(
        one.value
        for one in found[name].samples
        if one.name == name + suffix and labels.items() <= one.labels.items()
    )


def requests(found: dict[str, Metric], **labels: str) -> dict[str, float]:
    """What is not 0 among the requests, by outcome."""
    by: dict[str, float] = {}
    for one in found["slipway_requests"].samples:
        if labels.items() <= one.labels.items() and one.value:
            outcome = one.labels["outcome"]
            by[outcome] = by.get(outcome, 0) + one.value
    return by


def series(found: dict[str, Metric]) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {(one.name, frozenset(one.labels.items())) for m in found.values() for one in m.samples}


def log_lines(server: Live) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.out.read_text().splitlines()]


def test_counts_are_exact(start: Start, repository: Path) -> None:
    server = start(repository)
    for rows in (1, 3, 3):
        assert server.json("POST", INFER, body(rows))[0] == 200
    assert server.json("POST", "/v2/models/digits-test/versions/1/infer", body(2))[0] == 200
    assert server.json("POST", INFER, {"inputs": []})[0] == 400
    wrong = {"inputs": [tensor("image", digits_rows(1)[:, :4], "UINT8")]}
    assert server.json("POST", INFER, wrong)[0] == 400
    picture = b"no picture"
    assert server.ask("POST", "/v2/models/digits-test/predict", picture)[0] == 400
    assert server.json("POST", "/v2/models/nobody/infer", body())[0] == 404
    assert server.json("POST", "/v2/models/broken/infer", body())[0] == 503
    assert server.ask("GET", "/v2/health/live")[0] == 200

    found = scrape(server)
    new = {"model": "digits-test", "version": "10"}
    old = {"model": "digits-test", "version": "1"}
    assert requests(found, **new) == {"success": 3, "invalid": 3}
    assert requests(found, **old) == {"success": 1}
    assert requests(found, model="") == {"invalid": 1, "unready": 1}
    assert value(found, "slipway_rows", "_total", **new) == 7
    assert value(found, "slipway_batches", "_total", **new) == 3
    assert value(found, "slipway_batch_rows", "_bucket", le="1.0", **new) == 1
    assert value(found, "slipway_batch_rows", "_bucket", le="4.0", **new) == 3
    assert value(found, "slipway_batch_rows", "_sum", **new) == 7
    for name in ("request", "queue", "run", "codec"):
        assert value(found, f"slipway_{name}_seconds", "_count", **new) == 3
        assert value(found, f"slipway_{name}_seconds", "_sum", **new) > 0
    parts = sum(
        value(found, f"slipway_{n}_seconds", "_sum", **new) for n in ("queue", "run", "codec")
    )
    assert parts == pytest.approx(value(found, "slipway_request_seconds", "_sum", **new))
    sent = len(json.dumps(body(2)).encode())
    assert value(found, "slipway_received_bytes", "_total", **old) == sent
    assert value(found, "slipway_responses", "_total", door="http", code="200") == 5
    assert value(found, "slipway_responses", "_total", door="http", code="400") == 3
    assert value(found, "slipway_model_state", state="ready") == 4
    assert value(found, "slipway_model_state", model="broken", state="failed") == 1
    assert value(found, "slipway_open_connections") == 1
    assert value(found, "slipway_in_flight_requests", door="http") == 1  # this scrape
    assert value(found, "slipway_model_info", provider="CPUExecutionProvider", **new) == 1
    assert value(found, "slipway_cuda_fallback") == 0
    assert value(found, "process_resident_memory_bytes", worker="0") > 10 << 20


def test_both_forms_and_head_have_the_right_type(server: Live) -> None:
    text, _, page = server.ask("GET", "/metrics")
    status, headers, nothing = server.ask("HEAD", "/metrics")
    assert text == status == 200 and not nothing and page
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(headers["content-length"]) > 1000
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    _, headers, page = server.ask("GET", "/metrics", None, {"Accept": accept})
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert page.endswith(b"# EOF\n")
    assert (
        set(scrape(server, accept))
        == set(scrape(server))
        == {family.name for family in families.FAMILIES}
    )
    assert server.ask("POST", "/metrics")[0] == 405


def test_late_overloaded_and_cancelled_requests_are_told_apart(
    start: Start, tmp_path: Path
) -> None:
    make_counting_bundle(tmp_path / "b")
    settings = LOOPS_ALLOWED + "[runtime]\nrun_seconds = 1.0\n"
    settings += "[batching]\nslow_ms = 0\nqueue_requests = 1\n"
    (tmp_path / "s.toml").write_text(settings)
    server = start(tmp_path / "b", "--config", str(tmp_path / "s.toml"))

    def ask(steps: int) -> int:
        asked = {"inputs": [tensor("steps", np.array([[steps]]), "INT64")]}
        return int(server.json("POST", "/v2/models/counting/infer", asked)[0])

    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda steps=steps: statuses.append(ask(steps)))  # type: ignore[misc]
        for steps in (FOREVER, 5)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    assert ask(5) == 503
    during = scrape(server)
    assert value(during, "slipway_queue_requests") == value(during, "slipway_queue_rows") == 1
    assert value(during, "slipway_in_flight_requests") == 3
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 504]

    gone = server.socket()
    asked = json.dumps({"inputs": [tensor("steps", np.array([[FOREVER]]), "INT64")]}).encode()
    head = b"POST /v2/models/counting/infer HTTP/1.1\r\nHost: x\r\nX-Request-ID: gone\r\n"
    gone.sendall(head + b"Content-Length: %d\r\n\r\n" % len(asked) + asked)
    time.sleep(0.2)
    reset = struct.pack("ii", 1, 0)  # a plain close might be a client that still reads
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    gone.close()
    assert ask(5) == 200

    found = scrape(server)
    assert requests(found) == {"success": 2, "deadline": 1, "overloaded": 1, "cancelled": 1}
    assert value(found, "slipway_queue_requests") == 0
    assert value(found, "slipway_queue_seconds", "_sum") > 0.5  # the one that waited
    assert value(found, "slipway_request_seconds", "_count") == 2
    assert server.stop() == 0
    (line,) = (line for line in log_lines(server) if line["request_id"] == "gone")
    assert line["status"] == 499 and line["model"] == "counting"
    by_status = {line["status"]: line for line in log_lines(server) if "model" in line}
    assert by_status.keys() == {200, 499, 503, 504}


@pytest.mark.parametrize("names", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_invented_names_add_no_series(start: Start, bundle: Path, names: int) -> None:
    server = start(bundle)
    invented = random.Random(5)
    letters = [chr(n) for n in range(33, 127) if chr(n) not in "?#%/"]

    def name() -> str:
        return "".join(invented.choices(letters, k=invented.randint(2, 60)))

    paths = ("/v2/models/{}/infer", "/v2/models/digits-test/versions/{}/infer", "/{}")
    with server.socket() as sock, sock.makefile("rb") as answers:

        def all_kinds(count: int) -> None:
            for number in range(count):
                path = paths[number % 3].format(name())
                sock.sendall(
                    b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % path.encode()
                )
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += answers.readline()
                found = re.search(rb"Content-Length: (\d+)", head)
                assert found and b" 404 " in head
                answers.read(int(found[1]))

        all_kinds(3)
        before = scrape(server)
        all_kinds(names)
        after = scrape(server)
    assert series(before) == series(after) and len(series(after)) <= 200
    counted = requests(after)["invalid"] - requests(before)["invalid"]
    assert counted == sum(number % 3 != 2 for number in range(names))


def test_statistics_are_asked_for_as_triton_is(start: Start, repository: Path) -> None:
    server = start(repository)
    for _ in range(3):
        server.json("POST", INFER, body(2))
    server.json("POST", INFER, {"inputs": []})
    server.json("POST", "/v2/models/digits-test/versions/1/infer", body(5))

    def stats(path: str) -> list[dict[str, Any]]:
        status, answer = server.json("GET", path)
        assert status == 200
        told: list[dict[str, Any]] = answer["model_stats"]
        return told

    (newest,) = stats("/v2/models/digits-test/versions/10/stats")
    assert newest["inference_count"] == 6 and newest["execution_count"] == 3
    parts = newest["inference_stats"]
    assert parts["success"]["count"] == 3 and parts["fail"]["count"] == 1
    pieces = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(parts[piece]["count"] == 3 and parts[piece]["ns"] > 0 for piece in pieces)
    assert abs(sum(parts[piece]["ns"] for piece in pieces) - parts["success"]["ns"]) < 10
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in newest["batch_stats"]] == [
        (2, 3)
    ]
    assert abs(newest["last_inference"] / 1000 - time.time()) < 60
    assert [m["version"] for m in stats("/v2/models/digits-test/stats")] == ["1", "10"]
    everything = {(m["name"], m["version"]) for m in stats("/v2/models/stats")}
    assert everything == {
        ("digits-test", "1"),
        ("digits-test", "10"),
        ("types", "1"),
        ("series", "1"),
    }
    assert server.ask("GET", "/v2/models/nobody/stats")[0] == 404
    assert server.ask("GET", "/v2/models/digits-test/versions/3/stats")[0] == 404
    assert server.ask("GET", "/v2/models/broken/stats")[0] == 503
    assert "statistics" in server.json("GET", "/v2")[1]["extensions"]


def test_the_log_says_which_bundle_answered_and_where_the_time_went(
    start: Start, bundle: Path
) -> None:
    server = start(bundle)
    sent = {"X-Request-ID": "r-1", "traceparent": TRACEPARENT}
    status, headers, _ = server.ask("POST", INFER, json.dumps(body(3)).encode(), sent)
    assert status == 200
    assert headers["x-request-id"] == "r-1" and headers["traceparent"] == TRACEPARENT
    _, headers, _ = server.ask("POST", INFER, b"{", {"traceparent": "00-zz"})
    assert "traceparent" not in headers
    generated = headers["x-request-id"]
    server.ask("GET", "/v2/health/ready")
    digest = server.json("GET", "/v2/models/digits-test")[1]["properties"]["bundle"]
    with server.socket() as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert b"X-Request-ID: " in sock.recv(4096)
    assert server.stop() == 0
    infer, bad, health, _, nonsense = log_lines(server)
    assert infer["door"] == "http" and infer["request_id"] == "r-1" and infer["status"] == 200
    assert infer["trace_id"] == TRACEPARENT.split("-")[1]
    assert (infer["model"], infer["version"], infer["rows"]) == ("digits-test", "1", 3)
    assert digest.startswith(infer["digest"]) and len(infer["digest"]) == 12
    assert all(infer[part] >= 0 for part in ("queue_ms", "run_ms", "codec_ms"))
    parts = infer["queue_ms"] + infer["run_ms"] + infer["codec_ms"]
    assert parts == pytest.approx(infer["total_ms"], abs=0.003)
    assert bad["request_id"] == generated and bad["status"] == 400 and "trace_id" not in bad
    assert bad["model"] == "digits-test" and "queue_ms" not in bad
    assert health["path"] == "/v2/health/ready" and "model" not in health
    assert nonsense["status"] == 400 and nonsense["path"] == ""


def test_no_line_is_lost_when_leaving(start: Start, bundle: Path) -> None:
    server = start(bundle)
    for number in range(50):
        server.ask("POST", INFER, json.dumps(body()).encode(), {"X-Request-ID": f"n{number}"})
    assert server.stop() == 0
    assert [line["request_id"] for line in log_lines(server)] == [f"n{n}" for n in range(50)]


def test_what_is_unloaded_has_no_state_and_keeps_its_counts(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "r" / "a" / "1", name="a")
    make_bundle(tmp_path / "r" / "b" / "1", name="b")
    (tmp_path / "s.toml").write_text("[control]\nport = 0\n[repository]\npoll_seconds = 0.1\n")
    server = start(tmp_path / "r", "--config", str(tmp_path / "s.toml"))
    assert server.json("POST", "/v2/models/a/infer", body())[0] == 200
    (tmp_path / "r" / "a").rename(tmp_path / "away")
    ends = time.monotonic() + 15
    while value(scrape(server), "slipway_model_state", model="a") and time.monotonic() < ends:
        time.sleep(0.05)
    found = scrape(server)
    assert value(found, "slipway_model_state", model="a") == 0
    assert value(found, "slipway_model_info", model="a") == 0
    assert requests(found, model="a") == {"success": 1}
    (tmp_path / "away").rename(tmp_path / "r" / "a")
    ends = time.monotonic() + 15
    while server.ask("GET", "/v2/models/a/ready")[0] != 200 and time.monotonic() < ends:
        time.sleep(0.05)
    assert server.json("POST", "/v2/models/a/infer", body())[0] == 200
    assert requests(scrape(server), model="a") == {"success": 2}


def test_a_compressed_request_is_counted_like_any_other(start: Start, bundle: Path) -> None:
    server = start(bundle)
    packed = gzip.compress(json.dumps(body(2)).encode())
    sent = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    assert server.ask("POST", INFER, packed, sent)[0] == 200
    assert server.ask("POST", INFER, b"no gzip", sent)[0] == 400
    found = scrape(server)
    assert requests(found) == {"success": 1}  # what cannot be inflated never came to a model
    assert value(found, "slipway_received_bytes", "_total") == len(packed)
    assert value(found, "slipway_responses", "_total", code="400") == 1


def test_every_failure_has_an_outcome_and_what_is_unforeseen_is_ours() -> None:
    foreseen = set(errors.ServingError.__subclasses__())
    assert foreseen - set(OUTCOMES) == {errors.BackendFailure, errors.ModelRefused}
    call = Call()
    call.failed(ValueError())
    assert call.outcome == FAILED


def test_every_value_of_a_label_is_explained(server: Live) -> None:
    samples = [one for metric in scrape(server).values() for one in metric.samples]
    for label, meanings in families.VALUES.items():
        assert {one.labels[label] for one in samples if label in one.labels} == set(meanings)


def test_every_state_has_a_name_in_the_metrics() -> None:
    assert {state.value for state in State} == set(STATES)


def test_each_line_says_who_asked_and_why_there_was_no_answer(
    start: Start, bundle: Path, tmp_path: Path
) -> None:
    """Names of keys and labels of failures, over both doors; never a key, nor words of a message."""
    made = {
        name: generated(name, [scope])
        for name, scope in (("alice", Scope.INFER), ("ops", Scope.ADMIN))
    }
    file = tmp_path / "keys.txt"
    file.write_text("".join(f"{key.line()}\n" for _, key in made.values()))
    file.chmod(0o600)
    server = start(bundle, "--keys", str(file), "--grpc-port", "0")
    alice, ops = ({"X-API-Key": text} for text, _ in made.values())
    wrong = {"X-API-Key": "wrong"}
    nobody, index = "/v2/models/nobody/infer", "/v2/repository/index"
    expected: list[tuple[int | str, str | None, str | None]] = []
    large = body() | {"more": "x" * (1 << 16)}
    for path, value, headers, status, who, why in (
        (INFER, body(), alice, 200, "alice", None),
        (INFER, {"inputs": []}, alice, 400, "alice", "invalid_request"),
        (nobody, body(), alice, 404, "alice", "not_found"),
        (INFER, body(), {}, 401, None, "unauthenticated"),
        (INFER, body(), wrong, 401, None, "unauthenticated"),
        (INFER, body(), ops, 403, "ops", "forbidden"),
        (INFER, large, ops, 403, "ops", "forbidden"),  # by its head alone
        (index, {}, ops, 200, "ops", None),
        (f"{INFER}?x", body(), alice, 200, "alice", None),
        ("/v2", {}, alice, 405, "alice", "method_not_allowed"),
    ):
        assert server.json("POST", path, value, headers=headers)[0] == status
        expected.append((status, who, why))
    with server.socket() as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        receive(sock)
    expected.append((400, None, "bad_request"))
    asked = infer_request("digits-test", {"image": digits_rows(1)})
    with Client(server.grpc_port) as client:
        for name, code, who, why in (
            ("alice", "OK", "alice", None),
            ("ops", "PERMISSION_DENIED", "ops", "forbidden"),
            ("", "UNAUTHENTICATED", None, "unauthenticated"),
        ):
            metadata = [("x-api-key", made[name][0])] if name else []
            if code == "OK":
                client.infer(asked, metadata=metadata)
            else:
                assert client.failure(asked, metadata=metadata)[0] == code
            expected.append((code, who, why))
        bad = infer_request("digits-test", {})
        client.failure(bad, metadata=[("x-api-key", made["alice"][0])])
        expected.append(("INVALID_ARGUMENT", "alice", "invalid_request"))
        client.call("RepositoryIndex", metadata=[("x-api-key", made["ops"][0])])
        expected.append(("OK", "ops", None))
    assert server.stop() == 0
    told = [(line["status"], line.get("key"), line.get("reason")) for line in log_lines(server)]
    assert told == expected
    assert not any(text[-20:] in server.out.read_text() for text, _ in made.values())


def test_the_grpc_door_is_in_the_same_books(start: Start, bundle: Path) -> None:
    server = start(bundle, "--grpc-port", "0")
    asked = infer_request("digits-test", {"image": digits_rows(3)})
    sent = (("x-request-id", "g-1"), ("traceparent", TRACEPARENT))
    path = f"/{INFERENCE}/ModelInfer"
    with Client(server.grpc_port) as client:
        call = client.channel.unary_unary(path)
        _, done = call.with_call(asked.SerializeToString(), metadata=sent, timeout=20)
        assert ("x-request-id", "g-1") in done.trailing_metadata()
        code, _ = client.failure(infer_request("digits-test", {}))
        assert code == "INVALID_ARGUMENT"
        code, _ = client.failure(infer_request("nobody", {"image": digits_rows(1)}))
        assert code == "NOT_FOUND"
        stream = client.channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")
        assert len(list(stream(iter([asked.SerializeToString()] * 2), timeout=20))) == 2
        assert client.call("ServerLive").live
        told = client.call("ModelStatistics", message("inference.ModelStatisticsRequest")())

    (http,) = server.json("GET", "/v2/models/stats")[1]["model_stats"]
    (grpc,) = told.model_stats
    assert (grpc.name, grpc.version) == ("digits-test", "1")
    assert grpc.inference_count == http["inference_count"] == 9
    assert grpc.inference_stats.success.count == 3 and grpc.inference_stats.fail.count == 1
    assert grpc.inference_stats.queue.ns == http["inference_stats"]["queue"]["ns"]
    assert sum(batch.compute_infer.count for batch in grpc.batch_stats) == grpc.execution_count

    found = scrape(server)
    assert requests(found, door="grpc", model="digits-test") == {"success": 3, "invalid": 1}
    assert requests(found, door="grpc", model="") == {"invalid": 1}
    assert value(found, "slipway_responses", "_total", code="INVALID_ARGUMENT") == 1
    assert value(found, "slipway_in_flight_requests", door="grpc") == 0
    assert server.stop() == 0
    lines = [line for line in log_lines(server) if line["door"] == "grpc"]
    first = next(line for line in lines if line["request_id"] == "g-1")
    assert first["trace_id"] == TRACEPARENT.split("-")[1] and first["status"] == "OK"
    assert first["path"] == path and first["rows"] == 3 and first["model"] == "digits-test"
    assert first["received"] == asked.ByteSize()
    assert (
        sorted(line["status"] for line in lines) == ["INVALID_ARGUMENT", "NOT_FOUND"] + ["OK"] * 5
    )


def test_a_grpc_client_that_gives_up_is_counted_as_late_or_gone(
    start: Start, tmp_path: Path
) -> None:
    make_counting_bundle(tmp_path / "b")
    settings = LOOPS_ALLOWED + "[runtime]\nrun_seconds = 1.0\n[batching]\nslow_ms = 0\n"
    (tmp_path / "s.toml").write_text(settings)
    server = start(tmp_path / "b", "--config", str(tmp_path / "s.toml"), "--grpc-port", "0")
    asked = infer_request("counting", {"steps": np.array([[FOREVER]])})
    with Client(server.grpc_port) as client:
        assert client.failure(asked, timeout=0.3)[0] == "DEADLINE_EXCEEDED"
        late = client.channel.unary_unary(f"/{INFERENCE}/ModelInfer").future(
            asked.SerializeToString(), timeout=20
        )
        time.sleep(0.2)
        late.cancel()
        ends = time.monotonic() + 10
        while len(requests(scrape(server))) < 2 and time.monotonic() < ends:
            time.sleep(0.05)
    counts = requests(scrape(server), door="grpc")
    # At its deadline a client also cancels: whichever the server sees first names the first call.
    assert counts in ({"deadline": 1, "cancelled": 1}, {"cancelled": 2})


def test_every_worker_speaks_for_all_and_a_death_takes_no_count_back(
    start: Start, bundle: Path
) -> None:
    server = start(bundle, "--workers", "2")

    def count(found: dict[str, Metric]) -> tuple[float, ...]:
        return (
            requests(found).get("success", 0),
            value(found, "slipway_rows", "_total"),
            value(found, "slipway_request_seconds", "_count"),
            value(found, "slipway_worker_restarts", "_total"),
        )

    before = (0.0, 0.0, 0.0, 0.0)
    for death in range(3):
        for _ in range(40):  # a connection each: the kernel deals them out
            assert server.json("POST", INFER, body(2))[0] == 200
        done = 40.0 * (death + 1)
        ends = time.monotonic() + 5  # written down a moment after the answer is out
        while count(scrape(server))[2] < done and time.monotonic() < ends:
            time.sleep(0.01)
        seen = [count(scrape(server)) for _ in range(6)]
        assert seen == [(done, 2 * done, done, float(death))] * 6
        assert all(now >= then for now, then in zip(seen[-1], before, strict=True))
        before = seen[-1]
        busy = [one.value for one in scrape(server)["process_cpu_seconds"].samples]
        assert len(busy) == 2 and all(busy)
        os.kill(server.workers()[0], signal.SIGKILL)
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            with contextlib.suppress(OSError, HTTPException):
                found = scrape(server)
                ready = value(found, "slipway_model_state", state="ready")
                if ready == 2 and count(found)[3] == death + 1:
                    break
            time.sleep(0.05)
    told = server.json("GET", "/v2/models/digits-test/stats")[1]["model_stats"][0]
    assert told["inference_count"] == 240 and told["inference_stats"]["success"]["count"] == 120
