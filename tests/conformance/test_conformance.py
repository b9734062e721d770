"""tritonclient and KServe's clients, every method and every datatype, against `slipway serve`.

`make conformance` makes the clients' environment, runs this and writes docs/conformance.md. Without
that environment these tests are skipped. Deviations are named in KNOWN: a new one fails, and so
does one that is none any more.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.serving.bundles import ECHOES, make_echo_bundle
from tests.serving.live import ROOT, Live

CLIENTS = Path(__file__).parent / "clients"
HOME = ROOT / ".build" / "conformance"
REPORT = "SLIPWAY_CONFORMANCE_REPORT"
"""Names the file that the report is written to."""

SCRIPTS = ("triton.py", "kserve_clients.py")
DATATYPES = [protocol for _, protocol in ECHOES.values()]


class Known(NamedTuple):
    """A deviation: the lines of the report it covers ('' for any datatype), and its reason."""

    client: str
    whats: tuple[str, ...]
    datatype: str
    words: str
    reason: str


INFER, EMPTY = "infer", "infer, empty"
CLIENT_REFUSES = "the client itself refuses: it sends FP16 only as bytes"
KNOWN = (
    Known("kserve rest, JSON to JSON", (INFER,), "FP16", "via JSON is not", CLIENT_REFUSES),
    Known("kserve grpc, typed", (INFER, EMPTY), "FP16", "invalid input datatype", CLIENT_REFUSES),
)


class Line(NamedTuple):
    """How one check went."""

    client: str
    what: str
    datatype: str
    result: str
    seconds: float


def interpreter() -> Path | None:
    """A Python that has the clients: their own environment's, else this one if it has them."""
    own = HOME / "bin" / "python"
    if own.exists():
        return own
    return Path(sys.executable) if importlib.util.find_spec("tritonclient") else None


PYTHON = interpreter()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason="no clients here: `make conformance` makes their environment"
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("conformance")
    for dtype, (_, protocol) in ECHOES.items():
        make_echo_bundle(folder / "models" / f"echo-{protocol.lower()}" / "1", dtype)
    make_echo_bundle(folder / "models" / "echo-fp32" / "3", "float32")
    ports = ("--grpc-port", "0", "--control-port", "0", "--control-grpc-port", "0")
    live = Live(folder / "models", folder / "logs", *ports)
    yield live
    assert live.stop() == 0
    for sign in ("internal error", "Traceback", "Exception in"):
        assert sign not in live.told()


@pytest.fixture(scope="module")
def lines(server: Live) -> list[Line]:
    """Every check of every client, in order."""
    return [line for script in SCRIPTS for line in ran(script, server)]


def ran(script: str, server: Live) -> Iterator[Line]:
    control = re.findall(r"^control: .* on \w+://(127\.0\.0\.1:\d+)$", server.told(), re.M)
    addresses = [f"127.0.0.1:{server.port}", f"127.0.0.1:{server.grpc_port}"]
    done = subprocess.run(
        [
            *(str(PYTHON), str(CLIENTS / script), *addresses),
            *(control if script == "triton.py" else ()),
        ],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for text in done.stdout.splitlines():
        yield Line(**json.loads(text))


def known(line: Line) -> Known | None:
    """The deviation that covers a check, whatever came of it."""
    for entry in KNOWN:
        covers = line.client.startswith(entry.client) and line.what in entry.whats
        if covers and entry.datatype in ("", line.datatype):
            return entry
    return None


def test_every_check_passes_or_is_known(lines: list[Line]) -> None:
    print(f"\n{summary(lines)}\n\n{tables(lines)}")
    wrong = []
    for line in lines:
        entry = known(line)
        if line.result != "pass" and (entry is None or entry.words not in line.result):
            wrong.append(line)
        if line.result == "pass" and entry is not None:
            wrong.append(line._replace(result=f"passes, so take it out of KNOWN: {entry.reason}"))
    assert not wrong, "\n".join(f"{x.client}, {x.what} {x.datatype}: {x.result}" for x in wrong)


def test_every_datatype_by_every_form(lines: list[Line]) -> None:
    forms = {line.client for line in lines if line.datatype}
    assert len(forms) >= 19
    for form in forms:
        for what in ("infer", "infer, empty"):
            found = [x.datatype for x in lines if x.client == form and x.what == what]
            assert sorted(found) == sorted(DATATYPES), (form, what)


def test_the_report_is_written(lines: list[Line]) -> None:
    target = os.environ.get(REPORT)
    text = report(lines)
    assert "| FP16 |" in text
    if target:
        Path(target).write_text(text)


def test_schemas_agree_with_the_clients(tmp_path: Path) -> None:
    """Every field that ours has, theirs has, by the same name, number and type."""
    for module in ("tritonclient.grpc.service_pb2", "kserve.protocol.grpc.grpc_predict_v2_pb2"):
        done = subprocess.run(
            [str(PYTHON), str(CLIENTS / "schema.py"), module, str(ROOT / "serving" / "proto")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert int(done.stdout.split()[0]) > 60, done.stdout


def summary(lines: list[Line]) -> str:
    """One line of figures."""
    passed = sum(line.result == "pass" for line in lines)
    return (
        f"{passed} of {len(lines)} checks pass; {len(lines) - passed} are named with their reason"
    )


def report(lines: list[Line]) -> str:
    """docs/conformance.md."""
    versions = subprocess.run(
        [
            str(PYTHON),
            "-c",
            "from importlib.metadata import version as v\n"
            "print(*(f'{n} {v(n)}' for n in ('tritonclient', 'kserve', 'grpcio')), sep=', ')",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return (
        "# Conformance\n\n"
        f"Others' clients ({versions}) against `slipway serve`: {summary(lines)}. Written by "
        "`make conformance`.\n\n"
        "A cell stands for two checks: values, the limits of the type among them (texts: empty, not\n"
        "ASCII, a line break), and a tensor without elements. All must come back bit for bit.\n\n"
        f"{tables(lines)}\n"
    )


def tables(lines: list[Line]) -> str:
    """Forms by datatypes, then methods by clients, then the reasons."""
    reasons: list[str] = []

    def cell(found: list[Line]) -> str:
        failed = [line for line in found if line.result != "pass"]
        if not failed:
            return "pass" if found else ""
        entry = known(failed[0])
        reason = entry.reason if entry else failed[0].result
        if reason not in reasons:
            reasons.append(reason)
        return f"no ({reasons.index(reason) + 1})"

    forms = list(dict.fromkeys(x.client for x in lines if x.datatype))
    by_form = [[form, *(cell(_of(lines, form, datatype=d)) for d in DATATYPES)] for form in forms]
    clients = list(dict.fromkeys(x.client for x in lines if not x.datatype))
    methods = list(dict.fromkeys(x.what for x in lines if not x.datatype))
    by_method = [[m, *(cell(_of(lines, client, what=m)) for client in clients)] for m in methods]
    parts = [table(["", *DATATYPES], by_form), table(["", *clients], by_method)]
    parts += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n\n".join(parts[:2]) + ("\n\n" + "\n".join(parts[2:]) if reasons else "")


def _of(lines: list[Line], client: str, what: str = "", datatype: str = "") -> list[Line]:
    return [
        line
        for line in lines
        if line.client == client and line.datatype == datatype and (datatype or line.what == what)
    ]


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Markdown."""
    return "\n".join(
        ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
        + ["| " + " | ".join(row) + " |" for row in rows]
    )
