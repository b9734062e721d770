"""One model in many settings and tasks, each built, taught two steps, exported and asked.

Of a case `{"task", "part", "model", "export"}` the largest difference is told between ONNX Runtime's
answers and torch's at 1, 7 and 64 rows, by way of golden rows, as a share of the largest answer
where that is above 1: of pictures, or of texts of three lengths for a model that reads sequences.
There, rows of any length stand in one batch, one of nothing among them, and each must be answered
as it is alone. A case without an export is built, taught and asked in torch alone.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from pipeline import export, optimise, plugins
from pipeline.bundle import golden
from pipeline.bundle.decode.text import TextDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import build
from pipeline.frontends import tokens
from pipeline.frontends.pixels import pixels
from pipeline.network import joined, predict
from pipeline.prepared import Rows
from pipeline.statistics import Channel
from pipeline.target import Target
from serving.inference.runtime import open_session

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
    "class": (Target(kind="class", labels=LABELS), np.arange(64) % len(LABELS)),
    "tags": (Target(kind="tags", labels=LABELS), np.eye(len(LABELS), dtype=bool)[[0] * 64]),
    "number": (
        Target(kind="number", mean=2e5, std=1e5),
        np.linspace(1e5, 3e5, 64, dtype=np.float32),
    ),
}
"""By kind, what is taught: the target, and rows of it."""


def asked_alone(
    module: torch.nn.Module, names: tuple[str, ...], asked: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Torch's own answers."""
    return predict(module, asked, names)


def worst_difference(name: str, case: dict[str, Any]) -> float:
    torch.manual_seed(0)
    model = plugins.load("model", name, "model.name")
    config = build(model.Config, {"name": name, **case["model"]}, "model")
    if model.READS == "sequence":
        settings = tokens.Config(name="tokens", width=6)
        declared, draw, lengths = TOKENS, texts, LENGTHS
        frontend = tokens.build(settings, [TOKENS], {})
    else:
        declared, draw, lengths = IMAGE, pictures, LENGTHS[:1]
        frontend = pixels((Channel(mean=100, std=50),) * CHANNELS, (CHANNELS, HEIGHT, WIDTH))
    tasks = plugins.load("task", case["task"], "task.name")
    target, taught = TARGETS[tasks.Task.teaches or "class"]
    task = tasks.Task(build(tasks.Config, {"name": case["task"]}, "task"), target, (declared,))
    task = task.shipping(case["part"])
    network = joined(frontend, model, config, task.outputs)

    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimisers = {
        player: optimise.build(optimise.Optimiser(), 1e-3, part)
        for player, part in task.players(network).items()
    }
    for _ in range(2):
        batch = [(1.0, torch.from_numpy(taught[:8]))]
        for player, loss in task.turns(network, [draw(8, 9)], batch):
            optimisers[player].zero_grad()
            loss.backward()
            optimisers[player].step()
    for old, new in zip(before, network.parameters(), strict=True):
        assert not torch.equal(old, new), "a parameter that learns nothing"

    deployable, outputs = task.deployable(network), task.declared()
    names = tuple(output.name for output in outputs)
    if case["export"]:
        answering = open_session(export.export(deployable, task.asked(), outputs, 20, {})).run
    else:
        answering = partial(asked_alone, deployable, names)
    worst = 0.0
    for rows, length in product(ROWS, lengths):
        raw = draw(rows, length).numpy()
        asked = dict(task.questions(Rows({declared.name: raw}, taught[:rows])).arrays)
        kept, expected = golden.unpack(golden.pack(asked, predict(deployable, asked, names)))
        assert all(np.array_equal(kept[each], asked[each]) for each in asked)
        answers = [answering(kept)]
        if model.READS == "sequence":
            single = [answering({declared.name: row}) for row in alone(raw)]
            answers.append(
                {output: np.concatenate([row[output] for row in single]) for output in names}
            )
        for answer, output in product(answers, names):
            assert answer[output].shape == expected[output].shape
            assert len(answer[output]) == rows and np.isfinite(expected[output]).all()
            largest = max(1.0, float(np.abs(expected[output]).max()))
            worst = max(worst, float(np.abs(answer[output] - expected[output]).max()) / largest)
    return worst
