"""The client's processor time a call, beside HTTP libraries doing the same work.

    python benchmarks/bench_client.py [BUNDLE] [--calls 3000] [--json]

Every contender writes the same V2 request, reads the same answer into arrays, and runs in a process
of its own against one server; what differs is the HTTP in between. They take turns, and the best of
their stretches counts, since a busy machine only ever adds. What counts is the ratio within one run.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import click
import numpy as np
from served import Served, environment

CONTENDERS = {
    "Client": "",
    "http.client": "",
    "urllib3": "urllib3",
    "requests": "requests",
    "httpx": "httpx",
    "AsyncClient": "",
    "aiohttp": "aiohttp",
    "httpx, async": "httpx",
}
ROUNDS = 3
STRETCHES = 5


@click.command()
@click.argument("bundle", default="bundles/digits-cnn")
@click.option("--calls", default=3000, show_default=True, help="Calls of each contender.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
def main(bundle: str, calls: int, as_json: bool) -> None:
    """Serve BUNDLE and ask it with each contender in turn."""
    result: dict[str, Any] = {}
    with Served(bundle) as served:
        for name in [*CONTENDERS] * ROUNDS:
            if CONTENDERS[name] and not importlib.util.find_spec(CONTENDERS[name]):
                result[name] = "not installed"
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--as", name, served.url, str(calls // ROUNDS)],
                capture_output=True,
                text=True,
                env=environment(),
                check=False,
            )
            if done.returncode:
                raise click.ClickException(f"{name}: {done.stderr}")
            found = json.loads(done.stdout)
            known = result.get(name, found)
            result[name] = {key: min(found[key], known[key]) for key in found}
    if not as_json:
        print(
            f"{'one row, one connection':<24}{'CPU us a call':>15}{'us a call':>12}{'import ms':>12}"
        )
        for name, found in result.items():
            if isinstance(found, str):
                print(f"{name:<24}{found:>15}")
                continue
            print(
                f"{name:<24}{found['cpu_us']:>15.0f}{found['us']:>12.0f}{found['import_ms']:>12.0f}"
            )
    print(json.dumps(result))


def contender(name: str, url: str, calls: str) -> dict[str, float]:
    """CPU and elapsed microseconds of a call, milliseconds of importing what it needs."""
    from serving.client import Client

    with Client(url) as client:
        (model,) = client.models()
        (spec,) = client.metadata(model).inputs
    row = np.zeros([1, *spec.shape[1:]], {"UINT8": np.uint8, "FP32": np.float32}[spec.datatype])
    began = time.process_time()
    make = {
        "Client": blocking,
        "http.client": standard,
        "urllib3": with_urllib3,
        "requests": with_requests,
        "httpx": with_httpx,
        "AsyncClient": asynchronous,
        "aiohttp": with_aiohttp,
        "httpx, async": with_httpx_async,
    }[name]
    run = make(url, model, {spec.name: row})
    imported = time.process_time() - began
    return asyncio.run(measured(run, int(calls))) | {"import_ms": imported * 1e3}


async def measured(run: Callable[[], Any], calls: int) -> dict[str, float]:
    """The best of several stretches, after one that does not count.

    Blocking contenders block the loop: nothing else is on it.
    """
    found = []
    for _ in range(1 + STRETCHES):
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(calls // STRETCHES):
            answer = run()
            if isinstance(answer, Awaitable):
                answer = await answer
            assert answer.model_name
        found.append((time.process_time() - cpu, time.perf_counter() - began))
    count = calls // STRETCHES
    return {
        "cpu_us": min(cpu for cpu, _ in found[1:]) / count * 1e6,
        "us": min(elapsed for _, elapsed in found[1:]) / count * 1e6,
    }


def spoken(model: str, inputs: Any) -> tuple[str, Callable[[], Any], Callable[..., Any]]:
    """(path, gives headers and body, reads the answer) for libraries that bring only the HTTP."""
    from serving.client import answers, calls
    from serving.client.reading import Reply

    def request() -> tuple[dict[str, str], bytes]:
        call = calls.infer(model, inputs, None, None, None, True)
        assert call.body
        length, parts = call.body(inf)
        return {"Inference-Header-Content-Length": str(length)}, b"".join(parts)

    def read(status: int, headers: Any, body: bytes) -> Any:
        name = "inference-header-content-length"
        return answers.infer(Reply(status, {name: headers[name]}, body), body)

    return calls.infer(model, inputs, None, None, None, True).path, request, read


def blocking(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    from serving.client import Client

    client = Client(url)
    return lambda: client.infer(model, inputs)


def asynchronous(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    from serving.client import AsyncClient

    client = AsyncClient(url)
    return lambda: client.infer(model, inputs)


def standard(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    from http.client import HTTPConnection

    path, request, read = spoken(model, inputs)
    connection = HTTPConnection(url.removeprefix("http://"))

    def run() -> Any:
        headers, body = request()
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return read(answer.status, answer.headers, answer.read())

    return run


def with_urllib3(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    import urllib3

    path, request, read = spoken(model, inputs)
    pool = urllib3.PoolManager()

    def run() -> Any:
        headers, body = request()
        answer = pool.request("POST", url + path, body=body, headers=headers)
        return read(answer.status, answer.headers, answer.data)

    return run


def with_requests(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    import requests

    path, request, read = spoken(model, inputs)
    session = requests.Session()

    def run() -> Any:
        headers, body = request()
        answer = session.post(url + path, body, headers=headers)
        return read(answer.status_code, answer.headers, answer.content)

    return run


def with_httpx(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    import httpx

    path, request, read = spoken(model, inputs)
    client = httpx.Client()

    def run() -> Any:
        headers, body = request()
        answer = client.post(url + path, content=body, headers=headers)
        return read(answer.status_code, answer.headers, answer.content)

    return run


def with_httpx_async(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    import httpx

    path, request, read = spoken(model, inputs)
    client = httpx.AsyncClient()

    async def run() -> Any:
        headers, body = request()
        answer = await client.post(url + path, content=body, headers=headers)
        return read(answer.status_code, answer.headers, answer.content)

    return run


def with_aiohttp(url: str, model: str, inputs: Any) -> Callable[[], Any]:
    import aiohttp

    path, request, read = spoken(model, inputs)
    session: list[Any] = []

    async def run() -> Any:
        session[:] = session or [aiohttp.ClientSession()]
        headers, body = request()
        async with session[0].post(url + path, data=body, headers=headers) as answer:
            return read(answer.status, answer.headers, await answer.read())

    return run


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        print(json.dumps(contender(*sys.argv[2:])))
    else:
        main()
