"""The pipeline state into MLflow: one run per state, made or found. See `stages/tracking`.

`dvc repro` runs this each time. Where nothing has changed it ends here, before anything is imported
that takes time to wake; else `stages/projecting.py` does the work.
"""

from __future__ import annotations

import sys

from stages.tracking import unchanged


def main() -> None:
    """`python -m stages.track EXPERIMENT`."""
    if len(sys.argv) == 2 and unchanged.told(sys.argv[1]):
        return
    from stages import entry, projecting

    entry.main(projecting.command)


if __name__ == "__main__":
    main()
