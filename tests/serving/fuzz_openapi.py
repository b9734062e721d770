"""Requests that schemathesis makes up from the OpenAPI document, against a real server.

    python -m tests.serving.fuzz_openapi PATH/TO/st [EXAMPLES]

schemathesis lives in an environment of its own; `make fuzz-openapi` makes it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.serving.bundles import make_bundle, make_series_bundle, make_types_bundle
from tests.serving.live import Live

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)

# Among what is made up are timeouts of a microsecond, to which 504 is the right answer.
SETTINGS = """\
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


def main(tool: str, examples: str = "100") -> int:
    """The exit code of schemathesis, or 1 where the server came to harm."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_bundle(folder / "repository" / "digits-test" / "1")
        make_types_bundle(folder / "repository" / "types" / "1")
        make_series_bundle(folder / "repository" / "series" / "1")
        server = Live(folder / "repository", folder / "logs")
        Path(folder, "schemathesis.toml").write_text(SETTINGS)
        address = f"http://127.0.0.1:{server.port}/openapi.json"
        done = subprocess.run(
            [tool, "run", address, "--checks", ",".join(CHECKS), "--max-examples", examples],
            cwd=folder,
            check=False,
        )
        alive = server.process.poll() is None and server.stop() == 0
        harmed = not alive or "internal error" in server.told()
        print(server.told(), file=sys.stderr)
        return done.returncode or int(harmed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
