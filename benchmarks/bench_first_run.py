"""From a clean clone to a summary, and what a second run costs.

    python benchmarks/bench_first_run.py [--make-arguments 'TORCH_INDEX=...']

Clones the committed state of this repository into an empty folder, runs `make run` there with its
own environment, then times a second `dvc repro` beside `dvc status`. Prints seconds.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
ROUNDS = 5


@click.command()
@click.option("--make-arguments", default="", help="Passed to make.")
def main(make_arguments: str) -> None:
    """Print each part's wall seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "slipway")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        extra = make_arguments.split()
        setup = seconds(["make", "setup", *extra], clone)
        first = seconds(["make", "run", *extra], clone)
        print(
            f"make run from a clean clone: {setup + first:.0f} s, "
            f"of which {setup:.0f} s set-up and {first:.0f} s `dvc repro` with its summary"
        )
        programs = clone / ".venv" / "bin"
        environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        status = [seconds(["dvc", "status", "-q"], clone, environment) for _ in range(ROUNDS)]
        second = [seconds(["dvc", "repro", "-q"], clone, environment) for _ in range(ROUNDS)]
        print(
            f"a second `dvc repro`: {min(second):.2f} s, `dvc status`: {min(status):.2f} s, "
            f"difference {min(second) - min(status):.2f} s (best of {ROUNDS} each)"
        )


def seconds(command: list[str], folder: Path, extra: dict[str, str] | None = None) -> float:
    """Wall seconds of a command, whose output goes through."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env={**os.environ, **(extra or {})}, check=False)
    # `dvc status` answers 1 where a stage is always changed, as `track` is.
    if done.returncode and command[:2] != ["dvc", "status"]:
        raise SystemExit(f"{' '.join(command)} left with {done.returncode}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
