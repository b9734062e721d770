"""The access log's lines, and how they leave."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.observability import access_log
from serving.observability.access_log import AccessLog, of_model, times
from serving.observability.tracing import RequestIds, trace_id

TRACE = "0af7651916cd43dd8448eb211c80319c"


def inference(log: AccessLog, request_id: str = "r-1", path: str = "/v2/models/a/infer") -> None:
    more = of_model("a", "1", "d" * 64) + times(3, 0.001, 0.0023456, 0.003)
    log.request("http", "POST", path, 200, request_id, TRACE, 100, 50, 0.01234567, more)


def lines(log: AccessLog) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log._lines]
    log._lines.clear()
    return found


def test_an_answered_request_says_where_its_time_went():
    log = AccessLog()
    inference(log)
    (line,) = lines(log)
    assert abs(line.pop("time") - time.time()) < 60
    assert line == {
        "event": "request", "door": "http", "request_id": "r-1", "trace_id": TRACE,
        "method": "POST", "path": "/v2/models/a/infer", "status": 200,
        "model": "a", "version": "1", "digest": "d" * 12, "rows": 3, "received": 100, "sent": 50,
        "queue_ms": 1.0, "run_ms": 2.346, "codec_ms": 3.0, "total_ms": 12.346,
    }  # fmt: skip


def test_other_requests_say_less():
    log = AccessLog()
    log.request("grpc", "ModelReady", "/inference/ModelReady", "NOT_FOUND", "r", "", 1, 2, 0.5)
    (line,) = lines(log)
    assert line["status"] == "NOT_FOUND" and line["door"] == "grpc" and line["total_ms"] == 500
    assert not {"trace_id", "model", "queue_ms"} & line.keys()


@given(st.text(), st.text(), st.text())
def test_what_strangers_send_stays_within_its_field(method: str, path: str, request_id: str):
    log = AccessLog()
    log.request("http", method, path, 404, request_id, "", 0, 0, 0.0)
    inference(log, request_id, path)
    for line in lines(log):
        for key, sent in (("path", path), ("request_id", request_id)):
            told = line[key]
            assert told == sent[:256].encode("utf-8", "replace").decode()


def test_a_switched_off_log_keeps_nothing():
    log = AccessLog(False)
    inference(log)
    log.request("http", "GET", "/", 200, "r", "", 0, 0, 0.0)
    assert not log._lines
    log.flush()


def test_a_file_gets_every_line(tmp_path: Path):
    with (tmp_path / "log").open("wb") as file:
        log = AccessLog(True, file.fileno())
        for number in range(3000):
            inference(log, f"r-{number}")
        log.flush()
    told = [json.loads(line)["request_id"] for line in (tmp_path / "log").read_text().splitlines()]
    assert told == [f"r-{number}" for number in range(3000)]


def test_a_reader_that_stops_reading_stops_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(access_log, "MAX_HELD", 200_000)
    reader, writer = os.pipe()
    log = AccessLog(True, writer)
    assert os.get_blocking(writer), "others may write here too"
    start = time.monotonic()
    for round_ in range(40):
        for number in range(50):
            inference(log, f"{round_}-{number}")
        log.flush()
    assert time.monotonic() - start < 5
    assert log.dropped and log._held_bytes <= 200_000
    os.set_blocking(reader, False)
    read = b""
    for _ in range(1000):
        try:
            read += os.read(reader, 1 << 16)
        except BlockingIOError:
            log.flush()
            if not log._held:
                break
    read += os.read(reader, 1 << 16) if not log._held and select_ready(reader) else b""
    told = [json.loads(line)["request_id"] for line in read.splitlines()]
    assert len(told) == 2000 - log.dropped
    inference(log, "last")
    log.flush(1.0)
    assert json.loads(os.read(reader, 1 << 16))["request_id"] == "last"
    os.close(reader)
    inference(log)
    log.flush()  # nobody reads any more, and nothing is raised
    assert not log._held
    os.close(writer)


def select_ready(reader: int) -> bool:
    import select

    return bool(select.select([reader], [], [], 0)[0])


def test_workers_do_not_cut_each_others_lines():
    """Whole lines in pieces that a pipe takes at once, whoever else writes to it."""
    reader, writer = os.pipe()
    children = []
    for worker in range(3):
        child = os.fork()
        if not child:
            log = AccessLog(True, writer)
            for round_ in range(20):
                for number in range(100):
                    inference(log, f"{worker}-{round_}-{number}", "/" + "x" * (number * 3))
                log.flush(10)
            os._exit(0)
        children.append(child)
    os.close(writer)
    with open(reader, "rb") as file:
        told = [json.loads(line)["request_id"] for line in file]
    for child in children:
        os.waitpid(child, 0)
    assert len(told) == len(set(told)) == 3 * 20 * 100


def test_generated_ids_differ_between_workers_and_requests():
    ids = [RequestIds() for _ in range(3)]
    made = [one.new() for one in ids for _ in range(1000)]
    assert len(set(made)) == 3000 and all(len(one) < 40 for one in made)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"00-{TRACE}-b7ad6b7169203331-00", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-comes", TRACE),
        (f"00-{TRACE}-b7ad6b7169203331-01-more", ""),
        (f"ff-{TRACE}-b7ad6b7169203331-01", ""),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", ""),
        (f"00-{TRACE}-b7ad6b7169203331-01\n", ""),
        (f"00-{TRACE}-b7ad6b7169203331", ""),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_traceparent_is_read_as_the_w3c_wrote_it(header: str, expected: str):
    assert trace_id(header) == expected


def test_a_line_costs_little():
    log = AccessLog(True, os.open(os.devnull, os.O_WRONLY))
    best = 1.0
    for _ in range(30):
        start = time.process_time()
        for _ in range(1000):
            inference(log)
        best = min(best, (time.process_time() - start) / 1000)
        log.flush()
    print(f"one line of the access log: {best * 1e6:.2f} us of CPU")
    assert best < 10e-6
