"""What the V2 statistics extension tells of a model: counts and sums since the server began."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.observability import cells
from serving.observability.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something was done, and the nanoseconds it took altogether."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """The runs with one number of rows; above 64 rows, with up to that many."""

    batch_size: int
    infer: Duration


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model version. `inferences` counts rows, `executions` runs; `last` is Unix time in ms."""

    name: str
    version: str
    last: int
    inferences: int
    executions: int
    success: Duration
    fail: Duration
    queue: Duration
    decode: Duration
    infer: Duration
    encode: Duration
    batches: tuple[BatchStatistics, ...]


def statistics(ledger: Ledger, name: str, version: str) -> ModelStatistics:
    """What all workers counted of a model version; zeros where it has no account of its own."""
    slot = ledger.find(name, version)
    rows = np.zeros((1, cells.ACCOUNT_CELLS)) if slot is None else ledger.accounts(slot)
    account = rows.sum(axis=0)
    answered = int(account[cells.TOTAL : cells.TOTAL_SUM].sum())
    outcomes = account[cells.REQUESTS : cells.ROWS].reshape(len(cells.DOORS), -1)
    runs = account[cells.BATCHES : cells.BATCH_SECONDS]
    seconds = account[cells.BATCH_SECONDS : cells.BATCH_ROWS]
    codec, decode = account[cells.CODEC_SUM], account[cells.DECODE_SECONDS]
    return ModelStatistics(
        name=name,
        version=version,
        last=int(rows[:, cells.LAST].max() * 1000),
        inferences=int(account[cells.ROWS]),
        executions=int(runs.sum()),
        success=_duration(answered, account[cells.TOTAL_SUM]),
        fail=_duration(outcomes[:, cells.INVALID :].sum(), account[cells.FAILED_SECONDS]),
        queue=_duration(answered, account[cells.QUEUE_SUM]),
        decode=_duration(answered, decode),
        infer=_duration(answered, account[cells.RUN_SUM]),
        encode=_duration(answered, max(codec - decode, 0.0)),
        batches=tuple(
            BatchStatistics(_size(place), _duration(runs[place], seconds[place]))
            for place in map(int, np.flatnonzero(runs))
        ),
    )


def as_json(models: Iterable[ModelStatistics]) -> dict[str, Any]:
    """The answer of the HTTP door, with the names that Triton gives things."""
    return {"model_stats": [_model(model) for model in models]}


def _model(model: ModelStatistics) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": model.last,
        "inference_count": model.inferences,
        "execution_count": model.executions,
        "inference_stats": {
            "success": _told(model.success),
            "fail": _told(model.fail),
            "queue": _told(model.queue),
            "compute_input": _told(model.decode),
            "compute_infer": _told(model.infer),
            "compute_output": _told(model.encode),
            "cache_hit": _told(Duration()),
            "cache_miss": _told(Duration()),
        },
        "batch_stats": [
            {
                "batch_size": batch.batch_size,
                # Joining and splitting belong to the run here; requests decode for themselves.
                "compute_input": _told(Duration(batch.infer.count)),
                "compute_infer": _told(batch.infer),
                "compute_output": _told(Duration(batch.infer.count)),
            }
            for batch in model.batches
        ],
    }


def _told(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def _duration(count: float, seconds: float) -> Duration:
    return Duration(int(count), int(seconds * 1e9))


def _size(place: int) -> int:
    """The largest batch counted in a place; in the last, the first beyond every bound."""
    sizes = cells.BATCH_SIZES
    return sizes[place] if place < len(sizes) else sizes[-1] + 1
