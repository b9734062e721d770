"""What the gRPC door costs: start, memory, and CPU time of a call beside a bare grpc.aio echo.

    python benchmarks/bench_grpc.py [--calls 8000] [--concurrent 64]

The echo takes the same bytes and sends them back, by grpcio's own asynchronous server on the same event
loop: what most servers in Python begin with. Only the servers' own CPU time is counted, so the machine's
other work, and the client's, matters little. The load is h2load's where that is installed, a connection
for each call at a time; else grpcio's, all on one. Each figure is the best of three.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import grpc
import grpc.aio

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `tests`, which is not installed

from serving.proto.inference import INFERENCE  # noqa: E402
from tests.serving.bundles import digits_rows, make_bundle  # noqa: E402
from tests.serving.live import Live  # noqa: E402
from tests.serving.rpc_client import infer_request  # noqa: E402

PATH = f"/{INFERENCE}/ModelInfer"
TICK = os.sysconf("SC_CLK_TCK")

ECHO = """
import asyncio, grpc, grpc.aio, uvloop

class Any(grpc.GenericRpcHandler):
    def service(self, details):
        async def answer(payload, context):
            return payload
        return grpc.unary_unary_rpc_method_handler(answer)

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Any(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


@click.command()
@click.option("--calls", default=8000, show_default=True)
@click.option("--concurrent", default=64, show_default=True)
def main(calls: int, concurrent: int) -> None:
    """Print each figure."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch, "digits-test")
        make_bundle(bundle)
        start_and_memory(bundle, Path(scratch))
        live = Live(bundle, Path(scratch, "live"), "--grpc-port", "0")
        echo = subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
        assert echo.stdout is not None
        ports = {"echo": int(echo.stdout.readline()), "slipway": live.grpc_port}
        pids = {"echo": echo.pid, "slipway": live.workers()[0]}
        try:
            payload = infer_request("digits-test", {"image": digits_rows(1)}).SerializeToString()
            for width in (1, concurrent):
                best = dict.fromkeys(ports, float("inf"))
                for _ in range(3):
                    for name, port in ports.items():
                        before = cpu(pids[name])
                        drive(port, payload, calls, width, Path(scratch))
                        best[name] = min(best[name], (cpu(pids[name]) - before) / calls * 1e6)
                print(
                    f"{width} at a time: {best['slipway']:.0f} us of CPU a call, the bare echo "
                    f"{best['echo']:.0f}: ratio {best['slipway'] / best['echo']:.2f}"
                )
        finally:
            echo.kill()
            echo.wait()
            live.stop()


def start_and_memory(bundle: Path, scratch: Path) -> None:
    """Start to ready, and PSS once ready, with the door and without."""
    ready: dict[str, float] = {}
    memory: dict[str, int] = {}
    for number in range(3):
        for name, options in (("without", ()), ("with", ("--grpc-port", "0"))):
            live = Live(bundle, scratch / f"{name}-{number}", *options)
            ready[name] = min(ready.get(name, 60.0), live.seconds_to_ready)
            memory[name] = min(
                memory.get(name, 1 << 40), sum(map(pss, [live.process.pid, *live.workers()]))
            )
            live.stop()
    print(f"start to ready: {ready['with']:.3f} s, without gRPC {ready['without']:.3f} s")
    print(
        f"memory (PSS): {memory['with'] / 1024:.1f} MB, without gRPC "
        f"{memory['without'] / 1024:.1f} MB: gRPC adds {(memory['with'] - memory['without']) / 1024:.1f}"
    )
    folder = Path(grpc.__file__).parent
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"grpcio on disk: {size / 1e6:.1f} MB")


def drive(port: int, payload: bytes, calls: int, width: int, scratch: Path) -> None:
    """That many calls, so many at a time."""
    if not shutil.which("h2load"):
        asyncio.run(drive_plainly(port, payload, calls, width))
        return
    body = scratch / "body"
    body.write_bytes(struct.pack(">BI", 0, len(payload)) + payload)
    command = ["h2load", "-t1", "-m1", f"-c{width}", f"-n{calls}", f"-d{body}"]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command.append(f"http://127.0.0.1:{port}{PATH}")
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if f"{calls} succeeded" not in told:
        raise click.ClickException(f"not every call was answered:\n{told}")


async def drive_plainly(port: int, payload: bytes, calls: int, width: int) -> None:
    """The same without h2load, on one connection."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(PATH)

        async def one(count: int) -> None:
            for _ in range(count):
                await call(payload)

        await asyncio.gather(*(one(calls // width) for _ in range(width)))


def cpu(pid: int) -> float:
    """Seconds of CPU time of a process, its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def pss(pid: int) -> int:
    """KiB of memory of a process, shared pages by their share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


if __name__ == "__main__":
    main()
