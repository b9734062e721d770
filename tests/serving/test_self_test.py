"""Golden rows while idle: a model that no longer answers right takes no more requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bundle.manifest import read
from serving.config import RuntimeSettings, Settings
from serving.errors import ModelRefused, NotReady
from serving.inference.model import load
from serving.models.changes import Changes
from serving.models.repository import Repository
from serving.models.self_test import examine
from serving.models.slot import State
from tests.serving.bundles import make_bundle
from tests.serving.graphs import LOOPS_ALLOWED, make_counting_bundle, make_moody_bundle
from tests.serving.live import Live, tensor


def repository_of(folder: Path) -> Repository:
    repository = Repository(folder, Settings())
    repository.load_all()
    return repository


def test_a_model_that_goes_wrong_is_taken_out_and_comes_back(tmp_path: Path) -> None:
    """Two runs at load, of which the first is held against what is expected; then the tests."""
    make_moody_bundle(tmp_path / "moody" / "1", "+?+--+")
    make_bundle(tmp_path / "digits-test" / "1")
    repository = repository_of(tmp_path)
    slot, model = repository.get("moody")
    asyncio.run(examine(slot))
    assert slot.state is State.READY and not slot.reason
    for _ in range(2):
        asyncio.run(examine(slot))
        assert slot.state is State.FAILED and slot.model is None
        assert slot.reason.startswith("self-test: golden rows: output 'y' differs by up to 1")
        with pytest.raises(NotReady, match=r"is failed: self-test: .*does not answer as trained"):
            repository.get("moody")
        assert repository.ready(), "one bad model must not take the host out"
    asyncio.run(examine(slot))
    assert repository.get("moody") == (slot, model) and slot.state is State.READY
    repository.close()


def test_a_host_with_nothing_right_to_say_is_unready(tmp_path: Path) -> None:
    make_moody_bundle(tmp_path / "moody" / "1", "+?-+")
    repository = repository_of(tmp_path)
    slot, _ = repository.get("moody")
    assert repository.ready()
    asyncio.run(examine(slot))
    assert not repository.ready()
    asyncio.run(examine(slot))
    assert repository.ready()
    repository.close()


def test_a_busy_model_is_left_alone(tmp_path: Path) -> None:
    make_moody_bundle(tmp_path / "moody" / "1", "+?-")
    repository = repository_of(tmp_path)
    slot, model = repository.get("moody")
    model._decoding = 1
    asyncio.run(examine(slot))
    assert slot.state is State.READY
    model._decoding = 0
    asyncio.run(examine(slot))
    assert slot.state is State.FAILED
    repository.close()


def test_a_doubted_model_can_be_loaded_anew_and_unloaded(tmp_path: Path) -> None:
    make_moody_bundle(tmp_path / "moody" / "1", "+?-")

    async def story() -> None:
        repository = repository_of(tmp_path)
        changes = Changes(repository)
        slot, model = repository.get("moody")
        await examine(slot)
        assert slot.doubted is model
        await changes.alone({"do": "load", "model": "moody", "version": None})
        fresh = repository.of("moody")[1]
        assert fresh is not slot and fresh.state is State.READY
        await asyncio.sleep(0.05)
        assert slot.doubted is None and slot.state is State.UNLOADED
        await examine(fresh)
        assert fresh.doubted
        await changes.alone({"do": "unload", "model": "moody", "version": None})
        assert fresh.doubted is None and fresh.model is None and fresh.state is State.UNLOADED
        await examine(fresh)  # gone is gone
        assert fresh.state is State.UNLOADED
        changes.close()
        repository.close()

    asyncio.run(story())


def test_a_model_that_hangs_fails_its_test(tmp_path: Path) -> None:
    make_counting_bundle(tmp_path / "b")
    settings = Settings.model_validate(
        {"graph": {"forbidden_operators": ()}, "runtime": {"run_seconds": 0.3}}
    )
    model = load(read(tmp_path / "b"), settings)
    model.self_test()
    model.golden.inputs["steps"][0] = 2**40  # as if the machine had become that slow
    with pytest.raises(ModelRefused, match=r"did not answer them in time .*run_seconds"):
        model.self_test()
    model.close()


def test_the_files_of_a_bundle_do_not_stay_in_memory(bundle: Path) -> None:
    model = load(read(bundle), Settings(runtime=RuntimeSettings(buckets=(1, 4))))
    assert not model.bundle.contents and model.bundle.digest
    model.self_test()
    model.close()


def test_a_server_tests_itself(start: Callable[..., Live], tmp_path: Path) -> None:
    make_moody_bundle(tmp_path / "b", "+?+-+++")
    (tmp_path / "s.toml").write_text("self_test_seconds = 0.5\n")
    server = start(tmp_path / "b", "--config", str(tmp_path / "s.toml"))
    seen: list[tuple[int, Any]] = []
    ends = time.monotonic() + 10
    while time.monotonic() < ends and "passed again" not in server.told():
        seen.append(ask(server))
        time.sleep(0.05)
    states = [status for status, _ in seen]
    assert 200 in states and 503 in states
    refused = next(answer for status, answer in seen if status == 503)
    assert "self-test: golden rows: output 'y' differs" in refused["error"]
    told = server.told()
    assert told.index("self-test failed") < told.index("self-test passed again")
    assert ask(server)[0] == 200


def ask(server: Live) -> tuple[int, Any]:
    """Whether it is ready; asking it to run would draw from its moods."""
    return server.json("GET", "/v2/models/moody")


def test_a_batch_that_takes_too_long_is_not_run_again(
    start: Callable[..., Live], tmp_path: Path
) -> None:
    """Its neighbours would each wait as long again."""
    make_counting_bundle(tmp_path / "b")
    (tmp_path / "s.toml").write_text(
        LOOPS_ALLOWED + "[runtime]\nrun_seconds = 0.5\n[batching]\nslow_ms = 0\n"
    )
    server = start(tmp_path / "b", "--config", str(tmp_path / "s.toml"))

    def infer(steps: int) -> tuple[int, Any]:
        body = {"inputs": [tensor("steps", np.array([[steps]]), "INT64")]}
        return server.json("POST", "/v2/models/counting/infer", body)

    began = time.monotonic()
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(infer, [2**40] * 9))
    assert [status for status, _ in answers] == [504] * 9
    assert time.monotonic() - began < 3.5, "one run for the first, one for all that waited"
    assert infer(3)[0] == 200
