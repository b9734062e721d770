"""Recurrent layers: the weights that training has, in the order that an ONNX node wants them."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import export
from pipeline.bundle.manifest import Input, Output
from pipeline.models import recurrent
from serving.inference.runtime import open_session

CELLS, CHANNELS, WIDTH = ("rnn", "lstm", "gru"), 3, 5
EVERY = list(product(CELLS, (False, True), (1, 2)))
"""Cell, whether in two directions, layers."""


class Side(nn.Module):
    """Every kind of recurrent network on the same steps, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            recurrent.build(
                recurrent.Config(
                    name="recurrent", cell=c, bidirectional=b, depth=d, width=WIDTH, pooling="last"
                ),
                (CHANNELS,),
                2,
            )
            for c, b, d in EVERY
        )

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(network(*given) for network in self.networks)


def drawn(lengths: list[int], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    there = torch.arange(steps) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), steps, CHANNELS), there


def test_every_cell_direction_and_depth_is_exported_as_it_was_trained(ready_to_export):
    torch.manual_seed(0)
    module = Side().eval()
    inputs = [
        Input(name="steps", dtype="float32", shape=("batch", "steps", CHANNELS), units=""),
        Input(name="there", dtype="bool", shape=("batch", "steps"), units=""),
    ]
    names = [f"{cell}-{two}-{depth}" for cell, two, depth in EVERY]
    outputs = [Output(name=n, dtype="float32", shape=("batch", 2), units="") for n in names]
    session = open_session(export.export(module, inputs, outputs, 20, {}))
    for lengths, steps in (([1], 1), ([4, 0, 9, 1], 9), ([5, 2], 30)):
        given = drawn(lengths, steps)
        with torch.inference_mode():
            expected = module(*given)
        answers = session.run({"steps": given[0].numpy(), "there": given[1].numpy()})
        for name, wanted in zip(names, expected, strict=True):
            assert np.abs(answers[name] - wanted.numpy()).max() < 1e-6, (name, lengths)


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_answers_as_torch_does_with_packed_sequences(cell):
    torch.manual_seed(0)
    layer = recurrent._layer(cell, CHANNELS, WIDTH, directions=2)
    ours = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](
        CHANNELS, WIDTH, batch_first=True, bidirectional=True
    )
    names = {"": layer.passes[0], "_reverse": layer.passes[1]}
    ours.load_state_dict(
        {f"{name}{end}": w for end, part in names.items() for name, w in part.state_dict().items()}
    )
    lengths = [6, 1, 4]
    steps, there = drawn(lengths, 6)
    packed = nn.utils.rnn.pack_padded_sequence(steps, lengths, True, enforce_sorted=False)
    out, ends = ours(packed)
    last = ends[0] if cell == "lstm" else ends
    states, answered = layer(steps, torch.tensor(lengths))
    wanted = nn.utils.rnn.pad_packed_sequence(out, True)[0]
    assert torch.allclose(states * there[:, :, None], wanted, atol=1e-6)
    assert torch.allclose(answered, last.transpose(0, 1).flatten(1), atol=1e-6)


def test_the_largest_value_is_of_the_steps_that_are_there():
    torch.manual_seed(0)
    config = recurrent.Config(name="recurrent", width=WIDTH, pooling="max")
    network = recurrent.build(config, (CHANNELS,), 2).eval()
    steps, there = drawn([4], 4)
    padded = torch.cat([steps, torch.full((1, 3, CHANNELS), 9.0)], 1)
    states, _ = network.layers[0](steps, torch.tensor([4]))
    assert torch.equal(network(steps, there), network.answer(states.amax(1)))
    assert torch.allclose(network(padded, torch.arange(7)[None] < 4), network(steps, there))
