"""The serving half alone on a host: its size, what it lacks, and a bundle from training to answer.

    python benchmarks/bench_serving_install.py [EXPERIMENT]

Installs `.[serve]` into an empty environment, starts an MLflow server on this project's runs,
registers the experiment's bundle there, pulls it with the host's own `slipway`, serves it, and
compares the digest in the answer with the bundle's. Needs a finished `dvc repro`.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
FOREIGN = ("torch", "mlflow", "dvc")
NOT_COUNTED = ("pip", "setuptools", "pkg_resources", "_distutils_hack")


@click.command()
@click.argument("experiment", default="digits-cnn")
def main(experiment: str) -> None:
    """Print each figure."""
    with tempfile.TemporaryDirectory() as scratch:
        host = Path(scratch, "host")
        subprocess.run([sys.executable, "-m", "venv", host], check=True)
        subprocess.run([host / "bin" / "pip", "install", "-q", f"{ROOT}[serve]"], check=True)
        packages = next((host / "lib").glob("python*/site-packages"))
        print(
            f"serving install: {megabytes(packages):.0f} MB of site-packages without pip and setuptools"
        )
        found = [name for name in FOREIGN if (packages / name).exists()]
        print(f"torch, mlflow, dvc: {'found ' + ', '.join(found) if found else 'none of them'}")
        through_the_registry(experiment, host / "bin" / "slipway", Path(scratch))


def through_the_registry(experiment: str, slipway: Path, scratch: Path) -> None:
    """Register here, pull and serve on the host, and compare digests."""
    expected = hashlib.sha256(
        (ROOT / "bundles" / experiment / "manifest.json").read_bytes()
    ).hexdigest()
    port, address = free_port(), "http://127.0.0.1:"
    ui = [sys.executable, "-m", "stages.commands.ui", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"{address}{port}"}
    plain = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    server = subprocess.Popen(
        ui, cwd=ROOT, env=plain, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        answered(f"{address}{port}/health", 60)
        here = Path(sys.executable).parent / "slipway"
        subprocess.run(
            [here, "register", experiment, "--alias", "champion"],
            cwd=ROOT,
            env=environment,
            check=True,
        )
        repository = scratch / "repository"
        source = f"models:/{experiment}@champion"
        subprocess.run(
            [slipway, "pull", source, "--to", repository], cwd=scratch, env=environment, check=True
        )
    finally:
        server.terminate()
        server.wait(30)
    serve_and_compare(experiment, [str(slipway), "serve", str(repository)], scratch, expected)


def serve_and_compare(experiment: str, command: list[str], folder: Path, expected: str) -> None:
    """Start the host's server, time it, and hold its digest against the trained bundle's."""
    port = free_port()
    start = time.perf_counter()
    command = [*command, "--port", str(port), "--no-access-log"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        answered(f"http://127.0.0.1:{port}/v2/health/ready", 30)
        print(f"slipway serve: ready {time.perf_counter() - start:.2f} s after its start")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{experiment}") as answer:
            served = json.load(answer)["properties"]["bundle"]
    finally:
        server.terminate()
        server.wait(30)
    print(f"bundle trained here  {expected}\nbundle served there  {served}")
    if served != expected:
        raise SystemExit("the digests differ")


def megabytes(packages: Path) -> float:
    """Size of the installed files, in 10**6 bytes."""
    files = (
        path
        for path in packages.rglob("*")
        if path.is_file() and not path.relative_to(packages).parts[0].startswith(NOT_COUNTED)
    )
    return sum(path.stat().st_size for path in files) / 1e6


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answered(url: str, seconds: float) -> None:
    """Wait until `url` answers 200."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(f"{url} did not answer within {seconds} s") from None
            time.sleep(0.02)


if __name__ == "__main__":
    main()
