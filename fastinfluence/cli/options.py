"""What the commands share: kinds of options, the folder of an evaluation, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fastinfluence.errors import RunDirectoryError

__all__ = [
    "RETRAINING",
    "check_target",
    "column_option",
    "device_option",
    "json_option",
    "report",
    "several",
]

RETRAINING = "retraining"  # in the folder that `evaluate` writes

Command = TypeVar("Command", bound=Callable[..., None])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print a machine-readable summary to stdout."
)

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, or torch:<device>; `fastinfluence info` says what auto is.",
)


def _column(context: click.Context, option: click.Parameter, text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdecimal() else text


def column_option(name: str, what: str) -> Callable[[Command], Command]:
    """Make an option for a column of a file, by name or by position."""
    words = f"Column of the {what}: its name, or its position from 0."
    return click.option(f"--{name}", metavar="COLUMN", callback=_column, help=words)


def report(as_json: bool, summary: dict[str, Any], text: str) -> None:
    """Print the end of a command, for a program or for a person."""
    click.echo(json.dumps(summary) if as_json else text)


def several(
    read: Callable[[str], Any], what: str
) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    """A callback that reads an option with several entries, separated by commas."""

    def callback(
        context: click.Context, option: click.Parameter, text: str | None
    ) -> tuple[Any, ...]:
        entries = [] if text is None else text.split(",")
        try:
            found = tuple(read(entry.strip()) for entry in entries)
        except (ValueError, KeyError):
            raise click.BadParameter(f"give {what}, separated by commas, not {text!r}") from None
        if len(set(found)) < len(found):
            raise click.BadParameter(f"{text!r} names the same twice")
        return found

    return callback


def check_target(out: Path, resume: bool) -> None:
    """Raise RunDirectoryError where an evaluation cannot be written, or gone on with."""
    if not os.path.lexists(out):
        return
    if not resume:
        raise RunDirectoryError(
            f"{out} exists already: choose another name, or go on with it by --resume"
        )
    if not (out / RETRAINING).is_dir():
        raise RunDirectoryError(f"{out} holds no {RETRAINING} folder: nothing to go on with")
