"""What is known to go wrong in other libraries' influence functions does not go wrong here."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
from planted import ratings, same_bits

from fastinfluence import InfluenceFunction, Interactions, MatrixFactorization
from fastinfluence.attribution.solve import BlockJacobi, solve
from fastinfluence.errors import ConvergenceWarning, NegativeCurvature
from fastinfluence.kernels.structures import LANES


def fit(data, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 6, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4} | keywords
    return MatrixFactorization(**keywords).fit(data)


def every_pair(data):
    return [(u, i) for u in range(data.n_users) for i in range(data.n_items)]


class Dense:
    """The squared loss at a model's parameters, rows of users then of items, no damping."""

    def __init__(self, model, examples=None):
        self.model, data = model, model.data_
        tables = [np.asarray(table, np.float64) for table in model.trajectory_.end.tables]
        self.rows = np.concatenate([np.column_stack(tables[::2]), np.column_stack(tables[1::2])])
        self.n_users, (self.n_rows, self.d) = data.n_users, self.rows.shape
        examples = range(len(data)) if examples is None else examples
        pairs = [(int(data.users[j]), int(data.items[j])) for j in examples]
        self.jacobian = np.array([self.gradient(*pair) for pair in pairs])
        slopes = [
            self.score(*pair) - data.values[j] for pair, j in zip(pairs, examples, strict=True)
        ]
        touched = np.array([self.touched(*pair) for pair in pairs]) * model.regularization
        self.gradients = np.array(slopes)[:, None] * self.jacobian + touched * self.rows.ravel()
        self.gauss_newton = self.jacobian.T @ self.jacobian + np.diag(touched.sum(0))
        self.hessian = self.gauss_newton.copy()
        for (user, item), slope in zip(pairs, slopes, strict=True):
            for f in range(self.d - 1):  # d2 score / dp_f dq_f
                a, b = user * self.d + f, (self.n_users + item) * self.d + f
                self.hessian[a, b] += slope
                self.hessian[b, a] += slope

    def score(self, user, item):
        p, q = self.rows[user], self.rows[self.n_users + item]
        return self.model.global_mean_ + p[-1] + q[-1] + p[:-1] @ q[:-1]

    def gradient(self, user, item):
        found = np.zeros_like(self.rows)
        found[user] = [*self.rows[self.n_users + item, :-1], 1]
        found[self.n_users + item] = [*self.rows[user, :-1], 1]
        return found.ravel()

    def touched(self, user, item):
        found = np.zeros_like(self.rows)
        found[[user, self.n_users + item]] = 1
        return found.ravel()

    def queries(self, pairs):
        return np.array([self.gradient(*pair) for pair in pairs])

    def influence(self, pairs, damping, full=False):
        matrix = self.hessian if full else self.gauss_newton
        solved = np.linalg.solve(matrix + damping * np.eye(len(matrix)), self.queries(pairs).T)
        return -solved.T @ self.gradients.T


def assert_near(got, expected, tolerance):
    np.testing.assert_array_less(np.abs(got - expected), tolerance * np.abs(expected).max())


# ---------------------------------------------------------------- solves


def test_more_right_hand_sides_than_parameters():
    """pyDVL: rows of zeros for the queries past the number of parameters."""
    data = ratings(4, 3, 10)
    model = fit(data, n_factors=1)
    pairs = every_pair(data) * 4
    dense = Dense(model)
    assert len(pairs) > 2 * dense.rows.size
    why = InfluenceFunction(model, rtol=1e-10)
    found = why.influence(pairs)
    assert why.report_.converged.tolist() == [True] * len(pairs)
    assert (np.abs(found).max(axis=1) > 1e-3).all()
    assert_near(found, dense.influence(pairs, why.damping_), 1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-5])
def test_a_tolerance_is_that_of_the_relative_residual_and_reached(rtol, dtype):
    """pyDVL: tolerances squared, out of float32's reach; dattri: a tolerance without effect."""
    model = fit(ratings(), dtype=dtype)
    pairs = every_pair(model.data_)[:20]
    why = InfluenceFunction(model, rtol=rtol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factors = why.influence_factors(pairs)
    dense = Dense(model)
    matrix = dense.gauss_newton + why.damping_ * np.eye(dense.rows.size)
    right = dense.queries(pairs)
    left = np.asarray(factors.vectors, np.float64).reshape(len(pairs), -1) @ matrix - right
    residuals = np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    slack = 1 + (1e-6 / rtol if dtype == "float32" else 1e-9)
    assert residuals.max() <= slack * rtol
    assert residuals.max() > rtol / 1000  # that of its square would be smaller
    np.testing.assert_allclose(residuals, why.report_.residual, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_a_tolerance_is_relative_to_every_right_hand_side(size):
    """pyDVL: the square root of the norm decides."""
    model = fit(ratings())
    program, tables = model.trajectory_.program, model.trajectory_.end.tables
    endpoint = program.endpoint(tables)
    right = np.random.default_rng(0).standard_normal((endpoint.n_rows, endpoint.d, LANES))
    _, once = solve(endpoint, right, damping=1.0, rtol=1e-4)
    _, scaled = solve(endpoint, size * right, damping=1.0, rtol=1e-4)
    assert once.iterations.min() > 3
    np.testing.assert_array_equal(once.iterations, scaled.iterations)


def test_a_query_that_is_not_solved_is_reported():
    """pyDVL's LiSSA and dattri's CG: silence."""
    model = fit(ratings())
    pairs = every_pair(model.data_)[:5]
    why = InfluenceFunction(model, rtol=1e-8, max_iterations=2)
    with pytest.warns(ConvergenceWarning, match=r"5 of 5 queries .* 2 iterations"):
        found = why.influence(pairs)
    assert not why.report_.converged.any()
    assert (why.report_.residual > 1e-8).all()
    assert (why.report_.iterations == 2).all()
    assert np.isfinite(found).all()
    assert found.any(axis=1).all()


def test_no_sum_of_the_inverses_of_batches():
    """dattri: a solve for every batch of the data, added up."""
    model = fit(ratings())
    pairs = every_pair(model.data_)[:7]
    why = InfluenceFunction(model, rtol=1e-10)
    found, expected = why.influence(pairs), Dense(model).influence(pairs, why.damping_)
    assert_near(found, expected, 1e-8)
    halves = [Dense(model, part) for part in np.array_split(np.arange(len(model.data_)), 2)]
    right, gradients = halves[0].queries(pairs), Dense(model).gradients
    added = sum(
        np.linalg.solve(half.gauss_newton + why.damping_ * np.eye(right.shape[1]), right.T)
        for half in halves
    )
    assert np.abs(-added.T @ gradients.T - expected).max() > 0.5 * np.abs(expected).max()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_bits_do_not_depend_on_who_else_is_asked_or_on_threads(n_threads):
    model = fit(ratings(), dtype="float32")
    pairs = every_pair(model.data_)[:50]
    together = InfluenceFunction(model, n_threads=n_threads).influence(pairs)
    alone = InfluenceFunction(model, n_threads=1)
    for query in (0, 17, 49):
        assert same_bits(together[query], alone.influence([pairs[query]])[0])


def test_one_query_is_solved_long_before_the_others():
    """dattri: NaN, as iterations go on behind a residual of 0."""
    data = ratings()
    lonely = {"user_ids": np.arange(13), "item_ids": np.arange(10)}
    data = Interactions.from_arrays(data.users, data.items, data.values, **lonely)
    model = fit(data)
    pairs = [(12, 9), *every_pair(data)[:6]]  # the first has rows that no example touches
    why = InfluenceFunction(model, rtol=1e-10)
    found = why.influence(pairs)
    assert why.report_.iterations[0] <= 2 < 5 < why.report_.iterations[1:].min()
    assert why.report_.converged.all()
    assert not found[0].any()
    assert_near(found, Dense(model).influence(pairs, why.damping_), 1e-8)


@pytest.mark.parametrize("preconditioned", [True, False])
def test_a_right_hand_side_of_zeros_beside_others(preconditioned):
    model = fit(ratings())
    program, tables = model.trajectory_.program, model.trajectory_.end.tables
    endpoint = program.endpoint(tables)
    right = np.random.default_rng(0).standard_normal((endpoint.n_rows, endpoint.d, LANES))
    right[:, :, 3] = 0
    blocks = BlockJacobi(endpoint, 0.1) if preconditioned else None
    x, report = solve(endpoint, right, damping=0.1, rtol=1e-10, preconditioner=blocks)
    assert report.converged.all()
    assert report.iterations[3] == 0 == report.residual[3]
    assert not x[:, :, 3].any()
    dense = Dense(model)
    matrix = dense.gauss_newton + 0.1 * np.eye(dense.rows.size)
    expected = np.linalg.solve(matrix, right.reshape(-1, LANES))
    assert_near(x.reshape(-1, LANES), expected, 1e-8)


# ---------------------------------------------------------------- an indefinite Hessian


@pytest.fixture(scope="module")
def indefinite():
    """A model of 20 x 15 with 4 factors, 175 parameters, and its dense Hessian."""
    model = fit(ratings(20, 15, 120), n_epochs=10, regularization=0.0)
    dense = Dense(model)
    assert dense.rows.size == 175
    return model, dense, float(np.linalg.eigvalsh(dense.hessian)[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_an_indefinite_hessian_is_reported(indefinite, share):
    """All of them: conjugate gradients converge to the last digit, and mean nothing."""
    model, _, lowest = indefinite
    assert lowest < -0.1
    why = InfluenceFunction(model, hessian="full", damping=-share * lowest)
    with pytest.raises(NegativeCurvature, match=r"not positive definite.*give damping >"):
        why.influence([(0, 0)])


def test_a_damped_hessian_that_is_definite_is_solved(indefinite):
    model, dense, lowest = indefinite
    pairs = every_pair(model.data_)[:5]
    why = InfluenceFunction(model, hessian="full", damping=-1.5 * lowest, rtol=1e-9)
    expected = dense.influence(pairs, -1.5 * lowest, full=True)
    assert_near(why.influence(pairs), expected, 1e-6)
    assert why.report_.hessian == "full"


def test_a_damping_may_be_lifted(indefinite):
    model, dense, lowest = indefinite
    pairs = every_pair(model.data_)[:5]
    options = {"hessian": "full", "on_negative_curvature": "lift", "damping": 0.0}
    why = InfluenceFunction(model, rtol=1e-9, **options)
    found = why.influence(pairs)
    assert -lowest < why.damping_ < -1.5 * lowest
    assert why.report_.damping == why.damping_
    assert_near(found, dense.influence(pairs, why.damping_, full=True), 1e-6)


def test_gauss_newton_may_stand_in(indefinite):
    model, dense, lowest = indefinite
    pairs = every_pair(model.data_)[:5]
    options = {"hessian": "full", "on_negative_curvature": "gauss-newton"}
    why = InfluenceFunction(model, rtol=1e-9, damping=-lowest / 2, **options)
    found = why.influence(pairs)
    assert why.report_.hessian == why.hessian_ == "gauss-newton"
    assert_near(found, dense.influence(pairs, -lowest / 2), 1e-6)


# ---------------------------------------------------------------- memory


def test_many_queries_take_no_memory_of_queries_times_parameters_or_examples():
    """Captum and dattri: all gradients; TRAK: all scores."""
    data = ratings(400, 300, 6000)
    model = fit(data, n_factors=16, n_epochs=2, dtype="float32")
    pairs = every_pair(data)[:1000]
    n_parameters = (data.n_users + data.n_items) * 17
    why = InfluenceFunction(model, n_threads=1, rtol=0.1, show_progress=False)
    why.explain(pairs[:1], k=3)  # what is compiled and made once
    tracemalloc.start()
    try:
        found = why.explain(pairs, k=3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == len(pairs)
    print(peak, 4 * len(pairs) * min(n_parameters, len(data)) / 2)
    assert peak < 4 * len(pairs) * min(n_parameters, len(data)) / 2
