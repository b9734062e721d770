"""A bundle served by a process of its own, for the benchmarks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import click

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 30


class Served:
    """`slipway serve` of a bundle, or of a repository, on a free port, ended on leaving.

    `seconds_to_ready` is from its start.
    """

    def __init__(self, bundle: str, *options: str) -> None:
        if not any(
            next(Path(bundle).glob(at), None) for at in ("manifest.json", "*/*/manifest.json")
        ):
            raise click.UsageError(f"{bundle}: not a bundle; `dvc repro` builds bundles/digits-cnn")
        self._command = [sys.executable, "-m", "pipeline.cli", "serve", bundle, "--port", "0"]
        self._command += ["--log-format", "text", *options]
        self.url = ""
        self.seconds_to_ready = 0.0

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        told = Path(self._folder.name, "err")
        began = time.monotonic()
        with told.open("wb") as err:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, stderr=err, env=environment()
            )
        while not self.url:
            time.sleep(0.005)
            found = re.search(r"^ready: .*?(https?://[^\s,]+:\d+)", told.read_text(), re.M)
            if found:
                self.url = found[1]
            elif self._process.poll() is not None or time.monotonic() > began + START_SECONDS:
                self._process.kill()
                raise click.ClickException(told.read_text())
        self.seconds_to_ready = time.monotonic() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)
        self._folder.cleanup()

    def cpu_seconds(self) -> float:
        """Processor time of the server and its children: a busy machine does not stretch it."""
        return sum(_cpu_seconds(pid) for pid in _family(self._process.pid))

    def worker_pss_mb(self) -> float:
        """MB of the workers without their supervisor, shared parts divided among who shares them."""
        family = _family(self._process.pid)
        return sum(pss_mb(pid) for pid in family[1:] or family)


def pss_mb(pid: int) -> float:
    """MB of a process's memory, shared parts divided among who shares them."""
    told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss: +(\d+) kB", told, re.M)[0]) * 1024 / 1e6


def environment() -> dict[str, str]:
    """Ours, with the repository importable."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:  # grows while it is walked
        children = Path(f"/proc/{one}/task/{one}/children").read_text()
        found += map(int, children.split())
    return found


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
