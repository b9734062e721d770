"""`slipway serve`: a bundle, or a repository of them, over HTTP and gRPC."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.config import ConfigError, build
from serving.commands.folders import fail, resolve_bundle
from serving.commands.reference import OPTIONS, reference
from serving.config import Settings, load

FAILED, USAGE = 1, 2
"""Exit codes: the server could not start or go on; the command or its settings are wrong."""


class Workers(click.ParamType[int | str]):
    """A number, or the word auto."""

    name = "NUMBER|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """The value as the settings have it; their bounds are checked there."""
        if value == "auto":
            return "auto"
        try:
            return int(value)
        except ValueError:
            self.fail(f"expected a number or 'auto', got {value!r}", param, ctx)


@click.command()
@click.argument("path")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="TCP port; 0 takes a free one.  [default: 8000]")
@click.option(
    "--grpc-port", type=int, help="TCP port of gRPC; 0 takes a free one.  [default: 8001]"
)
@click.option("--grpc/--no-grpc", default=None, help="Whether to speak gRPC too.  [default: yes]")
@click.option(
    "--control-port",
    type=int,
    help="TCP port, this machine's only, that loads and unloads models.  [default: none]",
)
@click.option(
    "--control-grpc-port", type=int, help="The same for clients of gRPC.  [default: none]"
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "prefer", "require"]),
    help="CUDA: never, where it is there, or not without it.  [default: cpu]",
)
@click.option(
    "--workers",
    type=Workers(),
    help="Processes that serve; auto, or 0: as many as the cores allow.  [default: 1]",
)
@click.option("--threads", type=int, help="Threads within one operator.  [default: 1]")
@click.option(
    "--insecure-public",
    is_flag=True,
    default=None,
    help="Listen beyond this machine although there are neither keys nor TLS.",
)
@click.option("--keys", metavar="FILE", help="API keys that may ask, made by `slipway key`.")
@click.option("--tls-cert", metavar="FILE", help="PEM certificate: serve over TLS.")
@click.option("--tls-key", metavar="FILE", help="The certificate's private key.")
@click.option(
    "--tls-client-ca", metavar="FILE", help="Ask every client for a certificate this CA signed."
)
@click.option("--access-log/--no-access-log", default=None, help="A JSON line a request on stdout.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "text"]),
    help="Standard error: JSON lines, or how it starts in prose.  [default: text on a terminal]",
)
@click.option(
    "--strict-readiness",
    is_flag=True,
    default=None,
    help="Ready only while every model that is to serve does, not as soon as one does.",
)
@click.option("--drain", type=float, metavar="SECONDS", help="Patience at the end.  [default: 10]")
@click.option(
    "--notice",
    type=float,
    metavar="SECONDS",
    help="Unready this long before closing.  [default: 0]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with any of --settings; options win over it.",
)
@click.option(
    "--settings",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda ctx, param, wanted: _list_settings(ctx) if wanted else None,
    help="List every setting of a --config file, as Markdown, and exit.",
)
def command(path: str, config: Path | None, **options: Any) -> None:
    """Serve the bundle or repository at PATH over the Open Inference Protocol V2.

    PATH is a bundle's folder, a repository NAME/VERSION/ of them, or the bare name of one in
    ./bundles.
    """
    from serving.telemetry import speak

    speak(options["log_format"] or "auto")
    try:
        _serve(path, config, options)
    except (click.UsageError, ConfigError) as error:
        _stop(error.message if isinstance(error, click.UsageError) else str(error), USAGE)
    except ModuleNotFoundError as error:
        from serving.telemetry import prose

        if prose():
            raise  # the command's table knows what to install
        _stop(f"{error}: pip install 'slipway[serve]'", FAILED)


def _serve(path: str, config: Path | None, options: dict[str, Any]) -> None:
    """Serve until told to stop. Raises `click.UsageError`, `ConfigError` or ends the process."""
    from serving.telemetry import speak

    folder = resolve_bundle(path)
    settings = with_options(load(config) if config else Settings(), options)
    speak(settings.log_format)
    from serving.errors import ModelRefused
    from serving.launch import StartError, launch

    try:
        launch(folder, settings)
    except StartError as error:
        _stop(str(_damage(folder) or error), FAILED)
    except ModelRefused as error:
        _stop(str(error), FAILED)


def _stop(message: str, code: int) -> NoReturn:
    """Say why the server did not start, and leave."""
    from serving.telemetry import log, prose

    if not prose():
        for line in message.splitlines():
            log("error", "the server did not start", reason=line, exit_code=code)
        sys.exit(code)
    if code == USAGE:
        raise click.UsageError(message)
    fail(message)


def _list_settings(ctx: click.Context) -> None:
    click.echo(reference(), nl=False)
    ctx.exit()


def _damage(folder: Path) -> object:
    """What is wrong with the bundle that could not be served anyway: worth more than a busy port."""
    from pipeline.bundle.manifest import MANIFEST, BundleError, read

    try:
        if (folder / MANIFEST).is_file():
            read(folder)
    except BundleError as error:
        return error
    return None


def with_options(settings: Settings, options: dict[str, Any]) -> Settings:
    """The settings with every option that was given put in its place."""
    # Only what was said: a model's limits are those it names, the rest is as for all.
    values = settings.model_dump(exclude_unset=True)
    for option, value in options.items():
        if value is not None:
            section, key = OPTIONS[option]
            (values.setdefault(section, {}) if section else values)[key] = value
    return build(Settings, values, "settings")
