"""`python -m stages.tracking live`: started by `stages.live`, fed through a pipe."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Whatever happens here, the training goes on: say it in one line and leave."""
    os.nice(10)
    try:
        from stages.tracking.address import address

        address().check()  # before MLflow wakes, which takes longer than a short training
        from stages.tracking import live

        live.follow(live.messages(sys.stdin.fileno()))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        print(f"warning: no live curves: {reason or type(error).__name__}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)  # all is written; the training waits for this end, and MLflow's modules are many


if __name__ == "__main__" and sys.argv[1:] == ["live"]:
    main()
