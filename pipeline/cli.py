"""The `slipway` command: a table of names, each module imported only when it is used."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import click

SERVE, TRAIN = "slipway[serve]", "slipway[train]"
HALVES = {SERVE: "serving", TRAIN: "training"}

# name: (module with a click command called `command`, one line of help, extra it needs)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": (
        "stages.commands.init",
        "Add an experiment for your data, or a ready-made one.",
        TRAIN,
    ),
    "remove": ("stages.commands.remove", "Take an experiment out again; its files stay.", TRAIN),
    "summary": ("stages.commands.summary", "What the last run built, and how good it is.", TRAIN),
    "check": ("stages.commands.check", "Is every setting in params.yaml right?", TRAIN),
    "settings": ("stages.commands.settings", "Every setting an experiment can have.", TRAIN),
    "register": ("stages.commands.register", "Put a proven bundle into a registry.", TRAIN),
    "pull": ("serving.commands.pull", "Fetch a bundle onto this host.", SERVE),
    "inspect": ("serving.commands.inspect", "What a bundle is, says and weighs.", SERVE),
    "verify": ("serving.commands.verify", "Prove that a bundle answers as it should here.", SERVE),
    "serve": ("serving.commands.serve", "Serve a bundle or a repository over HTTP.", SERVE),
    "predict": ("serving.commands.predict", "Ask a bundle or a server about a file.", SERVE),
    "key": ("serving.commands.key", "Make an API key for a server.", SERVE),
    "bench": ("serving.commands.bench", "Put load on a server and measure its answers.", SERVE),
}


class Table(click.Group):
    """A group that knows its commands by name and wakes only the one that is called."""

    def __init__(self, commands: Mapping[str, tuple[str, str, str]], **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]  # click's own keywords pass through
        self._table = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module, _, extra = self._table[cmd_name]
        try:
            command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            raise click.ClickException(_missing(cmd_name, error.name or "", extra)) from error
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """A command imports what is slow only when it runs, so a package may be missed late."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand or ""
            extra = self._table[name][2] if name in self._table else TRAIN
            raise click.ClickException(_missing(name, error.name or "", extra)) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._table and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self._table, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(self._table)}."
            ctx.fail(f"No such command '{args[0]}'. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table itself: nothing is imported to print it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line, _) in self._table.items()])


def can_train() -> bool:
    """Whether the training half is installed here; nothing of it is imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "dvc", "mlflow"))


def _missing(name: str, module: str, extra: str) -> str:
    half = HALVES[extra]
    if module.partition(".")[0] in ("pipeline", "stages", "serving"):
        return (
            f"'{name}' is not part of this installation (there is no {module}); it needs the "
            f"{half} half: pip install '{extra}'"
        )
    return (
        f"'{name}' needs the {half} half, which is not whole here (there is no package "
        f"{module!r}): pip install '{extra}'"
    )


@click.command(
    cls=Table, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="slipway", prog_name="slipway")
def main() -> None:
    """Train in PyTorch, launch as ONNX."""


if __name__ == "__main__":
    main()
