"""What the methods share that find the influence of all examples on a few queries at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import readout
from fastinfluence.attribution.explanations import Explanations
from fastinfluence.attribution.method import Attribution, check_result
from fastinfluence.attribution.objectives import as_objective
from fastinfluence.attribution.quantities import Scores
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES
from fastinfluence.memory import memory_budget as budget_of
from fastinfluence.training.backward import Stage, backward
from fastinfluence.training.trajectory import training_indices

__all__ = ["DenseAttribution"]

Array = npt.NDArray[Any]


class DenseAttribution(Attribution):
    """Attribution by whole rows of the influence matrix: any example may have influence.

    Parameters
    ----------
    model : Model
        Fitted.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu"}, default "auto"
    memory_budget : int, optional
        Bytes; a quarter of RAM by default. It decides how many queries are done at a time and
        never changes a result.
    show_progress : bool, optional
        None shows a progress bar at a terminal.
    """

    def __init__(
        self,
        model: Any,
        *,
        n_threads: int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        show_progress: bool | None = None,
    ) -> None:
        super().__init__(model, n_threads=n_threads, device=device)
        self._budget = budget_of(memory_budget)
        self._show_progress = show_progress

    @abstractmethod
    def _blocks(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        """Yield the influence (m, n_train) on m queries from a first one on, in order.

        With it what else is known of each of them, to be passed on to its explanation.
        """

    def _shown(self, show_progress: bool | None) -> bool | None:
        """Whether to show a progress bar: as a call says, or else the constructor."""
        return self._show_progress if show_progress is None else show_progress

    def _stages(self, only: Any, show_progress: bool | None) -> Iterator[Stage]:
        """The steps of training from the last to the first; `only` some visits, or all."""
        return backward(
            self.model.trajectory_,
            memory_budget=self._budget // 4,
            only=only,
            n_threads=self._n_threads,
            device=self._device,
            description=self.name,
            show_progress=self._shown(show_progress),
        )

    def _chosen(self, train_index: Any) -> npt.NDArray[np.int64]:
        """Training indices that are asked about, all of them for None."""
        n = len(self.data)
        return (
            np.arange(n) if train_index is None else training_indices(train_index, n, "train_index")
        )

    @property
    def _log_bytes(self) -> int:
        """Memory for the log of a walk through training: a quarter of the budget at most."""
        whole: int = len(self.data) * self.model.trajectory_.program.log_bytes
        return min(whole, self._budget // 4)

    def _fitting(self, size: int, beside: int = 0) -> int:
        """How many blocks of 16 queries of so many bytes fit the budget beside something else."""
        left = self._budget - beside
        if size > left:
            raise ParameterError(
                f"{LANES} queries take {size / 2**20:,.0f} MiB"
                + (" beside the log of the steps" if beside else "")
                + f", more than the memory budget of {self._budget / 2**20:,.0f} MiB"
                + (" leaves" if beside else "")
                + ": give a larger memory_budget"
            )
        return int(left // size)

    def explain(
        self,
        queries: Any,
        k: int = 10,
        *,
        proponents: bool = True,
        show_progress: bool | None = None,
    ) -> Explanations:
        """Find the k most influential training examples of every query.

        Parameters
        ----------
        queries : sequence of (user, item) pairs, (n, 2) array, table, Interactions, or Objective
            Raw ids. A `fastinfluence.objectives.Margin` or `HeldOutLoss` explains something else
            than the score, its value is then the `prediction`.
        k : int, default 10
        proponents : bool, default True
            The examples that raised phi most; False: those that lowered it most.
        show_progress : bool, optional
            That of the constructor by default.

        Returns
        -------
        Explanations
            Lists in the order of the queries, the most influential first, ties by training
            index. Their `side` is "other" for examples that share neither user nor item.

        Raises
        ------
        UnknownIdError
            A user or item is not in the training data.
        ParameterError
            k < 1, or an objective that is not about pairs (a `Mean`, a `Function`); the memory
            budget does not hold 16 queries.
        ReplayMismatch
            The method runs the Trajectory again, and that did not give the model's parameters.
        """
        readout.check_k(k)
        objective = as_objective(queries)
        quantity = self._bind(objective)
        self._check_named(quantity, objective)
        tops, more = [], []
        for _, found, facts in self._blocks(quantity, show_progress):
            tops.append(top_of_rows(found, k, proponents))
            more.append(facts)
        indices, values, totals = map(np.concatenate, zip(*tops, strict=True))
        facts = {name: np.concatenate([some[name] for some in more]) for name in more[0]}
        explained: Explanations = self._explained(
            quantity, (indices, values, totals), proponents, **facts
        )
        return explained

    def influence(self, queries: Any, *, dense: bool = True) -> npt.NDArray[np.floating[Any]]:
        """Influence (n_queries, n_train) of every training example on every query.

        Parameters
        ----------
        queries : as for `explain`, and any Objective
        dense : bool, default True
            Of no effect: hardly any influence is 0, so the result is always an array.

        Raises
        ------
        UnknownIdError
            A user or item is not in the training data.
        ParameterError
            The result would not fit the memory budget: use `explain`.
        ReplayMismatch
            As for `explain`.
        """
        quantity = self._bind(as_objective(queries))
        dtype = self.model.trajectory_.program.dtype
        shape = len(quantity), len(self.data)
        check_result(len(quantity), shape[0] * shape[1] * dtype.itemsize, self._budget)
        result = np.empty(shape, dtype)
        for start, found, _ in self._blocks(quantity, None):
            result[start : start + len(found)] = found
        return result

    def self_influence(self, train_index: Any = None) -> npt.NDArray[np.floating[Any]]:
        """Influence (m,) of training examples on the score of their own pair.

        Large values mark examples the model would not predict without them.

        Parameters
        ----------
        train_index : (m,) int array-like, optional
            All examples by default. Every one is a query of its own.

        Raises
        ------
        DataError
            An index outside the data.
        """
        examples = self._chosen(train_index)
        result = np.empty(len(examples), self.model.trajectory_.program.dtype)
        if len(examples) == 0:
            return result
        quantity = self._own(examples)
        for start, found, _ in self._blocks(quantity, None):
            own = examples[start : start + len(found)]
            result[start : start + len(found)] = found[np.arange(len(found)), own]
        return result

    def _own(self, examples: npt.NDArray[np.int64]) -> Any:
        """The quantity that the training examples are about themselves."""
        return Scores(self.data.users[examples], self.data.items[examples])
