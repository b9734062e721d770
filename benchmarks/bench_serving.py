"""The server against its ceiling: raw ONNX Runtime in a loop, same bundle, same machine.

    python benchmarks/bench_serving.py [BUNDLE] [--seconds 2] [--json]

The raw loop, the server and the load (`slipway bench`) each run in a process of their own; every answer
is compared with the golden rows. What counts is the ratio within one run: a busy machine moves both sides.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from served import Served, environment

CASES = {"json, 1 connection": ("json", 1), "binary, 1 connection": ("binary", 1)} | {
    "json, 64 connections": ("json", 64),
    "binary, 64 connections": ("binary", 64),
}


@click.command()
@click.argument("bundle", default="bundles/digits-cnn")
@click.option("--seconds", default=2.0, show_default=True, help="Length of each measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
def main(bundle: str, seconds: float, as_json: bool) -> None:
    """Measure BUNDLE raw and served, and print the ratios."""
    if not Path(bundle, "manifest.json").is_file():
        raise click.UsageError(f"{bundle}: not a bundle; `dvc repro` builds bundles/digits-cnn")
    raw = answered([sys.executable, __file__, "--as-raw", bundle, str(seconds)])
    ready, served = measure_server(bundle, seconds)
    result: dict[str, Any] = {
        "bundle": bundle,
        "seconds_to_ready": round(ready, 3),
        "raw_batch_1_per_second": round(raw["rate"]),
        "served": {
            name: {
                "per_second": round(found["rate"]),
                "p50_ms": round(found["p50_ms"], 3),
                "p99_ms": round(found["p99_ms"], 3),
                "server_cpu_us": round(found["cpu_us"], 1),
                "ratio_to_raw": round(found["rate"] / raw["rate"], 3),
            }
            for name, found in served.items()
        },
    }
    if not as_json:
        print(f"{bundle}: ready in {ready:.2f} s, raw ONNX Runtime {raw['rate']:.0f} rows/s")
        print(
            f"{'served':<24}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}{'of raw':>9}"
        )
        for name, found in result["served"].items():
            print(
                f"{name:<24}{found['per_second']:>12}{found['p50_ms']:>9}{found['p99_ms']:>9}"
                f"{found['server_cpu_us']:>9}{found['ratio_to_raw']:>9}"
            )
    print(json.dumps(result))


def measure_server(bundle: str, seconds: float) -> tuple[float, dict[str, dict[str, float]]]:
    """(seconds from process start to ready, figures by case)."""
    figures = {}
    with Served(bundle) as served:
        for name, (form, connections) in CASES.items():
            before = served.cpu_seconds()
            load = [sys.executable, "-m", "pipeline.cli", "bench", served.url, "--bundle", bundle]
            load += ["--format", form, "--connections", str(connections), "--json", "-"]
            found = answered([*load, "--seconds", str(seconds), "--warm-up", "0"])["stretches"][0]
            figures[name] = {
                "rate": found["answered_per_second"],
                "p50_ms": found["latency_ms"]["p50"],
                "p99_ms": found["latency_ms"]["p99"],
                "cpu_us": (served.cpu_seconds() - before) / found["requests"] * 1e6,
            }
    return served.seconds_to_ready, figures


def answered(command: list[str]) -> dict[str, Any]:
    """What a process of its own prints as JSON."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise click.ClickException(done.stderr or done.stdout)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def golden_row(bundle: str) -> tuple[dict[str, np.ndarray], Any]:
    """(inputs of one row, the bundle)."""
    from pipeline.bundle import golden
    from pipeline.bundle.manifest import read

    found = read(Path(bundle))
    inputs, _ = golden.unpack(found.contents[found.manifest.golden.file])
    return {name: rows[:1] for name, rows in inputs.items()}, found


def raw(bundle: str, seconds: str) -> dict[str, float]:
    """`session.run` of one row in a loop, one thread, nothing else."""
    from serving.inference.runtime import open_session

    inputs, found = golden_row(bundle)
    session = open_session(found.contents[found.manifest.variants["fp32"].file])
    for _ in range(200):
        session.run(inputs)
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + float(seconds):
        for _ in range(50):
            session.run(inputs)
        count += 50
    return {"rate": count / (time.perf_counter() - began)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-raw"]:
        print(json.dumps(raw(*sys.argv[2:])))
    else:
        main()
