"""Servers for these tests, and the one good request whose answer is known to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.endurance.models import exact_answer, make_exact_bundle, make_wide_bundle
from tests.serving.bundles import digits_rows, make_types_bundle
from tests.serving.live import Live, tensor

GOOD_BODY = json.dumps(
    {
        "id": "good",
        "inputs": [tensor("image", digits_rows(2), "UINT8")],
        "outputs": [{"name": "logits"}],
    }
).encode()
GOOD = (
    b"POST /v2/models/exact/infer HTTP/1.1\r\nHost: good\r\nContent-Length: %d\r\n\r\n"
    % len(GOOD_BODY)
    + GOOD_BODY
)

SIGNS = ("internal error", "Traceback", "Exception in", "Task exception", "never retrieved")
"""What no server may have written, whatever it was sent."""

Start = Callable[..., Live]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`exact`, `types` and `wide`."""
    folder = tmp_path_factory.mktemp("endured")
    make_exact_bundle(folder / "exact" / "1")
    make_types_bundle(folder / "types" / "1")
    make_wide_bundle(folder / "wide" / "1")
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers, `settings` being TOML; those still up at the end must leave in good order."""
    running: list[Live] = []

    def started(path: Path, *options: str, settings: str = "", **more: object) -> Live:
        place = tmp_path / f"live-{len(running)}"
        place.mkdir()
        (place / "settings.toml").write_text(settings)
        live = Live(path, place, "--config", str(place / "settings.toml"), *options, **more)
        running.append(live)
        return live

    yield started
    codes = [live.stop() for live in running]
    assert not any(codes), [live.told()[-2000:] for live in running]
    for live in running:
        assert not [sign for sign in SIGNS if sign in live.told()], live.told()


@dataclass(frozen=True, slots=True)
class Known:
    """A request and the one body that answers it."""

    request: bytes
    answer: bytes


@pytest.fixture
def known() -> Callable[[Live], Known]:
    """What the server answers to the good request, once it has been found right."""

    def learnt(server: Live) -> Known:
        status, _, body = server.ask("POST", "/v2/models/exact/infer", GOOD_BODY)
        assert status == 200, body
        logits = json.loads(body)["outputs"][0]["data"]
        assert np.array_equal(logits, exact_answer(digits_rows(2)).reshape(-1))
        return Known(GOOD, body)

    return learnt
