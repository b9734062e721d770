"""One server for the tests that only ask: a repository with good, old, odd and broken models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving.bundles import (
    digits_graph,
    make_bundle,
    make_series_bundle,
    make_types_bundle,
)
from tests.serving.live import Live


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nobody may change."""
    folder = tmp_path_factory.mktemp("bundles") / "digits-test"
    make_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits-test` in versions 1 and 10, `types`, `series`, and `broken`, which is."""
    folder = tmp_path_factory.mktemp("repository")
    make_bundle(folder / "digits-test" / "1")
    make_bundle(folder / "digits-test" / "10", digits_graph(seed=5))
    make_types_bundle(folder / "types" / "1")
    make_series_bundle(folder / "series" / "1")
    make_bundle(folder / "broken" / "2", name="broken")
    graph = folder / "broken" / "2" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    return folder


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The repository, served; nothing any test sends may have brought it down."""
    live = Live(repository, tmp_path_factory.mktemp("server"), "--grpc-port", "0")
    yield live
    assert live.process.poll() is None, live.told()
    assert live.stop() == 0
    for sign in ("internal error", "Traceback", "Exception in"):
        assert sign not in live.told()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Starts servers that end with the test."""
    running: list[Live] = []

    def started(path: Path, *options: str, wait: bool = True) -> Live:
        live = Live(path, tmp_path / f"live-{len(running)}", *options, wait=wait)
        running.append(live)
        return live

    yield started
    for live in running:
        if live.process.poll() is None:
            live.process.kill()
        live.process.wait(20)
