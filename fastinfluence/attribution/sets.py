"""Explanation sets: examples that together made a prediction, found one chunk after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objectives import Objective, as_objective
from fastinfluence.attribution.quantities import Quantity
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.attribution.subjects import Subject, subject_of
from fastinfluence.attribution.triple_quantity import TripleQuantity
from fastinfluence.data import Interactions, Triples
from fastinfluence.errors import ParameterError
from fastinfluence.models.base import Model
from fastinfluence.models.retrained import predrawn, without
from fastinfluence.progress import progress
from fastinfluence.storage import tables

if TYPE_CHECKING:
    from fastinfluence.attribution.method import Attribution

__all__ = ["ExplanationSet", "explain_set"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_SHOWN = 10  # examples of a set that shows itself


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ExplanationSet:
    """Training examples that together made a prediction, and what it is without them.

    Shows itself as text.

    Attributes
    ----------
    explained : str
        What is explained, by name.
    quantity : Quantity
        The same, bound to the model.
    train_index : (m,) int64
        In the order in which they were found.
    influence : (m,) float64
        Estimated effect of each on the model without those of the chunks before.
    sizes : (c + 1,) int64
        0, and the number of examples left out after each of c chunks.
    values : (c + 1,) float64
        The explained quantity of the model, and after training without the first so many.
    data : Interactions or Triples
        The training data.
    method : str
        The method that found them.
    units : {"effect", "rank"}
        Whether influence is in the units of the quantity, or only orders the examples.
    """

    explained: str
    quantity: Quantity
    train_index: npt.NDArray[np.int64]
    influence: Floats
    sizes: npt.NDArray[np.int64]
    values: Floats
    data: Interactions | Triples
    method: str
    units: Literal["effect", "rank"]

    def __len__(self) -> int:
        return len(self.train_index)

    @property
    def drop(self) -> Floats:
        """(c + 1,) float64: how much the quantity fell after each chunk, by retraining."""
        drop: Floats = self.values[0] - self.values
        return drop

    @property
    def estimated_drop(self) -> Floats:
        """(c + 1,) float64: the sum of the influences that `drop` is to be compared with."""
        return np.concatenate([[0.0], np.cumsum(self.influence)])[self.sizes]

    @property
    def pair(self) -> tuple[int, int] | None:
        """Codes of the user and the item it is about, where it is about a pair."""
        users, items = self.quantity.users, self.quantity.items
        return None if users is None or items is None else (int(users[0]), int(items[0]))

    @property
    def side(self) -> npt.NDArray[np.str_]:
        """(m,) str: what each example has in common with the query, as in explanations of it."""
        return self._subject.side(self.train_index)

    @property
    def _subject(self) -> Subject:
        return subject_of(self.quantity, self.data)

    def because(self, n: int = _SHOWN) -> str:
        """Return what the set does, and at most `n` of its examples, as text."""
        check_count("n", n)
        text = f"{self.explained}: {self.values[0]:.4g}"
        if not len(self):
            return f"{text}; no training example raised it."
        first, subject = self.train_index[:n], self._subject
        examples = subject.lines(first, subject.remarks(first))
        numbers = [f"{value:+.3g}" for value in self.influence[:n]]
        width = max(map(len, numbers))
        lines = [
            f"{text}, but {self.values[-1]:.4g} when trained without "
            + (f"these {len(self):,} examples" if len(self) > 1 else "this example"),
            *(f"  {a:>{width}}  {b}" for a, b in zip(numbers, examples, strict=True)),
        ]
        if len(self) > n:
            lines.append(f"  and {len(self) - n:,} more")
        if self.units == "effect":
            drop, estimate = self.drop[-1], self.estimated_drop[-1]
            lines.append(f"  (together {drop:+.3g} by retraining, {estimate:+.3g} by estimate)")
        else:
            lines.append("  (these numbers order the examples; they do not measure a change)")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.because()

    def to_dict(self) -> dict[str, Array]:
        """Return columns, one row for each example in the order found, as numpy arrays.

        ``rank`` (from 1), ``train_index``, ``train_user``, ``train_item``, ``train_value`` (of
        triples ``train_head``, ``train_relation``, ``train_tail``), ``influence``, ``side``,
        ``without`` (examples left out once its chunk was), ``value`` (the quantity then, by
        retraining), and ``train_user_label`` and so on where the data have labels. The ids are
        raw ids.
        """
        subject, rows = self._subject, self.train_index
        rank = np.arange(1, len(rows) + 1)
        chunk = np.searchsorted(self.sizes, rank)
        return {
            "rank": rank,
            "train_index": rows,
            **subject.columns(rows),
            "influence": self.influence,
            "side": self.side,
            "without": self.sizes[chunk],
            "value": self.values[chunk],
            **subject.labels(rows),
        }

    def to_pandas(self) -> Any:
        """Return the columns of `to_dict` as a `pandas.DataFrame`."""
        return tables.to_pandas(self.to_dict())


def explain_set(
    method: Attribution,
    query: Any,
    size: int,
    *,
    chunk: int = 10,
    show_progress: bool | None = None,
) -> ExplanationSet:
    """Find examples that together made a prediction: greedy, by training again on the way.

    The `chunk` most positive examples are left out, the model is trained without them, what is
    then most positive is left out too, and so on. The influences of single examples do not add up
    to that of a set; measured again on the model without the first ones they come closer.

    Parameters
    ----------
    method : attribution object
        The object itself where this is called as its method. The models on the way are
        explained by the same method with the same options, restricted to the rows of the query
        where these are all that the quantity depends on.
    query : (user, item) pair, (head, relation, tail) triple, or Objective of one query
        Raw ids; None as head or tail asks for the model's best one.
    size : int
        Examples in the set; it holds fewer where no more raise the quantity.
    chunk : int, default 10
        Examples between two trainings.
    show_progress : bool, optional

    Returns
    -------
    ExplanationSet

    Raises
    ------
    UnknownIdError
        An id is not in the training data.
    ParameterError
        Several queries, size or chunk < 1, a size that leaves nothing to train on, or an
        objective the method does not know.

    Notes
    -----
    ``size / chunk`` times one training and what the method takes for one query of a new model.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.Replay(model).explain_set(("ann", "x"), size=1).train_index
    array([0])
    """
    size, chunk = check_count("size", size), check_count("chunk", chunk)
    model = method.model
    objective = as_objective(as_queries(query)).answered(model)
    quantity = objective.bind(model.data_, model.trajectory_.recipe)
    if len(quantity) != 1:
        raise ParameterError(
            f"a set explains one query, not {len(quantity):,}: call it for each, or explain "
            "their objectives.Mean"
        )
    if size > (most := most_to_leave_out(model)):
        raise ParameterError(
            f"size={size:,}, but no more than {most:,} examples can be left out: at least one "
            "must be left to train on"
        )
    taken: list[Array] = []
    influence: list[Array] = []
    values = [value_of(quantity, model)]
    with progress(size, description="set", show=show_progress, unit="example") as bar:
        queries = rows_needed(objective, model)
        # Where nobody knows the rows, a method of rows refuses before it makes any.
        first = (method if queries is None else method.on(model, queries)).influence(objective)
        for step in leave_out_best(method, predrawn(model), objective, first, size, chunk):
            taken.append(step.train_index)
            influence.append(step.influence)
            values.append(value_of(quantity, step.model))
            bar.set_postfix(value=f"{values[-1]:.4g}")
            bar.update(len(step.train_index))
    return ExplanationSet(
        explained=subject_of(quantity, method.data).explained(type(objective).__name__),
        quantity=quantity,
        train_index=np.concatenate([np.zeros(0, np.int64), *taken]),
        influence=np.concatenate([np.zeros(0), *influence]),
        sizes=np.cumsum([0, *map(len, taken)]),
        values=np.array(values),
        data=method.data,
        method=method.name,
        units=method.units,
    )


# -------------------------------------------------------------------- one chunk after another


class Step(NamedTuple):
    """A chunk of examples, and the model trained without it and those before."""

    train_index: npt.NDArray[np.int64]
    influence: Floats
    model: Model


def leave_out_best(
    method: Attribution,
    model: Model,
    objective: Objective,
    influence: Any,
    size: int,
    chunk: int,
) -> Iterator[Step]:
    """Leave out the most positive examples, `chunk` by `chunk`, at most `size` of them.

    Parameters
    ----------
    method : Attribution
    model : Model
    objective : Objective
        Of one query.
    influence : (1, n_train) array or csr_array
        On the model.
    size, chunk : int
    """
    n_taken = 0
    while n_taken < size:
        if n_taken:
            influence = method.on(model, rows_needed(objective, model)).influence(objective)
        # What has been left out has no weight and so no influence: it is no candidate.
        best, values, _ = top_of_rows(influence, min(chunk, size - n_taken))
        positive = values[0] > 0
        if not positive.any():
            return
        taken = best[0][positive].astype(np.int64)
        model = without(model, taken)
        n_taken += len(taken)
        yield Step(taken, values[0][positive].astype(np.float64), model)


def rows_needed(objective: Objective, model: Model) -> Any:
    """Queries whose own rows are all that an objective depends on; None where nobody knows."""
    data = model.data_
    quantity = objective.bind(data, model.trajectory_.recipe)
    if isinstance(quantity, TripleQuantity):
        return objective if quantity.local else None
    weights = quantity.pairs(model.trajectory_.end.tables, model.global_mean_)
    if weights is None:
        return None
    users, items = np.unique(np.stack([weights.users, weights.items]), axis=1)
    return list(zip(data.user_ids[users], data.item_ids[items], strict=True))


def value_of(quantity: Quantity, model: Model) -> float:
    """Value of a quantity of one query."""
    return float(quantity.values(model.trajectory_.end.tables, model.global_mean_)[0])


def most_to_leave_out(model: Model) -> int:
    """How many examples can be left out so that training has one to go on."""
    return int(np.count_nonzero(model.trajectory_.program.weights)) - 1


def check_count(name: str, value: object) -> int:
    """Return an integer of at least 1, or raise ParameterError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ParameterError(f"{name} must be an integer >= 1, not {value!r}")
    return int(value)


def as_queries(query: Any) -> Any:
    """A single pair or triple as queries; anything else as it is."""

    def is_list(part: object) -> bool:
        return isinstance(part, Sequence | np.ndarray) and not isinstance(part, str)

    single = is_list(query) and len(query) in (2, 3) and not any(map(is_list, query))
    return [tuple(query)] if single else query
