"""Two workers beside one, in turns, and what a worker weighs beside bare ONNX Runtime.

Throughput wants wrk; without it only memory is printed. PSS counts memory that processes share in
equal parts, so that the parts of all add up.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.bundle.manifest import Bundle, read

READY = re.compile(r"^ready: .* on (http://\S+)", re.M)
LUA = """
local file = assert(io.open("%s", "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/json"
file:close()
"""
BARE = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = dict(numpy.load(sys.argv[2], allow_pickle=False))
rows = {k.removeprefix("in/"): v for k, v in rows.items() if k.startswith("in/")}
for _ in range(100):
    session.run(None, rows)
print("there", flush=True)
time.sleep(60)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", default="bundles/digits-cnn", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    arguments = parser.parse_args()
    bundle = read(arguments.bundle)
    memory(arguments.bundle, bundle)
    if shutil.which("wrk"):
        throughput(arguments.bundle, bundle, arguments.turns, arguments.seconds)
    else:
        print("throughput: not measured, there is no wrk here")


class Server:
    """`slipway serve` with so many workers."""

    def __init__(self, folder: Path, workers: int) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "serve", str(folder), "--port", "0"]
        command += ["--workers", str(workers), "--no-access-log", "--no-grpc"]
        command += ["--log-format", "text"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        for line in self.process.stderr:
            if found := READY.match(line):
                self.url = found[1]
                return
        raise SystemExit("the server did not start")

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def memory(folder: Path, bundle: Bundle) -> None:
    """PSS of a worker, of two, and of a bare session, each after the same runs."""
    variant = bundle.manifest.variants["fp32"]
    paths = [str(folder / variant.file), str(folder / bundle.manifest.golden.file)]
    bare = subprocess.Popen([sys.executable, "-c", BARE, *paths], stdout=subprocess.PIPE)
    assert bare.stdout
    bare.stdout.readline()
    floor = pss(bare.pid)
    bare.kill()
    bare.wait()
    print(f"bare ONNX Runtime with the model: {floor:.0f} MB")
    for count in (1, 2):
        server = Server(folder, count)
        time.sleep(1)
        each = [pss(pid) for pid in server.workers()]
        print(
            f"{count} worker(s): {statistics.mean(each):.0f} MB each "
            f"({statistics.mean(each) - floor:+.0f}), supervisor {pss(server.process.pid):.0f} MB"
        )
        server.stop()


def throughput(folder: Path, bundle: Bundle, turns: int, seconds: int) -> None:
    """Requests a second of one row in JSON over 64 connections, one and two workers in turns."""
    source = bundle.manifest.inputs[0]
    url = f"/v2/models/{bundle.manifest.name}/infer"
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "post.lua"
        (Path(scratch) / "body").write_text(json.dumps({"inputs": [one_row(folder, bundle)]}))
        script.write_text(LUA % (Path(scratch) / "body"))
        servers = {count: Server(folder, count) for count in (1, 2)}
        seen: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(turns + 1):
            for count, server in servers.items():
                command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-s", str(script)]
                done = subprocess.run([*command, server.url + url], capture_output=True, text=True)
                found = re.search(r"Requests/sec: +([0-9.]+)", done.stdout)
                assert found and "Non-2xx" not in done.stdout, done.stdout + done.stderr
                if turn:  # the first is for warming up
                    seen[count].append(float(found[1]))
        for server in servers.values():
            server.stop()
    ratios = [two / one for one, two in zip(seen[1], seen[2], strict=True)]
    print(f"input {source.name}, wrk -t1 -c64, {turns} turns of {seconds} s each")
    for count, rates in seen.items():
        told = ", ".join(f"{rate:.0f}" for rate in rates)
        print(f"{count} worker(s): {statistics.median(rates):.0f} requests/s ({told})")
    print(f"two beside one: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def one_row(folder: Path, bundle: Bundle) -> dict[str, object]:
    """The first golden row as a JSON input."""
    source = bundle.manifest.inputs[0]
    with np.load(folder / bundle.manifest.golden.file, allow_pickle=False) as golden:
        row = golden[f"in/{source.name}"][:1]
    names = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32", "int16": "INT16"}
    return {
        "name": source.name,
        "shape": list(row.shape),
        "datatype": names[source.dtype],
        "data": row.reshape(-1).tolist(),
    }


def pss(pid: int) -> float:
    """MB of memory, shared parts divided among those who share them."""
    found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert found
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
