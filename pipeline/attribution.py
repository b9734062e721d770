"""Looking inside: what each part of a row contributed to its answer, by integrated gradients.

Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks" (arXiv:1703.01365). The way from
"nothing" to a row is a straight line through the features, where every kind of data is continuous and
every network can be asked for its slope; so what is here knows neither. Shares add up to the difference
between the answer to the row and the answer to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline import pictures, plugins
from pipeline.network import Network
from pipeline.prepared import Manifest, Rows
from pipeline.tasks._shared.cases import number
from pipeline.tasks._shared.contract import Case
from pipeline.views import AGAINST, FOR, View, legible

Answer = Callable[[torch.Tensor], torch.Tensor]
"""Features `[batch, ...]` -> the number that is explained `[batch]`."""

STEPS, MOST_STEPS = 32, 512
"""Places on the way where the slope is taken: Gauss and Legendre's, so that few are enough. They are
doubled while the shares miss what they should add up to by more than `MISSED`."""

MISSED = 0.02
TOLD = 0.05
"""Shares of the difference: from the second on, a reader is told how much is unaccounted for."""

WIDTH = 12.0
HEAD, FOOT, CAPTION, GAP = 0.5, 0.4, 0.65, 0.2
"""Inches: of the picture; above and below all rows; of what stands above each; between two."""
CHARACTER = 0.055
"""Inches that one takes across in a caption."""

INK, RED = "#1a202c", "#c53030"


@dataclass(frozen=True)
class Shares:
    """What features contributed, float64 of their shape, and the answers to nothing and to the row."""

    values: np.ndarray
    before: float
    after: float

    @property
    def missed(self) -> float:
        """What they do not account for, as a share of the difference that they should add up to.

        Where they all but cancel out, as a share of a tenth of what they are.
        """
        difference, size = self.after - self.before, float(np.abs(self.values).sum())
        off = abs(difference - float(self.values.sum()))
        return off / max(abs(difference), size / 10, 1e-12)


@dataclass(frozen=True)
class Looked:
    """A case, what its features contributed, how that is shown, and what it was compared with."""

    case: Case
    shares: Shares
    view: View
    nothing: str


def looked(
    network: Network,
    manifest: Manifest,
    strength: Callable[[torch.Tensor, int], torch.Tensor],
    rows: Rows,
    cases: Sequence[Case],
    files: Mapping[str, bytes],
    batch: int = STEPS,
) -> list[Looked]:
    """Each case with what decided it. `files` are what decoders read.

    `batch` is how many rows training had in memory: no more places are looked at together.
    """
    kind = plugins.load("frontend", manifest.frontend["name"], "data.frontend.name")
    config = kind.Config.model_validate(manifest.frontend)
    nothing = getattr(kind, "nothing", lambda config, inputs, features: torch.zeros_like(features))
    found = []
    for case in cases:
        # By itself, as it is served: no padding, and memory for one row however many there are.
        row = rows.take(slice(case.row, case.row + 1))
        with torch.no_grad():
            given = network.frontend(*(torch.from_numpy(array) for array in row.values()))
        features, *rest = given if isinstance(given, tuple) else (given,)
        answer = partial(_answer, network, rest, strength, case.output)
        shares = accounted(answer, nothing(config, manifest.inputs, features), features, batch)
        first = {name: array[0] for name, array in row.items()}
        view = kind.view(
            config, manifest.inputs, first, features[0].numpy(), shares.values[0], files
        )
        found.append(Looked(case, shares, view, kind.NOTHING))
    return found


def accounted(
    answer: Answer, nothing: torch.Tensor, features: torch.Tensor, batch: int = STEPS
) -> Shares:
    """Shares of one row's features `[1, ...]`, at as many places as they need to add up."""
    with torch.no_grad():
        before, after = (float(answer(each)[0]) for each in (nothing, features))
    steps = STEPS
    while True:
        shares = Shares(integrated(answer, nothing, features, steps, batch), before, after)
        if shares.missed <= MISSED or steps >= MOST_STEPS:
            return shares
        steps *= 2


def integrated(
    answer: Answer,
    nothing: torch.Tensor,
    features: torch.Tensor,
    steps: int = STEPS,
    batch: int = STEPS,
) -> np.ndarray:
    """float64 `[1, ...]`: the slope along the way, its mean times how far each feature went."""
    together = min(STEPS, batch)
    places, weights = np.polynomial.legendre.leggauss(steps)
    apart = features - nothing
    mean = torch.zeros_like(features, dtype=torch.float64)
    for start in range(0, steps, together):
        shape = (-1, *(1,) * (features.ndim - 1))
        some = slice(start, start + together)
        along = torch.from_numpy((places[some] + 1) / 2).view(shape).to(features.dtype)
        way = (nothing + along * apart).requires_grad_(True)
        (slopes,) = torch.autograd.grad(answer(way).sum(), way)
        share = torch.from_numpy(weights[some] / 2).view(shape)
        mean += (share * slopes.double()).sum(0, keepdim=True)
    shares: np.ndarray = (apart.double() * mean).numpy()
    return shares


def table(found: Sequence[Looked], name: Callable[[int], str]) -> list[dict[str, Any]]:
    """What every part that has a name contributed; none where parts are places in a picture."""
    return [
        {
            "row": name(each.case.row),
            "answer": each.case.told,
            "part": part,
            # Fewer digits than the last bits of a CPU's arithmetic reach.
            "contribution": float(f"{share:.4g}"),
            "units": each.case.units,
        }
        for each in found
        for part, share in each.view.named()
    ]


def picture(found: Sequence[Looked], name: Callable[[int], str]) -> bytes:
    """PNG: every case with its title, its row and what decided, and what the colours mean."""
    across = found[0].view.across
    width = (WIDTH - GAP) / across - GAP
    lines = [found[start : start + across] for start in range(0, len(found), across)]
    heights = [max(each.view.tall(width) for each in line) for line in lines]
    height = HEAD + sum(heights) + len(lines) * (CAPTION + GAP) + FOOT

    def fill(figure: Any) -> None:
        title = "What decided, in rows of the test split (actual \u2192 answered)"
        figure.text(0.5, 1 - 0.25 / height, title, ha="center", va="center", size=11)
        top = height - HEAD
        for line, tall in zip(lines, heights, strict=True):
            for place, each in enumerate(line):
                left = GAP + place * (width + GAP)
                _caption(figure, each, name(each.case.row), (left, top, width))
                bottom = top - CAPTION - tall
                box = (left / WIDTH, bottom / height, width / WIDTH, tall / height)
                each.view.draw(figure, box, each.case.units)
            top -= CAPTION + tall + GAP
        _legend(figure, found[0])

    return pictures.saved(fill, width=WIDTH, height=height, kind="png", layout=None)


def _caption(figure: Any, each: Looked, name: str, place: tuple[float, float, float]) -> None:
    """What stands above a row: four lines. `place` is inches: left, top and width."""
    case, shares = each.case, each.shares
    told = f"{number(shares.before)} for nothing, {number(shares.after)} for this row"
    if shares.missed > TOLD:
        told += f", {shares.missed:.0%} unaccounted for"
    left, top, width = place
    height = figure.get_size_inches()[1]
    most = int(width / CHARACTER)
    for line, (text, colour) in enumerate(
        (
            (name, pictures.GREY),
            (case.told, INK if case.right else RED),
            (f"{case.units}:", pictures.GREY),
            (told, pictures.GREY),
        )
    ):
        shown = text if len(text) <= most else f"{text[: most - 1]}\u2026"
        y = (top - 0.15 * line) / height
        figure.text(left / WIDTH, y, legible(shown), va="top", size=7.5, color=colour)


def _legend(figure: Any, each: Looked) -> None:
    """What the colours mean, along the foot."""
    y, x = 0.2 / figure.get_size_inches()[1], GAP
    rest = (f"nothing: {each.nothing}", each.view.note, "red titles: wrong, or furthest off")
    for colour, told in (
        (FOR, "raises the number in grey"),
        (AGAINST, "lowers it"),
        *((None, text) for text in rest if text),
    ):
        if colour:
            figure.text(x / WIDTH, y, "\u25a0", color=colour, size=10, va="center")
            x += 0.16
        figure.text(x / WIDTH, y, told, size=7.5, va="center", color=pictures.GREY)
        x += CHARACTER * len(told) + 0.25


def _answer(
    network: Network,
    rest: Sequence[torch.Tensor],
    strength: Callable[[torch.Tensor, int], torch.Tensor],
    output: int,
    features: torch.Tensor,
) -> torch.Tensor:
    """The number that is explained for features of one row's kind, which is there as `rest` says."""
    masks = (mask.expand(len(features), *mask.shape[1:]) for mask in rest)
    return strength(network.body(*network.form((features, *masks))).double(), output)
