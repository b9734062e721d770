"""A model replaced again and again under load: every answer is that of the bundle it names."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from tests.endurance.conftest import GOOD_BODY, Start
from tests.endurance.figures import report
from tests.endurance.models import exact_answer, make_exact_bundle
from tests.endurance.scale import sized
from tests.serving.bundles import digits_rows
from tests.serving.live import Live
from tests.serving.test_control import change

pytestmark = pytest.mark.slow

SWAPS = sized(3, 20)
CLIENTS = 4
INFER = "/v2/models/exact/infer"


class Clients:
    """Ask without a pause, and remember which bundle said what."""

    def __init__(self, server: Live) -> None:
        self.answers: Counter[tuple[str, tuple[float, ...]]] = Counter()
        self.failures: list[object] = []
        self._port = server.port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            while not self._over.is_set():
                connection.request("POST", INFER, GOOD_BODY)
                answer = connection.getresponse()
                body = json.loads(answer.read())
                if answer.status != 200:
                    self.failures.append(body)
                    continue
                logits = tuple(body["outputs"][0]["data"])
                self.answers[body["parameters"]["bundle"], logits] += 1
        except Exception as error:  # a connection that was cut is a failed request
            self.failures.append(error)
        finally:
            connection.close()

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_swaps_under_load(start: Start, tmp_path: Path) -> None:
    place = tmp_path / "models" / "exact" / "1"
    image = digits_rows(2)
    right = {make_exact_bundle(place): tuple(exact_answer(image).reshape(-1).tolist())}
    server = start(tmp_path / "models", "--control-port", "0")
    with Clients(server) as clients:
        for seed in range(1, SWAPS + 1):
            fresh = tmp_path / f"fresh-{seed}"
            digest = make_exact_bundle(fresh, seed)
            right[digest] = tuple(exact_answer(image, seed).reshape(-1).tolist())
            shutil.rmtree(place)
            fresh.rename(place)
            status, told = change(server, "load", "exact")
            assert status == 200 and told["versions"][0]["bundle"] == digest, told
    wrong = [key for key in clients.answers if not np.array_equal(right[key[0]], key[1])]
    report(
        "hot swap under load",
        swaps=SWAPS,
        answers=clients.answers.total(),
        failed=len(clients.failures),
        wrong=len(wrong),
        bundles_seen=len({digest for digest, _ in clients.answers}),
    )
    assert not clients.failures and not wrong
    assert len({digest for digest, _ in clients.answers}) >= SWAPS
