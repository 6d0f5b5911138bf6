"""`BaseExplanations`: a sequence of explained predictions, as text, tables and files."""

from __future__ import annotations

import html
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import DataError
from fastinfluence.storage import tables
from fastinfluence.storage.atomic import atomic_file

if TYPE_CHECKING:
    from typing import Self

    from fastinfluence.attribution.base_explanation import BaseExplanation
    from fastinfluence.data import Interactions, Triples

__all__ = ["BaseExplanations", "Place"]

OneT = TypeVar("OneT", bound="BaseExplanation")
Columns = dict[str, tables.Array | tables.Encoded]
Indices = npt.NDArray[np.integer[Any]]

_RANKED = ("prediction", "train_index", "influence")
_SHOWN_QUERIES = 5  # in the HTML table of a notebook


class Place(NamedTuple):
    """A place in an example and in what is explained: its column, its codes, its ids."""

    column: str  # in tables
    codes: str  # attribute (n,) int32 of the explanations and of the data
    kind: str  # the data have ids and labels of this


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BaseExplanations(ABC, Generic[OneT]):
    """The k most influential training examples of each of n predictions.

    A sequence: ``len(ex)`` is n, ``ex[i]`` one prediction's explanation, ``ex[10:20]``
    explanations again. Influence is positive where training on the example raised the
    prediction. What is explained, and of which data, a subclass says.

    Attributes
    ----------
    prediction : (n,) float
    train_index : (n, k) int
        Rows of `data`, most influential first, -1 where a query has fewer than k.
    influence : (n, k) float
        NaN where a query has fewer than k.
    total_influence : (n,) float, or None
        Sum of the absolute influence of all candidates, shown or not.
    data : Interactions or Triples
        The training data.
    method : str
        The method that found them.
    units : {"effect", "rank"}
        Whether influence is in the units of the prediction, or only orders the examples.
    proponents : bool
        Whether the examples that raised the prediction come first, or those that lowered it.
    residual : (n,) float, or None
        Relative residual of the linear system behind each query, of methods that solve one.
    converged : (n,) bool, or None
        Whether it was solved to the tolerance asked for; where not, influences are rough.
    """

    EXPLAINED: ClassVar[str]  # what one query is: "pair", "triple"
    PLACES: ClassVar[tuple[Place, ...]]
    SIDES: ClassVar[npt.NDArray[np.str_]]  # what examples may have in common; "" for no example
    IN_WORDS: ClassVar[Mapping[str, str]]  # the same for people to read
    COLORS: ClassVar[Mapping[str, str]]
    _CHECKED: ClassVar[tuple[str, ...]]  # arrays of the data that explanations belong to
    _ROWS: ClassVar[tuple[str, ...]] = ()  # attributes (n,) beyond the codes
    _OPTIONAL: ClassVar[tuple[str, ...]] = (  # attributes (n,) or None
        "total_influence",
        "residual",
        "converged",
    )
    _SETTINGS: ClassVar[tuple[str, ...]] = ("method", "units", "proponents")

    prediction: npt.NDArray[np.floating[Any]]
    train_index: Indices
    influence: npt.NDArray[np.floating[Any]]
    total_influence: npt.NDArray[np.floating[Any]] | None
    data: Interactions | Triples
    method: str
    units: Literal["effect", "rank"]
    proponents: bool
    residual: npt.NDArray[np.floating[Any]] | None = None
    converged: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self)
        wide = (n, self.train_index.shape[-1])
        for name, array in self._arrays().items():
            shape = wide if name in ("train_index", "influence") else (n,)
            if array.shape != shape:
                raise DataError(
                    f"{name} has shape {array.shape}, {shape} was expected for {n} queries"
                )

    # ---------------------------------------------------------------- what a family says itself

    @abstractmethod
    def _single(self) -> OneT:
        """The explanation of the only prediction of these."""

    @abstractmethod
    def _common(self, example: Indices) -> npt.NDArray[np.int8]:
        """Numbers (n, k) in `SIDES` of what examples (n, k) have in common with the query."""

    def _query_columns(self, query: Indices) -> Columns:
        """Further columns of queries (m,), beside their ids."""
        return {}

    def _example_columns(self, example: Indices) -> Columns:
        """Further columns of examples (m,), beside their ids."""
        return {}

    # ---------------------------------------------------------------- as a sequence

    def __len__(self) -> int:
        return len(getattr(self, self.PLACES[0].codes))

    @overload
    def __getitem__(self, index: int) -> OneT: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> OneT | Self:
        if not isinstance(index, slice):
            index = range(len(self))[index]
            return self[index : index + 1]._single()
        return replace(self, **{name: array[index] for name, array in self._arrays().items()})

    def __iter__(self) -> Iterator[OneT]:
        return (self[i] for i in range(len(self)))

    # ---------------------------------------------------------------- derived

    @cached_property
    def _side_codes(self) -> npt.NDArray[np.int8]:
        side = self._common(np.maximum(self.train_index, 0))
        side[self.train_index < 0] = 0
        return side

    @property
    def side(self) -> npt.NDArray[np.str_]:
        """(n, k) str: what the example has in common with the query."""
        side: npt.NDArray[np.str_] = self.SIDES[self._side_codes]
        return side

    @cached_property
    def coverage(self) -> npt.NDArray[np.float64]:
        """(n,) float64 in [0, 1]: share of all absolute influence that the k examples hold.

        NaN where the total is not known or zero.
        """
        if self.total_influence is None:
            return np.full(len(self), np.nan)
        shown = np.nansum(np.abs(self.influence), axis=1, dtype=np.float64)
        total = np.where(self.total_influence > 0, self.total_influence, np.nan)
        return np.minimum(shown / total, 1.0)  # the total was summed with other roundings

    # ---------------------------------------------------------------- for people

    def because(self, i: int, n: int = 3) -> str:
        """Return prediction `i` and at most `n` reasons for it as text.

        Only examples that worked in the direction asked for are reasons: those that raised
        the prediction, or with ``proponents=False`` those that lowered it.
        """
        return self[i].because(n)

    def _facts(self) -> list[str]:
        """What ``repr`` says."""
        kind = "proponents" if self.proponents else "opponents"
        return [
            f"{len(self):,} predictions",
            f"up to {self.train_index.shape[1]} {kind} each",
            f"method={self.method!r}",
            f"units={self.units!r}",
        ]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        heads = [self.EXPLAINED, "predicted", "because of" if self.proponents else "in spite of"]
        rows = [[f"<th>{head}</th>" for head in heads]]
        for one in self[:_SHOWN_QUERIES]:
            reasons = [html.escape(" ".join(words)) for words in one.reasons(3)]
            cells = [html.escape(one.name), html.escape(one.predicted), "<br>".join(reasons)]
            rows.append([f"<td style='text-align: left'>{cell}</td>" for cell in cells])
        body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
        left = len(self) - _SHOWN_QUERIES
        more = f"<p>and {left:,} more</p>" if left > 0 else ""
        return f"<p>{html.escape(repr(self))}</p><table>{body}</table>{more}"

    def plot(self, i: int = 0, ax: Any = None) -> Any:
        """Draw the examples of prediction `i` as horizontal bars, most influential on top.

        Parameters
        ----------
        i : int, default 0
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        pyplot = tables.import_extra("matplotlib.pyplot", "plot()", extra="plot")
        one = self[i]
        if ax is None:
            _, ax = pyplot.subplots(layout="constrained")
        for side in dict.fromkeys(one.side.tolist()):
            rows = np.flatnonzero(one.side == side)
            ax.barh(rows, one.influence[rows], color=self.COLORS[side], label=self.IN_WORDS[side])
        # a "$" in a name is a dollar
        ax.set_yticks(range(len(one)), one.example_names, parse_math=False)
        ax.invert_yaxis()
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_xlabel("influence" if self.units == "effect" else "influence (order only)")
        ax.set_title(one.headline, parse_math=False)
        if len(one):
            ax.legend()
        return ax

    # ---------------------------------------------------------------- for other libraries

    def _table(self) -> Columns:
        query, rank = np.nonzero(self.train_index >= 0)
        example = self.train_index[query, rank]
        ids: Columns = {}
        train_ids: Columns = {}
        names: Columns = {}
        for column, codes, kind in self.PLACES:
            found, given = getattr(self, codes)[query], getattr(self.data, codes)[example]
            raw = getattr(self.data, f"{kind}_ids")
            ids[column], train_ids[f"train_{column}"] = _by_code(raw, found), _by_code(raw, given)
            if (labels := getattr(self.data, f"{kind}_labels")) is not None:
                names[f"{column}_label"] = _by_code(labels, found)
                names[f"train_{column}_label"] = _by_code(labels, given)
        return {
            "query": query,
            **ids,
            **self._query_columns(query),
            "prediction": self.prediction[query],
            "rank": rank + 1,
            "train_index": example,
            **train_ids,
            **self._example_columns(example),
            "influence": self.influence[query, rank],
            "side": tables.encoded(self.SIDES, self._side_codes[query, rank]),
            "coverage": self.coverage[query],
            **names,
        }

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return long columns, one row for each query and example, as numpy arrays.

        The class says which. A query without examples has no row.
        """
        return tables.to_dict(self._table())

    def to_pandas(self) -> Any:
        """Return the columns of `to_dict` as a `pandas.DataFrame`."""
        return tables.to_pandas(self._table())

    def to_polars(self) -> Any:
        """Return the columns of `to_dict` as a `polars.DataFrame`."""
        return tables.to_polars(self._table())

    def to_arrow(self) -> Any:
        """Return the columns of `to_dict` as a `pyarrow.Table`; text is dictionary-encoded."""
        return tables.to_arrow(self._table())

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all.

        Parameters
        ----------
        path : path-like
            ``.parquet`` and ``.csv`` hold the columns of `to_dict`; ``.npz`` holds what
            `load` reads back.

        Raises
        ------
        ParameterError
            Another suffix.
        MissingExtraError
            ``.parquet`` without pyarrow.
        """
        path = Path(path)
        suffix = tables.suffix_of(path, (".parquet", ".csv", ".npz"))
        if suffix == ".npz":
            stored = self._arrays() | {name: getattr(self, name) for name in self._SETTINGS}
            with atomic_file(path) as file:
                np.savez(file, **stored, data_checksum=self._checksum(self.data))
        else:
            write = tables.write_parquet if suffix == ".parquet" else tables.write_csv
            write(self._table(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], data: Any) -> Self:
        """Read an ``.npz`` file that `save` wrote.

        Parameters
        ----------
        path : path-like
        data : Interactions or Triples
            The training data that were explained.

        Raises
        ------
        DataError
            The file is missing, damaged or of another kind, or `data` are other data.
        """
        try:
            # numpy leaves a damaged file open where it has opened it itself
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                stored = {name: archive[name] for name in archive.files}
            checksum = int(stored.pop("data_checksum"))
            parts: dict[str, Any] = {name: stored[name] for name in cls._required()}
            parts |= {name: stored.get(name) for name in cls._OPTIONAL}
            parts |= {name: stored[name].item() for name in cls._SETTINGS}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read explanations from {os.fspath(path)}: {error}") from error
        if checksum != cls._checksum(data):
            raise DataError(f"{os.fspath(path)} explains a model of other training data than these")
        return cls(**parts, data=data)

    @classmethod
    def _required(cls) -> tuple[str, ...]:
        return *(place.codes for place in cls.PLACES), *cls._ROWS, *_RANKED

    @classmethod
    def _checksum(cls, data: Interactions | Triples) -> int:
        """Tell whether explanations and training data belong together."""
        checksum = 0
        for name in cls._CHECKED:
            array = np.ascontiguousarray(getattr(data, name))
            checksum = zlib.crc32(array.view(np.uint8).data, checksum)
        return checksum

    def _arrays(self) -> dict[str, Any]:
        """The arrays of n rows that there are, by name."""
        arrays = {name: getattr(self, name) for name in (*self._required(), *self._OPTIONAL)}
        return {name: array for name, array in arrays.items() if array is not None}


def _by_code(names: npt.NDArray[Any], codes: Indices) -> tables.Array | tables.Encoded:
    return tables.encoded(names, codes) if names.dtype.kind not in "iu" else names[codes]
