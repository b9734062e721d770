"""What many tests share: prepared digits, and a small network trained on them.

Torch and scikit-learn wake inside the fixtures, so that tests without them start at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.project import Project, made_once, new_project

if TYPE_CHECKING:
    from tests.pipeline.experiments import Trained

# A busy machine is no failure: examples are counted, not timed.
hypothesis.settings.register_profile(
    "slipway",
    deadline=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("slipway")


HERE = Path(__file__).parent
LONGEST = (
    "stages/test_repro.py",
    "test_plugins.py",
    "stages/test_proposals.py",
    "stages/test_tracking.py",
    "stages/test_register_pull.py",
    "test_docs.py",
    "pipeline/test_generators.py",
    "pipeline/test_train.py",
)
"""Files that take half a minute and more, the longest first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cycles", type=int, default=30, help="cycles of load and unload to measure growth over"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then slow tests: nobody waits at the end for one long file."""
    rank = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (
            rank.get(item.path, len(rank)),
            item.get_closest_marker("slow") is None,
        )
    )


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared with the split that the shipped experiments use."""
    from pipeline import prepared
    from tests.pipeline.experiments import experiment

    data = experiment().data
    folder = tmp_path_factory.mktemp("digits")
    prepared.prepare("digits", data.module.load(data.config, Path()), data.config.split, folder)
    return folder


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small MLP after a few epochs on the digits."""
    from tests.pipeline.experiments import train

    settings = {"train.epochs": 8, "model.width": 64}
    return train(digits, tmp_path_factory.mktemp("trained"), settings)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`, committed. Tests copy it; none changes it."""

    def make(folder: Path) -> None:
        project = new_project(folder)
        project.repro()
        project.commit("first run")

    return Project(made_once(tmp_path_factory, "finished", make))
