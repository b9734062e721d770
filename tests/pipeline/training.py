"""A training that is killed so many seconds after the end of an epoch.

`python -m tests.pipeline.training DATA CHECKPOINTS SETTINGS EPOCH SECONDS`
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from tests.pipeline.experiments import train


def main() -> None:
    data, checkpoints, settings, last, delay = sys.argv[1:]

    def die(line: dict[str, float]) -> None:
        if line["epoch"] == int(last):
            threading.Timer(float(delay), os.kill, (os.getpid(), signal.SIGKILL)).start()

    train(Path(data), Path(checkpoints), json.loads(settings), log=die)


if __name__ == "__main__":
    main()
