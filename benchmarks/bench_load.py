"""The load generator of `slipway bench` beside wrk: what each can send, and what a request costs it.

    python benchmarks/bench_load.py [--seconds 3] [--connections 64] [--json]

Both ask a bare server, a process that answers every request with the same V2 bytes, so that the
generators are what is measured. wrk is left out where it is not installed.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import click
from served import environment

BODY = 64  # bytes of tensor, as of a row of `digits-mlp`
ROUNDS = 3


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="Length of each measurement.")
@click.option("--connections", default=64, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
def main(seconds: float, connections: int, as_json: bool) -> None:
    """Measure both in turn, three times; the best counts, since a busy machine only ever slows."""
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
    assert server.stdout
    url = server.stdout.readline().decode().strip()
    sides = {"slipway bench": ours} | ({"wrk": wrk} if shutil.which("wrk") else {})
    best: dict[str, dict[str, float]] = {}
    try:
        for name in [*sides] * ROUNDS:
            found = sides[name](url, seconds, connections)
            known = best.setdefault(name, found)
            known["per_second"] = max(known["per_second"], found["per_second"])
            known["cpu_us"] = min(known["cpu_us"], found["cpu_us"])
    finally:
        server.kill()
        server.wait()
    if not as_json:
        print(f"{connections} connections{'':<10}{'requests/s':>12}{'CPU us a request':>20}")
        for name, found in best.items():
            print(f"{name:<24}{found['per_second']:>12.0f}{found['cpu_us']:>20.1f}")
        if "wrk" not in sides:
            print("wrk is not installed")
    print(json.dumps(best))


def ours(url: str, seconds: float, connections: int) -> dict[str, float]:
    """Start-up is not counted: `bench` says itself what the stretch cost it."""
    command = [sys.executable, "-m", "pipeline.cli", "bench", url, "m", "--json", "-"]
    command += ["--seconds", str(seconds), "--connections", str(connections)]
    done = subprocess.run(command, capture_output=True, env=environment(), check=True)
    found = json.loads(done.stdout)["stretches"][0]
    return {
        "per_second": found["answered_per_second"],
        "cpu_us": found["generator"]["cpu_us_per_request"],
    }


def wrk(url: str, seconds: float, connections: int) -> dict[str, float]:
    """One thread, the same bytes; its start-up costs next to nothing."""
    script = (
        'wrk.method = "POST"\n'
        f'wrk.body = string.rep("x", {BODY})\n'
        'wrk.headers["Inference-Header-Content-Length"] = "0"\n'
        "function done(summary, latency, requests)\n"
        '  io.write(string.format("\\n%d %d\\n", summary.requests, summary.duration))\n'
        "end\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        done = subprocess.run(
            [*command, "-s", file.name, f"{url}/v2/models/m/infer"],
            capture_output=True,
            text=True,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    requests, microseconds = map(int, done.stdout.split("\n")[-2].split())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"per_second": requests / microseconds * 1e6, "cpu_us": cpu / requests * 1e6}


def serve() -> None:
    """Answer whatever comes in one piece with the same bytes."""
    import uvloop

    metadata = answer(
        b'{"name":"m","inputs":[{"name":"x","datatype":"UINT8","shape":[-1,%d]}],"outputs":[]}'
        % BODY
    )
    header = b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1,10],'
    header += b'"parameters":{"binary_data_size":40}}]}'
    inferred = answer(header + bytes(40), b"Inference-Header-Content-Length: %d\r\n" % len(header))

    class Same(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            self._transport.write(metadata if data.startswith(b"GET") else inferred)

    async def listen() -> None:
        server = await asyncio.get_running_loop().create_server(Same, "127.0.0.1", 0)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()

    uvloop.run(listen())


def answer(body: bytes, header: bytes = b"") -> bytes:
    """A whole HTTP answer."""
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (header, len(body), body)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        main()
