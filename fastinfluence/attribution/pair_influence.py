"""Influence functions of a pair's own two rows: a closed form, read at the speed of row stores."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.attribution.base import RowAttribution
from fastinfluence.attribution.damping import check_damping
from fastinfluence.attribution.placed_rows import placed
from fastinfluence.attribution.rows import Changes, RowStore
from fastinfluence.errors import NegativeCurvature, ParameterError
from fastinfluence.kernels.structures import Side, Top
from fastinfluence.models import MatrixFactorization
from fastinfluence.training.pair_endpoint import PairEndpoint

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["PairInfluence"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]

HESSIANS = ("gauss-newton", "full")

_TOGETHER = 256  # pairs solved in one call: their couplings stay in the cache
_COUPLINGS = 2**28  # bytes of couplings on a device, in one call
_AT_ONCE = 2**16  # pairs whose vectors are held at a time


class PairInfluence(RowAttribution):
    """Influence functions in which only the two rows of the query may move (FIA).

    What ``InfluenceFunction(model, scope="pair")`` makes. The influence of example j on the score
    f of a query (u, i) is ::

        -grad f . (H + damping)^-1 grad l_j

    with the gradients and the Hessian H of the whole training loss by the rows of u and i alone,
    all other rows held where they are. Axes are (n_queries, n_train); positive: training on j
    raised the score. Only examples of u or of i have any influence, and it is in the units of the
    score (``units = "effect"``).

    For a pair that was not trained on the system falls into one for each row, whatever the pair:
    every example is credited a change of its user's row and of its item's row once, and those are
    read out as by `CurvatureRollback`. A pair that was trained on has its two rows coupled by
    its own examples, and its system is solved for itself.

    With sampled negatives (``logistic``, ``bpr``) the loss is the mean over those of the last
    epochs. An example is credited with its own user's and item's rows, not with those of its
    negatives, and the coupling of two rows is that of their own examples: that an example of u
    has drawn i as a negative is left out.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    hessian : {"gauss-newton", "full"}, default "gauss-newton"
        The full Hessian differs on pairs that were trained on only, where it need not be positive
        definite.
    damping : float, optional
        Added to the diagonal of H; that of `InfluenceFunction` by default.
    row_dtype : {None, "float32", "float64", "bfloat16"}
        Of the stored rows, as for `GradientRollback`.
    path : path-like, optional
        Folder for the rows, which are then memory-mapped; rows of the same model and damping found
        there are used as they are.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu", "cuda"} or "torch:<device>", default "auto"
    show_progress : bool, optional
        Of no effect: there is nothing to wait for.

    Attributes
    ----------
    damping_ : float
    hessian_ : str

    Raises
    ------
    NotFittedError
    ParameterError
        An option out of range.
    DataError
        Parameters that are not finite.
    DeviceError
        A device that is not there, or rows that are too long for it.
    NegativeCurvature
        The Hessian is not positive definite on a row, or on those of a pair that is asked about:
        the message names it, its smallest eigenvalue, and a damping that is large enough.

    Notes
    -----
    2 n_train (k + 1)^2 multiplications and a Cholesky factorization of every row, k factors, once;
    8/3 (k + 1)^3 for every query that was trained on, nothing for others. Memory: the rows of the
    examples, and (k + 1)^2 numbers for every user and item.

    Cheng et al., KDD 2019, doi 10.1145/3292500.3330857, who divide by the number of examples.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.InfluenceFunction(model, scope="pair").influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "influence-function-pair"
    units = "effect"
    served = ("cpu", "cuda", "torch")

    def __init__(
        self,
        model: MatrixFactorization,
        *,
        hessian: str = "gauss-newton",
        damping: float | None = None,
        row_dtype: str | None = None,
        path: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        device: str = "auto",
        show_progress: bool | None = None,
    ) -> None:
        super().__init__(model, n_threads=n_threads, device=device)
        if hessian not in HESSIANS:
            raise ParameterError(f"hessian={hessian!r} is not known: use 'gauss-newton' or 'full'")
        trajectory = model.trajectory_
        self.hessian_ = hessian
        self.damping_ = check_damping(damping, trajectory)
        self._endpoint = PairEndpoint(
            trajectory.program,
            trajectory.end.tables,
            damping=self.damping_,
            full=hessian == "full",
            n_threads=self._n_threads,
            device=self._device,
        )
        self._memory = dispatch.memory(self._device)
        self._rows = RowStore.obtain(
            trajectory,
            self._credit,
            (self.data.by_user, self.data.by_item),
            meta={"method": self.name, "damping": self.damping_},
            dtype=row_dtype,
            path=path,
            n_threads=self._n_threads,
        )

    @property
    def _settings(self) -> dict[str, Any]:
        return {"damping": self.damping_, "hessian": self.hessian_}

    def _credit(self) -> tuple[Changes, Changes]:
        """Changes of single rows: minus the inverse of the row's block times the gradient."""
        data, changes = self.data, []
        kinds = (("user", data.user_ids, 0), ("item", data.item_ids, data.n_users))
        for gradients, (kind, ids, first) in zip(
            self._endpoint.own_gradients(), kinds, strict=True
        ):
            definite = self._endpoint.solve(gradients, first)
            if not definite.all():
                code = int(definite.argmin())
                spectrum = self._endpoint.spectrum([first + code])
                raise self._indefinite(f"the row of {kind} {ids[code].item()!r}", *spectrum)
            columns = gradients.rows, gradients.biases, gradients.places
            changes.append(Changes(*self._memory.fetch(columns)))
        return changes[0], changes[1]

    def _indefinite(self, where: str, smallest: float, more: float) -> NegativeCurvature:
        return NegativeCurvature(
            f"the Hessian of the training loss is not positive definite on {where}: its smallest "
            f"eigenvalue is {smallest:.3g} with damping={self.damping_:.3g}; "
            f"damping={1.01 * (self.damping_ + more):.3g} would do"
            + ("" if self.hessian_ != "full" else ", or hessian='gauss-newton'")
        )

    # ---------------------------------------------------------------- pairs trained on

    def _vectors(
        self, users: Codes, items: Codes, starts: Numbers, stops: Numbers, n_threads: int
    ) -> tuple[Array, Array]:
        """What changes of the rows of trained pairs are multiplied with, (m, d) for either row.

        On the device.
        """
        d = self._endpoint.d
        by_user, by_item = (
            self._memory.empty((len(users), d), self._item_vectors.dtype) for _ in range(2)
        )

        def part(start: int, stop: int) -> None:
            some = slice(start, stop)
            couplings = self._endpoint.couplings(self.rows.by_pair, starts[some], stops[some])
            definite = self._endpoint.link(
                users[some], items[some], couplings, by_user[some], by_item[some]
            )
            if not definite.all():
                bad = int(definite.argmin())
                user, item = int(users[start + bad]), int(items[start + bad])
                rows = [user, self._endpoint.n_users + item]
                pair = self.data.user_ids[user].item(), self.data.item_ids[item].item()
                spectrum = self._endpoint.spectrum(rows, couplings[bad])
                raise self._indefinite(f"the pair {pair!r}", *spectrum)

        together = _TOGETHER if self._device == "cpu" else max(1, _COUPLINGS // (8 * d * d))
        dispatch.run_parts(part, _stretches(len(users), together), n_threads)
        return by_user, by_item

    @cached_property
    def _sides(self) -> tuple[Side, Side]:
        """The rows of both sides, on the device: those that other pairs are read from, too."""
        there = placed(self.rows, self._device)
        sides: tuple[Side, Side] = self._memory.put((there.user_side, there.item_side))
        return sides

    def _parts(self, users: Codes, items: Codes, n_threads: int) -> list[tuple[int, int]]:
        """Runs of pairs of nearly equal work; all at once on a device."""
        if self._device != "cpu":
            return [(0, len(users))]
        return dispatch.even_parts(self._degrees(users, items), 4 * n_threads)

    def _top(
        self, users: Codes, items: Codes, k: int, proponents: bool, *, totals: bool, n_threads: int
    ) -> Top:
        starts, stops = self.rows.find_pairs(users, items, n_threads)
        trained = starts < stops
        if not trained.any():
            return super()._top(users, items, k, proponents, totals=totals, n_threads=n_threads)
        top = readout.start_lists(len(users), k, self._item_vectors.dtype, totals=totals)
        unseen = np.flatnonzero(~trained)
        if len(unseen):
            found = super()._top(
                users[unseen], items[unseen], k, proponents, totals=totals, n_threads=n_threads
            )
            _put(top, unseen, found)
        pairs = np.flatnonzero(trained)
        for start, stop in _stretches(len(pairs), _AT_ONCE):
            some = pairs[start:stop]
            columns = (users[some], items[some], starts[some], stops[some])
            found = self._top_of_trained(*columns, k, proponents, totals, n_threads)
            _put(top, some, found)
        return top

    def _top_of_trained(
        self,
        users: Codes,
        items: Codes,
        starts: Numbers,
        stops: Numbers,
        k: int,
        proponents: bool,
        totals: bool,
        n_threads: int,
    ) -> Top:
        vectors = self._vectors(users, items, starts, stops, n_threads)
        dtype, sign = self._item_vectors.dtype, 1.0 if proponents else -1.0
        top = readout.start_lists(len(users), k, dtype, totals=totals)
        columns, lists = self._memory.put(((users, items), top))
        top_of_pairs = dispatch.kernels("pair_readout", self._device).top_of_pairs

        def part(start: int, stop: int) -> None:
            top_of_pairs(dtype.type(sign), *self._sides, *vectors, *columns, start, stop, lists)

        self._sides  # noqa: B018  (made before threads ask for them)
        dispatch.run_parts(part, self._parts(users, items, n_threads), n_threads)
        return readout.in_sign_of_scores(self._memory.fetch(lists), sign)

    def _degrees(self, users: Codes, items: Codes) -> npt.NDArray[np.float64]:
        """Rows read for each pair, as work."""
        of_users = np.diff(self.rows.user_side.pointers)[users]
        return of_users + np.diff(self.rows.item_side.pointers)[items] + 1.0

    def _pair_influence(self, users: Codes, items: Codes, degrees: Numbers) -> csr_array:
        matrix = super()._pair_influence(users, items, degrees)
        starts, stops = self.rows.find_pairs(users, items, self._n_threads)
        pairs = np.flatnonzero(starts < stops)
        sparse_pairs = dispatch.kernels("pair_readout", self._device).sparse_pairs
        sides, put = self._sides, self._memory.put
        found = put((matrix.indices, matrix.data))
        for first, last in _stretches(len(pairs), _AT_ONCE):
            some = pairs[first:last]
            columns = users[some], items[some]
            vectors = self._vectors(*columns, starts[some], stops[some], self._n_threads)
            asked = (*vectors, *put(columns), put(matrix.indptr[some].astype(np.int64)))

            def part(start: int, stop: int, asked: Any = asked) -> None:
                sparse_pairs(*sides, *(array[start:stop] for array in asked), *found)

            dispatch.run_parts(part, self._parts(*columns, self._n_threads), self._n_threads)
        matrix.indices, matrix.data = self._memory.fetch(found)
        return matrix

    def self_influence(self) -> npt.NDArray[np.floating[Any]]:
        """Influence (n_train,) of every training example on the score of its own pair.

        Large values mark examples the model would not predict without them.
        """
        by_pair = self.rows.by_pair
        users, items = self.data.users[by_pair], self.data.items[by_pair]
        new = np.ones(len(by_pair), bool)
        new[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        bounds = np.append(np.flatnonzero(new), len(by_pair))
        users, items = users[new], items[new]
        put, result = self._memory.put, self._memory.empty(len(by_pair), self._item_vectors.dtype)
        places = put(self.rows.own_places)
        own_of_pairs = dispatch.kernels("pair_readout", self._device).own_of_pairs
        for start, stop in _stretches(len(users), _AT_ONCE):
            columns = users[start:stop], items[start:stop]
            here = bounds[start : stop + 1]
            vectors = self._vectors(*columns, here[:-1], here[1:], self._n_threads)
            asked = put((*columns, here))
            own_of_pairs(*self._sides, *vectors, *asked, places, result)
        found: npt.NDArray[np.floating[Any]] = self._memory.fetch(result)
        return found


def _stretches(n: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _put(top: Top, queries: Numbers, found: Top) -> None:
    """Write lists of some queries among those of all."""
    for whole, part in zip(top, found, strict=True):
        if len(whole):
            whole[queries] = part
