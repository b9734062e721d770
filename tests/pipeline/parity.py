"""One model in many settings, each built, taught two steps, exported and asked.

`python -m tests.pipeline.parity MODEL TASK` reads a JSON list of settings and prints, for each, the
largest difference between ONNX Runtime's answers and torch's at 1, 3 and 64 rows, as a share of the
largest answer where that is above 1.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from pipeline import export, optimise, plugins
from pipeline.bundle.manifest import Input
from pipeline.config import build
from pipeline.frontends.pixels import pixels
from pipeline.network import joined, predict
from pipeline.statistics import Channel
from pipeline.target import Target
from serving.runtime import open_session

HEIGHT, WIDTH, CHANNELS, LABELS = 12, 10, 3, tuple("abcde")
IMAGE = Input(
    name="image", dtype="uint8", shape=("batch", HEIGHT, WIDTH, CHANNELS), units="grey level"
)


def pictures(rows: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, HEIGHT, WIDTH, CHANNELS), dtype=torch.uint8)


TARGETS = {
    "class": (Target(kind="class", labels=LABELS), torch.arange(8) % len(LABELS)),
    "tags": (Target(kind="tags", labels=LABELS), torch.eye(len(LABELS), dtype=torch.bool)[[0] * 8]),
    "number": (Target(kind="number", mean=2e5, std=1e5), torch.linspace(1e5, 3e5, 8)),
}
"""By kind, what is taught: the target, and eight rows of it."""


def worst_difference(name: str, task_name: str, values: dict[str, Any]) -> float:
    torch.manual_seed(0)
    model = plugins.load("model", name, "model.name")
    config = build(model.Config, {"name": name, **values}, "model")
    tasks = plugins.load("task", task_name, "task.name")
    target, taught = TARGETS[tasks.Task.teaches]
    task = tasks.Task(tasks.Config(name=task_name), target)
    frontend = pixels((Channel(mean=100, std=50),) * CHANNELS, (CHANNELS, HEIGHT, WIDTH))
    network = joined(frontend, model, config, task.outputs)

    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimiser = optimise.build(optimise.Optimiser(), 1e-3, network)
    for _ in range(2):
        loss = task.loss(network(pictures(8)), taught)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for old, new in zip(before, network.parameters(), strict=True):
        assert not torch.equal(old, new), "a parameter that learns nothing"

    deployable, outputs = task.deployable(network), task.declared()
    names = tuple(output.name for output in outputs)
    session = open_session(export.export(deployable, [IMAGE], outputs, 20, {}))
    worst = 0.0
    for rows in (1, 3, 64):
        raw = {"image": pictures(rows).numpy()}
        expected, answers = predict(deployable, raw, names), session.run(raw)
        for output in names:
            assert answers[output].shape == expected[output].shape
            assert len(answers[output]) == rows
            largest = max(1.0, float(np.abs(expected[output]).max()))
            worst = max(worst, float(np.abs(answers[output] - expected[output]).max()) / largest)
    return worst


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in json.load(sys.stdin):
        print(worst_difference(sys.argv[1], sys.argv[2], line))
