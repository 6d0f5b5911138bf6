"""What the commands share: options for columns and hyper-parameters, queries, the report."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fastinfluence.data.readers import read_table
from fastinfluence.models import MatrixFactorization
from fastinfluence.training.recipe import LOSSES, OPTIMIZERS

__all__ = ["column_option", "hyperparameters", "json_option", "read_queries", "report"]

_CHOICES = {"loss": LOSSES, "optimizer": OPTIMIZERS, "dtype": ("float32", "float64")}

Command = TypeVar("Command", bound=Callable[..., None])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print a machine-readable summary to stdout."
)


def _column(context: click.Context, option: click.Parameter, text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdecimal() else text


def column_option(name: str, what: str) -> Callable[[Command], Command]:
    """Make an option for a column of a file, by name or by position."""
    words = f"Column of the {what}: its name, or its position from 0."
    return click.option(f"--{name}", metavar="COLUMN", callback=_column, help=words)


def hyperparameters(command: Command) -> Command:
    """Make every hyper-parameter of the model an option with its default and description."""
    described = _descriptions(MatrixFactorization)
    parameters = inspect.signature(MatrixFactorization).parameters
    for name in reversed(parameters):
        default = parameters[name].default
        command = click.option(
            f"--{name.replace('_', '-')}",
            type=_type(name, default),
            default=default,
            show_default=default is not None,
            help=described.get(name),
        )(command)
    return command


def _type(name: str, default: object) -> Any:
    if name in _CHOICES:
        return click.Choice(_CHOICES[name])
    return int if default is None else type(default)  # None stands for a count or a seed


def _descriptions(model: type) -> dict[str, str]:
    """Read the Parameters section of a numpydoc docstring."""
    section = (inspect.getdoc(model) or "").partition("Parameters\n----------\n")[2]
    described: dict[str, str] = {}
    name = ""
    for line in section.partition("\n\n")[0].splitlines():
        if line.startswith(" "):
            described[name] = f"{described[name]} {line.strip()}".strip().replace("`", "")
        else:
            name = line.partition(" :")[0]
            described[name] = ""
    return described


def read_queries(
    model: MatrixFactorization, file: str, user: str | int | None, item: str | int | None
) -> dict[str, Any]:
    """Columns ``user`` and ``item`` of raw ids, from a file with columns of these or other names.

    Ids that happen to be numbers are read as text where the model's ids are text.
    """
    chosen = ("user" if user is None else user, "item" if item is None else item)
    found = read_table(file, chosen).values()
    sides = (("user", model.data_.user_ids), ("item", model.data_.item_ids))
    return {
        name: column.astype(str) if ids.dtype.kind == "U" and column.dtype.kind == "i" else column
        for column, (name, ids) in zip(found, sides, strict=True)
    }


def report(as_json: bool, summary: dict[str, Any], text: str) -> None:
    """Print the end of a command, for a program or for a person."""
    click.echo(json.dumps(summary) if as_json else text)
