"""How a row is shown beside what each part of it contributed: as a map, as words, as bars.

A frontend gives one of these for each row that is looked into (`pipeline/frontends/__init__.py`); drawing
knows the way of showing, never the kind of data. `draw` fills a box of a figure: left, bottom, width and
height as shares of it. What speaks for the answer is blue, what speaks against it orange, and the
strongest part of each row has the full colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np

FOR, AGAINST = "#2b6cb0", "#dd6b20"
CELLS = 32
"""Parts of a map along a side, at most: single pixels of a large picture are grain to the eye."""

WORDS = 60
BARS = 10
LONGEST = 32
"""Characters of a word, or of a bar's name."""

SIZE, LINE, SPACE = 8.5, 0.21, 0.09
"""Of words: points; inches from line to line, and between two."""

STRONGEST = "the strongest parts of each row have the full colour"

Box = tuple[float, float, float, float]


class View(Protocol):
    """A row and its shares, drawn."""

    across: ClassVar[int]
    """Rows that stand side by side."""

    note: ClassVar[str]
    """What must be said of the colours, beside which is which."""

    def tall(self, width: float) -> float:
        """Height that it needs where it has this width, both in inches."""

    def draw(self, figure: Any, box: Box, units: str) -> None:
        """Into the box; `units` are those of the shares."""

    def named(self) -> list[tuple[str, float]]:
        """Parts that have a name, with their shares; none where a part is a place."""


@dataclass(frozen=True)
class Axis:
    """What lies along a side of a map: `ticks` are places, in parts from the left or top, and texts."""

    name: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Map:
    """A picture, uint8 `[height, width]` or `[height, width, 3]`, and a share for each pixel of it."""

    picture: np.ndarray
    shares: np.ndarray

    across: ClassVar[int] = 4
    note: ClassVar[str] = STRONGEST

    def tall(self, width: float) -> float:
        return 1.35

    def draw(self, figure: Any, box: Box, units: str) -> None:
        """The picture as it is, and as what decided."""
        heat = self.heat()
        grey = self.picture[..., None] if self.picture.ndim == 2 else self.picture
        gap = np.full((len(heat), max(1, heat.shape[1] // 16), 3), 255, np.uint8)
        both = np.concatenate([np.broadcast_to(grey, heat.shape), gap, heat], 1)
        axes = figure.add_axes(box)
        axes.axis("off")
        axes.imshow(both, interpolation="nearest")
        axes.set_anchor("W")  # below its caption

    def heat(self) -> np.ndarray:
        """uint8 `[height, width, 3]`: the shares in colour over the picture in pale."""
        coarse = self.shares
        for axis in (0, 1):
            coarse = _summed(coarse, axis)
        # One part that stands out by far must not leave the others without a colour.
        sizes = np.abs(coarse)
        strength = _strength(coarse, max(float(np.percentile(sizes, 99)), float(sizes.max()) / 2))
        for axis, size in enumerate(self.shares.shape):
            strength = _spread(strength, axis, size)
        grey = self.picture if self.picture.ndim == 2 else self.picture.mean(2)
        pale = np.repeat((0.82 + 0.18 * grey / 255)[..., None], 3, 2)
        painted = _mixed(pale, strength)
        return (255 * painted).round().astype(np.uint8)

    def named(self) -> list[tuple[str, float]]:
        return []


@dataclass(frozen=True)
class Chart(Map):
    """A map whose sides mean something, such as time and frequency; stretched to fill its place."""

    horizontal: Axis
    vertical: Axis

    across: ClassVar[int] = 2

    def tall(self, width: float) -> float:
        return 1.75

    def draw(self, figure: Any, box: Box, units: str) -> None:
        """As a map, with what lies along its sides."""
        left, bottom, width, height = box
        edge, foot = 0.32 * width / 6, 0.22 * height
        for number, pixels in enumerate((self.picture, self.heat())):
            each = width / 2 - edge
            place = (left + edge + number * (each + edge / 3), bottom + foot, each, height - foot)
            axes = figure.add_axes(place)
            axes.imshow(
                pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
            )
            axes.tick_params(labelsize=6, length=2, pad=1)
            axes.set_xticks(*_ticks(self.horizontal))
            axes.set_xlabel(self.horizontal.name, size=6, labelpad=1)
            axes.set_yticks(*_ticks(self.vertical) if not number else ([], []))
            if not number:
                axes.set_ylabel(self.vertical.name, size=6, labelpad=1)


@dataclass(frozen=True)
class Words:
    """Words in their order, and a share for each."""

    words: tuple[str, ...]
    shares: np.ndarray

    across: ClassVar[int] = 1
    note: ClassVar[str] = STRONGEST

    def tall(self, width: float) -> float:
        return self._placed(width)[-1][1] + LINE / 2

    def draw(self, figure: Any, box: Box, units: str) -> None:
        """The words, as lines of text on colour: of a long text the stretch that says most."""
        left, bottom, width, height = box
        inches = figure.get_size_inches()
        for x, y, word, strength in self._placed(width * inches[0]):
            colour = _mixed(np.ones(3), 0.75 * strength)
            figure.text(
                left + x / inches[0],
                bottom + height - y / inches[1],
                word,
                size=SIZE,
                va="center_baseline",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.6},
            )

    def _placed(self, width: float) -> list[tuple[float, float, str, float]]:
        """For each word its place in inches from the left and the top, itself, and its strength."""
        start = _stretch(np.abs(self.shares), WORDS)
        strength = _strength(self.shares, float(np.abs(self.shares).max(initial=0)))
        shown = list(zip(self.words, strength.tolist(), strict=True))[start : start + WORDS]
        cut = [("...", 0.0)]
        shown = cut * (start > 0) + shown + cut * (start + WORDS < len(self.words))
        placed, x, y = [], 0.0, LINE / 2
        for word, strong in shown:
            word = _short(legible(word))
            long = _inches(word, SIZE)
            if x and x + long > width:
                x, y = 0.0, y + LINE
            placed.append((x, y, word, strong))
            x += long + SPACE
        return placed

    def named(self) -> list[tuple[str, float]]:
        return list(zip(self.words, self.shares.tolist(), strict=True))


@dataclass(frozen=True)
class Bars:
    """Columns of a table with their values, and a share for each."""

    names: tuple[str, ...]
    shares: np.ndarray

    across: ClassVar[int] = 2
    note: ClassVar[str] = ""

    def tall(self, width: float) -> float:
        return 1.85

    def draw(self, figure: Any, box: Box, units: str) -> None:
        """A bar for each of the columns that count most, and one for the rest together."""
        left, bottom, width, height = box
        order = np.argsort(-np.abs(self.shares), kind="stable")
        kept, rest = (order, order[:0]) if len(order) <= BARS else np.split(order, [BARS - 1])
        names = [_short(legible(self.names[i])) for i in kept]
        shares = self.shares[kept].tolist()
        if len(rest):
            names.append(f"{len(rest)} other columns")
            shares.append(float(self.shares[rest].sum()))
        room, foot = 0.4 * width, 0.16 * height
        axes = figure.add_axes((left + room, bottom + foot, width - room - 0.01, height - foot))
        axes.barh(range(len(names)), shares, color=[FOR if s > 0 else AGAINST for s in shares])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(max(len(names), 4) - 0.4, -0.6)
        axes.axvline(0, color="#718096", lw=0.8)
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(labelsize=7, length=2, pad=1)
        axes.set_xlabel(units, size=7, labelpad=1)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter("{x:,.10g}")

    def named(self) -> list[tuple[str, float]]:
        return list(zip(self.names, self.shares.tolist(), strict=True))


def legible(text: str) -> str:
    """The text in characters that the one font of every machine has, a box for others.

    A system's own fonts would draw them, and on no two machines alike; the table has the text itself.
    """
    drawn = _drawn_by_the_font()
    return "".join(c if ord(c) in drawn else "\u25af" for c in " ".join(text.split()))


@cache
def _drawn_by_the_font() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def _inches(text: str, size: float) -> float:
    """How wide a text is in so many points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(size=size), ismath=False
    )
    return float(width) / 72


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _strength(shares: np.ndarray, most: float) -> np.ndarray:
    """-1 to 1, what is `most` or more being 1."""
    scaled: np.ndarray = np.clip(shares / most, -1, 1) if most else np.zeros_like(shares)
    return scaled


def _mixed(ground: np.ndarray, strength: np.ndarray | float) -> np.ndarray:
    """A colour `[..., 3]`, 0 to 1, over which `strength` `[...]`, -1 to 1, lays orange or blue."""
    from matplotlib.colors import to_rgb

    strong = np.asarray(strength)[..., None]
    colour = np.where(strong > 0, to_rgb(FOR), to_rgb(AGAINST))
    mixed: np.ndarray = ground * (1 - np.abs(strong)) + colour * np.abs(strong)
    return mixed


def _step(size: int) -> int:
    return -(-size // CELLS)


def _summed(shares: np.ndarray, axis: int) -> np.ndarray:
    """Neighbours along an axis added up, so that at most `CELLS` are left."""
    size = shares.shape[axis]
    summed: np.ndarray = np.add.reduceat(shares, np.arange(0, size, _step(size)), axis)
    return summed


def _spread(coarse: np.ndarray, axis: int, size: int) -> np.ndarray:
    """What `_summed` left, over as many places as there were."""
    return np.take(coarse, np.arange(size) // _step(size), axis)


def _stretch(weights: np.ndarray, length: int) -> int:
    """Where the heaviest run of so many begins."""
    if len(weights) <= length:
        return 0
    sums = np.convolve(weights, np.ones(length), "valid")
    return int(sums.argmax())


def _ticks(axis: Axis) -> tuple[Sequence[float], Sequence[str]]:
    return [place for place, _ in axis.ticks], [text for _, text in axis.ticks]
