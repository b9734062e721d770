"""Live curves: a training's epochs, streamed to MLflow by a process of its own.

Best effort. Nothing depends on them: `track` completes them, or writes the run from files. Both
ask `policy` here whether to, so that a wrong setting is told before the training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pipeline.config import ConfigError

Policy = Literal["off", "best-effort", "required"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

PATIENCE = 3.0
"""Seconds that a finished training waits for its last points to arrive."""


def policy() -> Policy:
    """How much tracking matters, from `SLIPWAY_TRACKING`. Raises `ConfigError`."""
    wanted = os.environ.get("SLIPWAY_TRACKING") or "best-effort"
    for known in POLICIES:
        if wanted == known:
            return known
    raise ConfigError(f"SLIPWAY_TRACKING: expected one of {', '.join(POLICIES)}, got {wanted!r}")


class LiveCurves:
    """Streams `log`ged epochs to MLflow without ever waiting for it.

    `params` are the experiment's resolved settings. With `SLIPWAY_TRACKING=off` it does nothing;
    with a server that is down or slow, epochs are dropped. Raises `ConfigError` where it is
    set to nothing known: better before the training than after.
    """

    def __init__(self, experiment_name: str, train_key: str, params: Mapping[str, Any]) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        if policy() == "off":
            return
        from stages.tracking.facts import flat_params

        try:
            # In a session of its own: Ctrl-C must reach the training alone, whose end the child
            # then reads from the closed pipe.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "stages.tracking", "live"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return
        assert self._child.stdin is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        self._send(
            {"experiment": experiment_name, "train_key": train_key, "params": flat_params(params)}
        )

    def log(self, line: dict[str, float]) -> None:
        """One epoch's numbers, `epoch` among them; shown to 6 digits, as the reports have them."""
        self._send({"line": {name: float(f"{value:.6g}") for name, value in line.items()}})

    def close(self) -> None:
        """Say goodbye; wait a little for the last points, then let go.

        Called while an exception passes by, no goodbye: what was streamed is marked as killed.
        """
        if self._child is None:
            return
        if sys.exc_info()[0] is None:
            self._send({"end": True})
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()
            self._child.wait(PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            self._child.kill()
            self._child.wait()
        self._child = None

    def _send(self, message: Mapping[str, Any]) -> None:
        """Into the pipe if there is room; a line is dropped while an earlier one is half in."""
        if self._child is None or self._child.stdin is None:
            return
        descriptor = self._child.stdin.fileno()
        try:
            if self._unsent:
                self._unsent = self._unsent[os.write(descriptor, self._unsent) :]
            if not self._unsent:
                payload = json.dumps(message).encode() + b"\n"
                self._unsent = payload[os.write(descriptor, payload) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # the child is gone, and has said why
