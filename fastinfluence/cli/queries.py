"""What ``explain`` and ``evaluate`` are asked about: a file of predictions, and what of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import click

from fastinfluence.attribution.objectives import LogProbability, Probability, Score
from fastinfluence.cli.options import column_option
from fastinfluence.data import Triples
from fastinfluence.data.ids import Coded
from fastinfluence.data.readers import as_source, naming, read_columns, read_table
from fastinfluence.data.tables import triple_columns
from fastinfluence.data.text import read_names
from fastinfluence.errors import DataError
from fastinfluence.models import KnowledgeGraphModel, Model

__all__ = ["Asked", "of_triples", "query_options"]

_PAIR = ("user", "item")
_TRIPLE = ("head", "relation", "tail")
_OBJECTIVES = {"score": Score, "probability": Probability, "log-probability": LogProbability}

Command = TypeVar("Command", bound=Any)


def query_options(command: Command) -> Command:
    """Add the options that `Asked` is made of."""
    decorators = [
        column_option(name, f"{name}s in the file of queries (default: {name})")
        for name in (*_PAIR, *_TRIPLE)
    ]
    decorators += [
        click.option(
            "--predict",
            type=click.Choice(["tail", "head"]),
            help="(triples) Which end is predicted; an end that a query leaves empty always is.  "
            "[default: tail]",
        ),
        click.option(
            "--objective",
            type=click.Choice([*_OBJECTIVES]),
            help="(triples) What of a prediction is explained.  [default: score]",
        ),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def of_triples(model: Model) -> bool:
    """Whether the model is one of a knowledge graph."""
    return isinstance(model, KnowledgeGraphModel)


@dataclass
class Asked:
    """How to read queries, as the options say.

    Parameters
    ----------
    predict, objective : str or None
    columns : dict of str to str, int or None
        By what they hold: ``user``, ``item``, ``head``, ``relation``, ``tail``.
    """

    predict: str | None
    objective: str | None
    columns: dict[str, str | int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Asked:
        """Take its options out of those of a command."""
        columns = {name: options.pop(name) for name in (*_PAIR, *_TRIPLE)}
        return cls(options.pop("predict"), options.pop("objective"), columns)

    def check(self, model: Model, *, from_file: bool) -> None:
        """Raise click.UsageError at options that are not for this model, or not for no file."""
        triples = of_triples(model)
        foreign = _PAIR if triples else _TRIPLE
        given = [name for name in (*_PAIR, *_TRIPLE) if self.columns[name] is not None]
        wrong = [f"--{name}" for name in given if name in foreign]
        if not triples:
            told = (("--predict", self.predict), ("--objective", self.objective))
            wrong += [name for name, value in told if value is not None]
        if wrong:
            kind = "pairs of a user and an item" if triples else "triples"
            raise click.UsageError(
                f"{', '.join(wrong)} is for models of {kind}, and this run is a {model.kind}"
            )
        if given and not from_file:
            names = " and ".join(f"--{name}" for name in given)
            raise click.UsageError(f"{names} name columns of a file of queries")

    def read(self, model: Model, file: str) -> Any:
        """Queries of a file: columns of raw ids, None where an end is left open.

        Raises
        ------
        DataError
            The file cannot be read, or lacks a column.
        """
        if of_triples(model):
            return _read_triples(model.data_, file, [self.columns[name] for name in _TRIPLE])
        return _read_pairs(model, file, [_told(self.columns[name], name) for name in _PAIR])

    def what(self, model: Model, queries: Any) -> Any:
        """What is explained of queries: of triples an objective."""
        if not of_triples(model):
            return queries
        kind: Any = _OBJECTIVES[self.objective or "score"]
        return kind(queries, self.predict or "tail")


def _read_pairs(model: Model, file: str, columns: list[str | int]) -> dict[str, Any]:
    """Ids that happen to be numbers are read as text where the model's ids are text."""
    found = read_table(file, columns).values()
    sides = zip(_PAIR, (model.data_.user_ids, model.data_.item_ids), strict=True)
    return {
        name: column.astype(str) if ids.dtype.kind == "U" and column.dtype.kind == "i" else column
        for column, (name, ids) in zip(found, sides, strict=True)
    }


def _read_triples(
    data: Triples, file: str, columns: Sequence[str | int | None]
) -> dict[str, list[Any]]:
    wanted = [*columns]

    def choose(names: Sequence[str]) -> list[int]:
        if wanted == [None] * 3 and set(_TRIPLE) <= set(names):
            return triple_columns(names, *_TRIPLE)
        if wanted == [None] * 3:
            return triple_columns(names, None, None, None)
        return triple_columns(names, *map(_told, wanted, _TRIPLE))

    by_name = any(isinstance(one, str) for one in wanted)
    parse = partial(read_names, by_name=by_name, sep=None, header=None, is_header=_is_header)
    source = as_source(file)
    with naming(source):
        found = read_columns(source, choose, parse).values()
        ids = (data.entity_ids, data.relation_ids, data.entity_ids)
        return {
            name: _raw(column, of.dtype.kind == "i")
            for name, column, of in zip(_TRIPLE, found, ids, strict=True)
        }


def _told(column: str | int | None, name: str) -> str | int:
    return name if column is None else column


def _is_header(cells: list[str]) -> bool:
    return set(_TRIPLE) <= set(cells)


def _raw(column: Any, integers: bool) -> list[Any]:
    """Raw ids of a column, None where a cell is empty."""
    if isinstance(column, Coded):
        column = column.ids[column.codes]
    cells = column.tolist()
    return [_id(cell, integers) for cell in cells]


def _id(cell: Any, integers: bool) -> Any:
    if cell == "" or cell != cell:  # NaN stands for nothing in a column of numbers
        return None
    if not integers:
        return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    try:
        return int(cell)
    except ValueError:
        raise DataError(f"{cell!r} is no id: the ids of this run are integers") from None
