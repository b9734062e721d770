"""What share of a small data set each part of a split takes, so that none is without a class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from pipeline.dataset import counted, listed
from pipeline.folders.found import Found

NAMED = 6
"""Classes that are told by name."""


def summary(found: Found, noun: str, rows: Mapping[str, int], by: str = "") -> str:
    """`90 pictures of 2 classes: cats 50, dogs 40; 60 train, 10 validation, 20 test`.

    `by` says how classes are told apart; a part that the data brings is `as given`.
    """
    counts = Counter(found.labels)
    names = [f"{label} {counts[label]}" for label in found.classes[:NAMED]]
    more = ["..."] if len(found.classes) > NAMED else []
    classes = (
        f"{len(found.files)} {noun}s of {len(found.classes)} classes{by}: {', '.join(names + more)}"
    )
    given = set(found.parts)
    parts = ", ".join(
        f"{count} {part}{' as given' if part in given else ''}" for part, count in rows.items()
    )
    return "; ".join(filter(None, (classes, parts, found.passed_over())))


def shares(found: Found, noun: str) -> tuple[dict[str, float], dict[str, int]]:
    """Shares for the parts that are not given, so that every class has a row in each; and the rows.

    Raises `DataError` for classes too small to be in every part.
    """
    counts = Counter(zip(found.parts, found.labels, strict=True))
    dealt = {label: counts["", label] + counts["train", label] for label in found.classes}
    missing = [part for part in ("validation", "test") if part not in found.parts]
    scarce = [
        f"{label}: {counted(count, noun)}"
        for label, count in dealt.items()
        if count <= len(missing)
    ]
    if scarce:
        raise listed(
            scarce,
            f"classes too small to be in every part, each needs {len(missing) + 1} {noun}s",
        )
    least = min(dealt.values())
    share = {"validation": 0.1, "test": 0.2}
    for part in missing:
        share[part] = max(share[part], math.ceil(60 / least) / 100)  # half a row rounds up to one
    rows = {part: found.parts.count(part) for part in ("validation", "test")}
    for part in missing:
        rows[part] = sum(round(share[part] * count) for count in dealt.values())
    train = sum(dealt.values()) - sum(rows[part] for part in missing)
    return share, {"train": train, **rows}
