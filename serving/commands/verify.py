"""`slipway verify`: everything a server proves before it serves, and nothing served."""

from __future__ import annotations

from typing import get_args

import click

from pipeline.bundle.manifest import BundleError, read
from pipeline.config import ConfigError, build
from serving.commands.folders import fail, resolve_bundle
from serving.config import RuntimeSettings, Settings


@click.command()
@click.argument("bundle")
@click.option("--variant", default="fp32", show_default=True, help="Which form of the graph.")
@click.option(
    "--provider",
    type=click.Choice(get_args(RuntimeSettings.model_fields["provider"].annotation)),
    default="cpu",
    show_default=True,
    help="CUDA: never, where it is there, or not without it.",
)
def command(bundle: str, variant: str, provider: str) -> None:
    """Prove on this machine that BUNDLE is whole and answers as it did when it was built.

    Exit code 1 with the cause where it does not.
    """
    folder = resolve_bundle(bundle)
    try:
        settings = build(
            Settings, {"variant": variant, "runtime": {"provider": provider}}, "settings"
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    from serving.errors import ModelRefused
    from serving.inference.model import load

    try:
        found = read(folder)
        click.echo(
            f"whole    {len(found.contents)} files have the size and SHA-256 of the manifest"
        )
        click.echo(f"         bundle {found.digest}")
        model = load(found, settings)
    except BundleError as error:
        fail(error)
    except ModelRefused as error:
        fail(f"{folder}: {error}")
    click.echo("graph    within limits, and its tensors are those of the manifest")
    click.echo(f"session  {model.session.provider}, variant {variant}")
    for output, difference in model.replay.differences.items():
        limit = found.manifest.golden.tolerance.get(output, 0.0)
        click.echo(
            f"golden   {model.replay.rows} rows: {output} differs by at most {difference:.3g} "
            f"(tolerated {limit:.3g})"
        )
    click.echo(f"proven   {found.manifest.name} answers here as it was built to")
    model.close()
