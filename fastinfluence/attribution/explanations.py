"""`Explanations`: which training examples made each prediction, and by how much."""

from __future__ import annotations

import html
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.explanation import COLORS, IN_WORDS, SIDES, Explanation
from fastinfluence.errors import DataError
from fastinfluence.storage import tables
from fastinfluence.storage.atomic import atomic_file

if TYPE_CHECKING:
    from fastinfluence.data.interactions import Interactions

__all__ = ["Explanations"]

_NPZ_ARRAYS = ("users", "items", "prediction", "train_index", "influence")
_SHOWN_QUERIES = 5  # in the HTML table of a notebook


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Explanations:
    """The k most influential training examples of each of n predictions.

    A sequence: ``len(ex)`` is n, ``ex[i]`` one prediction's `Explanation`, ``ex[10:20]``
    Explanations again. Influence is positive where training on the example raised the
    prediction.

    Attributes
    ----------
    users, items : (n,) int32
        Codes of the explained pairs in `data`.
    prediction : (n,) float
    train_index : (n, k) int
        Rows of `data`, most influential first, -1 where a query has fewer than k.
    influence : (n, k) float
        NaN where a query has fewer than k.
    total_influence : (n,) float, or None
        Sum of the absolute influence of all candidates, shown or not.
    data : Interactions
        The training data.
    method : str
        The method that found them.
    units : {"effect", "rank"}
        Whether influence is in the units of the prediction, or only orders the examples.
    proponents : bool
        Whether the examples that raised the prediction come first, or those that lowered it.
    """

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    prediction: npt.NDArray[np.floating[Any]]
    train_index: npt.NDArray[np.integer[Any]]
    influence: npt.NDArray[np.floating[Any]]
    total_influence: npt.NDArray[np.floating[Any]] | None
    data: Interactions
    method: str
    units: Literal["effect", "rank"]
    proponents: bool

    def __post_init__(self) -> None:
        n = len(self.users)
        wide = (n, self.train_index.shape[-1])
        shapes = {"items": (n,), "prediction": (n,), "train_index": wide, "influence": wide}
        if self.total_influence is not None:
            shapes["total_influence"] = (n,)
        for name, shape in shapes.items():
            if (found := getattr(self, name).shape) != shape:
                raise DataError(f"{name} has shape {found}, {shape} was expected for {n} queries")

    # ---------------------------------------------------------------- as a sequence

    def __len__(self) -> int:
        return len(self.users)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> Explanations: ...
    def __getitem__(self, index: int | slice) -> Explanation | Explanations:
        if not isinstance(index, slice):
            index = range(len(self))[index]
            return Explanation(self[index : index + 1])
        total = None if self.total_influence is None else self.total_influence[index]
        return Explanations(
            **{name: getattr(self, name)[index] for name in _NPZ_ARRAYS},
            total_influence=total,
            data=self.data,
            method=self.method,
            units=self.units,
            proponents=self.proponents,
        )

    def __iter__(self) -> Iterator[Explanation]:
        return (self[i] for i in range(len(self)))

    # ---------------------------------------------------------------- derived

    @cached_property
    def _side_codes(self) -> npt.NDArray[np.int8]:
        example = np.maximum(self.train_index, 0)
        same_user = self.data.users[example] == self.users[:, None]
        same_item = self.data.items[example] == self.items[:, None]
        side: npt.NDArray[np.int8] = same_user + np.int8(2) * same_item
        side[side == 0] = 4
        side[self.train_index < 0] = 0
        return side

    @property
    def side(self) -> npt.NDArray[np.str_]:
        """(n, k) str: what the example has in common with the query.

        "user", "item", "both" (the example is the explained pair), "other" (neither, which
        only methods that look beyond the query's own rows return), "" where there is none.
        """
        side: npt.NDArray[np.str_] = SIDES[self._side_codes]
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

    def __repr__(self) -> str:
        return (
            f"Explanations({len(self):,} predictions, up to {self.train_index.shape[1]} "
            f"{'proponents' if self.proponents else 'opponents'} each, "
            f"method={self.method!r}, units={self.units!r})"
        )

    def _repr_html_(self) -> str:
        heads = ["pair", "predicted", "because of" if self.proponents else "in spite of"]
        rows = [[f"<th>{head}</th>" for head in heads]]
        for one in self[:_SHOWN_QUERIES]:
            reasons = [html.escape(" ".join(words)) for words in one.reasons(3)]
            cells = [html.escape(one.name), f"{one.prediction:.4g}", "<br>".join(reasons)]
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
            ax.barh(rows, one.influence[rows], color=COLORS[side], label=IN_WORDS[side])
        ax.set_yticks(range(len(one)), one.example_names)
        ax.invert_yaxis()
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_xlabel("influence" if self.units == "effect" else "influence (order only)")
        ax.set_title(f"{one.name}: predicted {one.prediction:.4g}")
        if len(one):
            ax.legend()
        return ax

    # ---------------------------------------------------------------- for other libraries

    def _table(self) -> dict[str, tables.Array | tables.Encoded]:
        query, place = np.nonzero(self.train_index >= 0)
        example = self.train_index[query, place]
        data = self.data
        user, item = self.users[query], self.items[query]
        train_user, train_item = data.users[example], data.items[example]
        table = {
            "query": query,
            "user": _by_code(data.user_ids, user),
            "item": _by_code(data.item_ids, item),
            "prediction": self.prediction[query],
            "rank": place + 1,
            "train_index": example,
            "train_user": _by_code(data.user_ids, train_user),
            "train_item": _by_code(data.item_ids, train_item),
            "train_value": data.values[example],
            "influence": self.influence[query, place],
            "side": tables.encoded(SIDES, self._side_codes[query, place]),
            "coverage": self.coverage[query],
        }
        if data.user_labels is not None:
            table["user_label"] = _by_code(data.user_labels, user)
            table["train_user_label"] = _by_code(data.user_labels, train_user)
        if data.item_labels is not None:
            table["item_label"] = _by_code(data.item_labels, item)
            table["train_item_label"] = _by_code(data.item_labels, train_item)
        return table

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return long columns, one row for each query and example, as numpy arrays.

        ``query`` (position in this object), ``user``, ``item``, ``prediction``, ``rank``
        (from 1), ``train_index``, ``train_user``, ``train_item``, ``train_value``,
        ``influence``, ``side``, ``coverage``, and ``user_label``, ``train_user_label``,
        ``item_label``, ``train_item_label`` where the data have labels. Users and items are
        raw ids. A query without examples has no row.
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
            self._save_npz(path)
        else:
            write = tables.write_parquet if suffix == ".parquet" else tables.write_csv
            write(self._table(), path)

    def _save_npz(self, path: Path) -> None:
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _NPZ_ARRAYS}
        if self.total_influence is not None:
            arrays["total_influence"] = self.total_influence
        with atomic_file(path) as file:
            np.savez(
                file,
                **arrays,
                method=self.method,
                units=self.units,
                proponents=self.proponents,
                data_checksum=_checksum(self.data),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], data: Interactions) -> Explanations:
        """Read an ``.npz`` file that `save` wrote.

        Parameters
        ----------
        path : path-like
        data : Interactions
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
            settings: dict[str, Any] = {
                name: stored.pop(name).item() for name in ("method", "units", "proponents")
            }
            total = stored.pop("total_influence", None)
            arrays: dict[str, Any] = {name: stored[name] for name in _NPZ_ARRAYS}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read explanations from {os.fspath(path)}: {error}") from error
        if checksum != _checksum(data):
            raise DataError(f"{os.fspath(path)} explains a model of other training data than these")
        return cls(**arrays, total_influence=total, data=data, **settings)


def _by_code(
    names: npt.NDArray[Any], codes: npt.NDArray[np.integer[Any]]
) -> tables.Array | tables.Encoded:
    return tables.encoded(names, codes) if names.dtype.kind not in "iu" else names[codes]


def _checksum(data: Interactions) -> int:
    """Tell whether explanations and training data belong together."""
    checksum = 0
    for array in (data.users, data.items, data.values, data.user_ids, data.item_ids):
        checksum = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, checksum)
    return checksum
