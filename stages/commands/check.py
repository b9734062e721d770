"""`slipway check`: is every setting of `params.yaml` known and in range?

Every stage asks this too, but DVC reads the file first, and where a name leads to no file it says so
without the place or a near miss.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.config import ConfigError
from stages.commands.remove import listed_in_graph
from stages.entry import fail
from stages.params import load


@click.command(name="check")
def command() -> None:
    """Check params.yaml whole, as every stage does; nothing is run and nothing deleted."""
    try:
        experiments = load()
        for name, experiment in experiments.items():
            path = Path(experiment.data.config.path)
            if not path.exists():
                raise ConfigError(f"experiments.{name}.data.path: {path} does not exist")
    except ConfigError as error:
        fail(str(error), 2)
    for name in sorted(listed_in_graph() - set(experiments)):
        click.echo(
            f"warning: dvc.yaml lists files of {name}, and there is no experiments.{name}; "
            f"`slipway remove {name}` takes those lines out",
            err=True,
        )
