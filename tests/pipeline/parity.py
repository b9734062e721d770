"""One model in many settings, each built, taught two steps, exported and asked.

`python -m tests.pipeline.parity MODEL` reads a JSON list of settings and prints, for each, the
largest difference between ONNX Runtime's answers and torch's at 1, 3 and 64 rows.
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


def worst_difference(name: str, values: dict[str, Any]) -> float:
    torch.manual_seed(0)
    model = plugins.load("model", name, "model.name")
    config = build(model.Config, {"name": name, **values}, "model")
    tasks = plugins.load("task", "classification", "task.name")
    task = tasks.Task(tasks.Config(name="classification"), Target(kind="class", labels=LABELS))
    frontend = pixels((Channel(mean=100, std=50),) * CHANNELS, (CHANNELS, HEIGHT, WIDTH))
    network = joined(frontend, model, config, task.outputs)

    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimiser = optimise.build(optimise.Optimiser(), 1e-3, network)
    for _ in range(2):
        loss = task.loss(network(pictures(8)), torch.arange(8) % len(LABELS))
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
            assert answers[output].shape == expected[output].shape == (rows, len(LABELS))
            worst = max(worst, float(np.abs(answers[output] - expected[output]).max()))
    return worst


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in json.load(sys.stdin):
        print(worst_difference(sys.argv[1], line))
