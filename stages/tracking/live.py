"""The process that a training feeds its epochs to: JSON lines in, points of a live run out."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.tracking import runs
from stages.tracking.address import address, locked
from stages.tracking.server import Server, connect

SECTIONS = ("data.", "model.", "task.", "train.")
"""The settings that make a training; the others may still change before it is tracked."""


def follow(lines: Iterator[list[dict[str, Any]]]) -> None:
    """Stream until the lines end.

    A training that said goodbye leaves its run RUNNING, for `track` to adopt; one that fell silent
    was killed, and so is its run.
    """
    first, *rest = next(lines)
    where = address()
    with locked(where):
        server = connect(where)
    run_id = _begin(server, first)
    finished = False
    while True:
        epochs = [message["line"] for message in rest if "line" in message]
        if epochs:
            runs.log_points(server, run_id, epochs)
        finished = finished or any("end" in message for message in rest)
        try:
            rest = next(lines)
        except StopIteration:
            break
    if not finished:
        runs.give_up(server, server.client.get_run(run_id))


def messages(descriptor: int) -> Iterator[list[dict[str, Any]]]:
    """All whole lines that are waiting, each time, until the end; a torn last line is dropped."""
    waiting = b""
    while chunk := os.read(descriptor, 1 << 16):
        *whole, waiting = (waiting + chunk).split(b"\n")
        if whole:
            yield [json.loads(line) for line in whole]


def _begin(server: Server, first: dict[str, Any]) -> str:
    name, key = first["experiment"], first["train_key"]
    place = f"{socket.gethostname()}:{Path('build', name).resolve()}"
    for run in runs.search(server, train_key=key, pipeline_state="live"):
        if run.info.status == "RUNNING" and run.data.tags.get(runs.LIVE_PLACE) == place:
            runs.give_up(server, run)
    tags = {runs.STATE: "live", runs.TRAIN_KEY: key, runs.LIVE_PLACE: place}
    run = server.client.create_run(
        server.experiment_id,
        tags=runs.about(name) | tags,
        run_name=f"{name}-{os.environ.get('DVC_EXP_NAME') or key[:7]}",
    )
    params = {k: v for k, v in first["params"].items() if k.startswith(SECTIONS)}
    runs.log_params(server, run.info.run_id, params)
    return run.info.run_id
