"""Who imports whom, read from every file's text and seen in fresh processes."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HALVES = ("pipeline", "stages", "serving")
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "dvc",
    "mlflow",
    "sklearn",
    "matplotlib",
    "scipy",
    "pandas",
}

SHARED = ("pipeline", "pipeline.bundle", "pipeline.cli", "pipeline.config")
"""What a serving host has of the training half's package."""

LAYERS = (
    ("serving.commands", "serve verify inspect bench predict pull key reference folders"),
    ("serving.load", "generator work picture outcome histogram alarm"),
    (
        "serving.client",
        "asynchronous blocking caller sockets transports kept calls answers reading retries address"
        " errors",
    ),
    ("serving", "launch app"),
    (
        "serving.doors.http",
        "server connection shared answer_head reader middleware rest infer status exchange compression"
        " manual openapi",
    ),
    (
        "serving.doors.grpc",
        "rpc infer calls patience access health_reflection core status",
    ),
    ("serving.doors", "offload access tls"),
    (
        "serving.codecs",
        "proto_templates json_templates codec_json codec_proto proto_fields long_lists tensor_head"
        " tensor_data",
    ),
    ("serving", "dataplane"),
    (
        "serving.models",
        "control changes plan self_test repository loader slot lineup shelf layout trial"
        " mlflow_registry",
    ),
    (
        "serving.inference",
        "model prediction contract batching graph runtime binding buckets providers",
    ),
    (
        "serving.workers",
        "supervisor announcement worker stderr restarts after_fork scoreboard two_phase_commit channel",
    ),
    (
        "serving.observability",
        "accounting access_log tracing call exposition families statistics metrics ledger cells",
    ),
    (
        "serving.system",
        "sockets host watchdog file_watch anonymous_files malloc",
    ),
    ("serving.proto", "inference"),
    ("serving", "telemetry config protocol errors"),
)
"""Serving from the top down, a package a line and its files in order: each file imports only files
further on, and no package one that stands before it. A new file finds its place here."""

SPEAKING = ("client", "proto")

ORDER = [f"{package}.{name}" for package, names in LAYERS for name in names.split()]


def module_name(path: Path) -> str:
    steps = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(steps[:-1] if steps[-1] == "__init__" else steps)


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


MODULES = {module_name(path): path for path in files(*HALVES)}


def nodes(path: Path, *, loading_only: bool) -> Iterator[ast.AST]:
    """Every node of a file; with `loading_only`, those that run while it is imported."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        yield node
        if loading_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if loading_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)


def imports(path: Path, *, loading_only: bool = False) -> set[str]:
    """The modules that a file imports; `from a import b` is `a.b` where that is a module."""
    found: set[str] = set()
    for node in nodes(path, loading_only=loading_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inside & MODULES.keys()
            found |= modules or {node.module}
            found |= {node.module} if modules != inside else set()
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offenders(folders: list[Path], *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in folders
        for name in sorted(imports(path))
        if within(name, *forbidden)
    ]


def loaded(code: str, **environment: str) -> set[str]:
    """The modules that a fresh process has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def import_all(names: list[str]) -> str:
    return "import importlib\nfor name in " + repr(names) + ":\n    importlib.import_module(name)"


def heads(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_importing_pipeline_wakes_nothing():
    seen = loaded("import pipeline")
    assert not heads(seen) & (HEAVY | {"numpy", "pydantic", "PIL", "click"})


def test_the_bundle_is_free_of_torch():
    seen = loaded(import_all([name for name in MODULES if within(name, "pipeline.bundle")]))
    assert not heads(seen) & HEAVY
    assert {name for name in seen if within(name, "pipeline")} - {"pipeline"} == {
        name for name in MODULES if within(name, "pipeline.bundle")
    }


def test_settings_are_checked_without_torch():
    assert not heads(loaded("import stages.params, stages.entry")) & HEAVY


def test_the_command_line_wakes_only_itself():
    assert not heads(loaded("import pipeline.cli")) & (HEAVY | {"numpy", "pydantic"})


def test_the_supervisor_wakes_nothing_that_can_crash_or_has_threads():
    """What `slipway serve` has loaded when it forks its workers, and its one thread."""
    code = """
import os, pathlib, serving.launch, serving.commands.serve as command
from serving.config import Settings
command.resolve_bundle(".")
command.with_options(Settings(), {"workers": 2})
serving.launch.worker_count(Settings(workers="auto"))
assert len(list(pathlib.Path("/proc/self/task").glob("*"))) <= 1  # none where there is no /proc
"""
    seen = heads(loaded(code))
    assert "serving" in seen
    assert not seen & (HEAVY | {"numpy", "grpc", "uvloop", "PIL"})


def test_every_module_of_serving_loads_without_the_training_half():
    seen = loaded(import_all([name for name in MODULES if within(name, "serving")]))
    assert not heads(seen) & (HEAVY - {"onnxruntime"} | {"stages"})
    training = {name for name in seen if within(name, "pipeline") and name != "pipeline"}
    assert not [name for name in training if not within(name, *SHARED[1:])]


def test_a_host_needs_no_more_of_pipeline_than_is_shared(tmp_path):
    for name in SHARED[1:]:
        source = ROOT.joinpath(*name.split("."))
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source.with_suffix(".py"), target.with_suffix(".py"))
    shutil.copy(ROOT / "pipeline" / "__init__.py", tmp_path / "pipeline")
    shutil.copytree(ROOT / "serving", tmp_path / "serving")
    code = f"import os; os.chdir({str(tmp_path)!r})\n"
    code += import_all([name for name in MODULES if within(name, "serving", *SHARED[1:])])
    code += f"\nimport pipeline\nassert pipeline.__file__.startswith({str(tmp_path)!r})"
    loaded(code, PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")


def test_pipeline_imports_neither_serving_nor_tracking():
    assert not offenders(files("pipeline"), "serving", "stages", "mlflow")


def test_serving_imports_only_what_a_host_has():
    assert not offenders(files("serving"), "torch", "mlflow", "stages", "sklearn", "matplotlib")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files("serving")
        for name in imports(path)
        if within(name, "pipeline") and not within(name, *SHARED[1:])
    ]
    assert not wrong


def test_stages_use_the_runtime_and_little_else_of_serving():
    allowed = ("serving.inference.runtime", "serving.errors")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files("stages")
        for name in imports(path)
        if within(name, "serving") and not within(name, *allowed)
    ]
    assert not wrong


def test_only_tracking_imports_mlflow():
    outside = [path for path in files(*HALVES) if "tracking" not in path.parts]
    assert not offenders(outside, "mlflow")
    assert offenders(files("stages/tracking"), "mlflow")  # the walk sees what it looks for


def test_only_the_runtime_imports_onnx_runtime():
    runtime = ROOT / "serving" / "inference" / "runtime.py"
    assert not offenders([p for p in files("serving", "pipeline") if p != runtime], "onnxruntime")
    assert offenders([runtime], "onnxruntime")


def test_nothing_imports_dvc():
    assert not offenders(files(*HALVES, "tests", "benchmarks"), "dvc")


def test_models_never_import_tasks_and_the_loop_imports_neither():
    assert not offenders(files("pipeline/models"), "pipeline.tasks", "pipeline.train")
    loop = [ROOT / "pipeline" / "train.py"]
    assert not offenders(loop, "pipeline.models", "pipeline.tasks", "pipeline.plugins")


def test_each_file_of_serving_imports_only_files_below_it():
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    ours = {name for name in MODULES if within(name, "serving")} - faces
    assert ours == set(ORDER) and len(ORDER) == len(ours), "give each file one place in LAYERS"
    wrong = [
        f"{name} imports {other}"
        for place, name in enumerate(ORDER)
        for other in sorted(imports(MODULES[name]) & ours - set(ORDER[place + 1 :]))
    ]
    assert not wrong


def test_the_packages_of_serving_wake_nothing():
    """`serving.client` hands its names on, and `serving.proto` its schemas; the others are a line."""
    silent = [p for p in (ROOT / "serving").rglob("__init__.py") if p.parent.name not in SPEAKING]
    assert len(silent) > 9
    assert not {str(p.relative_to(ROOT)) for p in silent if len(ast.parse(p.read_text()).body) != 1}


def test_neither_door_knows_the_other():
    assert not offenders(files("serving/doors/http"), "grpc", "serving.doors.grpc")
    assert not offenders(files("serving/doors/grpc"), "httptools", "serving.doors.http")


def test_no_module_imports_itself_in_a_circle():
    edges = {
        name: {other for other in imports(path, loading_only=True) if other in MODULES} - {name}
        for name, path in MODULES.items()
    }
    circles = [group for group in strongly_connected(edges) if len(group) > 1]
    assert not circles


def strongly_connected(edges: dict[str, set[str]]) -> list[set[str]]:
    """Tarjan's components of a graph (1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in edges[node]:
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            cut = stack.index(node)
            groups.append(set(stack[cut:]))
            del stack[cut:]

    for node in edges:
        if node not in number:
            visit(node)
    return groups


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert {frozenset(group) for group in strongly_connected(edges)} == {
        frozenset("abc"),
        frozenset("d"),
    }


def dangers(tree: ast.AST) -> list[str]:
    """What runs code out of data: pickles, eval, a shell."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            risky = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
            found += [f"import {name}" for name in names if name.partition(".")[0] in risky]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "os.system", "os.popen", "yaml.load"):
            found.append(f"{called}()")
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load() without weights_only=True")
        if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append(f"{called}() without allow_pickle=False")
        if given.get("shell", "False") != "False":
            found.append(f"{called}(shell=...)")
        if called.endswith("YAML") and given.get("typ") not in ("'safe'", "'rt'", None):
            found.append(f"{called}(typ={given['typ']})")
    return found


def test_nothing_runs_code_out_of_data():
    found = {path: dangers(ast.parse(path.read_text())) for path in files(*HALVES)}
    assert not {str(path.relative_to(ROOT)): d for path, d in found.items() if d}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=wanted)",
        "yaml.load(text)",
        "YAML(typ='unsafe')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_dangers_are_found(code):
    assert dangers(ast.parse(code))
