"""Every test here needs a session on CUDA: the first that cannot be had is why all are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import RuntimeSettings
from serving.errors import ModelRefused
from serving.inference.runtime import open_session
from tests.serving.bundles import digits_graph

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """A session that was required to run on CUDA, and does."""
    try:
        open_session(digits_graph().SerializeToString(), RuntimeSettings(provider="require"))
    except ModelRefused as error:
        pytest.skip(f"no CUDA here: {error}")
