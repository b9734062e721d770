"""One MLflow run per pipeline state: found, adopted from a training's live curves, or made.

Tags carry the protocol. `pipeline.key` names the state; `pipeline.state` is

    live      a training streams into it, or did and was not tracked yet
    writing   a tracker is at work, or died at it
    tracked   complete
    given up  live or half written, and killed; put away once the same training is tracked

so a run that says `tracked` is whole, and nothing else is ever shown as a result.
"""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from stages.tracking import model
from stages.tracking.facts import Facts
from stages.tracking.lock import LOCK
from stages.tracking.server import Server

STATE = "pipeline.state"
KEY = "pipeline.key"
TRAIN_KEY = "train.key"
PLACE = "tracker.place"
BEGAN = "tracker.began"
LIVE_PLACE = "live.place"
MODEL = "model.id"
LATENCY = "latency.sha256"
ABANDONED_AFTER = 15 * 60
"""Seconds after which a half-written run of another machine is taken for dead."""

METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100  # MLflow's limits for one batch

How = Literal["new", "found", "adopted"]


@dataclass(frozen=True)
class Tracked:
    """A state's run. `complete` is false while another machine is still writing it."""

    run_id: str
    name: str
    how: How
    model_id: str | None
    complete: bool = True


def project(server: Server, facts: Facts) -> Tracked:
    """Find the state's run, or write it. Hold `address.locked` meanwhile.

    Raises `model.ModelError` when what MLflow stored is not the bundle's graph.
    """
    if found := _found(server, facts):
        return found
    run = _adopted(server, facts)
    how: How = "adopted"
    if run is None:
        run, how = _made(server, facts), "new"
    if winner := _earlier(server, facts, run, ("tracked", "writing")):
        discard(server, run)
        return _answer(winner, "found")
    model_id = _write(server, facts, run)
    if winner := _earlier(server, facts, run, ("tracked",)):
        discard(server, run)
        return _answer(winner, "found")
    _put_away_killed(server, facts)
    return Tracked(run.info.run_id, facts.run_name, how, model_id)


def search(server: Server, **tags: str) -> list[Run]:
    """Runs with these tags (`_` stands for `.`), the earliest first."""
    terms = [f"tags.`{name.replace('_', '.')}` = '{value}'" for name, value in tags.items()]
    return list(
        server.client.search_runs(
            [server.experiment_id], " and ".join(terms), order_by=["attributes.start_time ASC"]
        )
    )


def set_tags(server: Server, run_id: str, tags: dict[str, str]) -> None:
    """All in one request."""
    server.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def log_params(server: Server, run_id: str, params: dict[str, str]) -> None:
    """Those that the run lacks; a parameter once written never changes."""
    known = server.client.get_run(run_id).data.params
    missing = [Param(name, value) for name, value in params.items() if name not in known]
    for start in range(0, len(missing), PARAMS_AT_ONCE):
        server.client.log_batch(run_id, params=missing[start : start + PARAMS_AT_ONCE])


def log_points(server: Server, run_id: str, lines: Iterable[dict[str, float]]) -> None:
    """A point per epoch and column, those that people compare first.

    MLflow's page of comparison opens on the metric that its runs had first: the learning rate, in
    the order of the columns.
    """
    now = _now()
    points = [
        Metric(name, value, now, int(line["epoch"]))
        for line in lines
        for name, value in sorted(line.items(), key=lambda item: _standing(item[0]))
        if name != "epoch"
    ]
    for start in range(0, len(points), METRICS_AT_ONCE):
        server.client.log_batch(run_id, metrics=points[start : start + METRICS_AT_ONCE])


def _standing(column: str) -> int:
    """Metrics of the validation set before its loss, the training's loss, and the learning rate."""
    if column.startswith("validation_"):
        return column == "validation_loss"
    return 3 if column == "lr" else 2


def log_missing_points(server: Server, run_id: str, lines: Iterable[dict[str, float]]) -> None:
    """The same where the run has none yet: MLflow would append a second one."""
    lines = list(lines)
    names = {name for line in lines for name in line} & set(
        server.client.get_run(run_id).data.metrics
    )
    have = {
        (name, point.step)
        for name in names
        for point in server.client.get_metric_history(run_id, name)
    }
    log_points(
        server,
        run_id,
        [
            {k: v for k, v in line.items() if k == "epoch" or (k, int(line["epoch"])) not in have}
            for line in lines
        ],
    )


def discard(server: Server, run: Run) -> None:
    """Out of sight, with its models: a run that another one stands for."""
    give_up(server, run)
    for output in run.outputs.model_outputs if run.outputs else []:
        server.client.delete_logged_model(output.model_id)
    server.client.delete_run(run.info.run_id)


def give_up(server: Server, run: Run) -> None:
    """Stays as it is, marked killed; nobody will complete it."""
    server.client.set_tag(run.info.run_id, STATE, "given up")
    if run.info.status == "RUNNING":
        server.client.set_terminated(run.info.run_id, "KILLED")


def place(server: Server) -> str:
    """This machine and project folder, between whose trackers a lock decides."""
    return f"{socket.gethostname()}:{server.where.home}"


def about(experiment: str) -> dict[str, str]:
    """Tags in which MLflow's pages show where a run came from."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # a container's user need not have a name
    return {
        "experiment": experiment,
        "mlflow.user": user,
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "LOCAL",
    }


def _found(server: Server, facts: Facts) -> Tracked | None:
    """The state's run; half-written ones are cleared away, unless someone is at them now."""
    for run in search(server, pipeline_key=facts.key, pipeline_state="tracked"):
        _log_latency(server, facts, run)
        _put_away_killed(server, facts)
        return _answer(run, "found")
    for run in search(server, pipeline_key=facts.key, pipeline_state="writing"):
        foreign = run.data.tags.get(PLACE) != place(server)
        began = int(run.data.tags.get(BEGAN, 0))
        if foreign and _now() - began < ABANDONED_AFTER * 1000:
            return _answer(run, "found")
        discard(server, run)
    return None


def _adopted(server: Server, facts: Facts) -> Run | None:
    """The run that this folder's training streamed into, now marked as being written."""
    if facts.train_key is None:
        return None
    here = f"{socket.gethostname()}:{facts.layout.build.resolve()}"
    live = [
        run
        for run in search(server, train_key=facts.train_key, pipeline_state="live")
        if run.info.status == "RUNNING" and run.data.tags.get(LIVE_PLACE) == here
    ]
    if not live:
        return None
    *older, latest = live
    for run in older:
        give_up(server, run)
    set_tags(server, latest.info.run_id, _writing(server, facts))
    return latest


def _made(server: Server, facts: Facts) -> Run:
    return server.client.create_run(
        server.experiment_id, tags=_writing(server, facts), run_name=facts.run_name
    )


def _writing(server: Server, facts: Facts) -> dict[str, str]:
    return {STATE: "writing", KEY: facts.key, PLACE: place(server), BEGAN: str(_now())}


def _put_away_killed(server: Server, facts: Facts) -> None:
    """The attempts at this very training that were killed: the state's run holds their curves whole.

    Deleted as MLflow's pages do it, so they can be brought back.
    """
    if facts.train_key is not None:
        for run in search(server, train_key=facts.train_key, pipeline_state="given up"):
            server.client.delete_run(run.info.run_id)


def _earlier(server: Server, facts: Facts, run: Run, states: tuple[str, ...]) -> Run | None:
    """Another run of this state that ours must give way to: two machines may have begun at once.

    Both see the same two start times and ids, so both choose the same one.
    """
    rivals = [
        other
        for state in states
        for other in search(server, pipeline_key=facts.key, pipeline_state=state)
        if other.info.run_id != run.info.run_id
    ]
    ours = (run.info.start_time, run.info.run_id)
    earliest = min(rivals, key=lambda r: (r.info.start_time, r.info.run_id), default=None)
    if earliest and (
        states == ("tracked",) or (earliest.info.start_time, earliest.info.run_id) < ours
    ):
        return earliest
    return None


def _answer(run: Run, how: How) -> Tracked:
    tags = run.data.tags
    complete = tags.get(STATE) == "tracked"
    return Tracked(
        run.info.run_id, run.info.run_name or run.info.run_id, how, tags.get(MODEL), complete
    )


def _write(server: Server, facts: Facts, run: Run) -> str:
    """Everything, `tracked` last. The model's id."""
    client, run_id = server.client, run.info.run_id
    client.update_run(run_id, name=facts.run_name)
    log_params(server, run_id, facts.params)
    now = _now()
    finals = sorted(facts.finals.items(), key=lambda item: not item[0].startswith("test."))
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in finals])
    log_missing_points(server, run_id, facts.curves)
    set_tags(server, run_id, about(facts.experiment) | facts.tags | _git_for_mlflow(facts))
    _log_latency(server, facts, run)
    _log_dataset(server, facts, run_id)
    for path in (LOCK, "params.yaml"):
        client.log_artifact(run_id, str(path))
    client.log_artifacts(run_id, str(facts.layout.reports), "reports")
    model_id = model.log(server, facts, run_id)
    set_tags(server, run_id, {MODEL: model_id, "mlflow.note.content": _note(facts)})
    client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, STATE, "tracked")
    for name in client.get_run(run_id).data.tags.keys() & {PLACE, BEGAN, LIVE_PLACE}:
        client.delete_tag(run_id, name)  # they meant something to trackers only
    return model_id


def _log_latency(server: Server, facts: Facts, run: Run) -> None:
    """A measurement the run has not seen; a further one becomes the next point of its curve."""
    if not facts.latency or run.data.tags.get(LATENCY) == facts.latency_digest:
        return
    points = [
        point.step
        for name in sorted(set(facts.latency) & set(run.data.metrics))[:1]
        for point in server.client.get_metric_history(run.info.run_id, name)
    ]
    step, now = max(points, default=-1) + 1, _now()
    metrics = [Metric(name, value, now, step) for name, value in facts.latency.items()]
    server.client.log_batch(
        run.info.run_id, metrics=metrics, tags=[RunTag(LATENCY, facts.latency_digest)]
    )


def _log_dataset(server: Server, facts: Facts, run_id: str) -> None:
    digest = facts.tags.get("data.sha256")
    if digest is None:
        return
    declared = facts.bundle.manifest.inputs
    dataset = Dataset(
        name=facts.params.get("data.name", "data"),
        digest=digest[:12],  # MLflow has room for 36; the whole one is a tag
        source_type="local",
        source=json.dumps({"uri": str(facts.layout.data), "md5": facts.lineage["dvc"]["data_md5"]}),
        schema=json.dumps({"inputs": {i.name: f"{i.dtype}{list(i.shape)}" for i in declared}}),
        profile=json.dumps(_rows(facts)),
    )
    use = [InputTag("mlflow.data.context", "train, validation, test")]
    server.client.log_inputs(run_id, [DatasetInput(dataset, use)])


def _rows(facts: Facts) -> dict[str, int]:
    from pipeline import prepared

    return prepared.read_manifest(facts.layout.data).rows


def _git_for_mlflow(facts: Facts) -> dict[str, str]:
    commit = facts.tags.get("git.commit")
    return {"mlflow.source.git.commit": commit} if commit else {}


def _note(facts: Facts) -> str:
    """The run's description: what one would ask first."""
    tests = {name: value for name, value in facts.finals.items() if name.startswith("test.")}
    rows = [
        f"| {name} | {value:.4g}{_between(facts, name)} |"
        for name, value in {**tests, **facts.latency}.items()
    ]
    git = facts.lineage["git"]
    commit = f"`{git['commit'][:10]}`{' with changes' if git['dirty'] else ''}" if git else "none"
    signature = ", ".join(
        f"{t.name} {t.dtype} [{', '.join(map(str, t.shape))}]" for t in facts.bundle.manifest.inputs
    )
    return "\n".join(
        [
            f"**{facts.experiment}**: {facts.params.get('model.name', 'a model')} on "
            f"{facts.params.get('data.name', 'data')}, input `{signature}`",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            f"Bundle `{facts.bundle.digest[:16]}`, git {commit}. "
            f"Register it: `slipway register {facts.experiment}`",
        ]
    )


def _between(facts: Facts, name: str) -> str:
    """The interval of a figure of the test split."""
    place = f"interval.{name.removeprefix('test.')}"
    if f"{place}.low" not in facts.finals:
        return ""
    return f" (95 %: {facts.finals[f'{place}.low']:.4g} to {facts.finals[f'{place}.high']:.4g})"


def _now() -> int:
    return int(time.time() * 1000)
