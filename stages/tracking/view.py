"""The table of runs as MLflow's pages should open it: results beside the settings compared most.

MLflow keeps a table's columns in the browser and shows no metric until they are picked one by one. A
*shared view* is a tag of its experiment that holds such a choice; the address names it.
"""

from __future__ import annotations

import json

from stages.tracking.server import Server

NAME = "slipway"
TAG = f"mlflow.sharedViewState.{NAME}"
RESULTS = "test."
MEASURED = ("latency.batch_1_p50_ms",)
SETTINGS = ("model.name", "train.lr", "train.epochs")
SOUGHT = ("accuracy", "r2", "micro_f1")
AT_ONCE = 8
"""Columns of results: more than a screen is wide helps nobody."""

LETTER, EDGES = 8, 28
"""Pixels; MLflow's own columns cut a name like `test.balanced_accuracy` in half."""


def share(server: Server) -> str:
    """What to add to the address of the runs' page for the view over the latest runs' metrics.

    Empty while there are no results to show. Raises whatever MLflow does.
    """
    runs = server.client.search_runs([server.experiment_id], max_results=50)
    known = {name for run in runs for name in run.data.metrics}
    results = sorted(name for name in known if name.startswith(RESULTS))
    # First what people look for, of classes, numbers and tags.
    results.sort(key=lambda name: name.removeprefix(RESULTS) not in SOUGHT)
    if not results:
        return ""
    shown = results[:AT_ONCE] + [name for name in MEASURED if name in known]
    columns = [f"metrics.`{name}`" for name in shown] + [f"params.`{name}`" for name in SETTINGS]
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: LETTER * len(column.split("`")[1]) + EDGES for column in columns},
    }
    server.client.set_experiment_tag(server.experiment_id, TAG, json.dumps(state))
    return f"&viewStateShareKey={NAME}"
