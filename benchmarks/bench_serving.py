"""The server against its ceiling: raw ONNX Runtime in a loop, same bundle, same machine.

    python benchmarks/bench_serving.py [BUNDLE] [--seconds 2] [--json]

The raw loop, the server and the client each run in a process of their own; answers are compared
before anything is timed. What counts is the ratio within one run: a busy machine moves both sides.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
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
    raw = contender("raw", bundle, str(seconds))
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
    with tempfile.TemporaryDirectory() as folder, Path(folder, "err").open("wb+") as told:
        began = time.monotonic()
        command = [sys.executable, "-m", "pipeline.cli", "serve", bundle, "--port", "0"]
        server = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=told, env=environment()
        )
        try:
            port = None
            while port is None and server.poll() is None:
                time.sleep(0.005)
                found = re.search(rb"^ready: .*:(\d+)$", Path(folder, "err").read_bytes(), re.M)
                port = found and found[1].decode()
            if port is None:
                raise click.ClickException(Path(folder, "err").read_text())
            ready = time.monotonic() - began
            figures = {}
            for name, (form, connections) in CASES.items():
                before = cpu_seconds(server.pid)
                figures[name] = contender(
                    "client", bundle, str(seconds), port, form, str(connections)
                )
                spent = cpu_seconds(server.pid) - before
                figures[name]["cpu_us"] = spent / figures[name]["count"] * 1e6
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
    return ready, figures


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used, which a busy machine does not stretch as it does time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def contender(role: str, *arguments: str) -> dict[str, float]:
    """One side, measured by a fresh process of this file."""
    command = [sys.executable, __file__, "--as", role, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise click.ClickException(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def environment() -> dict[str, str]:
    """Ours, with the repository importable."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def golden_row(bundle: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Any]:
    """(inputs of one row, expected outputs, the bundle)."""
    from pipeline.bundle import golden
    from pipeline.bundle.manifest import read

    found = read(Path(bundle))
    inputs, expected = golden.unpack(found.contents[found.manifest.golden.file])
    return {k: v[:1] for k, v in inputs.items()}, {k: v[:1] for k, v in expected.items()}, found


def raw(bundle: str, seconds: str) -> dict[str, float]:
    """`session.run` of one row in a loop, one thread, nothing else."""
    from serving.runtime import open_session

    inputs, _, found = golden_row(bundle)
    session = open_session(found.contents[found.manifest.variants["fp32"].file])
    for _ in range(200):
        session.run(inputs)
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + float(seconds):
        for _ in range(50):
            session.run(inputs)
        count += 50
    return {"rate": count / (time.perf_counter() - began)}


def client(bundle: str, seconds: str, port: str, form: str, connections: str) -> dict[str, float]:
    """Requests one after the other on each of several connections."""
    import uvloop

    inputs, expected, found = golden_row(bundle)
    request = as_http(found.manifest, inputs, form)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        times = runner.run(load(int(port), request, expected, int(connections), float(seconds)))
    ordered = np.sort(times)
    return {
        "count": len(ordered),
        "rate": len(ordered) / float(seconds),
        "p50_ms": float(np.percentile(ordered, 50)) * 1000,
        "p99_ms": float(np.percentile(ordered, 99)) * 1000,
    }


def as_http(manifest: Any, inputs: dict[str, np.ndarray], form: str) -> bytes:
    """The whole request, as bytes."""
    from pipeline.bundle.tensors import BY_NUMPY

    items, payload = [], b""
    for name, array in inputs.items():
        item: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": BY_NUMPY[array.dtype.name].protocol,
        }
        if form == "json":
            item["data"] = array.ravel().tolist()
        else:
            item["parameters"] = {"binary_data_size": array.nbytes}
            payload += array.tobytes()
        items.append(item)
    body = json.dumps({"inputs": items, "parameters": {"binary_data_output": form == "binary"}})
    framing = "" if form == "json" else f"Inference-Header-Content-Length: {len(body)}\r\n"
    head = (
        f"POST /v2/models/{manifest.name}/infer HTTP/1.1\r\nHost: bench\r\n{framing}"
        f"Content-Length: {len(body) + len(payload)}\r\n\r\n"
    )
    return (head + body).encode() + payload


async def load(
    port: int, request: bytes, expected: dict[str, np.ndarray], connections: int, seconds: float
) -> list[float]:
    """Seconds that each request took; the first answer is compared with the golden row's."""
    loop = asyncio.get_running_loop()
    _, first = await loop.create_connection(lambda: Asking(request, 1), "127.0.0.1", port)
    check(await first.done, expected)
    times: list[float] = []
    asking = []
    for _ in range(connections):
        _, one = await loop.create_connection(
            lambda: Asking(request, 0, times, time.perf_counter() + seconds), "127.0.0.1", port
        )
        asking.append(one.done)
    await asyncio.gather(*asking)
    return times


class Asking(asyncio.Protocol):
    """Sends the request again as soon as it is answered."""

    def __init__(
        self, request: bytes, count: int, times: list[float] | None = None, end: float = 0.0
    ) -> None:
        self._request, self._count, self._times, self._end = request, count, times, end
        self._received = b""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._received.find(b"Content-Length: ") + 16
        length = int(self._received[at : self._received.find(b"\r\n", at)])
        if len(self._received) < head + 4 + length:
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._received.decode(errors="replace")))
            return
        now = time.perf_counter()
        if self._times is not None:
            self._times.append(now - self._began)
        if self._count == 1 or (self._times is not None and now >= self._end):
            self.done.set_result(self._received)
            self._transport.close()
        else:
            self._received = b""
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)


def check(answer: bytes, expected: dict[str, np.ndarray]) -> None:
    """Raise unless the answer is the golden row's."""
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"Inference-Header-Content-Length: (\d+)", head)
    told = json.loads(body[: int(found[1])] if found else body)
    at = int(found[1]) if found else 0
    for output in told["outputs"]:
        if "data" in output:
            values = np.array(output["data"], np.float32)
        else:
            size = output["parameters"]["binary_data_size"]
            values, at = np.frombuffer(body[at : at + size], np.float32), at + size
        np.testing.assert_allclose(values, expected[output["name"]].ravel(), atol=1e-3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        side = raw if sys.argv[2] == "raw" else client
        print(json.dumps(side(*sys.argv[3:])))
    else:
        main()
