"""Every plug-in, as the folders list them: a new one is tested without a line written here."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import pytest

from pipeline import plugins
from pipeline.config import ConfigError, Section
from pipeline.forms import Form
from pipeline.layers import Activation
from pipeline.tasks._shared.contract import Body

ROOT = Path(__file__).parents[1]
NEEDED = {"data": "load", "frontend": "build", "model": "build", "task": "Task"}
EVERY = [(kind, name) for kind in NEEDED for name in plugins.names(kind)]
TASK = (
    *("players", "turns", "study", "validate", "better", "deployable", "declared", "asked"),
    *("questions", "scores", "tables", "pictures", "examine", "shipping"),
    *("mistakes", "cases", "strength"),
)
TOLD = ("teaches", "body", "parts", "ranked", "measures", "watched", "plots")
PARITY = 1e-5
SHAPES = {"vector": (64,), "grid": (1, 8, 8), "sequence": (8,)}
SMALL = {"width": 8, "heads": 2, "longest": 20}
"""Settings that make any model small, where it has them."""

EVERY_EXPORT = bool(os.environ.get("SLIPWAY_EVERY_EXPORT"))
"""Export every model in every choice and task, rather than each choice and each task somewhere."""


def module(kind: str, name: str) -> ModuleType:
    return plugins.load(kind, name, f"{kind}.name")


def test_the_folders_are_the_registry():
    for kind, package in plugins.KINDS.items():
        folder = ROOT.joinpath(*package.split("."))
        files = {path.stem for path in folder.glob("[!_]*.py")}
        assert set(plugins.names(kind)) == files and files


@pytest.mark.parametrize("kind, name", EVERY)
def test_a_plugin_keeps_its_contract(kind, name):
    plugin = module(kind, name)
    assert plugin.__doc__ and plugin.__doc__.strip().endswith(".")
    assert issubclass(plugin.Config, Section) and plugin.Config.__doc__
    assert plugin.Config.model_fields["name"].annotation is str
    entry = getattr(plugin, NEEDED[kind])
    assert entry.__doc__, f"{name}.{NEEDED[kind]} says nothing"
    arguments = list(inspect.signature(entry).parameters)
    expected = {
        "data": ["config", "root"],
        "model": ["config", "features", "outputs"],
        "frontend": ["config", "inputs", "statistics"],
        "task": ["config", "target", "inputs"],
    }
    assert arguments == expected[kind]
    if kind == "data":
        assert {"path", "split"} <= plugin.Config.model_fields.keys()
    if kind == "task":
        assert all(getattr(plugin.Task, method).__doc__ for method in TASK)
        assert all(hasattr(plugin.Task, told) for told in TOLD)
        assert all(measure.meaning for measure in plugin.Task.measures.values())
        assert fitting(plugin.Task.body), f"no model gives {plugin.Task.body}"
    if kind == "model":
        assert plugin.READS in get_args(Form)
        assert plugins.gives(plugin) in get_args(Body)
    if kind == "frontend":
        assert plugin.measure.__doc__ and plugin.view.__doc__ and plugin.NOTHING


@pytest.mark.parametrize("kind, name", EVERY)
def test_every_setting_says_what_it_does_and_has_a_default(kind, name):
    fields = module(kind, name).Config.model_fields
    for setting, field in fields.items():
        if kind == "model" and setting != "name":
            assert not field.is_required(), f"{setting} has no default"
        explained = field.description or get_origin(field.annotation) is Literal
        nested = inspect.isclass(field.annotation) and hasattr(field.annotation, "model_fields")
        assert explained or nested or setting in ("name", "path", "url", "labels"), setting


@pytest.mark.parametrize("kind", NEEDED)
def test_a_wrong_name_lists_the_folder(kind):
    with pytest.raises(ConfigError) as caught:
        plugins.load(kind, "no such thing", "here.name")
    assert str(caught.value).startswith(f"here.name: no {kind} named 'no such thing'")
    assert all(name in str(caught.value) for name in plugins.names(kind))
    first = plugins.names(kind)[0]
    with pytest.raises(ConfigError, match=f"did you mean '{first}'"):
        plugins.load(kind, first + "s", "here.name")
    for wrong in (None, 3, ["mlp"], "__init__", "..train"):
        with pytest.raises(ConfigError):
            plugins.load(kind, wrong, "here.name")


def test_importing_every_plugin_wakes_nothing_heavy():
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module('{plugins.KINDS[kind]}.{name}')\n" for kind, name in EVERY
    )
    code += "print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for heavy in ("torch", "sklearn", "onnx", "matplotlib", "pooch", "onnxruntime"):
        assert f"'{heavy}'" not in done.stdout


def options(annotation: Any) -> list[Any]:
    if annotation is bool:
        return [False, True]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def variants(config: type[Section], most: int) -> list[dict[str, Any]]:
    """The defaults, and up to `most` settings among which every choice comes up if it can."""
    fields = {name: field for name, field in config.model_fields.items() if name != "name"}
    small = {name: value for name, value in SMALL.items() if name in fields}
    if "dropout" in fields:
        small["dropout"] = 0.25
    choices = {
        name: found for name, field in fields.items() if (found := options(field.annotation))
    }
    rounds = min(most, max((len(found) for found in choices.values()), default=1))
    turns = [
        {name: found[i % len(found)] for name, found in choices.items()} for i in range(rounds)
    ]
    if "depth" in fields:
        # Two depths suffice: each choice meets one of them.
        turns = [turn | {"depth": 1 + i % 2} for i, turn in enumerate(turns)]
    return [{}, *(small | turn for turn in turns)]


def fitting(body: str) -> list[str]:
    """The models that give what a task needs."""
    return [name for name in plugins.names("model") if plugins.gives(module("model", name)) == body]


def cases(name: str, settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every task that fits the model, and every part it ships: one of them in all these settings.

    A task is the same code for every model and setting: of the models that read and give alike, the
    first exports every task and the others one; there, torch answers for the rest. With `make
    exports`, all are exported.
    """
    model = module("model", name)
    alike = [
        other
        for other in fitting(plugins.gives(model))
        if module("model", other).READS == model.READS
    ]
    plain = [
        {
            "task": task,
            "part": part,
            "model": settings[-1],
            "export": EVERY_EXPORT or name == alike[0],
        }
        for task in plugins.names("task")
        if name in fitting(module("task", task).Task.body)
        for part in module("task", task).Task.parts or (None,)
    ]
    return [{**plain[0], "model": values, "export": True} for values in settings] + plain[1:]


@pytest.mark.parametrize("name", plugins.names("model"))
def test_a_model_learns_and_its_export_answers_as_torch_does(name, ready_to_export):
    from tests.pipeline.parity import worst_difference

    # An activation is the same code in every model: one tries them all.
    every = name == "mlp" or EVERY_EXPORT
    few = 3 if module("model", name).READS == "sequence" else 2
    settings = variants(module("model", name).Config, most=99 if every else few)
    assert len(settings) > 1
    if name == "mlp":
        assert {values.get("activation") for values in settings} >= set(get_args(Activation))
    differences = [(worst_difference(name, case), case) for case in cases(name, settings)]
    assert not [(worst, case) for worst, case in differences if not worst < PARITY]


@pytest.mark.parametrize("kind, name", [pair for pair in EVERY if pair[0] == "model"])
def test_the_same_seed_builds_the_same_model(kind, name):
    import torch

    plugin, weights = module(kind, name), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        state = plugin.build(plugin.Config(name=name), SHAPES[plugin.READS], 10).state_dict()
        weights.append(torch.cat([tensor.flatten().float() for tensor in state.values()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
