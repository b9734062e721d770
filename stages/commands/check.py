"""`slipway check`: is every setting of `params.yaml` known and in range?

Every stage asks this too, but DVC reads the file first, and where a name leads to no file it says so
without the place or a near miss.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.config import ConfigError
from pipeline.dataset import counted
from pipeline.start import NEW
from stages.editing import listed_in_graph
from stages.entry import fail
from stages.params import PARAMS, load, maker, read


@click.command(name="check")
def command() -> None:
    """Check params.yaml whole, as every stage does; nothing is run and nothing deleted."""
    try:
        experiments, raw = load(), read()
        for name, experiment in experiments.items():
            path = Path(experiment.data.config.path)
            if not path.exists():
                raise ConfigError(f"experiments.{name}.data.path: {path} does not exist")
            if "init_from" not in raw["experiments"][name]["model"]:
                raise ConfigError(
                    f"experiments.{name}.model.init_from: missing, and DVC reads it; write down {NEW!r}"
                )
            first = experiment.start.path
            if first and not maker(first, experiments) and not first.exists():
                raise ConfigError(f"experiments.{name}.model.init_from: {first} does not exist")
        listed = listed_in_graph()
    except ConfigError as error:
        fail(str(error), 2)
    for name in sorted(listed - set(experiments)):
        click.echo(
            f"warning: dvc.yaml lists files of {name}, and there is no experiments.{name}; "
            f"`slipway remove {name}` takes those lines out",
            err=True,
        )
    click.echo(f"{PARAMS}: {counted(len(experiments), 'experiment')}, well-formed")
