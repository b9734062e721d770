"""A bundle tried out in a process of its own first, for graphs that strangers made.

Every check before ONNX Runtime, and every limit within it, is against what was thought of. A graph
that hangs, crashes or swells all the same does it in a process that is thrown away; what serves
beside it notices nothing. It costs a second load, and a fresh Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from typing import Any, BinaryIO

from pipeline.bundle.manifest import Bundle, Manifest, canonical_json
from serving.config import Settings
from serving.errors import ModelRefused
from serving.inference.model import load

SPARE_SECONDS = 5.0
"""For the process to begin, on top of what the load may take."""
NEEDED = {"batching", "graph", "runtime", "variant", "finite_inputs"}
KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "PYTHONDONTWRITEBYTECODE")
DIED_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def run(bundle: Bundle, settings: Settings) -> None:
    """Load and prove `bundle` in a child that is limited in time and memory.

    Raises `ModelRefused`: the child's own reason, or how the child ended.
    """
    limits = settings.runtime
    seconds = limits.load_seconds + SPARE_SECONDS if limits.load_seconds else None
    child = subprocess.Popen(
        [sys.executable, "-m", "serving.models.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    )
    try:
        told, _ = child.communicate(_packed(bundle, settings), seconds)
    except subprocess.TimeoutExpired:
        raise ModelRefused(
            f"trial: did not load within {limits.load_seconds:g} s (setting runtime.load_seconds)"
        ) from None
    finally:
        child.kill()
        child.wait()
    if child.returncode < 0:
        raise ModelRefused(f"trial: loading it killed the process ({_signal(-child.returncode)})")
    try:
        refused = json.loads(told.splitlines()[-1])["refused"]
    except (ValueError, IndexError, KeyError, TypeError):
        raise ModelRefused(
            f"trial: loading it ended the process (exit code {child.returncode}); memory is limited "
            f"to {limits.trial_bytes} bytes (setting runtime.trial_bytes)"
        ) from None
    if refused:
        raise ModelRefused(refused)


def main() -> None:
    """The child: read the bundle from standard input, load it, tell what became of it."""
    ctypes.CDLL(None).prctl(DIED_WITH_PARENT, signal.SIGKILL)
    bundle, settings = _unpacked(sys.stdin.buffer)
    limit = settings.runtime.trial_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        load(bundle, settings).close()
        refused = ""
    except ModelRefused as error:
        refused = str(error)
    except MemoryError:
        refused = f"trial: more than {limit} bytes of memory (setting runtime.trial_bytes)"
    sys.stdout.write(json.dumps({"refused": refused}))
    sys.stdout.flush()
    os._exit(0)  # whatever the graph left running


def _packed(bundle: Bundle, settings: Settings) -> bytes:
    """One line of JSON, then the files: the very bytes that were hashed, not a second reading."""
    head: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", include=NEEDED),
        "manifest": bundle.manifest.model_dump(mode="json"),
        "digest": bundle.digest,
        "files": {name: len(payload) for name, payload in bundle.contents.items()},
    }
    line = json.dumps(head).encode()
    return b"".join([line, b"\n", *bundle.contents.values()])


def _unpacked(stream: BinaryIO) -> tuple[Bundle, Settings]:
    head = json.loads(stream.readline())
    contents = {name: stream.read(size) for name, size in head["files"].items()}
    manifest = Manifest.model_validate_json(canonical_json(head["manifest"]))
    settings = Settings.model_validate_json(json.dumps(head["settings"]))
    # The graph is on trial, not the device, whose memory what serves already fills.
    on_cpu = settings.runtime.model_copy(update={"provider": "cpu", "arena_bytes": 0})
    return (
        Bundle(manifest, head["digest"], contents),
        settings.model_copy(update={"runtime": on_cpu}),
    )


def _environment() -> dict[str, str]:
    """No more than Python needs to begin: what else the server was told is not for the child."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = os.pathsep.join(filter(None, sys.path))
    return kept | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    main()
