"""What every stage does before its own work: settings first, errors as sentences.

Exit code 2: the settings are wrong; 1: the work failed in a way that was foreseen. Both without a
traceback. Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from pipeline.bundle.manifest import BundleError
from pipeline.config import ConfigError
from stages.layout import Layout
from stages.params import SECTIONS, Experiment, load


class StageError(RuntimeError):
    """The stage cannot reach its result; the message says why and what to do."""


def stage(run: Callable[[Experiment, Layout], None]) -> click.Command:
    """A click command `NAME EXPERIMENT` around `run(experiment, layout)`.

    The whole of `params.yaml` is checked before `run` is entered, so `run` imports what is slow.
    """

    @click.command(name=run.__module__.rpartition(".")[2], help=run.__doc__)
    @click.argument("experiment")
    def command(experiment: str) -> None:
        try:
            run(chosen(experiment), Layout(experiment))
        except ConfigError as error:
            fail(placed(str(error), experiment), 2)
        except Exception as error:
            if _too_large(error):
                why = str(error).partition("\n")[0]
                fail(f"there is not enough memory for {experiment} here: {why}".rstrip(": "), 1)
            if not isinstance(error, _foreseen()):
                raise
            fail(str(error), 1)

    return command


def main(command: click.Command) -> NoReturn:
    """Be the whole of a process: do `command`, then end without taking Python's modules apart.

    What libraries registered for the end is done; only the dismantling of torch's thousands of
    modules is left out, which takes longer than many a stage's own work.
    """
    code = 0
    try:
        command()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads any more
            code = code or 1
    os._exit(code)


def chosen(name: str) -> Experiment:
    """The named experiment of a `params.yaml` that was checked whole."""
    experiments = load()
    if name not in experiments:
        raise ConfigError(f"experiments: no {name!r}; there are {', '.join(experiments)}")
    return experiments[name]


def placed(mistakes: str, experiment: str) -> str:
    """The lines of a `ConfigError`, each setting by its whole path.

    Below the stages nobody knows the experiment's name: there it is `train.lr`.
    """
    return "\n".join(
        f"experiments.{experiment}.{line}" if re.split(r"\W", line)[0] in SECTIONS else line
        for line in mistakes.splitlines()
    )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Be the only process at work in `folder`. Raises `StageError` naming the other one.

    A killed `dvc repro` leaves its stage running, and the next one would start a second beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StageError(
                f"{folder}: process {lock.read() or 'unknown'} is still at work here; "
                "wait for it, or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def fail(message: str, code: int) -> None:
    """Say what went wrong and leave."""
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(code)


def _too_large(error: Exception) -> bool:
    """Whether memory ran out. Torch tells of it in words, on a CPU in an error of no kind of its own."""
    words = ("DefaultCPUAllocator", "CUDA out of memory")
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return told or isinstance(error, MemoryError)


def _foreseen() -> tuple[type[Exception], ...]:
    """Error types whose message is the whole story, looked up only once something failed."""
    from safetensors import SafetensorError

    from pipeline.dataset import DataError
    from pipeline.export import ExportError
    from pipeline.train import TrainingError
    from serving.errors import ServingError

    ours = (StageError, BundleError, DataError, TrainingError, ExportError, ServingError)
    # A full disk, a missing or a damaged file: their messages name what is wrong.
    return (*ours, OSError, SafetensorError)
