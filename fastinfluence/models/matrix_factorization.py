"""Biased matrix factorization for ratings and for implicit feedback."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.data import Interactions
from fastinfluence.errors import DataError, NotFittedError, ParameterError
from fastinfluence.kernels.structures import Exclusions, Tables
from fastinfluence.memory import memory_budget
from fastinfluence.models.base import Model, Parts
from fastinfluence.training import Program, Recipe, State, train
from fastinfluence.training.program import check_values, check_weights
from fastinfluence.training.recipe import seed_of

if TYPE_CHECKING:
    from fastinfluence.attribution.base import RowAttribution
    from fastinfluence.training import Trajectory

__all__ = ["MatrixFactorization"]

_USERS_AT_ONCE = 4096  # of recommend


class MatrixFactorization(Model):
    """Matrix factorization with biases, trained by stochastic gradient descent.

    The score of user u and item i is ``mean + b_u + b_i + p_u . q_i``. Training minimises the
    sum over examples j of ``weight_j * (loss_j + regularization / 2 * |rows j touches|^2)``, one
    example a step; an example takes its regularization and its negatives with it when it is
    left out. The same data, hyper-parameters and seed give the same bits on any number of
    threads, and the model keeps the Trajectory that every explanation is computed from.

    Parameters
    ----------
    n_factors : int, default 64
        Length of the rows p_u and q_i.
    loss : {"squared", "logistic", "bpr"}, default "squared"
        ``squared`` fits ratings (half the squared error). ``logistic`` and ``bpr`` fit implicit
        feedback against sampled negatives: items of the same group of the training schedule
        that the user has no interaction with. ``logistic`` also takes values 0, as negatives
        of their own.
    n_epochs : int, default 20
    learning_rate : float, default 0.01
    learning_rate_decay : float, default 1.0
        Factor on the learning rate after every epoch.
    regularization : float, default 0.05
        L2 coefficient on the rows and biases an example touches (negatives included).
    optimizer : {"sgd", "adagrad"}, default "sgd"
    n_negatives : int, optional
        Negatives drawn for every positive; 4 for ``logistic``, 1 for ``bpr``.
    early_stopping : int, optional
        Stop after so many epochs without a better loss on the validation set given to `fit`.
    init_scale : float, default 0.1
        Standard deviation of the initial factors.
    dtype : {"float32", "float64"}, default "float32"
    rng : int, numpy Generator or None, default None
        Seed of everything random.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Where `fit` trains; "auto" is a GPU if there is one. It never changes a bit of the
        parameters.

    Attributes
    ----------
    user_factors_, item_factors_ : (n_users, n_factors), (n_items, n_factors)
    user_biases_, item_biases_ : (n_users,), (n_items,)
    global_mean_ : float
        Mean rating for ``squared``, else 0; it does not change when examples are left out.
    n_epochs_ : int
        Epochs that led to these parameters.
    data_ : Interactions
    trajectory_ : Trajectory

    References
    ----------
    Koren, Bell & Volinsky, Matrix factorization techniques for recommender systems, 2009;
    Rendle et al., BPR: Bayesian personalized ranking from implicit feedback, UAI 2009. The
    schedule is that of Gemulla et al., Large-scale matrix factorization with distributed
    stochastic gradient descent, KDD 2011.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> model.predict(["bob"], ["y"]).shape
    (1,)
    """

    kind = "matrix-factorization"
    parts = Parts(Interactions, Recipe, Program, State)

    def __init__(
        self,
        n_factors: int = 64,
        *,
        loss: str = "squared",
        n_epochs: int = 20,
        learning_rate: float = 0.01,
        learning_rate_decay: float = 1.0,
        regularization: float = 0.05,
        optimizer: str = "sgd",
        n_negatives: int | None = None,
        early_stopping: int | None = None,
        init_scale: float = 0.1,
        dtype: str = "float32",
        rng: int | np.random.Generator | None = None,
        n_threads: int | None = None,
        device: str = "auto",
    ) -> None:
        self.n_factors = n_factors
        self.loss = loss
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.regularization = regularization
        self.optimizer = optimizer
        self.n_negatives = n_negatives
        self.early_stopping = early_stopping
        self.init_scale = init_scale
        self.dtype = dtype
        self.rng = rng
        self.n_threads = n_threads
        self.device = device

    def _fitted_on(self) -> str:
        data = self.data_
        return (
            f"{len(data):,} examples of {data.n_users:,} users and {data.n_items:,} items in "
            f"{self.n_epochs_} epochs"
            + ("" if hasattr(self, "trajectory_") else ", some unlearned since")
        )

    # ---------------------------------------------------------------- fitting

    def fit(
        self,
        data: Interactions,
        *,
        sample_weight: npt.ArrayLike | None = None,
        validation: Interactions | None = None,
        record: str | None = None,
        show_progress: bool | None = None,
    ) -> MatrixFactorization:
        """Train on `data`.

        Parameters
        ----------
        data : Interactions
        sample_weight : (n,) array-like, optional
            Weight of every example; 0 leaves it out.
        validation : Interactions, optional
            Over the same ids (see ``Interactions.split``); its loss is shown, and decides
            when to stop if `early_stopping` is set.
        record : {None, "rollback"}, optional
            "rollback" adds up every example's row changes while training, which saves
            `GradientRollback` its own pass (2 x n x (n_factors + 1) numbers of memory).
        show_progress : bool, optional
            None shows a progress bar at a terminal.

        Returns
        -------
        MatrixFactorization
            The model itself.

        Raises
        ------
        DataError
            Values that do not fit the loss, wrong weights, validation over other ids.
        ParameterError
            A hyper-parameter out of range.
        DeviceError
            `device` was asked for by name and is not there.
        """
        if not isinstance(data, Interactions):
            raise DataError(
                f"fit needs an Interactions, not {type(data).__name__}: make one with "
                "fi.read_interactions, Interactions.from_table, from_arrays or from_csr"
            )
        if record not in (None, "rollback"):
            raise ParameterError(f"record must be None or 'rollback', not {record!r}")
        device, _ = dispatch.choose(self.device, ("cpu", "cuda"))
        recipe = self._recipe()
        self._check_validation(data, validation, recipe)
        weights = check_weights(sample_weight, len(data))
        trajectory = train(
            Program(data, weights, recipe),
            validation=validation,
            patience=self.early_stopping,
            record=record == "rollback",
            memory_budget=memory_budget(),
            n_threads=dispatch.thread_count(self.n_threads),
            device=device,
            show_progress=show_progress,
        )
        return self._take(trajectory)

    def _recipe(self) -> Recipe:
        others = ("early_stopping", "rng", "n_threads", "device")
        names = [name for name in self.get_params() if name not in others]
        return Recipe(**{n: getattr(self, n) for n in names}, seed=seed_of(self.rng))

    def _check_validation(
        self, data: Interactions, validation: Interactions | None, recipe: Recipe
    ) -> None:
        patience = self.early_stopping
        if patience is not None:
            if isinstance(patience, bool) or not isinstance(patience, Integral) or patience < 1:
                raise ParameterError(
                    f"early_stopping must be a number of epochs >= 1, not {patience!r}"
                )
            if validation is None:
                raise ParameterError("early_stopping needs a validation set: fit(..., validation=)")
        if validation is None:
            return
        if not isinstance(validation, Interactions):
            raise DataError(f"validation must be an Interactions, not {type(validation).__name__}")
        if validation.user_map is not data.user_map or validation.item_map is not data.item_map:
            same = np.array_equal(validation.user_ids, data.user_ids) and np.array_equal(
                validation.item_ids, data.item_ids
            )
            if not same:
                raise DataError(
                    "validation has other ids than the training data: make both with "
                    "Interactions.split, or give from_arrays the same user_ids and item_ids"
                )
        check_values(validation, recipe, "validation set")

    def _take(self, trajectory: Trajectory) -> MatrixFactorization:
        """Become the model at the end of a trajectory."""
        self.trajectory_ = trajectory
        return self._hold(trajectory, trajectory.end.tables)

    def _hold(self, trajectory: Trajectory, tables: Tables) -> MatrixFactorization:
        """Take what a trajectory was run with, and parameters that may be others than its own."""
        self.data_ = trajectory.data
        self.user_factors_, self.item_factors_ = tables.user_factors, tables.item_factors
        self.user_biases_, self.item_biases_ = tables.user_biases, tables.item_biases
        self.global_mean_ = trajectory.program.mean
        self.n_epochs_ = trajectory.n_epochs
        return self

    # ---------------------------------------------------------------- using

    def predict(self, users: npt.ArrayLike, items: npt.ArrayLike) -> npt.NDArray[Any]:
        """Scores (n,) of pairs of raw ids: ratings, or log-odds for the sampled losses.

        Parameters
        ----------
        users, items : (n,) array-like, or a single id for all
        """
        tables = self._tables()
        u, i = self.data_.user_index(users), self.data_.item_index(items)
        if len(u) != len(i) and 1 not in (len(u), len(i)):
            raise DataError(f"{len(u)} users and {len(i)} items do not make pairs")
        return scores(tables, self.global_mean_, u, i)

    def recommend(
        self, users: npt.ArrayLike | None = None, k: int = 10, *, exclude_known: bool = True
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Find the k items with the highest scores for each user.

        Parameters
        ----------
        users : (n,) array-like of raw ids, a single id, or None for all users in code order
        k : int, default 10
        exclude_known : bool, default True
            Leave out the items a user has in the training data.

        Returns
        -------
        items : (n, k)
            Raw ids, the best first; ties break by item code.
        scores : (n, k) float

        Raises
        ------
        UnknownIdError
        ParameterError
            k < 1, or more than some user has candidates.
        """
        tables = self._tables()
        data = self.data_
        u = np.arange(data.n_users) if users is None else data.user_index(users)
        u = u.astype(np.int32)
        _check_k(k, u, data, exclude_known)
        n_items = data.n_items
        order = np.arange(n_items)
        side = readout.pack_side(
            tables.item_factors, tables.item_biases, order, np.array([0, n_items]), order
        )
        vectors = readout.with_ones(tables.user_factors)
        pointers, known = data.by_user.pointers, data.items[data.by_pair].astype(np.int64)
        codes, values = [], []
        for start in range(0, len(u), _USERS_AT_ONCE):
            some = u[start : start + _USERS_AT_ONCE]
            exclusions = readout.none_excluded(len(some))
            if exclude_known:
                exclusions = Exclusions(pointers[some], pointers[some + 1], known)
            top = readout.start_lists(len(some), k, vectors.dtype, totals=False)
            group = np.zeros(len(some), np.int32)
            readout.read_side(
                side, group, some, vectors, exclusions, top,
                n_threads=dispatch.thread_count(self.n_threads),
            )  # fmt: skip
            codes.append(top.indices)
            values.append(top.values + (tables.user_biases[some] + vectors.dtype.type(
                self.global_mean_))[:, None])  # fmt: skip
        found = np.concatenate(codes) if codes else np.empty((0, k), np.int32)
        best = np.concatenate(values) if values else np.empty((0, k), vectors.dtype)
        return data.item_ids[found], best

    def unlearn(
        self, examples: npt.ArrayLike, *, method: str | RowAttribution = "curvature-rollback"
    ) -> MatrixFactorization:
        """Take training examples back without training again.

        From the row of every user and item in `examples` goes what the method credits them with,
        ``theta - sum_j gamma_j``: an estimate of the rows that training without them ends in,
        best for few examples a row. All other rows stay. `fastinfluence.evaluation.
        unlearning_distance` tells how far it is from training again.

        Parameters
        ----------
        examples : sequence of int
            Training indices.
        method : {"curvature-rollback", "gradient-rollback"} or attribution object of this model
            A name computes the rows that are needed, for "curvature-rollback" no others.

        Returns
        -------
        MatrixFactorization
            Another model, that predicts and recommends. It has no Trajectory, for no training
            run ended in its parameters, and so can be neither explained nor saved. The
            examples still count as known in `recommend`.

        Raises
        ------
        DataError
            No examples, or an index outside the data.
        ParameterError
            The method credits no rows, or is that of another model.
        """
        from fastinfluence.attribution.unlearning import unlearned

        return unlearned(self, examples, method)

    def _tables(self) -> Tables:
        if not self.is_fitted:
            raise NotFittedError("this MatrixFactorization is not fitted yet: call fit first")
        return Tables(self.user_factors_, self.item_factors_, self.user_biases_, self.item_biases_)


def scores(
    tables: Tables,
    mean: float,
    users: npt.NDArray[np.int32],
    items: npt.NDArray[np.int32],
    n_threads: int = 1,
) -> npt.NDArray[Any]:
    """Scores (n,) of pairs of codes."""
    users, items = map(np.ascontiguousarray, np.broadcast_arrays(users, items))
    dtype = tables.user_factors.dtype
    result = np.empty(len(users), dtype)
    pair_scores = dispatch.kernels("predict").pair_scores

    def part(start: int, stop: int) -> None:
        pair_scores(tables, dtype.type(mean), users, items, start, stop, result)

    dispatch.run_parts(part, dispatch.equal_parts(len(users), n_threads), n_threads)
    return result


def _check_k(k: int, users: npt.NDArray[np.int32], data: Interactions, exclude: bool) -> None:
    readout.check_k(k)
    left = np.full(len(users), data.n_items)
    if exclude:
        left -= _known_items(data)[users]
    if len(left) and k > left.min():
        worst = int(left.argmin())
        raise ParameterError(
            f"k={k} is more than the {left[worst]} items left for user "
            f"{data.user_ids[users[worst]].item()!r}"
            + (" beside the known ones: lower k or pass exclude_known=False" if exclude else "")
        )


def _known_items(data: Interactions) -> npt.NDArray[np.int64]:
    """Distinct items (n_users,) of each user: a pair may stand in the data repeatedly."""
    pointers, items = data.by_user.pointers, data.items[data.by_pair]
    new = np.ones(len(items), bool)
    new[1:] = items[1:] != items[:-1]
    new[pointers[:-1][np.diff(pointers) > 0]] = True
    before = np.concatenate([[0], np.cumsum(new)])
    counts: npt.NDArray[np.int64] = before[pointers[1:]] - before[pointers[:-1]]
    return counts
