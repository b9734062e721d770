"""What `/metrics` answers: every family with its meaning, and both forms Prometheus reads.

Labels come from the repository and from tables in the code, never from a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from serving.observability import cells, families
from serving.observability.families import FAMILIES, Family
from serving.observability.ledger import Ledger

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ONE_CELL = (
    (families.ROWS, cells.ROWS),
    (families.RECEIVED, cells.RECEIVED),
    (families.SENT, cells.SENT),
    (families.WAITING, cells.WAITING),
    (families.WAITING_ROWS, cells.WAITING_ROWS),
    (families.FALLBACK, cells.FALLBACK),
)
DURATIONS = (
    (families.TOTAL, cells.TOTAL),
    (families.QUEUE, cells.QUEUE),
    (families.RUN, cells.RUN),
    (families.CODEC, cells.CODEC),
)


class Page:
    """One answer to a scrape, gathered part by part, since a thousand models take a while."""

    def __init__(self, openmetrics: bool = False) -> None:
        self._openmetrics = openmetrics
        self._lines: dict[Family, list[str]] = {family: [] for family in FAMILIES}

    def value(self, family: Family, labels: Sequence[str], value: float) -> None:
        """One series. `labels` are the values, in the family's order."""
        name = family.full_name
        self._lines[family].append(f"{name}{_labels(family.labels, labels)} {_number(value)}\n")

    def histogram(
        self,
        family: Family,
        labels: Sequence[str],
        bounds: Sequence[float],
        counts: Iterable[float],
        total: float,
    ) -> None:
        """One histogram: upper bounds, and how many fell between each two, and above the last."""
        written = _labels(family.labels, labels)
        opened = written[:-1] + "," if written else "{"
        lines, below = self._lines[family], 0.0
        for bound, count in zip((*map(float, bounds), "+Inf"), counts, strict=True):
            below += count
            lines.append(f'{family.name}_bucket{opened}le="{bound}"}} {_number(below)}\n')
        lines.append(f"{family.name}_count{written} {_number(below)}\n")
        lines.append(f"{family.name}_sum{written} {_number(total)}\n")

    def body(self) -> bytes:
        """The whole of it. A family without a series is left out."""
        parts = []
        for family, lines in self._lines.items():
            if lines:
                name = family.name if self._openmetrics else family.full_name
                parts.append(f"# HELP {name} {_help(family.help, self._openmetrics)}\n")
                parts.append(f"# TYPE {name} {family.kind}\n")
                parts += lines
        if self._openmetrics:
            parts.append("# EOF\n")
        return "".join(parts).encode()


def fill(
    page: Page,
    ledger: Ledger,
    infos: Iterable[Mapping[str, str]],
    build: Mapping[str, str],
) -> Iterator[None]:
    """Put what all workers counted on a page, which is whole at the end of the iteration.

    `infos` are the labels of `slipway_model_info`, for each bundle that serves; `build` those of
    `slipway_build_info`.
    """
    _workers(page, ledger.heads())
    page.value(families.BUILD, [build[label] for label in families.BUILD.labels], 1)
    for info in infos:
        page.value(families.INFO, [info[label] for label in families.INFO.labels], 1)
    _requests(page, ("", ""), ledger.accounts(cells.NAMELESS).sum(axis=0))
    for slot, labels in enumerate(ledger.names(), 1):
        yield
        _model(page, labels, ledger.accounts(slot))
    overflow = ledger.accounts(cells.OVERFLOW)
    if overflow.any():
        _model(page, (cells.OTHER, ""), overflow)


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics to plain text."""
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for choice in accept.lower().split(","):
        kind, _, parameters = choice.partition(";")
        if kind.strip() in weights:
            weight = re.search(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d*)?)\s*(?:;|$)", parameters)
            weights[kind.strip()] = float(weight[1]) if weight else 1.0
    openmetrics, plain = weights.values()
    return 0 < openmetrics >= plain


def _workers(page: Page, heads: np.ndarray) -> None:
    """What is counted beside the models."""
    summed = heads.sum(axis=0)
    for door, name in enumerate(cells.DOORS):
        codes = (cells.HTTP_CODES, cells.GRPC_CODES)[door]
        for place, code in enumerate(codes, cells.ANSWERED[door]):
            if summed[place] or place == cells.ANSWERED[door]:
                page.value(families.ANSWERS, (name, code), summed[place])
        page.value(families.IN_FLIGHT, (name,), summed[cells.IN_FLIGHT + door])
    page.value(families.CONNECTIONS, (), summed[cells.CONNECTIONS])
    page.value(families.REFUSED, (), summed[cells.REFUSED])
    page.value(families.DROPPED, (), summed[cells.DROPPED])
    for worker, head in enumerate(heads):
        label = (str(worker),)
        page.value(families.CPU, label, head[cells.CPU_SECONDS])
        page.value(families.MEMORY, label, head[cells.MEMORY])
        page.value(families.FILES, label, head[cells.FILES])
        page.value(families.STARTED, label, head[cells.STARTED])
        page.value(families.RESTARTS, label, max(head[cells.STARTS] - 1, 0))


def _requests(page: Page, labels: tuple[str, str], account: np.ndarray) -> None:
    counts = account[cells.REQUESTS : cells.ROWS].reshape(len(cells.DOORS), -1)
    for door, outcomes in zip(cells.DOORS, counts, strict=True):
        for outcome, count in zip(cells.OUTCOMES, outcomes, strict=True):
            if count or labels[0]:
                page.value(families.REQUESTS, (door, *labels, outcome), count)


def _model(page: Page, labels: tuple[str, str], accounts: np.ndarray) -> None:
    """Everything of one model version; `accounts` are [workers, ACCOUNT_CELLS]."""
    states = np.bincount(accounts[:, cells.STATE].astype(int), minlength=len(cells.STATES) + 1)
    account = accounts.sum(axis=0)
    _requests(page, labels, account)
    for family, place in ONE_CELL:
        page.value(family, labels, account[place])
    for family, place in DURATIONS:
        buckets = account[place : place + cells.BUCKETS].tolist()
        page.histogram(family, labels, cells.SECONDS, buckets, account[place + cells.BUCKETS])
    runs = account[cells.BATCHES : cells.BATCH_SECONDS]
    page.histogram(
        families.BATCH_ROWS, labels, BATCH_BOUNDS, _by_batch_bound(runs), account[cells.BATCH_ROWS]
    )
    page.value(families.BATCHES, labels, runs.sum())
    page.value(families.RUNNING, labels, account[cells.BATCH_SECONDS : cells.BATCH_ROWS].sum())
    for position, state in enumerate(cells.STATES, 1):
        page.value(families.STATE, (*labels, state), states[position])


def _by_batch_bound(runs: np.ndarray) -> list[float]:
    """Runs of each size, gathered between the bounds that are told."""
    ends = [*(cells.batch_place(bound) + 1 for bound in BATCH_BOUNDS), cells.BATCH_PLACES]
    starts = [0, *ends[:-1]]
    return [float(runs[start:end].sum()) for start, end in zip(starts, ends, strict=True)]


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escaped(text)}"' for name, text in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str) -> str:
    if not text.isascii():  # a folder's name may hold bytes that are no text
        text = text.encode("utf-8", "replace").decode()
    if '"' in text or "\\" in text or "\n" in text:
        text = text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text


def _help(text: str, openmetrics: bool) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if openmetrics else text


def _number(value: float) -> str:
    """As few digits as tell the value exactly; whole numbers without a point."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)
