"""What is declared, what is pinned and what the Makefile does agree with one another."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ["3.11", "3.12", "3.13"]

# Each hashed lock file and the extras it pins.
LOCKS = {
    "train.txt": ["train", "serve", "dev"],
    "serve.txt": ["serve"],
    "serve-cuda.txt": ["serve-cuda"],
}
# torch, and what its CUDA build brings and its CPU build does not.
ONE_BUILD_OF_TORCH = re.compile(r"torch|triton|(nvidia|cuda)-.*")


def lock_text(name: str) -> str:
    return (ROOT / "requirements" / name).read_text()


def lock_entries(name: str) -> list[str]:
    """The pins of a lock file, one logical line each: `name==1.0 --hash=... --hash=...`."""
    joined = lock_text(name).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()[:1] not in ("", "#")]


def pins(name: str) -> dict[str, str]:
    """The distributions of a lock file and the version each is held at."""
    held = {}
    for entry in lock_entries(name):
        requirement = Requirement(entry.split(" --hash")[0])
        specifier = str(requirement.specifier)
        assert re.fullmatch(r"==[^*,]+", specifier), f"{name}: not pinned: {requirement}"
        distribution = canonicalize_name(requirement.name)
        assert distribution not in held, f"{name}: {distribution} is pinned twice"
        held[distribution] = specifier.removeprefix("==")
    return held


def declared(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += EXTRAS[extra]
    return [Requirement(line) for line in lines]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def make(
    *arguments: str, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    # `make test` runs these tests: what it was told must not reach the make that is tested.
    kept = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *arguments, "VENV=.venv"],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


# What pyproject.toml declares.


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_never_holds_both_onnxruntime_wheels(extra: str) -> None:
    both = {"onnxruntime", "onnxruntime-gpu"}
    assert not both <= names(declared(extra)), "they install the same package over each other"


def test_the_cuda_extra_differs_from_the_cpu_one_only_in_the_wheel() -> None:
    cpu, cuda = set(EXTRAS["serve"]), set(EXTRAS["serve-cuda"])
    assert {Requirement(line).name for line in cpu ^ cuda} == {"onnxruntime", "onnxruntime-gpu"}


def test_no_base_dependency_picks_an_onnxruntime_for_everyone() -> None:
    assert not {"onnxruntime", "onnxruntime-gpu", "torch"} & names(declared())


@pytest.mark.parametrize(
    "line",
    [
        *PYPROJECT["build-system"]["requires"],
        *PROJECT["dependencies"],
        *(line for extra in EXTRAS.values() for line in extra),
    ],
)
def test_a_dependency_has_a_lower_and_an_upper_bound(line: str) -> None:
    operators = {specifier.operator for specifier in Requirement(line).specifier}
    assert operators == {">=", "<"}, f"{line}: write NAME>=tested,<next"


def test_one_range_for_one_dependency() -> None:
    ranges: dict[str, set[str]] = {}
    for requirement in declared(*EXTRAS):
        ranges.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert {name: found for name, found in ranges.items() if len(found) > 1} == {}


HOST = ["pipeline/__init__.py", "pipeline/cli.py", "pipeline/bundle/**/*.py", "serving/**/*.py"]
TRAINING = ["pipeline/**/*.py", "stages/**/*.py"]


def woken(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`, which no process runs."""
    if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from woken(child)


@pytest.mark.parametrize(("half", "extra"), [(HOST, "serve"), (TRAINING, "train")])
def test_whatever_is_imported_is_declared(half: list[str], extra: str) -> None:
    ours = {"pipeline", "stages", "serving"}
    providers = packages_distributions()
    # pydantic's own parts: it pins the one exactly and documents imports from the other.
    known = names(declared(extra)) | {"pydantic-core", "annotated-types"}
    undeclared = []
    for file in sorted({file for pattern in half for file in ROOT.glob(pattern)}):
        for node in woken(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            else:
                continue
            for top in {module.partition(".")[0] for module in modules}:
                if top in ours or top in sys.stdlib_module_names:
                    continue
                if not {canonicalize_name(name) for name in providers.get(top, [])} & known:
                    undeclared.append(f"{file.relative_to(ROOT)}:{node.lineno}: {top}")
    assert undeclared == [], f"add it to `{extra}` in pyproject.toml, then run `make lock`"


def test_the_pythons_named_in_different_places_agree() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}.5" in supported] == PYTHONS

    label = "Programming Language :: Python :: 3."
    classifiers = [line for line in PROJECT["classifiers"] if line.startswith(label)]
    assert [line.rpartition(" ")[2] for line in classifiers] == PYTHONS

    fits = re.search(r"\((\d+), (\d+)\) <= .* < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    assert fits is not None
    major, low, _, high = map(int, fits.groups())
    assert [f"{major}.{minor}" for minor in range(low, high)] == PYTHONS

    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    matrix = re.search(r"python: \[(.*)\]", workflow)
    assert matrix is not None
    assert re.findall(r"[\d.]+", matrix[1]) == PYTHONS


# What the lock files pin.


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes(lock: str) -> None:
    entries = lock_entries(lock)
    assert entries
    for entry in entries:
        hashes = re.findall(r"--hash=(\S+)", entry)
        assert hashes, f"no hash: {entry}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), entry


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_not_tied_to_one_build_of_torch(lock: str) -> None:
    assert [name for name in pins(lock) if ONE_BUILD_OF_TORCH.fullmatch(name)] == []


def test_torch_is_pinned_apart_so_that_any_build_of_it_fits() -> None:
    (entry,) = lock_entries("torch.txt")
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", entry), "no hash, no +cpu or +cuda: one build"


@pytest.mark.parametrize("lock", [*LOCKS, "torch.txt"])
def test_a_lock_names_no_index_host_or_folder(lock: str) -> None:
    for line in lock_text(lock).splitlines():
        assert not re.search(r"://|file:|\s@\s|(^|[\s=])[/~]|[A-Za-z]:\\", line), line
        allowed = re.fullmatch(r"\s*#.*|[a-z0-9].*|\s+--hash=sha256:\S+( \\)?|", line)
        assert allowed, f"pip option in {lock}: {line}"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_what_is_declared(lock: str, python: str) -> None:
    held = pins(lock) | pins("torch.txt")
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    wanted = declared(*LOCKS[lock])
    if lock == "train.txt":  # it builds the editable install
        wanted += [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        version = held.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {requirement.name}: run `make lock`"
        assert requirement.specifier.contains(version), f"{lock}: {version}; wanted {requirement}"


def test_the_host_serves_with_the_versions_that_the_bundle_was_proven_with() -> None:
    train = pins("train.txt")
    for lock in ("serve.txt", "serve-cuda.txt"):
        for name, version in pins(lock).items():
            assert version == train[name.removesuffix("-gpu")], f"{lock}: {name}"


@pytest.mark.parametrize("lock", ["serve.txt", "serve-cuda.txt"])
def test_a_serving_host_gets_nothing_of_the_training_half(lock: str) -> None:
    assert not {"torch", "dvc", "mlflow", "mlflow-skinny", "scikit-learn", "pandas"} & set(
        pins(lock)
    )
    assert len({"onnxruntime", "onnxruntime-gpu"} & set(pins(lock))) == 1


# What the Makefile does.


def test_help_lists_every_chore() -> None:
    text = (ROOT / "Makefile").read_text()
    chores = set(re.findall(r"^([a-z][a-z-]*):(?! [A-Z]+ =)", text, flags=re.MULTILINE))
    assert {"run", "test", "lint", "serve", "ui", "bench", "lock", "clean"} <= chores
    answer = make("help")
    assert answer.returncode == 0, answer.stderr
    assert set(re.findall(r"^  make (\S+)  +\S", answer.stdout, flags=re.MULTILINE)) == chores
    assert make("-n").stdout == make("-n", "help").stdout, "plain `make` shows them too"


def test_a_second_server_takes_ports_of_its_own() -> None:
    """`-n` shows the command; the environment that it would set up first is another test's."""
    ready = ("-n", "-o", ".venv/.ready", "serve")
    assert "--port 8000 --grpc-port 8001" in make(*ready).stdout
    assert "--port 8080 --grpc-port 8081" in make(*ready, "PORT=8080").stdout
    assert "--port 8080 --grpc-port 9000" in make(*ready, "PORT=8080", "GRPC_PORT=9000").stdout


def test_a_python_that_is_too_old_is_refused_by_name(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.10.13 || exit 1\n')
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    answer = make("setup", f"PYTHON={old}", folder=tmp_path)
    assert answer.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in answer.stderr
    assert "Python 3.10.13" in answer.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_set_up_that_failed_is_not_taken_for_done(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/torch.txt").write_text("torch==2.13.0\n")
    missing = f"a-package-that-is-not-there==1.0 --hash=sha256:{'0' * 64}\n"
    (tmp_path / "requirements/train.txt").write_text(missing)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    for _ in range(2):  # the second time over what the first left behind
        answer = make("setup", f"PYTHON={sys.executable}", folder=tmp_path, **offline)
        assert answer.returncode != 0
        assert "a-package-that-is-not-there" in answer.stderr
        assert not (tmp_path / ".venv/.ready").exists()


# What DVC is told.


def test_dvc_reports_to_nobody() -> None:
    config = configparser.ConfigParser()
    config.read_string((ROOT / ".dvc/config").read_text().replace("    ", ""))
    assert config.getboolean("core", "analytics") is False
    assert config.getboolean("core", "check_update") is False
