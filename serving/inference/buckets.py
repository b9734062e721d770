"""Few shapes instead of many: batches padded to row counts that were warmed beforehand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from serving.errors import BackendFailure

Arrays = Mapping[str, np.ndarray]


def pieces(rows: int, buckets: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bucket) of the runs that `rows` rows are cut into; `buckets` ascend.

    As many of the largest as fill up, then the smallest that holds the rest.
    """
    start, largest = 0, buckets[-1]
    while rows - start > largest:
        yield start, start + largest, largest
        start += largest
    yield start, rows, next(bucket for bucket in buckets if bucket >= rows - start)


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    """`[n, ...]` with its last row repeated up to `[rows, ...]`.

    Repeated rather than zero: a real row cannot overflow, divide by zero or be out of range.
    """
    if len(array) == rows:
        return array
    whole = np.empty((rows, *array.shape[1:]), array.dtype)
    whole[: len(array)] = array
    whole[len(array) :] = array[-1]
    return whole


def run_padded(
    run: Callable[[Arrays], Mapping[str, np.ndarray]], arrays: Arrays, buckets: Sequence[int]
) -> dict[str, np.ndarray]:
    """What `run` answers for `arrays`, seeing none but batches of the size of a bucket.

    Raises what `run` raises, and `BackendFailure` where an output has not one row for each.
    """
    rows = len(next(iter(arrays.values())))
    if not rows:
        return dict(run(arrays))
    found: list[dict[str, np.ndarray]] = []
    for start, stop, bucket in pieces(rows, buckets):
        part = {name: padded(array[start:stop], bucket) for name, array in arrays.items()}
        answers = run(part)
        for name, answer in answers.items():
            if not answer.ndim or len(answer) != bucket:
                raise BackendFailure(
                    f"output {name!r}: expected {bucket} rows, "
                    f"the model gave shape {list(answer.shape)}"
                )
        found.append({name: answer[: stop - start] for name, answer in answers.items()})
    if len(found) == 1:
        return found[0]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
