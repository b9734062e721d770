"""What many tests share: prepared digits, and a small network trained on them.

Torch and scikit-learn wake inside the fixtures, so that tests without them start at once.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.distribution import (  # noqa: F401
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)
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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is made while the files are read lives to the end, so garbage is not looked for in it:
    torch alone has half a million objects.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cycles", type=int, default=30, help="cycles of load and unload to measure growth over"
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


@pytest.fixture
def ready_to_export() -> Iterator[None]:
    """Torch's exporter made ready for many exports in this process, on one thread."""
    import torch

    from tests.pipeline import exporter

    exporter.once()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`, committed. Tests copy it; none changes it."""

    def make(folder: Path) -> None:
        project = new_project(folder)
        project.repro()
        project.commit("first run")

    return Project(made_once(tmp_path_factory, "finished", make))
