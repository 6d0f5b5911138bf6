"""Attribution methods side by side, measured against retraining."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objectives import as_objective
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation.display import number, text_table
from fastinfluence.evaluation.groups import SubsetRemoval
from fastinfluence.evaluation.metrics import (
    FEWEST,
    bootstrap_interval,
    linear_datamodeling_score,
    per_query,
    relative_error,
    scale,
    spearman,
    top1_ratio,
)
from fastinfluence.evaluation.neighbours import bind, check_count, check_fitted, sample_examples
from fastinfluence.evaluation.truth import Truth, leave_one_out
from fastinfluence.models import Model
from fastinfluence.storage import tables
from fastinfluence.storage.atomic import atomic_file

__all__ = ["Comparison", "compare"]

Floats = npt.NDArray[np.float64]

_METRICS: dict[str, tuple[Any, bool, Any]] = {
    # name: (metric, over adjacent examples only, statistic over the queries)
    "spearman_adjacent": (spearman, True, np.mean),
    "spearman_all": (spearman, False, np.mean),
    "scale": (scale, True, np.median),
    "relative_error": (relative_error, True, np.mean),
    "top1_ratio": (top1_ratio, True, np.mean),
}

_LDS = "lds_"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Comparison:
    """How true several methods are. Shows itself as a table.

    Attributes
    ----------
    rows : list of dict
        One a method. ``method`` and ``units`` ("effect": on the scale of the quantity; "rank":
        only the order is claimed), then over the queries, each with the ends of its bootstrap
        interval as ``..._low`` and ``..._high``:

        - ``spearman_adjacent``: mean rank correlation with the truth over the examples adjacent
          to a query (``spearman_adjacent_min``: its least);
        - ``spearman_all``: the same over all examples left out;
        - ``scale``: median of ``sum(A D) / sum(A^2)``, 1 is right;
        - ``relative_error``: mean of ``mean |A - D| / mean |D|``;
        - ``top1_ratio``: mean of ``D[argmax A] / max D``;
        - ``lds_0.01``, for subsets of a hundredth of the examples and so on: mean
          `linear_datamodeling_score`;

        and ``seconds``, which the call of ``influence`` took (the first one in a process also
        loads compiled code). All but ``spearman_all`` and the scores over subsets are over
        adjacent examples, of the ``n_queries`` queries that have 15 of them or more; NaN
        where none has.
    estimates : dict of str to (n, m) float64
        Influence on every query of each example left out, by method.
    truth : Truth
    """

    rows: list[dict[str, Any]]
    estimates: dict[str, Floats]
    truth: Truth

    def __repr__(self) -> str:
        n_queries, m = self.truth.change.shape
        scores = [name for name in self.rows[0] if _is_score(name)]
        heads = ["", "Spearman adjacent", "least", "all", "scale", "error", "top-1"]
        heads += [f"LDS {100 * float(name.removeprefix(_LDS)):g}%" for name in scores]
        lines = [_line(row, scores) for row in self.rows]
        text = [
            f"{n_queries:,} queries against {m:,} retrainings, one example left out in each",
            text_table([*heads, "seconds"], lines),
        ]
        if any(row["units"] == "rank" for row in self.rows):
            text.append("* orders the examples, claims no scale")
        return "\n".join(text)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the rows as columns: numpy arrays by name."""
        return {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}

    def to_pandas(self) -> Any:
        """Return the rows as a `pandas.DataFrame`."""
        return tables.to_pandas(self.to_dict())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as a CSV file, whole or not at all."""
        tables.write_csv(self.to_dict(), Path(path))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the rows, and how much they rest on, as a JSON file; NaN becomes null."""
        n_queries, m = self.truth.change.shape
        content = {"n_queries": n_queries, "n_retrainings": m, "methods": without_nan(self.rows)}
        with atomic_file(Path(path)) as file:
            file.write(json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the true change over the estimated one, a panel for each method.

        Points on the grey line are right; below and above it, estimates are too large or too
        small.

        Parameters
        ----------
        path : path-like, optional
            File to write the picture to; its suffix says which kind (``.png``, ``.svg``, ...).

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        from fastinfluence.evaluation.picture import draw

        return draw(self, path)


def compare(
    methods: Sequence[Any] | Mapping[str, Any],
    queries: Any,
    *,
    truth: Truth | None = None,
    subsets: Sequence[SubsetRemoval] = (),
    train: npt.ArrayLike | None = None,
    adjacent: int = 125,
    others: int = 300,
    bootstrap: int = 2000,
    rng: int | np.random.Generator = 0,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> Comparison:
    """Measure attribution methods against leave-one-out retraining.

    Parameters
    ----------
    methods : sequence of attribution objects, or mapping of name to one
        Of one and the same model; a sequence goes by their own names.
    queries : as for `explain`, or Objective
    truth : Truth, optional
        From `leave_one_out` with the same queries (or the ``mean`` of `multi_seed`); otherwise
        it is made now.
    subsets : sequence of SubsetRemoval, optional
        From `subset_removal` with the same queries: each adds the linear datamodeling score at
        its fraction.
    train : int array, optional
        Training indices to leave out; by default those of `sample_examples`.
    adjacent, others : int
        As for `sample_examples`.
    bootstrap : int, default 2000
        Resamples of the queries behind every interval (95 %).
    rng : int or Generator, default 0
        Draws the examples and the resamples.
    n_threads, path, show_progress
        Of the retraining, as for `leave_out`.

    Returns
    -------
    Comparison

    Raises
    ------
    ParameterError
        Methods of different models or of one name, or one that cannot explain the objective.
    DataError
        A truth, or subsets, about other queries.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> comparison = fi.evaluation.compare([fi.GradientRollback(model)], [("bob", "y")])
    >>> comparison.rows[0]["method"]
    'gradient-rollback'
    """
    named = _named(methods)
    model = _common_model(named)
    check_count("bootstrap", bootstrap, 1)
    generator = np.random.default_rng(rng)
    check_fitted(model)
    objective = as_objective(queries).answered(model)
    quantity = bind(model, objective)
    if truth is not None:
        if train is not None or path is not None:
            raise ParameterError("truth is given: train and path would have no use")
        _check_truth(truth, model, quantity)
    for subset in subsets:
        if len(subset.change) != len(quantity):
            raise DataError(
                f"the subsets are about {len(subset.change):,} queries, not these "
                f"{len(quantity):,}: make them with subset_removal(model, queries, fraction)"
            )
    # Influence comes first: a method that cannot explain this says so before the retraining.
    influences, seconds = {}, {}
    for name, method in named.items():
        start = time.perf_counter()
        influences[name] = method.influence(objective)
        seconds[name] = time.perf_counter() - start
    if truth is None:
        if train is None:
            train = sample_examples(model, quantity, adjacent, others, generator)
        truth = leave_one_out(
            model, quantity, train, n_threads=n_threads, path=path, show_progress=show_progress
        )
    estimates = {name: _columns(influences[name], truth.train_index) for name in named}
    seed = int(generator.integers(2**62))  # the same resamples for every method and metric
    rows = []
    for name, method in named.items():
        figures = _figures(estimates[name], truth, bootstrap, seed)
        for subset in subsets:
            of_query = linear_datamodeling_score(influences[name], subset.removals, subset.change)
            figures |= _with_interval(f"{_LDS}{subset.fraction:g}", of_query, bootstrap, seed)
        rows.append({"method": name, "units": method.units, **figures, "seconds": seconds[name]})
    return Comparison(rows=rows, estimates=estimates, truth=truth)


def without_nan(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN: null in its place."""
    return [
        {name: None if value != value else value for name, value in row.items()} for row in rows
    ]


def _is_score(name: str) -> bool:
    return name.startswith(_LDS) and not name.endswith(("_low", "_high"))


def _line(row: dict[str, Any], scores: Sequence[str]) -> list[str]:
    """One method in the table for people."""
    mean, low, high = (number(row[f"spearman_adjacent{end}"]) for end in ("", "_low", "_high"))
    return [
        row["method"] + ("*" if row["units"] == "rank" else ""),
        f"{mean} [{low}, {high}]",
        number(row["spearman_adjacent_min"]),
        number(row["spearman_all"]),
        number(row["scale"]),
        number(row["relative_error"]),
        number(row["top1_ratio"]),
        *(number(row[name]) for name in scores),
        number(row["seconds"]),
    ]


def _figures(estimate: Floats, truth: Truth, bootstrap: int, seed: int) -> dict[str, Any]:
    enough = truth.adjacent.sum(axis=1) >= FEWEST
    figures: dict[str, Any] = {"n_queries": int(enough.sum())}
    for name, (metric, adjacent_only, statistic) in _METRICS.items():
        where, at_least = (truth.adjacent, FEWEST) if adjacent_only else (None, 1)
        values = per_query(metric, estimate, truth.change, where, at_least=at_least)
        figures |= _with_interval(name, values, bootstrap, seed, statistic)
        if name == "spearman_adjacent":
            figures[f"{name}_min"] = float(np.fmin.reduce(values))
    return figures


def _with_interval(
    name: str, values: Floats, bootstrap: int, seed: int, statistic: Any = np.mean
) -> dict[str, float]:
    """A statistic over the queries for which it is defined, and the ends of its interval."""
    known = values[~np.isnan(values)]
    low, high = bootstrap_interval(known, bootstrap, rng=seed, statistic=statistic)
    middle = float(statistic(known)) if len(known) else np.nan
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def _columns(influence: Any, train_index: npt.NDArray[np.int64]) -> Floats:
    """Influence (n_queries, m) of some examples, from a CSR or dense matrix of all."""
    some = influence[:, train_index]
    dense: Floats = np.asarray(some.toarray() if hasattr(some, "toarray") else some, np.float64)
    return dense


def _named(methods: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(methods, Mapping):
        named = dict(methods)
    else:
        if not isinstance(methods, Iterable):
            raise ParameterError(
                "methods is a sequence of methods, as in [GradientRollback(model)]"
            )
        given = list(methods)
        named = {getattr(method, "name", type(method).__name__): method for method in given}
        if len(named) < len(given):
            raise ParameterError(
                f"{len(given)} methods have only the names {', '.join(named)}: give a mapping of "
                "name to method"
            )
    if not named:
        raise ParameterError("there is no method to compare")
    for name, method in named.items():
        if not hasattr(method, "influence") or not hasattr(method, "model"):
            raise ParameterError(
                f"{name!r} is no attribution method: pass objects such as GradientRollback(model)"
            )
    return named


def _common_model(named: dict[str, Any]) -> Model:
    first, *others = named
    model: Model = named[first].model
    for name in others:
        other = named[name].model
        if other is not model and (
            other.trajectory_.fingerprint() != model.trajectory_.fingerprint()
        ):
            raise ParameterError(
                f"{first!r} and {name!r} explain different models: they can be compared on one only"
            )
    return model


def _check_truth(truth: Truth, model: Model, quantity: Any) -> None:
    mine, its = truth.quantity.codes, quantity.codes
    same = len(truth) == len(quantity) and len(truth.data) == len(model.data_)
    same = same and mine.keys() == its.keys()
    if not (same and all(np.array_equal(mine[name], its[name]) for name in mine)):
        raise DataError(
            f"the truth is about {len(truth):,} other queries, or other training data: make it "
            "with leave_one_out(model, queries) of these queries"
        )
