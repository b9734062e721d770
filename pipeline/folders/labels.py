"""Which class each file belongs to: by its folder, by its name, or by a table."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

from pipeline.config import suggestion
from pipeline.dataset import PARTS, DataError, counted, listed, part_of
from pipeline.folders.found import Found, Kind, checked
from pipeline.folders.source import Source, is_text, join
from pipeline.folders.table import Table, read_table

LABEL = "{label}"
NAMES = [name for names in PARTS.values() for name in names]
"""Of the folders of a split."""
MOST_SETS = 4
"""Folders that a split may be meant to have; so many classes rarely hold folders called alike."""


def by_folder(found_in: Source, kind: Kind) -> Found:
    """Classes by folder, looked at by name only. Raises `DataError`."""
    found, mistakes = Found(), []
    top = _top(found_in)
    inside = found_in.folders[top]
    parts = {name: part_of(name) for name in inside}
    # A class may be called 'train' (beside 'bus'); a split holds folders only.
    split = bool(inside) and all(parts.values())
    if split and not any(found_in.folders[join(top, name)] for name in inside):
        split = False
    if not split:
        _check_no_split(found_in, kind, parts)
    loose = [name for name in found_in.files[top] if kind.of(name) == kind.noun]
    if not inside:
        raise DataError(
            f"{found_in.path}: no folders of classes, but "
            f"{counted(len(loose), kind.noun)} directly in it; "
            f"put each {kind.noun} into a folder named after its class"
        )
    for name in inside:
        place = join(top, name)
        if split:
            mistakes += [
                f"{place}/{file}: a {kind.noun} outside any class"
                for file in found_in.files[place]
                if kind.of(file) == kind.noun
            ]
            for label in found_in.folders[place]:
                mistakes += _gather(found, found_in, kind, join(place, label), parts[name])
        else:
            mistakes += _gather(found, found_in, kind, place, "")
    mistakes += [f"{join(top, name)}: a {kind.noun} outside any class" for name in sorted(loose)]
    found.ignored += Counter(k for n in found_in.files[top] if (k := kind.of(n)) != kind.noun)
    return checked(found, found_in, mistakes)


def _check_no_split(found_in: Source, kind: Kind, parts: Mapping[str, str]) -> None:
    """Raise `DataError` for folders called as a split is: they would be taught as classes.

    One alone may be a class, as 'train' is beside 'bus', unless it holds what another holds, as
    'test' and 'trian' do.
    """
    given = {part for part in parts.values() if part}
    top = _top(found_in)
    below = {name: set(found_in.folders[join(top, name)]) for name in parts}
    twins = [
        name
        for name, part in parts.items()
        if not part and any(below[name] & below[other] for other in parts if parts[other])
    ]
    if ("train" not in given or len(given) < 2) and not (twins and len(parts) <= MOST_SETS):
        return
    named = " and ".join(f"{name}/" for name, part in parts.items() if part)
    others = [
        f"{name}/: beside {named}" + (suggestion(name.lower(), NAMES) if name in twins else "")
        for name, part in parts.items()
        if not part
    ]
    mistakes = others or [f"{name}/: {kind.noun}s outside any class" for name in parts]
    raise listed(
        mistakes,
        f"{found_in.path}: {named} are called as a split is, whose folders hold one folder for each "
        "class, and stand alone; mend that, or call them otherwise",
    )


def by_name(found_in: Source, kind: Kind, pattern: str) -> Found:
    """Classes by the files' names: `{label}_*` is what stands before the first `_`.

    Folders say nothing, save a split's. Raises `DataError`.
    """
    if pattern.count(LABEL) != 1:
        raise DataError(f"data.label_from: expected one {LABEL} in the pattern, got {pattern!r}")
    steps = {LABEL: "(.+?)", "*": ".*", "?": "."}
    fits = re.compile(
        "".join(
            steps.get(step) or re.escape(step) for step in re.split(r"(\{label\}|\*|\?)", pattern)
        )
    )
    found, mistakes = Found(), []
    top = _top(found_in)
    inside = found_in.folders[top]
    split = bool(inside) and all(part_of(name) for name in inside)
    for place in found_in.below(top):
        name = PurePosixPath(place).name
        if (what := kind.of(name)) != kind.noun:
            found.ignored[what] += 1
        elif not is_text(place):
            mistakes.append(f"{place!r}: a file name that is no UTF-8")
        elif (match := fits.fullmatch(name)) is None:
            mistakes.append(f"{place}: the name does not fit data.label_from {pattern!r}")
        else:
            first = PurePosixPath(place).relative_to(top).parts[0]
            found.files.append(place)
            found.labels.append(match[1])
            found.parts.append(part_of(first) if split else "")
    if not found.files and not mistakes:
        mistakes.append(f"no {kind.noun}s in it")
    return checked(found, found_in, mistakes)


def by_table(found_in: Source, kind: Kind, table: Table) -> Found:
    """Classes by a CSV or TSV beside the files. Raises `DataError` that lists lines."""
    header, lines = read_table(found_in, table.file)
    wanted = [name for name in (table.path, table.label, table.split) if name]
    for name in wanted:
        if name not in header:
            raise DataError(
                f"{found_in.path / table.file}: no column {name!r}, but {', '.join(header)}; say which "
                "under data.table"
            )
    found, mistakes, seen = Found(), [], dict[str, int]()
    beside = PurePosixPath(table.file).parent
    known = set(found_in.below(""))
    for number, values in lines:
        line = f"{table.file} line {number}"
        if len(values) != len(header):
            mistakes.append(f"{line}: {len(values)} columns, the header has {len(header)}")
            continue
        row = dict(zip(header, values, strict=True))
        place = (
            os.path.normpath(beside / row[table.path].strip()) if row[table.path].strip() else ""
        )
        said = row[table.split].strip().lower() if table.split else ""
        if not place or not row[table.label].strip():
            mistakes.append(f"{line}: without a {'label' if place else 'file'}")
        elif place not in known:
            mistakes.append(f"{line}: there is no {row[table.path]}")
        elif kind.of(PurePosixPath(place).name) != kind.noun:
            mistakes.append(f"{line}: {row[table.path]} is no {kind.noun} by its suffix")
        elif place in seen:
            mistakes.append(f"{line}: {row[table.path]} stands in line {seen[place]} already")
        elif table.split and not part_of(said):
            mistakes.append(f"{line}: split {said!r}; expected train, validation or test")
        else:
            seen[place] = number
            found.files.append(place)
            found.labels.append(row[table.label].strip())
            found.parts.append(part_of(said))
    unnamed = sum(kind.of(PurePosixPath(place).name) == kind.noun for place in known) - len(seen)
    if unnamed > 0:
        found.ignored[f"{kind.noun}s that the table does not name"] = unnamed
    return checked(found, found_in, mistakes)


def _gather(found: Found, found_in: Source, kind: Kind, folder: str, part: str) -> list[str]:
    """Add a class's files to `found`; what is wrong with it."""
    mistakes, before = [], len(found.files)
    other: Counter[str] = Counter()
    for place in found_in.below(folder):
        if (what := kind.of(PurePosixPath(place).name)) != kind.noun:
            other[what] += 1
        elif not is_text(place):
            mistakes.append(f"{place!r}: a file name that is no UTF-8")
        else:
            found.files.append(place)
            found.labels.append(PurePosixPath(folder).name)
            found.parts.append(part)
    found.ignored += other
    found.ignored["hidden or litter folders"] += sum(
        count for place, count in found_in.aside.items() if f"{place}/".startswith(f"{folder}/")
    )
    if len(found.files) == before:
        kinds = ", ".join(f"{count} {what}" for what, count in other.most_common(3))
        mistakes.append(
            f"{folder}/: a class without {kind.noun}s" + (f" ({kinds} ignored)" if kinds else "")
        )
    return mistakes


def _top(found_in: Source) -> str:
    """Where the data begins: an archive usually holds one folder, and all in it."""
    top = ""
    while (
        not found_in.path.is_dir() and len(found_in.folders[top]) == 1 and not found_in.files[top]
    ):
        top = join(top, found_in.folders[top][0])
    return top
