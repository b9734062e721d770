"""`slipway bench` as it is typed, on a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result

from tests.serving.live import ROOT, Live
from tests.serving.test_commands import slipway
from tests.serving.unruly import Behaviour, after, closes, error, says, unruly

QUICK = ("--seconds", "0.4", "--warm-up", "0.1", "--connections", "4")


@pytest.fixture
def url(server: Live) -> str:
    return f"http://127.0.0.1:{server.port}"


def figures(*arguments: object) -> list[dict[str, Any]]:
    result = slipway("bench", *arguments, *QUICK, "--json", "-")
    assert result.exit_code == 0, result.output
    stretches: list[dict[str, Any]] = json.loads(result.stdout)["stretches"]
    return stretches


@pytest.mark.parametrize("form", ["binary", "json"])
def test_closed_loop(url: str, form: str) -> None:
    (found,) = figures(url, "digits-test", "--format", form, "--batch", "3")
    assert found["loop"] == "closed" and found["statuses"] == {"200": found["requests"]}
    assert found["rows_per_second"] == pytest.approx(3 * found["answered_per_second"], rel=0.01)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["max"]


def test_open_loop(url: str) -> None:
    (found,) = figures(url, "digits-test", "--rate", "100", "--arrivals", "poisson")
    assert found["loop"] == "open" and found["rate"] == 100 and found["unanswered"] == 0


def test_golden_rows_are_checked(url: str, repository: Path) -> None:
    """Version 10 is another model: its answers are not those of version 1's rows."""
    rows = ("--bundle", repository / "digits-test" / "1")
    (found,) = figures(url, "digits-test", "--version", "1", *rows)
    assert found["wrong"] == 0 and found["requests"] > 10
    wrong = slipway("bench", url, "digits-test", "--version", "10", *rows, *QUICK)
    assert wrong.exit_code == 1 and "WRONG" in wrong.stdout


def test_what_a_person_reads_and_files(url: str, tmp_path: Path) -> None:
    drawn, told = tmp_path / "a.svg", tmp_path / "a.json"
    result = slipway(
        "bench", url, "series", "--shape", "values=5", *QUICK, "--picture", drawn, "--json", told
    )
    assert result.exit_code == 0, result.output
    for part in ("series at", "4 connections", "closed loop", "p99.9", "200: ", "generator"):
        assert part in result.stdout
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")
    assert json.loads(told.read_text())["model"] == "series"


def test_sweeps(url: str, tmp_path: Path) -> None:
    by_connections = figures(url, "digits-test", "--sweep", "connections=1,3")
    assert [found["connections"] for found in by_connections] == [1, 3]
    by_rate = figures(url, "digits-test", "--sweep", "rate=50,80")
    assert [found["rate"] for found in by_rate] == [50, 80]
    drawn = tmp_path / "curve.svg"
    result = slipway("bench", url, "digits-test", "--sweep", "10,20", *QUICK, "--picture", drawn)
    assert result.exit_code == 0 and "due/s" in result.stdout
    assert result.stdout.count("open loop") == 2 and result.stdout.count("closed loop") == 1
    assert drawn.read_text().count("<polyline") == 4


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("{url}", "digit-test"), 1, "did you mean 'digits-test'"),
        (("{url}",), 1, "name one"),
        (("http://127.0.0.1:9", "m"), 1, "is the server running?"),
        (("{url}", "digits-test", "--sweep", "a,b"), 2, "expected connections=1,8,64"),
        (("{url}", "digits-test", "--sweep", "0"), 2, "above 0"),
        (("{url}", "digits-test", "--sweep", "5", "--rate", "1"), 2, "one of them"),
        (("{url}", "digits-test", "--shape", "image=2,2"), 1, "expected UINT8"),
        (("{url}", "digits-test", "--shape", "image=a"), 1, "expected INPUT=8,8,1"),
        (("{url}", "digits-test", "--bundle", "nowhere"), 2, "no such folder"),
    ],
)
def test_mistakes(url: str, arguments: tuple[str, ...], code: int, told: str) -> None:
    result = slipway("bench", *(a.replace("{url}", url) for a in arguments), *QUICK)
    assert result.exit_code == code and told in result.stderr, result.output


def test_ctrl_c_prints_what_there_is(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "bench", url, "digits-test"]
    command += ["--seconds", "60", "--warm-up", "0.1", "--sweep", "connections=2,4"]
    command += ["--json", str(tmp_path / "a.json")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and not err, err
    assert "(stopped)" in out
    (found,) = json.loads((tmp_path / "a.json").read_text())["stretches"]
    assert found["stopped"] and found["requests"] > 10


def test_a_server_that_refuses_everything_is_a_failure() -> None:
    metadata = b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}],"outputs":[]}'
    answer = b'{"model_name":"m","outputs":[]}'
    with unruly(error(503, "full")) as server:
        server.script = [says(200, metadata), says(200, answer)]
        result = slipway("bench", server.url, "m", *QUICK)
        assert result.exit_code == 1 and "503: " in result.stdout
        assert "no request got a good answer" in result.stderr


def test_failed_requests_are_a_failure_unless_allowed(tmp_path: Path) -> None:
    """A few refused, a few lost with their connections, one left unanswered, all others good."""
    metadata = b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}],"outputs":[]}'
    answer = b'{"model_name":"m","outputs":[]}'
    told = tmp_path / "a.json"
    quick = ("--seconds", "0.3", "--warm-up", "0", "--connections", "2", "--patience", "0.3")
    quick += ("--json", told)
    good = says(200, answer)
    with unruly(after(0.005, good)) as server:

        def bench(*behaviours: Behaviour, allowed: str = "0") -> tuple[Result, dict[str, Any]]:
            server.script = [says(200, metadata), good, *behaviours]
            result = slipway("bench", server.url, "m", *quick, "--allow-failed", allowed)
            return result, json.loads(told.read_text())["stretches"][0]

        refused, found = bench(error(503), good, error(503))
        assert refused.exit_code == 1 and found["failed"] == 2
        assert f"2 of {found['requests']} requests failed (2 answered 503)" in refused.stderr
        lost, found = bench(closes, after(5, good))
        assert lost.exit_code == 1 and found["failed"] == found["lost"] + found["unanswered"] == 2
        assert "1 lost with their connections, 1 unanswered" in lost.stderr
        allowed, found = bench(error(503), closes, allowed="50")
        assert allowed.exit_code == 0 and found["failed"] == 2 and not allowed.stderr
