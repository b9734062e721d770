"""`dvc.yaml` against what the stages really import, read and write."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import plugins
from stages.layout import Layout
from stages.params import SECTIONS
from tests.stages.imports import ROOT, reached

DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
EXPERIMENTS: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")["experiments"]
STAGES = {name: stage["do"] for name, stage in DVC["stages"].items()}
PURE = [name for name in STAGES if name != "track"]
"""`track` always runs and writes nothing that DVC keeps: it needs no list of what can change it."""

# What a stage imports and does not declare, and why no result changes with it.
EVERYWHERE = {
    "pipeline/config.py": "checks settings; what they say arrives through params",
    "pipeline/plugins.py": "finds modules by name; the modules found are declared",
    "pipeline/bundle/manifest.py": "types and canonical JSON; what they hold arrives as data",
    "pipeline/bundle/tensors.py": "names of types, fixed by the protocols",
    "stages/entry.py": "settings first, errors as sentences",
    "stages/layout.py": "paths, which DVC has in its own words",
    "stages/params.py": "reads params, which DVC watches itself",
}
AROUND_A_RUN = {
    "serving/errors.py": "errors end the stage without a result",
    "serving/system/malloc.py": "gives memory back to the system",
    "serving/telemetry.py": "log lines",
    "serving/system/watchdog.py": "ends a process whose run takes too long",
}
PREPARED = {
    "pipeline/dataset.py": "what prepare was handed; its result arrives as data",
    "pipeline/split.py": "carried out by prepare; its result arrives as data",
    "pipeline/statistics.py": "measured by prepare; what was found arrives as data",
}
VIEWS = {"pipeline/views.py": "reached by the frontends; evaluate draws"}
SHOWN = {
    **VIEWS,
    "pipeline/bundle/decode": "decodes for prepare, and shows rows for evaluate",
    "pipeline/mistakes.py": "reached by the task; evaluate tells",
}
EXEMPT: dict[str, dict[str, str]] = {
    "prepare": {**VIEWS, "pipeline/forms.py": "built by train; prepare measures"},
    "train": {
        **PREPARED,
        **SHOWN,
        "pipeline/bar.py": "shows how far a training is",
        "pipeline/pictures.py": "reached by the task; evaluate draws",
        "stages/live.py": "curves on the side, and a key that follows from params and data",
        "stages/tracking/facts.py": "reached by the curves on the side",
        "stages/tracking/lock.py": "reached by the curves on the side",
        "stages/tracking/state.py": "reached by the curves on the side",
    },
    "evaluate": PREPARED,
    "export": {
        **PREPARED,
        **SHOWN,
        "pipeline/metrics.py": "reached by the task; nothing is scored here",
        "pipeline/pictures.py": "reached by the task; evaluate draws",
        "pipeline/evaluate.py": "reached by the task; nothing is scored here",
    },
    "verify": {
        **PREPARED,
        **SHOWN,
        "pipeline/forms.py": "reached by the frontends, which are in the graph by now",
        "pipeline/pictures.py": "reached by the task; evaluate draws",
        "pipeline/network.py": "reached by the task; the graph answers here",
        **AROUND_A_RUN,
    },
    "benchmark": {
        "pipeline/bundle/golden.py": "reads the rows that are timed",
        **AROUND_A_RUN,
    },
}
UNDECLARED_PATHS = {
    "build": "the folder of the others",
    "example": "one of the samples, for a person to try",
    "reports": "the folder of the others",
    "checkpoints": "DVC would delete them before a resume",
    "latency": "this machine's truth; listed under the top-level metrics",
    "lineage": "what may differ between two equal builds; ignored by DVC",
}


def stage_files(stage: str) -> set[Path]:
    """The files of `stages/` that do a stage's work."""
    shared = {ROOT / "stages" / f"{name}.py" for name in ("entry", "params", "layout", "live")}
    found = reached(ROOT / "stages" / f"{stage}.py", shared)
    return {p for p in found - shared if p.parent == ROOT / "stages" and p.name != "__init__.py"}


def chains(stage: str, variable: str) -> set[str]:
    """What a stage asks of a variable: `experiment.train.threads` is `train.threads`."""
    found = set()
    for path in stage_files(stage):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                if re.fullmatch(rf"{variable}(\.\w+)+", text):
                    found.add(text.removeprefix(f"{variable}."))
    longer = {chain for chain in found if any(other.startswith(f"{chain}.") for other in found)}
    return found - longer


def plugins_used(stage: str) -> set[str]:
    """The kinds of plug-in whose code a stage runs."""
    used = {chain.partition(".")[0] for chain in chains(stage, "experiment") if ".module" in chain}
    # `model = experiment.model`, and then `model.module.build(...)`.
    return used | ({"model"} & chains(stage, "experiment"))


def resolved(text: str, experiment: str) -> str:
    """A line of `dvc.yaml` as DVC fills it in."""

    def value(match: re.Match[str]) -> str:
        found: Any = {"key": experiment, "item": EXPERIMENTS[experiment]}
        for step in match[1].split("."):
            found = found[step]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def paths(stage: str, *kinds: str) -> Iterator[str]:
    for kind in kinds:
        for entry in STAGES[stage].get(kind, []):
            yield entry if isinstance(entry, str) else next(iter(entry))


FOLDERS = (
    "pipeline/augment",
    "pipeline/bundle/decode",
    "pipeline/folders",
    "pipeline/frontends",
    "pipeline/tasks/_shared",
)
"""Folders of code that stages declare whole: which of their files is used, the data decides."""


def modules(names: set[str] | Iterator[str]) -> set[str]:
    return {name for name in names if name.endswith(".py") or name in FOLDERS}


def declarable(path: Path) -> str:
    """What a stage declares for a file that it reaches."""
    name = str(path.relative_to(ROOT))
    return next((folder for folder in FOLDERS if name.startswith(f"{folder}/")), name)


def used_by(stage: str, chosen: dict[str, list[str]]) -> set[str]:
    """What a stage reaches with these plug-ins, as it is declared."""
    start = {ROOT / "stages" / f"{stage}.py"}
    for kind, names in chosen.items():
        folder = ROOT.joinpath(*plugins.KINDS[kind].split("."))
        start |= {folder / f"{name}.py" for name in names}
    leaves = {ROOT / name for name in EVERYWHERE}
    return {
        declarable(path)
        for file in start
        for path in reached(file, leaves)
        if path.name != "__init__.py" or declarable(path) in FOLDERS
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("stage", PURE)
def test_every_plugin_a_stage_may_run_has_its_modules_declared(stage, experiment):
    every = {kind: plugins.names(kind) for kind in plugins_used(stage)}
    own = {plugins.KINDS[kind].replace(".", "/") for kind in every}
    declared = modules(resolved(path, experiment) for path in paths(stage, "deps"))
    missing = used_by(stage, every) - declared - EVERYWHERE.keys() - EXEMPT[stage].keys()
    assert not {name for name in missing if str(Path(name).parent) not in own}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("stage", PURE)
def test_a_stage_declares_the_modules_it_reaches(stage, experiment):
    own = {kind: [EXPERIMENTS[experiment][kind]["name"]] for kind in plugins_used(stage)}
    every = {kind: plugins.names(kind) for kind in plugins_used(stage)}
    used = used_by(stage, own)
    declared = modules(resolved(path, experiment) for path in paths(stage, "deps"))
    missing = used - declared - EVERYWHERE.keys() - EXEMPT[stage].keys()
    assert not missing, f"add to the deps of {stage}, or exempt with a reason"
    # What only some plug-ins share is declared for all of them: DVC's loops have no conditionals.
    assert not declared - used_by(stage, every), f"declared for {stage}, but it never reaches them"
    assert not EXEMPT[stage].keys() - (used - declared), "an exemption that exempts nothing"
    assert not [path for path in declared if not (ROOT / path).exists()]


def test_the_plugins_a_stage_runs_are_seen():
    assert {stage: plugins_used(stage) for stage in PURE} == {
        "prepare": {"data"},
        "train": {"model", "task"},
        "evaluate": {"model", "task"},
        "export": {"model", "task"},
        "verify": {"task"},
        "benchmark": set(),
    }


def test_every_general_exemption_is_used():
    found = {p for stage in PURE for p in reached(ROOT / "stages" / f"{stage}.py", set())}
    assert not EVERYWHERE.keys() - {str(path.relative_to(ROOT)) for path in found}


def test_every_path_is_known_to_dvc():
    layout = Layout("${key}")
    properties = {n for n, value in vars(Layout).items() if isinstance(value, property)}
    named = {p for stage in STAGES for p in paths(stage, "deps", "outs", "metrics", "plots")}
    unnamed = {name for name in properties if str(getattr(layout, name)) not in named}
    assert unnamed == UNDECLARED_PATHS.keys()


@pytest.mark.parametrize("stage", PURE)
def test_a_stage_declares_the_files_it_reads_and_writes(stage):
    layout = Layout("${key}")
    properties = {n for n, value in vars(Layout).items() if isinstance(value, property)}
    used = {chain.partition(".")[0] for chain in chains(stage, "layout")} & properties
    declared = {
        p
        for p in paths(stage, "deps", "outs", "metrics", "plots")
        if p not in modules({p}) and not p.startswith("${item.")
    }
    assert declared == {str(getattr(layout, name)) for name in used - UNDECLARED_PATHS.keys()}


def test_every_file_is_written_by_one_stage():
    written = [p for stage in STAGES for p in paths(stage, "outs", "metrics", "plots")]
    assert len(written) == len(set(written))
    for stage in STAGES:
        ours = set(paths(stage, "outs", "metrics", "plots"))
        assert not ours & set(paths(stage, "deps"))
        own = [p for p in paths(stage, "deps") if p.startswith(("build", "reports", "bundles"))]
        assert not set(own) - set(written)
    assert not list(paths("benchmark", "outs", "metrics", "plots"))
    assert not list(paths("track", "outs", "metrics", "plots"))


def test_what_is_drawn_is_what_the_tasks_draw_of_the_tables_they_make():
    drawn: dict[str, Any] = {}
    for plot in DVC["plots"]:
        drawn |= plot
    expected = {}
    for name, settings in EXPERIMENTS.items():
        module = plugins.load("task", settings["task"]["name"], "task.name")
        for table, plot in module.Task.plots.items():
            expected[str(Layout(name).tables / f"{table}.csv")] = {
                "title": f"{plot.title}, {name}",
                "template": plot.template,
                "x": plot.x,
                "y": plot.y,
            }
    assert drawn == expected


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("stage", [stage for stage in PURE if stage not in ("benchmark", "verify")])
def test_a_stage_watches_the_settings_it_uses(stage, experiment):
    watched = {path.removeprefix("experiments.${key}.") for path in STAGES[stage]["params"]}
    used = {
        re.sub(r"\.(config|module)\b.*", "", chain)
        for chain in chains(stage, "experiment")
        if chain.partition(".")[0] in SECTIONS
    }
    unseen = {u for u in used if not any(f"{u}.".startswith(f"{w}.") for w in watched)}
    assert not unseen, f"{stage} uses these, and does not run again when they change"
    # A section is watched whole: DVC refuses an experiment that leaves out a setting named alone.
    for path in watched - used:
        assert any(u.startswith(f"{path}.") for u in used), f"{stage} never uses {path}"


def test_the_bundle_holds_every_setting_so_verify_watches_them_all():
    assert STAGES["verify"]["params"] == ["experiments.${key}"]


def test_every_section_is_watched_by_the_stage_it_is_for():
    sections = {s for stage in PURE if stage != "verify" for s in STAGES[stage].get("params", [])}
    for experiment in EXPERIMENTS.values():
        assert set(experiment) == set(SECTIONS)
        assert {f"experiments.${{key}}.{name}" for name in experiment} <= sections


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_its_own_module_for_each_experiment(stage):
    assert DVC["stages"][stage]["foreach"] == "${experiments}"
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage} ${{key}}"
    assert bool(STAGES[stage].get("always_changed")) == (stage == "track")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_an_experiment_starts_from_exists(experiment):
    for stage in STAGES:
        for path in (resolved(path, experiment) for path in paths(stage, "deps")):
            if not path.startswith(("build", "reports", "bundles")):
                assert (ROOT / path).exists(), path


def test_every_experiments_latency_is_listed():
    assert set(DVC["metrics"]) == {str(Layout(name).latency) for name in EXPERIMENTS}


def test_reports_are_small_texts_kept_in_git():
    for stage in STAGES:
        for kind in ("metrics", "plots"):
            for entry in STAGES[stage].get(kind, []):
                ((_, options),) = entry.items()
                assert options["cache"] is False


def test_plots_name_templates_there_are_and_columns_there_are():
    built_in = {"confusion", "bar_horizontal", "linear", "scatter", "simple", "smooth"}
    ours = {path.stem for path in (ROOT / ".dvc" / "plots").glob("*.json")}
    entries = [entry for stage in STAGES for entry in STAGES[stage].get("plots", [])]
    for entry in (*entries, *DVC["plots"]):
        (options,) = entry.values()
        assert options["template"] in built_in | ours
        assert options["x"] and options["y"] and options["title"]
