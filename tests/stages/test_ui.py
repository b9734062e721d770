"""`make ui`: MLflow's pages over a project's runs, opened where the results are."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request
from pathlib import Path

import click
import pytest

from stages.tracking.address import address, locked
from tests.stages.states import State, new_state

pytestmark = pytest.mark.slow


def opened(state: State) -> tuple[str, dict[str, str]]:
    """The page that `make ui` names, and the tags of its experiment as its server tells them."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    process = state.start("-m", "stages.commands.ui", "--port", str(port))
    try:
        assert process.stdout is not None
        said = next(line for line in process.stdout if line.startswith("MLflow: "))
        found = re.search(rf"http://127\.0\.0\.1:{port}/#/experiments/(\d+)/runs\?(\S*)", said)
        assert found, said
        api = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id={found[1]}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(api, timeout=20) as answer:
            tags = json.load(answer)["experiment"]["tags"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    return found[2], {tag["key"]: tag["value"] for tag in tags}


@click.command
def shared() -> None:
    """The part of the address that names the columns shown."""
    from stages.tracking import server, view

    where = address()
    with locked(where):
        print(repr(view.share(server.connect(where))))


def test_the_page_shows_results_beside_settings(tmp_path: Path) -> None:
    state = new_state(tmp_path / "project")
    assert state.here(shared).stdout == "''\n", "there are no results yet"
    reports = state.folder / "reports" / "digits-mlp" / "metrics.json"
    reports.write_text(json.dumps({"test": {"macro_f1": 0.8, "accuracy": 0.9}}))
    assert state.track().returncode == 0
    query, tags = opened(state)
    key = re.search(r"viewStateShareKey=(\w+)", query)
    assert key and "workflowType=machine_learning" in query
    view = json.loads(tags[f"mlflow.sharedViewState.{key[1]}"])
    assert view["selectedColumns"][:4] == [
        "metrics.`test.accuracy`",
        "metrics.`test.macro_f1`",
        "metrics.`latency.batch_1_p50_ms`",
        "params.`model.name`",
    ]
    assert view["columnOrder"] == view["selectedColumns"] == list(view["columnWidths"])


def test_this_mlflows_pages_know_shared_views() -> None:
    """They are no documented interface: another MLflow may have dropped them."""
    import mlflow

    pages = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    script = "".join(path.read_text() for path in pages.glob("*.js"))
    for word in ("viewStateShareKey", "mlflow.sharedViewState.", "selectedColumns", "columnOrder"):
        assert word in script, word
