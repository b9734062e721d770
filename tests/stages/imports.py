"""The project's own modules that a file imports, read from its text, functions included."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
HALVES = ("pipeline", "stages", "serving")


def imported(path: Path) -> set[Path]:
    """Files of the project that `path` imports directly, a package's `__init__` among them."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in HALVES:
                base = ROOT.joinpath(*name.split("."))
                found |= {p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()}
    return found


def reached(path: Path, leaves: set[Path]) -> set[Path]:
    """Everything that `path` imports, itself included, not looking into `leaves`."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [] if current in leaves else imported(current)
    return seen
