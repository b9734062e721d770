"""`params.yaml` to typed experiments, checked whole.

Read as YAML 1.2, as DVC reads it (to YAML 1.1, `1e-3` is a text and `no` is false). Nothing here
imports torch, so a mistake is told in a fraction of a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import create_model

from pipeline import export, plugins, train
from pipeline.bundle.manifest import MODEL_NAME, sha256
from pipeline.config import ConfigError, Section, build, suggestion
from pipeline.metrics import check_names
from pipeline.start import Start
from stages.layout import Layout

PARAMS = Path("params.yaml")
SECTIONS = ("data", "model", "task", "train", "metrics", "export")


@dataclass(frozen=True)
class Plugin:
    """A plug-in module and the settings it was given."""

    module: ModuleType
    config: Any


@dataclass(frozen=True)
class Experiment:
    """One entry of `params.yaml`, typed."""

    name: str
    data: Plugin
    model: Plugin
    task: Plugin
    train: train.Config
    metrics: tuple[str, ...]
    export: export.Config

    @property
    def start(self) -> Start:
        """Where its weights come from, as stands beside the model's own settings."""
        beside: Start = self.model.config
        return beside

    def train_key(self, data_digest: str) -> str:
        """SHA-256 over all that the training's result follows from: settings, data, first weights."""
        settings = self.resolved()
        parts = {name: settings[name] for name in ("data", "model", "task", "train")}
        first = sha256(self.start.path.read_bytes()) if self.start.path else ""
        return sha256(json.dumps([parts, data_digest, first], sort_keys=True).encode())

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data."""
        parts: dict[str, Section] = {
            "data": self.data.config,
            "model": self.model.config,
            "task": self.task.config,
            "train": self.train,
            "export": self.export,
        }
        settings: dict[str, Any] = {
            key: part.model_dump(mode="json") for key, part in parts.items()
        }
        return settings | {"metrics": list(self.metrics)}


def load(path: Path = PARAMS) -> dict[str, Experiment]:
    """Every experiment of the file. Raises `ConfigError` with a line for each mistake in any of them."""
    raw = read(path)
    for key in raw:
        if key != "experiments":
            raise ConfigError(f"{key}: unknown key{suggestion(str(key), ['experiments'])}")
    entries = raw.get("experiments")
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(
            f"experiments: expected a mapping of experiments in {path}, got {entries!r}"
        )
    experiments, mistakes = {}, []
    for name, entry in entries.items():
        try:
            experiments[name] = _experiment(name, entry)
        except ConfigError as error:
            mistakes.append(str(error))
    for name, experiment in experiments.items():
        try:
            _check_start(name, experiment.start.path, [str(each) for each in entries])
        except ConfigError as error:
            mistakes.append(str(error))
    mistakes += _circles(
        {name: maker(experiment.start.path, entries) for name, experiment in experiments.items()}
    )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return experiments


def maker(path: Path | None, known: Iterable[Any]) -> str | None:
    """Which of the known experiments writes the weights in `path`, however that is written."""
    if path is None:
        return None
    made = {_whole(Layout(name).weights): name for name in map(str, known)}
    return made.get(_whole(path))


def read(path: Path = PARAMS) -> dict[str, Any]:
    """The file as plain data. Raises `ConfigError` where it is no YAML mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run this in the project's folder") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(raw).__name__}")
    return raw


def _experiment(name: Any, entry: Any) -> Experiment:
    path = f"experiments.{name}"
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"{path}: a name is 1 to 64 letters, digits, '-' or '_', got {name!r}")
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{path}: expected a mapping with {', '.join(SECTIONS)}, got {entry!r}")
    for key in entry:
        if key not in SECTIONS:
            raise ConfigError(f"{path}.{key}: unknown key{suggestion(str(key), list(SECTIONS))}")
    for key in SECTIONS:
        if key not in entry:
            raise ConfigError(f"{path}.{key}: missing; every experiment has the same sections")
    mistakes: list[str] = []

    def attempt(make: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return make(*arguments)
        except ConfigError as error:
            mistakes.append(str(error))
            return None

    data = attempt(_plugin, "data", entry["data"], f"{path}.data")
    model = attempt(_plugin, "model", entry["model"], f"{path}.model", Start)
    task = attempt(_plugin, "task", entry["task"], f"{path}.task")
    if model and task:
        attempt(_check_body, model, task, f"{path}.model.name")
    training = attempt(_training, entry["train"], task, f"{path}.train")
    exporting = attempt(_export, entry["export"], task, f"{path}.export")
    metrics = attempt(_metrics, entry["metrics"], task, f"{path}.metrics")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Experiment(name, data, model, task, training, metrics, exporting)


def _plugin(kind: str, values: Any, path: str, *beside: type[Section]) -> Plugin:
    """The plug-in that `values` name, with its own settings and those `beside` them."""
    if not isinstance(values, Mapping) or "name" not in values:
        raise ConfigError(f"{path}.name: missing; one of {', '.join(plugins.names(kind))}")
    module = plugins.load(kind, values["name"], f"{path}.name")
    settings = (
        create_model("Config", __base__=(*beside, module.Config)) if beside else module.Config
    )
    return Plugin(module, build(settings, values, path))


def _check_start(name: str, start: Path | None, known: list[str]) -> None:
    """Raises `ConfigError` for weights in `build/` that no other experiment makes."""
    path = f"experiments.{name}.model.init_from"
    if start is None:
        return
    base = maker(start, known)
    if base == name:
        raise ConfigError(
            f"{path}: {start} is what this training writes; name another experiment's"
        )
    if base is None and _whole(start).is_relative_to(_whole(Layout("").build)):
        others = [str(Layout(each).weights) for each in known if each != name]
        raise ConfigError(
            f"{path}: no experiment makes {start}{suggestion(str(start), others)}; weights of "
            "your own belong outside build/"
        )


def _whole(path: Path) -> Path:
    """From the root on; links are kept, since DVC may make one of any output."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _circles(bases: Mapping[str, str | None]) -> list[str]:
    """A mistake for each circle of experiments that begin from each other's weights, told once."""
    mistakes, told = [], set[str]()
    for name in bases:
        chain = [name]
        while (base := bases.get(chain[-1])) and base not in chain:
            chain.append(base)
        if base == name and len(chain) > 1 and name not in told:
            told.update(chain)
            mistakes.append(
                f"experiments.{name}.model.init_from: {' -> '.join([*chain, name])} is a circle, in "
                "which none can be the first; let one start anew or from weights outside of it"
            )
    return mistakes


def _check_body(model: Plugin, task: Plugin, path: str) -> None:
    """Raises `ConfigError` for a model that the task can do nothing with."""
    needed = task.module.Task.body
    if plugins.gives(model.module) != needed:
        fitting = [
            name
            for name in plugins.names("model")
            if plugins.gives(plugins.load("model", name, path)) == needed
        ]
        raise ConfigError(
            f"{path}: {model.config.name} gives {plugins.gives(model.module)}, and "
            f"{task.config.name} needs {needed}: {', '.join(fitting)}"
        )


def _training(values: Any, task: Plugin | None, path: str) -> train.Config:
    config = build(train.Config, values, path)
    if config.early_stopping.metric != "loss":
        _check_metrics([config.early_stopping.metric], task, f"{path}.early_stopping.metric")
    return config


def _export(values: Any, task: Plugin | None, path: str) -> export.Config:
    config = build(export.Config, values, path)
    parts = list(task.module.Task.parts) if task else []
    if task and config.part is not None and config.part not in parts:
        if not parts:
            raise ConfigError(f"{path}.part: {task.config.name} ships one thing; take it out")
        raise ConfigError(
            f"{path}.part: {task.config.name} has no part {config.part!r}"
            f"{suggestion(config.part, parts)}"
        )
    return config


def _metrics(values: Any, task: Plugin | None, path: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ConfigError(f"{path}: expected a list of metrics, got {values!r}")
    if len(set(values)) != len(values):
        raise ConfigError(f"{path}: a metric is listed twice")
    _check_metrics(values, task, path)
    return tuple(values)


def _check_metrics(names: list[str], task: Plugin | None, path: str) -> None:
    """Raises `ConfigError` for what the task cannot be judged by."""
    if task is None:
        return
    if not task.module.Task.measures:
        check_names(names, task.module.Task.teaches, path)
        return
    known = list(task.module.Task.measures)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{path}: {task.config.name} measures no {name!r}{suggestion(name, known)}"
            )
