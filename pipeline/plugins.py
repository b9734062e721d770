"""The folder is the registry: a file's name is its name in `params.yaml`.

A plug-in module declares `Config` and its function at the top and imports torch only inside the
function, so that settings are checked in a fraction of a second.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from pipeline.config import ConfigError, suggestion

KINDS = {
    "data": "pipeline.data",
    "frontend": "pipeline.frontends",
    "model": "pipeline.models",
    "task": "pipeline.tasks",
}


def names(kind: str) -> list[str]:
    """The plug-ins of a kind ('data', 'frontend', 'model', 'task'), as the folder lists them."""
    package = importlib.import_module(KINDS[kind])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def load(kind: str, name: object, path: str) -> ModuleType:
    """The plug-in's module. `path` is where in the settings it was named.

    Raises `ConfigError` listing the folder when there is none of that name.
    """
    known = names(kind)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{path}: no {kind} named {name!r}{suggestion(str(name), known)}")
    return importlib.import_module(f"{KINDS[kind]}.{name}")


def gives(model: ModuleType) -> str:
    """What a model's `build` gives: a `pipeline.tasks._shared.contract.Body`."""
    given: str = getattr(model, "GIVES", "answers")
    return given
