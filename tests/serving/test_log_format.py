"""Standard error as JSON, whatever is written there, and readiness that is told to be strict."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.bundles import make_bundle
from tests.serving.live import ROOT, Live

Start = Callable[..., Live]


def events(text: str) -> list[dict[str, Any]]:
    """Every line, all of them JSON with a time, a level and an event."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "event"} <= event.keys() for event in found)
    return found


def await_event(server: Live, name: str, **fields: Any) -> dict[str, Any]:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        text = server.told()
        for event in events(text[: text.rfind("\n") + 1]):
            if event["event"] == name and fields.items() <= event.items():
                return event
        time.sleep(0.02)
    raise AssertionError(f"{name!r} not in\n{server.told()}")


def test_strict_readiness_waits_for_every_model_and_all_of_it_is_json(
    start: Start, tmp_path: Path, bundle: Path
) -> None:
    """From a start with a damaged model to readiness, and through the death of a worker."""
    repository = tmp_path / "repository"
    shutil.copytree(bundle, repository / "good" / "1")
    make_bundle(repository / "broken" / "1", name="broken")
    graph = repository / "broken" / "1" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    options = ("--strict-readiness", "--log-format", "json", "--control-port", "0")
    server = start(repository, *options, wait=False)
    started = await_event(server, "started", model="good", ready=False)
    server.port = int(started["http"].rpartition(":")[2])
    assert (
        "broken version 1 is failed"
        in await_event(server, "not ready for want of a model")["reason"]
    )
    control = Live.__new__(Live)
    control.port = int(await_event(server, "control")["address"].rpartition(":")[2])

    def ready() -> bool:
        return server.ask("GET", "/v2/health/ready")[0] == 200

    assert server.ask("GET", "/v2/models/good/ready")[0] == 200 and not ready()
    graph.write_bytes(whole)
    assert control.ask("POST", "/v2/repository/models/broken/load", b"{}")[0] == 200 and ready()
    make_bundle(repository / "broken" / "2", name="broken")
    (repository / "broken" / "2" / "model.onnx").unlink()
    assert control.ask("POST", "/v2/repository/models/broken/load", b"{}")[0] == 400 and not ready()
    away = json.dumps({"parameters": {"version": "2"}}).encode()
    assert control.ask("POST", "/v2/repository/models/broken/unload", away)[0] == 200 and ready()

    os.kill(server.workers()[0], signal.SIGABRT)  # its stacks are written by C
    stacks = await_event(server, "standard error", worker=0)["lines"]
    assert "Fatal Python error: Aborted" in stacks
    await_event(server, "worker is back")
    assert ready() and server.stop() == 0
    events(server.told())


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ((), 1, "give --control-port"),
        (("--host", "192.0.2.1"), 2, "--insecure-public"),
        (("--config", "{folder}/none.toml"), 2, "cannot be read"),
    ],
)
def test_a_start_that_fails_is_json_where_nobody_reads_it(
    tmp_path: Path, options: tuple[str, ...], code: int, told: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "serve",
        str(tmp_path),
        "--port",
        "0",
        "--no-grpc",
    ]
    command += [option.format(folder=tmp_path) for option in options]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code and not done.stdout
    (event,) = events(done.stderr)
    assert event["event"] == "the server did not start" and event["exit_code"] == code
    assert told in event["reason"]


def test_an_empty_repository_is_served_where_models_can_come(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path, "--control-port", "0")
    assert "no model yet, unready until one is loaded (by request on http://" in server.told()
    assert server.ask("GET", "/v2/health/ready")[0] == 503
    assert server.json("POST", "/v2/repository/index") == (200, [])
