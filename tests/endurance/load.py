"""Load that the machine feels: requests of real work, their right answers known to the bit."""

from __future__ import annotations

import asyncio
import json
from math import inf
from pathlib import Path

from serving.client import calls
from serving.client.address import Address, parse
from serving.load.generator import Plan, run
from serving.load.outcome import Outcome
from serving.load.work import Request
from tests.endurance.models import exact_answer, make_exact_bundle
from tests.serving.bundles import digits_rows
from tests.serving.live import Live

NAME = "work"
WIDTH = 1024
ROWS = 64
"""A request's worth: some milliseconds of one core, so that a few hundred a second are the most."""

DIFFERENT = 4


def make_work_bundle(folder: Path) -> None:
    """The model that takes its time."""
    make_exact_bundle(folder, width=WIDTH, name=NAME)


def address(server: Live) -> Address:
    """Where the load goes."""
    return parse(f"http://127.0.0.1:{server.port}")


def good_requests(server: Live, timeout: float = inf) -> list[Request]:
    """Requests with their answers; `timeout` in seconds is what each allows for its turn."""
    found = []
    for seed in range(DIFFERENT):
        image = digits_rows(ROWS, seed)
        call = calls.infer(NAME, {"image": image}, None, None, None, True)
        wire = b"".join(calls.rendered(call, address(server), timeout, compress=False))
        answer = {"logits": exact_answer(image, width=WIDTH)}
        found.append(Request(wire, ROWS, answer))
    return found


def bad_requests(server: Live) -> list[Request]:
    """What is answered 400, each for a reason of its own."""
    head = f"POST /v2/models/{NAME}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: ".encode()
    wrong_shape = {"name": "image", "shape": [1, 9], "datatype": "UINT8", "data": [0] * 9}
    no_number = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": ["x"] * 64}
    bodies = [
        b'{"inputs": [',
        b"\xff" * 4096,
        json.dumps({"inputs": [wrong_shape]}).encode(),
        json.dumps({"inputs": [no_number]}).encode(),
    ]
    return [Request(head + b"%d\r\n\r\n" % len(body) + body, 1) for body in bodies]


def mixed(good: list[Request], bad: list[Request], share: int) -> list[Request]:
    """One bad request in every `share`."""
    found = []
    for turn, wrong in enumerate(bad):
        found += [good[(turn + n) % len(good)] for n in range(share - 1)] + [wrong]
    return found


def loaded(server: Live, requests: list[Request], plan: Plan) -> Outcome:
    """One stretch of load."""
    return asyncio.run(run(address(server), requests, plan))


def peak(server: Live, seconds: float) -> float:
    """Right answers a second, as many as there can be."""
    outcome = loaded(
        server, good_requests(server), Plan(connections=16, seconds=seconds, warm_up=1.0)
    )
    assert outcome.wrong == 0 and set(outcome.statuses) == {200}, outcome.told()
    return outcome.throughput
