"""Rows dealt into train, validation and test: stratified, and equal rows never apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import target
from pipeline.config import ConfigError
from pipeline.dataset import Faults, RawData, Split, counted, listed

SPLITS = ("train", "validation", "test")


def assign(
    identity: np.ndarray,
    strata: np.ndarray,
    split: Split,
    given_test: np.ndarray | None,
    given_validation: np.ndarray | None = None,
) -> np.ndarray:
    """The split of each row as int8 `[rows]`, an index into `SPLITS`.

    Stratified. Rows are ordered by a hash of their content and the seed, so the split depends
    neither on the order of the rows nor on a random generator's version, and identical rows of a
    stratum, having one hash, always land together.
    """
    member = np.zeros(len(strata), np.int8)
    shares = {"validation": split.validation, "test": split.test}
    for part, given in (("validation", given_validation), ("test", given_test)):
        if given is not None:
            member[given] = SPLITS.index(part)
            del shares[part]
    if sum(shares.values()) >= 1:
        raise ConfigError(
            f"data.split: validation and test take {sum(shares.values())}, nothing is left to train"
        )
    for stratum in np.unique(strata):
        rows = np.flatnonzero((strata == stratum) & (member == 0))
        keys = [
            hashlib.sha256(split.seed.to_bytes(8, "little") + bytes(identity[row])).digest()
            for row in rows
        ]
        order = sorted(range(len(rows)), key=keys.__getitem__)
        start = 0
        for part, share in shares.items():
            stop = min(len(order), start + round(share * len(order)))
            while start < stop < len(order) and keys[order[stop]] == keys[order[stop - 1]]:
                stop += 1  # a group of identical rows is never cut
            member[rows[order[start:stop]]] = SPLITS.index(part)
            start = stop
    return member


def identity_of(rows: Sequence[bytes] | Mapping[str, np.ndarray]) -> np.ndarray:
    """16 bytes per row that equal rows share, as uint8 `[rows, 16]`: by content, or by all arrays."""
    if isinstance(rows, Mapping):
        names = sorted(rows)
        content = (
            [np.ascontiguousarray(rows[name][row]).data for name in names]
            for row in range(len(rows[names[0]]))
        )
        return _digests(content, len(rows[names[0]]))
    return _digests(([row] for row in rows), len(rows))


def strata_of(raw: RawData, identity: np.ndarray) -> np.ndarray:
    """int64 `[rows]`: the target's strata; equal rows share the first one's, whatever theirs is."""
    _, first, group = np.unique(
        identity.view("V16").ravel(), return_index=True, return_inverse=True
    )
    return target.strata(raw.target)[first[group]]


def check_identical(raw: RawData, identity: np.ndarray) -> int:
    """How many rows repeat an earlier one; refuses those that contradict or leak."""
    _, group = np.unique(identity.view("V16").ravel(), return_inverse=True)
    order = np.argsort(group, kind="stable")
    same = group[order][1:] == group[order][:-1]
    first, second = order[:-1][same], order[1:][same]
    given = np.zeros(len(raw.target), np.int8)
    for part, rows in (("validation", raw.given_validation), ("test", raw.given_test)):
        if rows is not None:
            given[rows] = SPLITS.index(part)
    if raw.ambiguous:
        _warn_of_shared(raw, first, second, given)
        return len(first)
    faults = Faults()
    with faults.noted():
        _refuse(
            raw,
            (first, second),
            target.differ(raw.target, first, second),
            "identical rows have different labels; correct or remove them",
            lambda row: target.told(raw, row),
        )
    with faults.noted():
        _refuse(
            raw,
            (first, second),
            given[first] != given[second],
            "rows of a given set are also in another, so its figures would flatter; "
            "remove them from one of the two",
            lambda row: SPLITS[given[row]],
        )
    faults.settle()
    return len(first)


def _warn_of_shared(raw: RawData, first: np.ndarray, second: np.ndarray, given: np.ndarray) -> None:
    """Say where rows that may be alike are so, target and all, on both sides of a given split."""
    taught = raw.target[first] == raw.target[second]
    same = (given[first] != given[second]) & (taught if taught.ndim == 1 else taught.all(1))
    if same.any():
        a, b = min(zip(first[same], second[same], strict=True))
        print(
            f"warning: {counted(int(same.sum()), 'row')} of a given set "
            f"{'is' if same.sum() == 1 else 'are'} also in another, target and all ({raw.row(a)} and "
            f"{raw.row(b)}), so its figures may flatter",
            flush=True,
        )


def _digests(content: Iterable[list[Any]], count: int) -> np.ndarray:
    identity = np.empty((count, 16), np.uint8)
    for row, parts in enumerate(content):
        hashed = hashlib.blake2b(digest_size=16)
        for part in parts:
            hashed.update(part)
        identity[row] = np.frombuffer(hashed.digest(), np.uint8)
    return identity


def _refuse(
    raw: RawData,
    pairs: tuple[np.ndarray, np.ndarray],
    wrong: np.ndarray,
    what: str,
    describe: Callable[[np.intp], str],
) -> None:
    if wrong.any():
        raise listed(
            [
                f"{raw.row(a)} ({describe(a)}) and {raw.row(b)} ({describe(b)})"
                for a, b in sorted(zip(pairs[0][wrong], pairs[1][wrong], strict=True))
            ],
            what,
        )
