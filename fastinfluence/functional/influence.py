"""Influence functions of factors trained anywhere: only where training ended is needed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.attribution.quantities import Scores
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.attribution.rows import Changes, RowStore
from fastinfluence.attribution.solve import (
    BlockJacobi,
    SolveReport,
    block_bytes,
    solve_queries,
    warn_of_unsolved,
)
from fastinfluence.errors import NegativeCurvature
from fastinfluence.functional.endpoints import (
    UnbiasedEndpoint,
    UnbiasedPairEndpoint,
    as_pairs,
    program_of,
    tables_of,
)
from fastinfluence.functional.homes import home_of
from fastinfluence.memory import memory_budget
from fastinfluence.training.endpoint import Endpoint
from fastinfluence.training.pair_endpoint import Gradients, PairEndpoint
from fastinfluence.training.recipe import check_counts, check_reals

__all__ = ["SolvedInfluences", "influence_mf", "influence_rows_mf"]

Array = npt.NDArray[Any]


class SolvedInfluences(NamedTuple):
    """The influence of training examples on every query, and how well it was solved for.

    Attributes
    ----------
    influence : (n_queries, n) float
        By training index. Positive: training on the example raised the score. With k,
        (n_queries, k): the most influential first, NaN where there are fewer.
    report : SolveReport
        Of the queries: ``converged``, ``iterations``, ``residual`` (n_queries,) and more.
    train_index : (n_queries, k) int32, or None
        With k: of which examples, -1 where there are fewer.
    total : (n_queries,) float64
        Sum of the absolute influence of all examples.
    """

    influence: Array
    report: SolveReport
    train_index: npt.NDArray[np.int32] | None
    total: npt.NDArray[np.float64]


def influence_mf(
    users: Any,
    items: Any,
    values: Any,
    user_factors: Any,
    item_factors: Any,
    user_biases: Any,
    item_biases: Any,
    query_users: Any,
    query_items: Any,
    *,
    damping: float,
    mean: float = 0.0,
    regularization: float = 0.05,
    loss: str = "squared",
    sample_weight: Any = None,
    rtol: float = 1e-3,
    max_iterations: int = 200,
    k: int | None = None,
    proponents: bool = True,
    n_threads: int | None = None,
) -> SolvedInfluences:
    """Solve for the influence of every training example on the scores of some pairs.

    `fastinfluence.InfluenceFunction` without a model of ours. Training is taken to have minimised
    ``F = sum_j w_j l_j``, where ``l_j`` is the loss of example j and regularization / 2 times the
    squares of its user's row and of its item's row, biases included. The influence of example j
    on a score f is, with H the Gauss-Newton matrix of F at the tables, ::

        -grad f . (H + damping I)^-1 w_j grad l_j

    to first order the score with j trained on, minus the score without.

    Parameters
    ----------
    users, items : (n,) integer
        Training examples; a pair may occur several times.
    values : (n,) float
        Ratings; 0 or 1 for ``logistic``. Negatives are examples of value 0, none are drawn.
    user_factors, item_factors, user_biases, item_biases
        The tables at the end of training. Both biases may be None: a model without, whose scores
        and parameters have none.
    query_users, query_items : (n_queries,) integer
        Pairs to explain, trained on or not.
    damping : float
        At least 0; stands for what training left undone: 1 / (learning rate * epochs) for
        gradient descent that stopped early, little or nothing for a solver that found the
        minimum, as ALS does.
    mean : float
        Constant of the score.
    regularization : float
        L2 on the rows an example touches: a row of m examples is shrunk m times (ALS-WR; the
        usual SGD).
    loss : {"squared", "logistic"}
        Half the squared error, or the log loss of a sigmoid of the score.
    sample_weight : (n,) float, optional
        Ones by default; confidences.
    rtol : float
        A query is solved when its residual is at most rtol times its right-hand side.
    max_iterations : int
    k : int, optional
        Keep only the k most influential examples of every query.
    proponents : bool, default True
        With k, those that raised the score most; False: those that lowered it most.
    n_threads : int, optional
        All processors by default; it never changes a result.

    Returns
    -------
    SolvedInfluences
        ``influence`` (n_queries, n) in the dtype of the tables, and the ``report``.

    Warns
    -----
    ConvergenceWarning
        Queries took more than `max_iterations`; their influence is returned as it is.

    Raises
    ------
    DataError
        Arrays that do not fit together; codes outside the tables; tables that are not finite.
    ParameterError
        An option out of range.
    NegativeCurvature
        Neither damping nor regularization, and too few examples: the matrix is singular.

    Notes
    -----
    An iteration goes through the data once for 16 queries, 8 n (n_factors + 1) floating-point
    operations for each.

    Examples
    --------
    >>> import numpy as np
    >>> from fastinfluence import functional as F
    >>> P, Q = np.array([[1.0, 0.2], [0.8, -0.1]]), np.array([[1.0, 0.5], [0.3, 1.0]])
    >>> found = F.influence_mf([0, 0, 1], [0, 1, 0], [5, 3, 4], P, Q, None, None, [1], [1],
    ...                        damping=0.1)
    >>> found.influence.shape, bool(found.report.converged.all())
    ((1, 3), True)
    """
    options = _Options(damping=damping, rtol=rtol, max_iterations=max_iterations)
    if k is not None:
        readout.check_k(k)
    threads = dispatch.thread_count(n_threads)
    home = home_of(
        user_factors=user_factors, item_factors=item_factors, user_biases=user_biases,
        item_biases=item_biases,
    )  # fmt: skip
    tables = tables_of(user_factors, item_factors, user_biases, item_biases)
    program = program_of(users, items, values, tables, mean, regularization, loss, sample_weight)
    kind = UnbiasedEndpoint if user_biases is None else Endpoint
    endpoint = kind(program, tables, n_threads=threads, device=home.backend)
    queries = as_pairs(query_users, query_items, tables, "query ")
    n = len(queries[0])
    influence = np.empty((n, endpoint.n if k is None else k), endpoint.dtype)
    train_index = None if k is None else np.empty((n, k), np.int32)
    total, reports, memory = np.empty(n), [], dispatch.memory(home.backend)
    blocks = solve_queries(
        endpoint,
        Scores(*queries),
        BlockJacobi(endpoint, damping, n_threads=threads),
        at_once=min(threads, memory_budget() // block_bytes(endpoint)),
        n_threads=threads,
        **asdict(options),
    )
    for start, x, report in blocks:
        credit = memory.fetch(endpoint.credit(x))
        found = np.ascontiguousarray(credit[:, : len(report)].T)
        here = slice(start, start + len(found))
        if train_index is None:
            influence[here], total[here] = found, np.abs(found).sum(axis=1, dtype=np.float64)
        else:
            of_here = top_of_rows(found, influence.shape[1], proponents)
            train_index[here], influence[here], total[here] = of_here
        reports.append(report)
    whole = SolveReport.joined(reports)
    float64 = "give float64 tables" if endpoint.dtype == np.float32 else ""
    warn_of_unsolved(whole, options.rtol, options.max_iterations, float64, stacklevel=2)
    solved: SolvedInfluences = home.give(SolvedInfluences(influence, whole, train_index, total))
    return solved


def influence_rows_mf(
    users: Any,
    items: Any,
    values: Any,
    user_factors: Any,
    item_factors: Any,
    user_biases: Any,
    item_biases: Any,
    *,
    damping: float,
    mean: float = 0.0,
    regularization: float = 0.05,
    loss: str = "squared",
    sample_weight: Any = None,
    row_dtype: str | None = None,
    n_threads: int | None = None,
) -> RowStore:
    """Find what every example did to its own two rows, all others held where they are.

    `explain_mf` reads it at the speed of Gradient Rollback. For pairs that were not trained on
    the influence is that of `fastinfluence.PairInfluence` (FIA), `influence_mf` with a Hessian of
    the two rows of the pair alone. For a pair that was trained on it is approximate: the two rows
    are taken to have no example in common.

    Parameters
    ----------
    users, items, values, user_factors, item_factors, user_biases, item_biases
        As for `influence_mf`.
    damping, mean, regularization, loss, sample_weight, n_threads
        As for `influence_mf`.
    row_dtype : {None, "float32", "float64", "bfloat16"}
        Of the rows; None keeps that of the tables.

    Returns
    -------
    RowStore
        As from `pack_mf`.

    Raises
    ------
    DataError, ParameterError
        As for `influence_mf`.
    NegativeCurvature
        The examples of a row do not determine it, with neither damping nor regularization.

    Notes
    -----
    2 n (n_factors + 1)^2 multiplications, and a Cholesky factorization for every row.

    Cheng et al., KDD 2019, doi 10.1145/3292500.3330857.
    """
    options = _Options(damping=damping)
    threads = dispatch.thread_count(n_threads)
    tables = tables_of(user_factors, item_factors, user_biases, item_biases)
    program = program_of(users, items, values, tables, mean, regularization, loss, sample_weight)
    kind = UnbiasedPairEndpoint if user_biases is None else PairEndpoint
    endpoint = kind(program, tables, damping=options.damping, full=False, n_threads=threads)
    of_users, of_items = endpoint.own_gradients()
    return RowStore.build(
        (_changes(endpoint, of_users, 0), _changes(endpoint, of_items, endpoint.n_users)),
        (program.data.by_user, program.data.by_item),
        dtype=row_dtype,
        n_threads=threads,
    )


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Options of a solve, checked."""

    damping: float
    rtol: float = 1e-3
    max_iterations: int = 200

    def __post_init__(self) -> None:
        check_reals(self, "damping")
        check_reals(self, "rtol", above_zero=True)
        check_counts(self, "max_iterations")


def _changes(endpoint: PairEndpoint, gradients: Gradients, first_row: int) -> Changes:
    """Changes of single rows: minus the inverse of the row's block times the gradient."""
    definite = endpoint.solve(gradients, first_row)
    if not definite.all():
        code = int(definite.argmin())
        _, more = endpoint.spectrum([first_row + code])
        raise NegativeCurvature(
            f"the examples of {'item' if first_row else 'user'} {code} do not determine its row "
            f"with damping={endpoint.damping:.3g} and this regularization; "
            f"damping={1.01 * (endpoint.damping + more):.3g} would do"
        )
    return Changes(gradients.rows, gradients.biases, gradients.places)
