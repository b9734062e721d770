"""One model in many settings, each built, taught two steps, exported and asked.

`python -m tests.pipeline.parity MODEL TASK` reads a JSON list of settings and prints, for each, the
largest difference between ONNX Runtime's answers and torch's at 1, 7 and 64 rows, as a share of the
largest answer where that is above 1: of pictures, or of texts of three lengths for a model that
reads sequences. There, rows of any length stand in one batch, one of nothing among them, and each
must be answered as it is alone.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from typing import Any

import numpy as np
import torch

from pipeline import export, optimise, plugins
from pipeline.bundle.decode.text import TextDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import build
from pipeline.frontends import tokens
from pipeline.frontends.pixels import pixels
from pipeline.network import joined, predict
from pipeline.statistics import Channel
from pipeline.target import Target
from serving.runtime import open_session

ROWS, LENGTHS = (1, 7, 64), (1, 9, 70)
HEIGHT, WIDTH, CHANNELS, LABELS = 12, 10, 3, tuple("abcde")
IMAGE = Input(
    name="image", dtype="uint8", shape=("batch", HEIGHT, WIDTH, CHANNELS), units="grey level"
)

VOCABULARY = 50
TOKENS = Input(
    name="token_ids",
    dtype="int64",
    shape=("batch", "tokens"),
    decoder=TextDecoder(longest=LENGTHS[-1], vocabulary=VOCABULARY),
    padding=0,
    units="id of a token",
)


def pictures(rows: int, _length: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, HEIGHT, WIDTH, CHANNELS), dtype=torch.uint8)


def texts(rows: int, length: int) -> torch.Tensor:
    """Rows of 0 to `length` tokens, the first of them of all."""
    ids = torch.randint(1, VOCABULARY, (rows, length))
    ends = torch.randint(0, length + 1, (rows, 1))
    ends[0] = length
    return torch.where(torch.arange(length) < ends, ids, 0)


def alone(ids: np.ndarray) -> list[np.ndarray]:
    """Each row without its padding."""
    return [row[None, : max(1, np.count_nonzero(row))] for row in ids]


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
    if model.READS == "sequence":
        settings = tokens.Config(name="tokens", width=6)
        declared, draw, lengths = TOKENS, texts, LENGTHS
        frontend = tokens.build(settings, [TOKENS], {})
    else:
        declared, draw, lengths = IMAGE, pictures, LENGTHS[:1]
        frontend = pixels((Channel(mean=100, std=50),) * CHANNELS, (CHANNELS, HEIGHT, WIDTH))
    network = joined(frontend, model, config, task.outputs)

    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimiser = optimise.build(optimise.Optimiser(), 1e-3, network)
    for _ in range(2):
        loss = task.loss(network(draw(8, 9)), taught)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for old, new in zip(before, network.parameters(), strict=True):
        assert not torch.equal(old, new), "a parameter that learns nothing"

    deployable, outputs = task.deployable(network), task.declared()
    names = tuple(output.name for output in outputs)
    session = open_session(export.export(deployable, [declared], outputs, 20, {}))
    worst = 0.0
    for rows, length in product(ROWS, lengths):
        raw = draw(rows, length).numpy()
        expected = predict(deployable, {declared.name: raw}, names)
        answers = [session.run({declared.name: raw})]
        if model.READS == "sequence":
            single = [session.run({declared.name: row}) for row in alone(raw)]
            answers.append(
                {output: np.concatenate([row[output] for row in single]) for output in names}
            )
        for answer, output in product(answers, names):
            assert answer[output].shape == expected[output].shape
            assert len(answer[output]) == rows and np.isfinite(expected[output]).all()
            largest = max(1.0, float(np.abs(expected[output]).max()))
            worst = max(worst, float(np.abs(answer[output] - expected[output]).max()) / largest)
    return worst


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in json.load(sys.stdin):
        print(worst_difference(sys.argv[1], sys.argv[2], line))
