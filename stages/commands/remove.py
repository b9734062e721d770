"""`slipway remove`: an experiment out of `params.yaml` and `dvc.yaml`; what it made stays."""

from __future__ import annotations

import click

from pipeline.config import ConfigError
from stages.editing import remove
from stages.entry import fail
from stages.layout import Layout


@click.command(name="remove")
@click.argument("experiment")
def command(experiment: str) -> None:
    """Take EXPERIMENT out of params.yaml and dvc.yaml. No file of its data or results is touched."""
    try:
        remove(experiment)
    except ConfigError as error:
        fail(str(error), 2)
    click.echo(f"removed experiments.{experiment}")
    layout = Layout(experiment)
    made = (layout.build, layout.reports, layout.bundle, layout.lineage)
    if left := [str(path) for path in made if path.exists()]:
        click.echo(f"  its results are left; to delete them: rm -r {' '.join(left)}")
    click.echo(
        "  added again as it was, it comes back from DVC's cache; `dvc gc --workspace` empties that of "
        "all that no file here names"
    )
