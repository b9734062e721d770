"""MLflow's model registry, idempotent by the bundle's digest."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from stages.tracking import model, runs
from stages.tracking.facts import Facts
from stages.tracking.server import Server

BUNDLE = "bundle"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model; `made` is false where it was there already."""

    name: str
    version: str
    made: bool


def register(server: Server, facts: Facts, name: str, alias: str) -> Registered:
    """The bundle as a version of `name`, with the alias on it. Hold `address.locked` meanwhile.

    A bundle that this server has no run of is tracked first. Raises `model.ModelError` when the
    registry's graph is not the bundle's; the alias then stays where it was.
    """
    client = server.client
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, tags={"task": facts.bundle.manifest.task})
    version = _version(server, name, facts.bundle.digest)
    made = version is None
    if version is None:
        run_id, model_id = _source(server, facts)
        location = client.get_logged_model(model_id).artifact_location
        model.check(server, location, facts.tags["onnx.sha256"])
        version = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={
                BUNDLE: facts.bundle.digest,
                "onnx.sha256": facts.tags["onnx.sha256"],
                runs.KEY: facts.key,
            },
        )
    location = client.get_model_version_download_uri(name, str(version.version))
    model.check(server, location, facts.tags["onnx.sha256"])
    client.set_registered_model_alias(name, alias, str(version.version))
    return Registered(name, str(version.version), made)


def _version(server: Server, name: str, digest: str) -> ModelVersion | None:
    """The earliest version with this bundle."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = server.client.search_model_versions(f"name = '{name}'", page_token=token)
        found += [version for version in page if version.tags.get(BUNDLE) == digest]
        if not (token := page.token):
            return min(found, key=lambda version: int(version.version), default=None)


def _source(server: Server, facts: Facts) -> tuple[str, str]:
    """Run and model that hold the bundle."""
    for run in runs.search(server, bundle=facts.bundle.digest, pipeline_state="tracked"):
        if model_id := run.data.tags.get(runs.MODEL):
            return run.info.run_id, model_id
    tracked = runs.project(server, facts)
    if not tracked.complete or tracked.model_id is None:
        raise model.ModelError(
            "another machine is tracking this bundle just now; try again in a minute"
        )
    return tracked.run_id, tracked.model_id
