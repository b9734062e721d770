"""`slipway register`: a proven bundle into MLflow's registry, under an alias that hosts ask for."""

from __future__ import annotations

import click

from pipeline.bundle.manifest import MODEL_NAME, BundleError
from pipeline.config import ConfigError
from stages.entry import StageError, chosen, fail
from stages.layout import Layout


@click.command("register")
@click.argument("experiment")
@click.option("--alias", default="champion", show_default=True, help="Name that hosts ask for.")
@click.option("--name", default=None, help="Registered model.  [default: the bundle's name]")
def command(experiment: str, alias: str, name: str | None) -> None:
    """Register EXPERIMENT's bundle; an equal one keeps its version and only the alias moves."""
    try:
        _register(experiment, alias, name)
    except ConfigError as error:
        fail(str(error), 2)
    except (BundleError, StageError) as error:
        fail(str(error), 1)


def _register(experiment: str, alias: str, name: str | None) -> None:
    from stages.tracking.address import address, locked
    from stages.tracking.facts import gather

    if name is not None and not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"--name: 1 to 64 letters, digits, '-' or '_', got {name!r}")
    facts = gather(chosen(experiment), Layout(experiment))
    where = address()

    from stages.tracking import registry, server

    try:
        with locked(where):
            done = registry.register(
                server.connect(where), facts, name or facts.bundle.manifest.name, alias
            )
    except Exception as error:  # MLflow has many kinds; each is the end of this command
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise StageError(f"not registered: {where.shown}: {reason}") from error
    print(
        f"registered: {done.name} version {done.version} (bundle {facts.bundle.digest[:12]}"
        f"{'' if done.made else ', there already'}) alias {alias}"
    )


if __name__ == "__main__":
    command()
