"""The server beside others: same networks, same bodies, same load, minutes apart at most.

    python benchmarks/bench_peers.py [NAME ...] [--install] [--seconds 3] [--rounds 2] [--json FILE]

Contestants and how they are started: `benchmarks/peers/contestants.toml`. Each has an environment of
its own below `.build/peers/`, which `--install` makes; who is not installed is named and left out.
The load comes from `wrk` and, for gRPC, `h2load`, one thread each, in a process of its own. For each
cell ours and theirs are loaded in turns, and the ratio is of the medians: what disturbs the machine
disturbs both. Ours has validation, limits, deadlines, metrics and the access log on, as it is shipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.bundle.manifest import BundleError, read

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
HOME = ROOT / ".build" / "peers"
CONTESTANTS: dict[str, dict[str, Any]] = tomllib.loads((PEERS / "contestants.toml").read_text())
START_SECONDS = 90
OURS = {"list": "json", "named": "json", "raw": "bin"}
"""What we are asked where the other speaks a dialect of its own."""

CELL = re.compile(r"([a-z]+)(\d+)c(\d+)")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--install", is_flag=True, help="Make the environments that are missing.")
@click.option("--home", type=Path, default=HOME, help="Where environments and networks lie.")
@click.option("--model", default="cnn", show_default=True, help="cnn or mlp.")
@click.option("--seconds", default=3, show_default=True, help="Length of each measurement.")
@click.option("--rounds", default=2, show_default=True, help="Turns of each side.")
@click.option("--workers", default=1, show_default=True, help="Workers of ours.")
@click.option("--json", "report", type=Path, help="Append the figures, a line a cell.")
def main(
    names: tuple[str, ...],
    install: bool,
    home: Path,
    model: str,
    seconds: int,
    rounds: int,
    workers: int,
    report: Path | None,
) -> None:
    """Measure the contestants NAMES, or all that are installed, beside us."""
    for tool in ("wrk", "h2load"):
        if not shutil.which(tool):
            raise click.ClickException(f"{tool} is missing: apt-get install wrk nghttp2-client")
    unknown = set(names) - CONTESTANTS.keys()
    if unknown:
        raise click.UsageError(f"unknown: {', '.join(unknown)}; known: {', '.join(CONTESTANTS)}")
    networks = home / "networks"
    if not usable(networks):
        run([sys.executable, str(PEERS / "networks.py"), str(networks)], pythonpath=ROOT)
    if install:
        for name in names or CONTESTANTS:
            make_environment(home, CONTESTANTS[name])
    print(f"{model}, {rounds} turns of {seconds} s; raw ONNX Runtime: one thread, one row\n")
    print(f"{'beside':<18}{'cell':<11}{'ours/s':>9}{'theirs/s':>9}{'ratio':>7}", end="")
    print(f"{'p50 ratio':>10}{'CPU us':>8}{'theirs':>8}{'raw/s':>8}{'of raw':>7}{'noise':>7}")
    for name in names or CONTESTANTS:
        if not environment_of(home, CONTESTANTS[name]).is_dir():
            print(f"{name:<18}not installed; --install makes its environment")
            continue
        try:
            for row in measure(name, home, model, seconds, rounds, workers):
                show(row)
                if report:
                    with report.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        except (RuntimeError, subprocess.SubprocessError, OSError) as error:
            print(f"{name:<18}did not answer: {str(error)[-300:]}")


def usable(networks: Path) -> bool:
    """Whether the networks are there, as bundles that this very code reads."""
    try:
        return all(read(bundle / "m" / "1") for bundle in (networks / "bundles").iterdir())
    except (OSError, BundleError):
        return False


def measure(
    name: str, home: Path, model: str, seconds: int, rounds: int, workers: int
) -> Iterator[dict[str, Any]]:
    """The figures of each cell: both sides up, loaded in turns."""
    peer = CONTESTANTS[name]
    networks = home / "networks"
    with ExitStack() as stack:
        theirs = stack.enter_context(started(name, home, model))
        ours = stack.enter_context(started_ours(networks / "bundles" / model, workers))
        for cell in peer["cells"]:
            form, rows, connections = parts(cell)
            bodies = networks / "bodies"
            sides = {
                "theirs": (theirs, form, path_of(peer, form)),
                "ours": (ours, OURS.get(form, form), "/v2/models/m/infer"),
            }
            for side, (server, dialect, path) in sides.items():
                check(server, bodies / f"{dialect}{rows}", path, networks, model, side)
                load(server, bodies / f"{dialect}{rows}", path, connections, 1, dialect)
            turns: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            raw = [raw_rate(networks / f"{model}.onnx", seconds / 2)]
            for _ in range(rounds):
                for side, (server, dialect, path) in sides.items():
                    body = bodies / f"{dialect}{rows}"
                    turns[side].append(load(server, body, path, connections, seconds, dialect))
                raw.append(raw_rate(networks / f"{model}.onnx", seconds / 2))
            yield summary(name, model, cell, turns, raw, rows)


def summary(
    name: str,
    model: str,
    cell: str,
    turns: dict[str, list[dict[str, float]]],
    raw: list[float],
    rows: int,
) -> dict[str, Any]:
    """One row of the table; `noise` is how far a side's own turns lie apart."""
    middle = {
        side: {key: statistics.median([turn[key] for turn in found]) for key in found[0]}
        for side, found in turns.items()
    }
    ours, theirs = middle["ours"], middle["theirs"]
    spread = [
        max(t["rate"] for t in found) / min(t["rate"] for t in found) - 1
        for found in turns.values()
    ]
    return {
        "beside": name,
        "model": model,
        "cell": cell,
        "ours": ours,
        "theirs": theirs,
        "ratio": ours["rate"] / theirs["rate"],
        "p50_ratio": theirs["p50_us"] / ours["p50_us"],
        "raw": statistics.median(raw),
        "of_raw": ours["rate"] * rows / statistics.median(raw),
        "noise": max(spread),
        "errors": sum(t["errors"] for found in turns.values() for t in found),
    }


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    ours, theirs = row["ours"], row["theirs"]
    print(
        f"{row['beside']:<18}{row['cell']:<11}{ours['rate']:>9.0f}{theirs['rate']:>9.0f}"
        f"{row['ratio']:>7.2f}{row['p50_ratio']:>10.2f}{ours['cpu_us']:>8.0f}{theirs['cpu_us']:>8.0f}"
        f"{row['raw']:>8.0f}{row['of_raw']:>7.2f}{row['noise']:>7.0%}"
        + (f"  {row['errors']:.0f} errors" if row["errors"] else ""),
        flush=True,
    )


class Server:
    """A server under load: its process and its ports."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, grpc: int) -> None:
        self.process, self.port, self.grpc = process, port, grpc

    def cpu_seconds(self) -> float:
        """Processor time of the whole family of processes."""
        return sum(cpu_seconds(pid) for pid in family(self.process.pid))


@contextmanager
def started(name: str, home: Path, model: str) -> Iterator[Server]:
    """A contestant, ready to answer."""
    peer, environment = CONTESTANTS[name], environment_of(home, CONTESTANTS[name])
    port, grpc = free_port(), free_port()
    words = {
        "port": port,
        "grpc": grpc,
        "python": environment / "bin" / "python",
        "bin": environment / "bin",
        "apps": PEERS / "apps",
        "models": home / "networks",
        "model": model,
        "libraries": sysconfig.get_config_var("LIBDIR"),
    }
    own = {key: value.format(**words) for key, value in peer.get("environment", {}).items()}
    variables = own | {
        "MODELS": str(home / "networks"),
        "MODEL": model,
        "PYTHONPATH": str(PEERS / "apps"),
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if "prepare" in peer:
        run([word.format(**words) for word in peer["prepare"]], **variables)
    command = [word.format(**words) for word in peer["command"]]
    with running(command, PEERS / "apps", variables, home / f"{name}.log") as process:
        await_port(process, port, home / f"{name}.log")
        yield Server(process, port, grpc)


@contextmanager
def started_ours(repository: Path, workers: int) -> Iterator[Server]:
    """Our server, as shipped, its access log going to a file."""
    port, grpc = free_port(), free_port()
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(repository), "--port", str(port)]
    command += ["--grpc-port", str(grpc), *(["--workers", str(workers)] if workers > 1 else [])]
    log = Path(tempfile.gettempdir(), f"slipway-bench-{port}.log")
    with running(command, ROOT, {"PYTHONPATH": str(ROOT)}, log) as process:
        await_port(process, port, log)
        yield Server(process, port, grpc)
    log.unlink()


@contextmanager
def running(
    command: list[str], folder: Path, variables: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, all of which ends on leaving."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"} | variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        known = family(process.pid)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in known:
                try:
                    os.kill(pid, sign)
                except ProcessLookupError:
                    continue
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                continue
            time.sleep(0.5)


def await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until something answers HTTP there."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode}: {log.read_text()[-400:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), 0.3):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"nobody listens on port {port} after {START_SECONDS} s; see {log}")


def check(server: Server, body: Path, path: str, networks: Path, model: str, side: str) -> None:
    """The answer must be the network's before anything is timed. Raises `RuntimeError`."""
    if body.name.startswith("grpc"):
        return  # h2load counts what is no success
    import http.client

    import numpy as np

    headers = dict(
        line.split(": ", 1) for line in body.with_suffix(".headers").read_text().splitlines()
    )
    answer, end = b"", time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            connection.request("POST", path, body.with_suffix(".body").read_bytes(), headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status == 200:
                break
        except OSError:
            pass
        time.sleep(0.3)
    else:
        raise RuntimeError(f"{side}: no answer to {body.name}: {answer[:200]!r}")
    length = response.headers.get("Inference-Header-Content-Length")
    if length or body.name.startswith("raw"):
        found = np.frombuffer(answer[int(length or 0) :], np.float32)
    else:
        found = np.array(numbers(json.loads(answer)), np.float32)
    rows = parts(f"{body.name}c1")[1]
    expected = expected_answer(networks, model, rows)
    if found.size != expected.size or not np.allclose(found, expected.ravel(), atol=1e-4):
        raise RuntimeError(f"{side}: a wrong answer to {body.name}: {answer[:200]!r}")


def expected_answer(networks: Path, model: str, rows: int) -> Any:
    """What ONNX Runtime says of the very rows of the bodies."""
    import numpy as np

    from serving.inference.runtime import open_session

    array = np.frombuffer((networks / "bodies" / f"raw{rows}.body").read_bytes(), np.float32)
    session = open_session((networks / f"{model}.onnx").read_bytes())
    return session.run({"input": array.reshape(-1, 1, 28, 28)})["probs"]


def numbers(value: Any) -> list[float]:
    """All floats of an answer's data, whatever it is wrapped in."""
    if isinstance(value, dict):
        for key in ("outputs", "data", "predictions", "probs"):
            if key in value:
                return numbers(value[key])
        return []
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)]


def load(
    server: Server, body: Path, path: str, connections: int, seconds: int, form: str
) -> dict[str, float]:
    """Requests one after the other on each connection, for some seconds."""
    before = server.cpu_seconds()
    found = grpc_load(server, body, connections, seconds) if form == "grpc" else None
    if found is None:
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--latency",
            "--timeout",
            "20s",
        ]
        command += ["-s", str(PEERS / "post.lua"), f"http://127.0.0.1:{server.port}{path}"]
        told = run(command, BODY=str(body))
        found = json.loads(told.partition("FIGURES ")[2])
    spent = server.cpu_seconds() - before
    count = max(1, found["count"])
    return found | {"rate": found["count"] / found["seconds"], "cpu_us": spent / count * 1e6}


def grpc_load(server: Server, body: Path, connections: int, seconds: int) -> dict[str, float]:
    """The same over gRPC."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = ["h2load", f"-c{connections}", "-m1", "-t1", "-D", str(seconds)]
        command += ["-d", str(body.with_suffix(".body")), f"--log-file={log}"]
        for line in body.with_suffix(".headers").read_text().splitlines():
            command += ["-H", line]
        address = f"http://127.0.0.1:{server.grpc}/inference.GRPCInferenceService/ModelInfer"
        told = run([*command, address])
        times = [int(f[2]) for f in map(str.split, log.read_text().splitlines()) if f[1] == "200"]
    failed = re.search(r"(\d+) failed, (\d+) errored", told)
    times.sort()
    if not times:
        raise RuntimeError(f"gRPC: nothing was answered: {told[-300:]}")
    return {
        "count": len(times),
        "seconds": seconds,
        "p50_us": times[len(times) // 2],
        "p99_us": times[len(times) * 99 // 100],
        "errors": int(failed[1]) + int(failed[2]) if failed else 0,
    }


RAW = """
import sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
row = {"input": numpy.zeros((1, 1, 28, 28), numpy.float32)}
for _ in range(100):
    session.run(None, row)
count, began = 0, time.perf_counter()
while time.perf_counter() < began + float(sys.argv[2]):
    for _ in range(20):
        session.run(None, row)
    count += 20
print(count / (time.perf_counter() - began))
"""


def raw_rate(network: Path, seconds: float) -> float:
    """Rows a second of ONNX Runtime in a process by itself, one thread, one row at a time."""
    return float(run([sys.executable, "-c", RAW, str(network), str(seconds)]))


def make_environment(home: Path, peer: dict[str, Any]) -> None:
    """The contestant's own virtual environment."""
    environment = environment_of(home, peer)
    if environment.is_dir():
        return
    requirements = CONTESTANTS[peer["install"]] if "install" in peer else peer
    print(f"installing {environment.name} ...", flush=True)
    run([sys.executable, "-m", "venv", str(environment)])
    try:
        pip = [str(environment / "bin" / "pip"), "install", "-q", "--disable-pip-version-check"]
        run([*pip, *requirements["requirements"], f"onnxruntime=={runtime_version()}"])
    except subprocess.SubprocessError:
        shutil.rmtree(environment)
        print(f"{environment.name}: could not be installed here")


def runtime_version() -> str:
    """The ONNX Runtime that serves here, so that all run the same."""
    from importlib.metadata import version

    return version("onnxruntime")


def environment_of(home: Path, peer: dict[str, Any]) -> Path:
    """Where a contestant is installed."""
    name = peer.get("install") or next(n for n, p in CONTESTANTS.items() if p is peer)
    return home / f"venv-{name}"


def path_of(peer: dict[str, Any], form: str) -> str:
    """Where a contestant wants its requests."""
    default = "/raw" if form == "raw" else "/v2/models/m/infer"
    return str(peer.get("path", default))


def parts(cell: str) -> tuple[str, int, int]:
    """(form, rows, connections) of a cell's name."""
    found = CELL.fullmatch(cell)
    assert found, cell
    return found[1], int(found[2]), int(found[3])


def run(command: list[str], pythonpath: Path | None = None, **variables: str) -> str:
    """What a command prints. Raises `CalledProcessError`."""
    extra = {"PYTHONPATH": str(pythonpath)} if pythonpath else {}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | extra | variables, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} left with {done.returncode}: {done.stderr[-400:]}")
    return done.stdout


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    main()
