"""The command line: train, explain, evaluate, look, and a demonstration.

Exit codes: 0 done, 2 bad input, 1 failure. Compiling and plotting libraries are imported inside
the commands, so that ``fastinfluence --help`` answers at once.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import fastinfluence
from fastinfluence.cli.evaluate import evaluate
from fastinfluence.cli.explain import explain
from fastinfluence.cli.options import json_option, report
from fastinfluence.cli.train import train
from fastinfluence.errors import (
    ChaosWarning,
    DataError,
    FastInfluenceError,
    ParameterError,
    RunDirectoryError,
    UnknownIdError,
    UnseenWarning,
)

__all__ = ["main"]

_BAD_INPUT = (DataError, ParameterError, UnknownIdError, RunDirectoryError)
_WARNINGS = (ChaosWarning, UnseenWarning)


class _Commands(click.Group):
    """Turns the errors this library raises into one line and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with _told_warnings():
                return super().invoke(context)
        except FastInfluenceError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(2 if _is_bad_input(error) else 1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has gone: click's to end
                raise
            click.echo(f"error: {error}", err=True)
            context.exit(1)


@contextmanager
def _told_warnings() -> Iterator[None]:
    """Warnings of this library as lines for people, each kind of place once."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, _WARNINGS):
                click.echo(f"warning: {message}", err=True)
            else:
                shown(message, category, *place, **more)

        for category in _WARNINGS:
            warnings.simplefilter("default", category)
        warnings.showwarning = show
        yield


def _is_bad_input(error: FastInfluenceError) -> bool:
    # A run directory that a full or failing disk kept from being written is no bad input.
    cause = error.__cause__
    failed = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    if isinstance(error, RunDirectoryError) and failed:
        return False
    return isinstance(error, _BAD_INPUT)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastinfluence.__version__, prog_name="fastinfluence")
def main() -> None:
    """Train factorization models, and explain their predictions by training examples.

    Begin with `fastinfluence demo`.
    """


@main.command()
@click.option(
    "--dataset",
    type=click.Choice(["npm", "nations"]),
    default="npm",
    show_default=True,
    help="Bundled data: dependencies of packages, or a knowledge graph.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the model and its explanations."
)
def demo(dataset: str, out: Path | None) -> None:
    """Explain predictions on real data, and check by retraining.

    Trains on the dependencies of npm packages, or on what nations do to each other, says why it
    predicts others, then leaves the reasons out and trains again. Takes under a minute.
    """
    from fastinfluence import demo as demonstrations

    getattr(demonstrations, dataset)(click.echo, out)


@main.command()
@click.argument("run", required=False)
@json_option
def info(run: str | None, as_json: bool) -> None:
    """Show versions, processors and backend, or what RUN holds.

    RUN may be a run directory, or a folder of explanations or of retrainings; its checksums are
    compared.
    """
    from fastinfluence import info as facts

    found = facts.machine() if run is None else facts.run(run)
    report(as_json, found, facts.as_text(found))


main.add_command(train)
main.add_command(explain)
main.add_command(evaluate)
