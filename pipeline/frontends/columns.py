"""Columns of a table: numbers of mean 0 and deviation 1 and one place for each value of a category."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from pipeline.bundle.decode import named
from pipeline.bundle.decode.categorical import UNSEEN, CategoricalDecoder
from pipeline.bundle.decode.numeric import NumericDecoder
from pipeline.bundle.manifest import Input
from pipeline.config import Named, Section
from pipeline.statistics import Statistics, by_channel

if TYPE_CHECKING:
    import torch

    from pipeline.forms import Frontend
    from pipeline.views import View

NOTHING = "a row of average numbers, its categories left out"

NUMERIC, CATEGORICAL = "numeric", "categorical"
WIDEST = 32
"""Of an embedding whose width is not given."""


class Encoding(Section):
    """How columns become features."""

    categories: Literal["one_hot", "embedding"] = Field(
        "one_hot", description="one place for each value, or a learnt vector for each"
    )
    embedding: int = Field(
        0, ge=0, le=4096, description="numbers of a vector; 0: about the root of a column's values"
    )
    log: tuple[str, ...] = Field(
        (), description="columns with long tails: sign(x) log(1 + abs(x)) before all else"
    )
    clip: float = Field(
        0.0, ge=0, description="deviations beyond which a number is cut off; 0: never"
    )
    waves: int = Field(
        0,
        ge=0,
        le=256,
        description="learnt sines and cosines of each number beside it, for what changes quickly along "
        "a column, such as a longitude",
    )
    wave_scale: float = Field(
        0.3, gt=0, le=100, description="of waves: how quick they are at first, per deviation"
    )


class Config(Encoding, Named):
    """The settings of the columns."""


def measure(
    config: Config, inputs: Sequence[Input], arrays: Mapping[str, np.ndarray], rows: np.ndarray
) -> Statistics:
    """Mean and deviation of each column of numbers over these rows, gaps left out."""
    if NUMERIC not in arrays:
        return {}
    array = arrays[NUMERIC]
    tails = _tails(config, next(i for i in inputs if i.name == NUMERIC))
    if tails.any():
        array = np.array(array)
        array[:, tails] = np.sign(array[:, tails]) * np.log1p(np.abs(array[:, tails]))
    return {NUMERIC: by_channel(array, rows)}


def build(config: Config, inputs: Sequence[Input], statistics: Statistics) -> Frontend:
    """numeric float32 and categorical int64 `[batch, columns]`, either or both -> `[batch, values]`."""
    import torch
    from torch import nn

    from pipeline.forms import Features, Frontend

    parts: list[Frontend] = []
    for declared in inputs:
        if declared.name == NUMERIC:
            parts.append(_numbers(config, statistics, _tails(config, declared)))
        else:
            assert isinstance(declared.decoder, CategoricalDecoder)
            parts.append(_categories(config, declared.decoder.sizes))

    class Columns(Frontend):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)
            self.features = Features("vector", (sum(part.features.shape[0] for part in parts),))

        def forward(self, *raw: torch.Tensor) -> torch.Tensor:
            given = [part(tensor) for part, tensor in zip(self.parts, raw, strict=True)]
            return torch.cat(given, 1)

    return Columns()


def nothing(config: Config, inputs: Sequence[Input], features: torch.Tensor) -> torch.Tensor:
    """The features of such a row: all 0, but for the cosines of 0."""
    import torch

    given = torch.zeros_like(features)
    place = 0
    for declared in inputs:
        place += len(_owners(config, declared))
        if isinstance(declared.decoder, NumericDecoder):
            given[:, place - len(declared.decoder.columns) * config.waves : place] = 1
    return given


def view(
    config: Config,
    inputs: Sequence[Input],
    row: Mapping[str, np.ndarray],
    features: np.ndarray,
    shares: np.ndarray,
    files: Mapping[str, bytes],
) -> View:
    """Which columns: each with its value, and what all features that it became contributed."""
    from pipeline.views import Bars

    names: list[str] = []
    owners = []
    for declared in inputs:
        assert declared.decoder is not None
        owners.append(len(names) + _owners(config, declared))
        names += [name for name, _ in named(declared.decoder, row[declared.name], files)]
    return Bars(tuple(names), np.bincount(np.concatenate(owners), shares, len(names)))


def _owners(config: Config, declared: Input) -> np.ndarray:
    """int `[values]`: of each feature, the column that it was made of."""
    if isinstance(declared.decoder, CategoricalDecoder):
        sizes = declared.decoder.sizes
        return np.repeat(np.arange(len(sizes)), _widths(config, sizes))
    assert isinstance(declared.decoder, NumericDecoder)
    columns = np.arange(len(declared.decoder.columns))
    return np.concatenate([columns, columns, *[np.repeat(columns, config.waves)] * 2])


def _widths(config: Config, sizes: Sequence[int]) -> list[int]:
    """Features that each column of categories becomes."""
    if config.categories == "one_hot":
        return list(sizes)
    return [config.embedding or min(WIDEST, 1 + math.isqrt(size)) for size in sizes]


def _tails(config: Config, declared: Input) -> np.ndarray:
    """bool `[columns]`: which have long tails.

    Not all of them, even where a logarithm did no harm: of numbers that lie close together far from 0,
    such as a longitude, it leaves too few digits.
    """
    assert isinstance(declared.decoder, NumericDecoder)
    return np.isin(declared.decoder.columns, config.log)


def _numbers(config: Config, statistics: Statistics, tails: np.ndarray) -> Frontend:
    """Standardised columns, a gap being the mean; beside each, whether it is a gap; and waves."""
    import torch
    from torch import nn

    from pipeline.forms import Features, Frontend

    channels = statistics[NUMERIC]

    class Numbers(Frontend):
        mean: torch.Tensor
        scale: torch.Tensor
        tails: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("tails", torch.from_numpy(tails))
            count = len(channels)
            self.features = Features("vector", (count * (2 + 2 * config.waves),))
            self.register_buffer("mean", torch.tensor([c.mean for c in channels]))
            # A constant column carries nothing; dividing by 1 keeps it near 0 rather than at NaN.
            self.register_buffer("scale", torch.tensor([1 / (c.std or 1.0) for c in channels]))
            if config.waves:
                self.speeds = nn.Parameter(torch.randn(count, config.waves) * config.wave_scale)

        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            gap = torch.isnan(raw)
            known = torch.where(gap, torch.zeros_like(raw), raw)
            if config.log:
                short = torch.sign(known) * torch.log1p(known.abs())
                known = torch.where(self.tails, short, known)
            # Subtracted first: what is small beside a large mean would be lost in a product.
            standard = (known - self.mean) * self.scale
            standard = torch.where(gap, torch.zeros_like(standard), standard)
            if config.clip:
                standard = standard.clamp(-config.clip, config.clip)
            parts = [standard, gap.to(standard.dtype)]
            if config.waves:
                turns = 2 * math.pi * standard[:, :, None] * self.speeds
                parts += [torch.sin(turns).flatten(1), torch.cos(turns).flatten(1)]
            return torch.cat(parts, 1)

    return Numbers()


def _categories(config: Config, sizes: tuple[int, ...]) -> Frontend:
    """Each column's value as a place of its own, or as a learnt vector; so are gaps and unseen values."""
    import torch
    from torch import nn

    from pipeline.forms import Features, Frontend

    class OneHot(Frontend):
        places: torch.Tensor
        column: torch.Tensor
        limits: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.features = Features("vector", (sum(sizes),))
            self.register_buffer("places", torch.cat([torch.arange(size) for size in sizes]))
            column = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
            self.register_buffer("column", column)
            self.register_buffer("limits", torch.tensor(sizes))

        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            known = _within(raw, self.limits)
            return (known[:, self.column] == self.places).float()

    class Embedded(Frontend):
        limits: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            widths = _widths(config, sizes)
            self.features = Features("vector", (sum(widths),))
            self.register_buffer("limits", torch.tensor(sizes))
            self.tables = nn.ModuleList(
                nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True)
            )

        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            known = _within(raw, self.limits)
            return torch.cat([table(known[:, i]) for i, table in enumerate(self.tables)], 1)

    return OneHot() if config.categories == "one_hot" else Embedded()


def _within(raw: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """What no column has is unseen: a wrong number shall not end the batch that it came in."""
    import torch

    there = (raw >= 0) & (raw < limits)
    return torch.where(there, raw, torch.full_like(raw, UNSEEN))
