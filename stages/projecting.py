"""What `stages.track` does where something has changed: the state into MLflow, made or found.

`SLIPWAY_TRACKING` says what a server that is down means: `best-effort` (the default) a warning,
`required` an error; `off` tracks nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.bundle.manifest import MANIFEST, canonical_json
from stages.entry import StageError, stage
from stages.layout import Layout, write_atomically
from stages.live import Policy, policy
from stages.params import Experiment
from stages.tracking import unchanged
from stages.tracking.address import Address, address, locked
from stages.tracking.presence import gone
from stages.tracking.state import pipeline_key, section

if TYPE_CHECKING:
    from stages.tracking.facts import Facts
    from stages.tracking.runs import Tracked

HOW = {"new": "new", "adopted": "begun by its training", "found": "there already"}


@stage
def command(experiment: Experiment, layout: Layout) -> None:
    """Track EXPERIMENT's pipeline state in MLflow."""
    how_much = policy()
    manifest = layout.bundle / MANIFEST
    if not manifest.is_file():
        raise StageError(f"{layout.bundle}: no bundle; run `dvc repro`")
    _measure_if_missing(layout, hashlib.sha256(manifest.read_bytes()).hexdigest())
    key = pipeline_key(section(experiment.name))
    where = address()
    if how_much != "off" and (stamp := _stamped(where, key, layout)):
        if not _same(layout.lineage, lineage := canonical_json(stamp["lineage"])):
            write_atomically(layout.lineage, lineage)
        unchanged.note(layout, stamp["name"], stamp["run_id"], where)
        unchanged.tell(layout, stamp["name"], stamp["run_id"], HOW["found"], where)
        return
    _project(experiment, layout, where, how_much)


def _project(experiment: Experiment, layout: Layout, where: Address, how_much: Policy) -> None:
    from stages.tracking.facts import gather

    facts = gather(experiment, layout)
    # The bundle is never without its lineage; the run's id follows once there is one.
    write_atomically(layout.lineage, canonical_json(facts.lineage))
    if how_much == "off":
        print(f"not tracked: {experiment.name}, SLIPWAY_TRACKING is off")
        return
    try:
        tracked = _tracked(where, facts)
    except StageError:
        raise
    except Exception as error:  # whatever MLflow, its database or the network may come up with
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        message = f"not tracked: {where.shown}: {reason}"
        if how_much == "required":
            raise StageError(f"{message}; SLIPWAY_TRACKING is 'required'") from error
        click.echo(
            f"warning: {message}; nothing else is lost, the next `dvc repro` makes up for it",
            err=True,
        )
        return
    lineage = facts.tracked(where.shown, tracked.run_id, tracked.model_id).lineage
    write_atomically(layout.lineage, canonical_json(lineage))
    if tracked.complete:
        note = {
            "run_id": tracked.run_id,
            "name": tracked.name,
            "latency": facts.latency_digest,
            "lineage": lineage,
        }
        write_atomically(_stamp(where, facts.key), canonical_json(note))
        unchanged.note(layout, tracked.name, tracked.run_id, where)
    unchanged.tell(layout, tracked.name, tracked.run_id, HOW[tracked.how], where)


def _tracked(where: Address, facts: Facts) -> Tracked:
    with locked(where):
        # Once the address is known to be sound: MLflow takes its time to wake.
        from stages.tracking import model, runs, server

        try:
            return runs.project(server.connect(where), facts)
        except model.ModelError as error:
            raise StageError(str(error)) from None


def _measure_if_missing(layout: Layout, digest: str) -> None:
    """In a fresh clone `benchmark` is up to date by `dvc.lock`, yet never ran on this machine."""
    try:
        report = json.loads(layout.latency.read_bytes())
    except (OSError, ValueError):
        report = None
    if isinstance(report, dict) and report.get("bundles") == [digest]:
        return
    layout.latency.unlink(missing_ok=True)  # another bundle's, or torn
    done = subprocess.run(
        [sys.executable, "-m", "stages.benchmark", layout.experiment], check=False
    )
    if done.returncode:
        click.echo(f"warning: no latency of {layout.experiment}: its benchmark failed", err=True)


def _stamp(where: Address, key: str) -> Path:
    return where.notes / f"{key[:32]}-{where.identity}"


def _stamped(where: Address, key: str, layout: Layout) -> dict[str, Any] | None:
    """What the last tracking of this state at this address noted, if it still holds."""
    try:
        note = json.loads(_stamp(where, key).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict) or not note.keys() >= {"run_id", "name", "lineage"}:
        return None
    latency = (
        hashlib.sha256(layout.latency.read_bytes()).hexdigest() if layout.latency.is_file() else ""
    )
    if note.get("latency") != latency or gone(where, str(note.get("run_id"))):
        return None
    return note


def _same(path: Path, payload: bytes) -> bool:
    return path.is_file() and path.read_bytes() == payload
