"""One bundle on the CPU and on a CUDA device, by every way of running it there.

    python benchmarks/bench_cuda.py [BUNDLE] [--seconds 2] [--require] [--json]

Each way runs in a process of its own, and its answers are held against the CPU's before anything is
timed. Without a device it says why and times nothing; `--require` makes that a failure.
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

ROOT = Path(__file__).resolve().parents[1]
BUCKETS = [1, 8, 64]
ROWS = (1, 5, 8, 64)
WAYS: dict[str, dict[str, Any]] = {
    "cpu": {"provider": "cpu"},
    "cuda": {"provider": "require", "cuda": {"io_binding": False}},
    "cuda, buffers": {"provider": "require"},
    "cuda, buffers, buckets": {"provider": "require", "buckets": BUCKETS},
    "cuda, buffers, buckets, graphs": {
        "provider": "require",
        "buckets": BUCKETS,
        "cuda": {"enable_cuda_graph": True},
    },
}


@click.command()
@click.argument("bundle", default="bundles/digits-cnn")
@click.option("--seconds", default=2.0, show_default=True, help="Length of each measurement.")
@click.option("--require", is_flag=True, help="Fail where there is no CUDA device.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
@click.option("--way", hidden=True, help="Measure this way, in this process.")
def main(bundle: str, seconds: float, require: bool, as_json: bool, way: str | None) -> None:
    """Measure BUNDLE on the CPU and on CUDA, and print the ratios."""
    if not Path(bundle, "manifest.json").is_file():
        raise click.UsageError(f"{bundle}: not a bundle; `dvc repro` builds bundles/digits-cnn")
    if way:
        print(json.dumps(measure(bundle, way, seconds)))
        return
    found = {name: contender(bundle, name, seconds) for name in WAYS}
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        report(found)
    if require and any("refused" in result for result in found.values()):
        sys.exit(1)


def contender(bundle: str, way: str, seconds: float) -> dict[str, Any]:
    """What one way measured, or why it could not, from a process of its own."""
    command = [sys.executable, __file__, bundle, "--way", way, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(bundle: str, way: str, seconds: float) -> dict[str, Any]:
    """p50 and p99 in milliseconds by rows, with the seconds until the first answer."""
    sys.path.insert(0, str(ROOT))
    from pipeline.bundle import golden
    from pipeline.bundle.manifest import read
    from serving.config import RuntimeSettings
    from serving.errors import ModelRefused
    from serving.inference.runtime import open_session

    whole = read(Path(bundle))
    payload = whole.contents[whole.manifest.variants["fp32"].file]
    inputs, _ = golden.unpack(whole.contents[whole.manifest.golden.file])
    settings = RuntimeSettings.model_validate(WAYS[way])
    began = time.perf_counter()
    try:
        session = open_session(payload, settings)
    except ModelRefused as error:
        return {"refused": str(error)}
    session.warm(inputs)
    plain = open_session(payload)
    result: dict[str, Any] = {"ready_s": round(time.perf_counter() - began, 3), "rows": {}}
    for count in ROWS:
        arrays = {k: np.resize(v, (count, *v.shape[1:])) for k, v in inputs.items()}
        wanted, answers = plain.run(arrays), session.run(arrays)
        worst = max(float(np.abs(answers[k] - wanted[k]).max()) for k in wanted)
        if worst > 1e-3:
            raise SystemExit(f"{way}, {count} rows: differs from the CPU by {worst:.3g}")
        lasted, ends = [], time.perf_counter() + seconds / len(ROWS)
        while time.perf_counter() < ends or len(lasted) < 20:
            start = time.perf_counter()
            session.run(arrays)
            lasted.append(time.perf_counter() - start)
        p50, p99 = np.percentile(lasted, (50, 99)) * 1000
        result["rows"][str(count)] = {
            "p50_ms": round(float(p50), 4),
            "p99_ms": round(float(p99), 4),
            "difference": worst,
        }
    return result


def report(found: dict[str, dict[str, Any]]) -> None:
    """A line for each way and row count, as a ratio to the CPU's."""
    base = found["cpu"]["rows"]
    print(f"{'way':34}{'rows':>6}{'p50 ms':>10}{'p99 ms':>10}{'times the CPU':>15}")
    for way, result in found.items():
        if "refused" in result:
            print(f"{way:34}not measured: {result['refused']}")
            continue
        for count, times in result["rows"].items():
            ratio = base[count]["p50_ms"] / times["p50_ms"]
            print(
                f"{way:34}{count:>6}{times['p50_ms']:>10.3f}{times['p99_ms']:>10.3f}{ratio:>14.2f}x"
            )


if __name__ == "__main__":
    main()
