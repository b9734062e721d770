"""A recurrent network: an RNN, LSTM or GRU goes along the steps, and its states are pooled to one.

Each of the `depth` layers reads the states of the one before it, in one direction or in two. What
they say of the whole sequence is pooled: the last state, the mean of all, the largest value of each unit,
or a mean weighted by attention. A linear layer reads that. Steps that are not there change no state that
is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.config import Section
from pipeline.layers import Initialisation, initialise

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.forms import Form

READS: Form = "sequence"

ABSENT = -1e4
"""Weighs nothing in a softmax, in float16 too; rows where it is everywhere stay finite."""

GATES = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""For each gate in ONNX's order, its place in torch's: LSTM i o f c of i f c o, GRU z r h of r z h."""


class Config(Section):
    """The settings of a recurrent network."""

    name: str
    cell: Literal["rnn", "lstm", "gru"] = Field("lstm", description="what goes along the steps")
    depth: int = Field(1, ge=1, le=16, description="layers, one on the states of another")
    width: int = Field(128, ge=1, le=8192, description="units of each layer and direction")
    bidirectional: bool = Field(True, description="a second pass, from the end to the start")
    pooling: Literal["last", "mean", "max", "attention"] = Field(
        "mean",
        description="the states that are read: last of each pass, mean, largest of each unit, or a "
        "learned weighted mean",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of each layer's states dropped while training"
    )
    initialisation: Initialisation = Field("default", description="default: torch's own")


def build(config: Config, features: tuple[int, ...], outputs: int) -> nn.Module:
    """float32 `[batch, steps, channels]`, bool `[batch, steps]` -> float32 `[batch, outputs]`."""
    import torch
    from torch import nn

    directions = 2 if config.bidirectional else 1
    states = directions * config.width

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                _layer(
                    config.cell, features[0] if number == 0 else states, config.width, directions
                )
                for number in range(config.depth)
            )
            self.dropout = nn.Dropout(config.dropout)
            self.attention = nn.Linear(states, 1) if config.pooling == "attention" else None
            self.answer = nn.Linear(states, outputs)

        def forward(self, steps: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
            present = there[:, :, None].to(steps.dtype)  # [batch, steps, 1]
            length = there.sum(1).clamp(min=1)  # a row of nothing counts as one step of zeros
            steps = steps * present
            for layer in self.layers:
                steps, last = layer(steps, length)
                steps, last = self.dropout(steps), self.dropout(last)
            return self.answer(self.pooled(steps, last, present, length))

        def pooled(
            self,
            steps: torch.Tensor,
            last: torch.Tensor,
            present: torch.Tensor,
            length: torch.Tensor,
        ) -> torch.Tensor:
            """[batch, states]"""
            if config.pooling == "last":
                return last
            if config.pooling == "max":
                # The first step stands for a row of nothing, as in `last`.
                steps = torch.cat([steps[:, :1], steps + ABSENT * (1 - present)], 1)
                return steps.amax(1)
            if self.attention is None:
                return (steps * present).sum(1) / length[:, None].to(steps.dtype)
            weight = (self.attention(steps) * present + ABSENT * (1 - present)).softmax(1)
            return (steps * weight * present).sum(1)

    return initialise(Recurrent(), config.initialisation, "sigmoid")


def _layer(cell: str, channels: int, width: int, directions: int) -> nn.Module:
    """One layer: steps `[batch, steps, channels]` and how many of each row are there ->
    states `[batch, steps, directions * width]` and the last of each pass, side by side.

    Trained by torch's own cells, each pass over its own direction: on a CPU that takes half the time
    of packed sequences. Exported as the one node that ONNX has for both: torch's exporter would
    unroll an RNN over the steps of the example, or freeze their number.
    """
    import torch
    from torch import nn

    kind: Any = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.passes = nn.ModuleList(
                kind(channels, width, batch_first=True) for _ in range(directions)
            )

        def forward(
            self, steps: torch.Tensor, length: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if torch.onnx.is_in_onnx_export():
                return self.exported(steps, length)
            end = (length - 1)[:, None, None].expand(-1, 1, width)
            states = self.passes[0](steps)[0]  # [batch, steps, width]
            last = states.gather(1, end)[:, 0]
            if directions == 1:
                return states, last
            turn = turned(length, steps.shape[1])
            back = self.passes[1](steps.gather(1, turn.expand(-1, -1, channels)))[0]
            last = torch.cat([last, back.gather(1, end)[:, 0]], 1)
            return torch.cat([states, back.gather(1, turn.expand(-1, -1, width))], 2), last

        def exported(
            self, steps: torch.Tensor, length: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            batch, count = steps.shape[:2]
            settings: dict[str, Any] = {
                "hidden_size": width,
                "direction": "bidirectional" if directions == 2 else "forward",
            }
            if cell == "gru":
                settings["linear_before_reset"] = 1  # as torch does it
            states, last = torch.onnx.ops.symbolic_multi_out(
                cell.upper(),
                (
                    steps.transpose(0, 1),
                    self.weights("weight_ih_l0"),
                    self.weights("weight_hh_l0"),
                    torch.cat([self.weights("bias_ih_l0"), self.weights("bias_hh_l0")], 1),
                    length.to(torch.int32),
                ),
                settings,
                dtypes=(steps.dtype, steps.dtype),
                shapes=((count, directions, batch, width), (directions, batch, width)),
            )
            return states.permute(2, 0, 1, 3).flatten(2), last.transpose(0, 1).flatten(1)

        def weights(self, name: str) -> torch.Tensor:
            """[directions, gates * width, ...]: of every pass, its gates in ONNX's order."""
            rows = (
                torch.arange(len(GATES[cell]) * width).view(-1, width)[list(GATES[cell])].flatten()
            )
            return torch.stack([part.get_parameter(name)[rows] for part in self.passes])

    return Layer()


def turned(length: torch.Tensor, steps: int) -> torch.Tensor:
    """int64 `[batch, steps, 1]`: the place of each step when those that are there run backwards.

    The rest stay where they are, so that the same index turns back.
    """
    import torch

    place = torch.arange(steps, device=length.device)[None]
    return torch.where(place < length[:, None], length[:, None] - 1 - place, place)[:, :, None]
