"""A real server process, and clients that speak to it as plainly as possible."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
START_SECONDS = 30
READY = re.compile(
    r"^(?:ready|started): .* on https?://127\.0\.0\.1:(\d+)(?: and grpcs?://127\.0\.0\.1:(\d+))?$",
    re.M,
)


class Live:
    """`slipway serve` in a process of its own, on free ports; with gRPC only where it is asked for."""

    def __init__(
        self,
        path: Path,
        logs: Path,
        *options: str,
        wait: bool = True,
        python_path: str = str(ROOT),
        program: str = "pipeline.cli",
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.out, self.err = logs / "out.log", logs / "err.log"
        command = [
            sys.executable,
            "-m",
            program,
            "serve",
            str(path),
            "--port",
            "0",
            *(() if "--grpc-port" in options else ("--no-grpc",)),
            *(() if "--log-format" in options else ("--log-format", "text")),
            *options,
        ]
        self.started = time.monotonic()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": python_path}
            )
        self.port = 0
        self.grpc_port = 0
        if wait:
            self._await_ready()
        self.seconds_to_ready = time.monotonic() - self.started

    def _await_ready(self) -> None:
        while time.monotonic() < self.started + START_SECONDS:
            found = READY.search(self.told())
            if found:
                self.port, self.grpc_port = int(found[1]), int(found[2] or 0)
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.process.kill()
        self.process.wait(20)
        raise AssertionError(f"the server did not get ready:\n{self.told()}")

    def workers(self) -> list[int]:
        """The process ids of its workers, the first the one of longest standing."""
        pid = self.process.pid
        return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def told(self) -> str:
        """Its standard error so far."""
        return self.err.read_text()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body) over a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, value: Any = None, **more: Any) -> tuple[int, Any]:
        """(status, decoded body) for a JSON body or none."""
        body = None if value is None else json.dumps(value).encode()
        status, headers, answer = self.ask(method, path, body, **more)
        assert headers["content-type"] == "application/json", answer
        return status, json.loads(answer)

    def socket(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def tensor(name: str, array: np.ndarray, datatype: str) -> dict[str, Any]:
    """A JSON input."""
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": datatype,
        "data": array.reshape(-1).tolist(),
    }


def framed(header: dict[str, Any], *parts: bytes) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of a request with binary tensors."""
    text = json.dumps(header).encode()
    return b"".join([text, *parts]), {"Inference-Header-Content-Length": str(len(text))}


def binary(name: str, array: np.ndarray, datatype: str) -> dict[str, Any]:
    """The header's part for an input whose bytes follow."""
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": array.nbytes},
    }


def outputs(headers: dict[str, str], body: bytes) -> dict[str, np.ndarray]:
    """The outputs of an infer answer by name, whatever form each travelled in."""
    kinds = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
    length = int(headers.get("inference-header-content-length", len(body)))
    answer, found = json.loads(body[:length]), {}
    for output in answer["outputs"]:
        kind = output["datatype"]
        dtype = np.dtype(kinds.get(kind) or kind.lower())
        if "data" in output:
            array = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            array, length = np.frombuffer(body[length : length + size], dtype), length + size
        found[output["name"]] = array.reshape(output["shape"])
    assert length == len(body)
    return found


def receive(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while True:
        try:
            part = sock.recv(1 << 16)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)
