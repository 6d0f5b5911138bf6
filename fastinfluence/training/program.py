"""Training as a deterministic program: the same data, weights and recipe give the same bits."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError
from fastinfluence.kernels.structures import Examples, Hyper, Log, Record, Sampler, Tables
from fastinfluence.training.endpoint import Endpoint
from fastinfluence.training.recipe import Recipe
from fastinfluence.training.schedule import Schedule
from fastinfluence.training.state import State, rearranged

if TYPE_CHECKING:
    from fastinfluence.data import Interactions

__all__ = ["Placed", "Program", "check_values", "check_weights"]

_LEAST_WORK = 2**20  # numbers that the steps of an epoch move: a quarter of a millisecond or so


class Placed(NamedTuple):
    """What the steps of a run read, in the memory of its device."""

    examples: Examples
    pointers: Any
    sampler: Sampler


def check_weights(sample_weight: object, n: int) -> npt.NDArray[np.float64]:
    """Weights (n,) of the examples: ones for None; finite and >= 0, not all 0."""
    if sample_weight is None:
        return np.ones(n)
    try:
        weights = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"sample_weight must be numbers: {error}") from error
    if weights.shape != (n,):
        raise DataError(
            f"sample_weight has shape {weights.shape}; one weight for each of the {n:,} "
            "examples is needed"
        )
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"sample_weight must be finite and >= 0, but row {row} is {weights[row]} "
            f"({int(bad.sum())} such rows)"
        )
    if not weights.any():
        raise DataError("every sample_weight is 0: nothing is left to train on")
    return weights


class Program:
    """One training run, ready to start: data in the order of visits and every constant.

    Training works on tables whose rows stand group by group, so that two threads, which
    work on different groups, write to no cache line in common (biases in code order would put
    sixteen users on one: two threads were then no faster than one). `enter` and `leave` go
    between those and tables in the order of the codes; `examples` and `sampler` speak of the
    rows of the former.

    Weights change neither the order nor anybody's negatives; an example of weight 0 is left
    out as if it had never been there, except that it still counts as known when negatives are
    drawn, and in the mean rating.

    Parameters
    ----------
    data : Interactions
    weights : (n,) float64
    recipe : Recipe

    Attributes
    ----------
    places : (user_places, item_places)
        Row of the working tables of every user code, of every item code.
    device : str
        Backend that runs it, "cpu" unless made by `on`.
    """

    def __init__(
        self, data: Interactions, weights: npt.NDArray[np.float64], recipe: Recipe
    ) -> None:
        check_values(data, recipe)
        self.data, self.weights, self.recipe = data, weights, recipe
        self.dtype = np.dtype(recipe.dtype)
        self.schedule = Schedule.build(data, recipe.seed)
        self._orders = (self.schedule.user_order, self.schedule.pool)
        self.places = tuple(np.argsort(order).astype(np.int32) for order in self._orders)
        self.examples = self._in_order(data, self.schedule.order, weights)
        self.mean = float(np.mean(data.values, dtype=np.float64)) if self._squared else 0.0
        self.sampler = self._sampler()
        self._drawn: dict[int, npt.NDArray[np.int32]] = {}
        self.device = "cpu"
        self._elsewhere: dict[str, Program] = {}

    def __getstate__(self) -> dict[str, Any]:
        """All but what stands on devices: a copy places its own."""
        kept = {name: value for name, value in vars(self).items() if name != "placed"}
        return kept | {"_elsewhere": {}}

    def on(self, device: str) -> Program:
        """Return the same program on another backend, always the same object for each.

        Its steps have the same bits, and its working states, records and logs are in the memory
        of that backend; `examples`, `schedule` and `sampler` stay in CPU memory.

        Parameters
        ----------
        device : str
            "cpu" or "cuda", as `dispatch.choose` returns it.
        """
        if device == self.device:
            return self
        if device not in self._elsewhere:
            other = copy.copy(self)
            other.device = device
            other._elsewhere[self.device] = self
            self._elsewhere[device] = other
        return self._elsewhere[device]

    @cached_property
    def placed(self) -> Placed:
        """Examples, bounds of the blocks and sampler, on the device."""
        here = Placed(self.examples, self.schedule.pointers, self.sampler)
        there: Placed = self._memory.put(here)
        return there

    @property
    def _memory(self) -> Any:
        return dispatch.memory(self.device)

    def _sampler(self) -> Sampler:
        count_sort = dispatch.kernels("grouping").count_sort
        data, (user_places, item_places) = self.data, self.places
        users, items = user_places[data.users], item_places[data.items]
        by_item = count_sort(items, data.n_items)[1]
        pointers, by_pair = count_sort(users, data.n_users, by_item)
        n_negatives = 0 if self._squared else self.recipe.n_negatives or 0
        return Sampler(
            n_negatives,
            self.recipe.seed & (2**63 - 1),
            self.schedule.pool_pointers,
            np.arange(data.n_items, dtype=np.int32),
            pointers,
            items[by_pair],
            np.empty((0, n_negatives), np.int32),
        )

    def predrawn(self, n_epochs: int, memory_budget: int, n_threads: int = 1) -> Program:
        """Return the same program with all negatives drawn beforehand, if they fit.

        Negatives depend neither on weights nor on parameters, and drawing them is most of a
        step of a sampled loss: worth doing once where a program is run many times.
        """
        other = copy.copy(self)
        n_negatives = self.sampler.n_negatives
        if 4 * n_epochs * len(self.data) * n_negatives > memory_budget:
            return other
        draw_epoch = dispatch.kernels("negatives").draw_epoch
        blocks = np.diff(self.schedule.pointers).astype(float)
        parts = dispatch.even_parts(blocks + 1, n_threads)
        for epoch in range(n_epochs if n_negatives else 0):
            drawn = np.empty((len(self.data), n_negatives), np.int32)

            def part(
                start: int, stop: int, epoch: int = epoch, drawn: npt.NDArray[np.int32] = drawn
            ) -> None:
                visits = (self.examples, self.schedule.pointers, self.sampler)
                draw_epoch(*visits, epoch, start, stop, drawn)

            dispatch.run_parts(part, parts, n_threads)
            other._drawn = other._drawn | {epoch: drawn}
        return other

    def enter(self, state: State) -> State:
        """Copy parameters in the order of the codes into working tables on the device."""
        working: State = self._memory.put(rearranged(state, self._orders))
        return working

    def leave(self, state: State) -> State:
        """Copy working tables into the order of the codes, in CPU memory."""
        return rearranged(self._memory.fetch(state), self.places)

    @property
    def _squared(self) -> bool:
        return self.recipe.loss == "squared"

    def _in_order(
        self, data: Interactions, order: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]
    ) -> Examples:
        user_places, item_places = self.places
        return Examples(
            user_places[data.users[order]],
            item_places[data.items[order]],
            data.values[order].astype(self.dtype),
            weights[order].astype(self.dtype),
            order,
        )

    def reweighted(self, weights: npt.NDArray[np.float64]) -> Program:
        """Return the same program with other weights (n,)."""
        other = copy.copy(self)
        other.weights = weights
        in_order = weights[self.schedule.order].astype(self.dtype)
        other.examples = self.examples._replace(weights=in_order)
        return other

    def start(self) -> State:
        """Fresh parameters, by code: normal factors of deviation ``init_scale``, zero biases."""
        recipe, dtype = self.recipe, self.dtype
        # Another stream than the one that shuffles: same seed, one jump ahead.
        generator = np.random.Generator(np.random.PCG64(recipe.seed).jumped())
        shapes = ((self.data.n_users, recipe.n_factors), (self.data.n_items, recipe.n_factors))
        factors = [
            generator.standard_normal(shape, dtype=dtype) * dtype.type(recipe.init_scale)
            for shape in shapes
        ]
        tables = Tables(*factors, *(np.zeros(shape[0], dtype) for shape in shapes))
        squares = Tables(*map(np.zeros_like, tables)) if recipe.optimizer == "adagrad" else None
        return State(tables, squares)

    def new_record(self) -> Record:
        """Room on the device for the row changes of every example, in the order of visits."""
        n, k = len(self.data), self.recipe.n_factors
        return Record(*(self._memory.zeros((n, width), self.dtype) for width in (k, k, 2)))

    def new_log(self, n_visits: int) -> Log:
        """Room on the device for what `n_visits` steps see; `slots` are for the caller to fill."""
        k, c = self.recipe.n_factors, self.sampler.n_negatives + 1
        n_squares = n_visits if self.recipe.optimizer == "adagrad" else 0

        def room(*shape: int, dtype: Any = self.dtype) -> Any:
            return self._memory.zeros(shape, dtype)

        return Log(
            slots=self._memory.put(np.full(len(self.data), -1, np.int32)),
            items=room(n_visits, c, dtype=np.int32),
            user_rows=room(n_visits, k),
            item_rows=room(n_visits * c, k),
            user_squares=room(n_squares, k + 1),
            item_squares=room(n_squares * c, k + 1),
            numbers=room(n_visits * c, 8),
        )

    @property
    def log_bytes(self) -> int:
        """Bytes of the log of one step."""
        return sum(array.nbytes for array in self.on("cpu").new_log(1)[1:])

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """(n,) int64: training index of every visit."""
        return self.schedule.order

    def parts(self, wanted: npt.NDArray[np.bool_], most: int) -> list[tuple[int, int]]:
        """Cut the strata of an epoch into runs of at most `most` wanted visits, where possible."""
        parts, start, held = [], 0, 0
        for stratum in range(self.schedule.n_groups):
            first, behind = self.visits((stratum, stratum + 1))
            count = int(wanted[first:behind].sum())
            if held and held + count > most:
                parts.append((start, stratum))
                start, held = stratum, 0
            held += count
        return [*parts, (start, self.schedule.n_groups)]

    def visits(self, part: tuple[int, int]) -> tuple[int, int]:
        """First visit of a part of an epoch, and the one behind it."""
        pointers, n_groups = self.schedule.pointers, self.schedule.n_groups
        return int(pointers[part[0] * n_groups]), int(pointers[part[1] * n_groups])

    def endpoint(self, tables: Tables, *, n_threads: int = 1, device: str = "cpu") -> Endpoint:
        """What this run minimises, at parameters by code."""
        return Endpoint(self, tables, n_threads=n_threads, device=device)

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        return self.recipe.rate(epoch)

    def hyper(self, epoch: int) -> Hyper:
        """Scalars of the steps of an epoch, in the dtype of the parameters."""
        recipe = self.recipe
        numbers = (self.mean, recipe.rate(epoch), recipe.regularization, recipe.epsilon)
        return Hyper(*map(self.dtype.type, numbers))

    def run_epoch(
        self,
        state: State,
        epoch: int,
        *,
        part: tuple[int, int] | None = None,
        record: Record | None = None,
        log: Log | None = None,
        n_threads: int = 1,
    ) -> float:
        """Run one epoch on working tables, in place; the mean loss of its steps.

        `part` are the strata of it to run, all of them by default.
        """
        sgd = dispatch.kernels("sgd", self.device)
        examples, pointers, sampler = self.placed
        if epoch in self._drawn:
            sampler = sampler._replace(drawn=self._memory.put(self._drawn[epoch]))
        arguments = (
            *state,
            examples,
            pointers,
            sampler,
            self.hyper(epoch),
            self.recipe.loss_code,
            epoch,
            part or (0, self.schedule.n_groups),
            record,
            log,
        )
        alone = n_threads == 1 or self.schedule.n_groups == 1 or self._is_short
        if alone or self.device != "cpu":
            total = sgd.sgd_epoch(*arguments)
        else:
            total = _run_parallel(sgd.sgd_epoch_parallel, arguments, n_threads)
        return float(total / self.weights.sum())

    @property
    def _is_short(self) -> bool:
        """Whether an epoch is over before threads, waited for after every stratum, would pay."""
        candidates = 1 + self.sampler.n_negatives
        return len(self.data) * candidates * self.recipe.n_factors < _LEAST_WORK

    def validation_loss(self, state: State, validation: Interactions) -> float:
        """Mean loss of working tables on other examples, their negatives always the same."""
        order = np.arange(len(validation))
        examples = self._in_order(validation, order, np.ones(len(validation)))
        return float(
            dispatch.kernels("sgd", self.device).mean_loss(
                state.tables,
                self._memory.put(examples),
                self.placed.sampler,
                self.hyper(0),
                self.recipe.loss_code,
            )
        )


def _run_parallel(function: Any, arguments: tuple[Any, ...], n_threads: int) -> Any:
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))
    try:
        return function(*arguments)
    finally:
        numba.set_num_threads(before)


def check_values(data: Interactions, recipe: Recipe, name: str = "data") -> None:
    """Raise DataError unless the values of `data` are ones the loss can be measured on."""
    if recipe.loss == "squared":
        return
    wrong = (data.values != 1) & (data.values != 0)
    if recipe.loss == "bpr":
        wrong |= data.values == 0
    if wrong.any():
        row = int(wrong.argmax())
        allowed = "0 or 1" if recipe.loss == "logistic" else "1 (every row is a positive)"
        raise DataError(
            f"loss={recipe.loss!r} needs values of {allowed}, but row {row} of the {name} has "
            f"{data.values[row]:g} ({int(wrong.sum()):,} such rows): binarise the values, drop "
            "them, or use loss='squared'"
        )
