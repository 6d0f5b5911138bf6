"""Forward influence against naive steps and losses at both ends."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import fixed_point as oracle
from planted import LOSSES, data_for, graph, ratings, same_bits

import fastinfluence as fi
from fastinfluence import ForwardInfluence, GradientSimilarity, MatrixFactorization
from fastinfluence.errors import DataError, DivergenceError, NotFittedError, ParameterError
from fastinfluence.kernels.structures import Tables

of = fi.objectives
QUERIES = [(0, 1), (5, 3), (5, 4), (0, 3), (0, 1)]


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 5, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4, "regularization": 0.1} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def weights_for(data):
    return np.random.default_rng(1).choice([0.0, 0.4, 1, 2.5], len(data))


def naive_influence(model, slope, n_steps, learning_rate):
    """Influence (n_train,); `slope` gives the gradient (n_rows, d) of phi at some tables."""
    program, start = model.trajectory_.program, model.trajectory_.end.tables
    here, n_users = start, model.data_.n_users
    for _ in range(n_steps):
        up = learning_rate * slope(here)
        users, items = up[:n_users], up[n_users:]
        steps = users[:, :-1], items[:, :-1], users[:, -1], items[:, -1]
        here = Tables(*(table + step for table, step in zip(here, steps, strict=True)))
    before, after = (oracle.losses(program, tables) for tables in (start, here))
    return (before - after) / (n_steps * learning_rate)


def along(model, *terms):
    """Gradient of a sum of weight * score(user, item)."""

    def slope(tables):
        program = model.trajectory_.program
        return sum(w * oracle.score_gradient(program, tables, u, i) for w, u, i in terms)

    return slope


def assert_near(got, expected, tolerance=1e-10):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("n_steps", [1, 7])
@pytest.mark.parametrize("loss", LOSSES)
def test_influence_by_definition(loss, n_steps):
    data = data_for(loss)
    weights = weights_for(data)
    model = fit(data, loss=loss, sample_weight=weights)
    why = ForwardInfluence(model, n_steps=n_steps, learning_rate=0.1)
    expected = [naive_influence(model, along(model, (1, u, i)), n_steps, 0.1) for u, i in QUERIES]
    assert_near(why.influence(QUERIES), expected)
    assert (np.array(expected)[:, weights == 0] == 0).all()


def test_other_objectives():
    model = fit(ratings())
    why = ForwardInfluence(model, n_steps=3, learning_rate=0.1)
    slopes = [along(model, (1, u, i), (-1, u, 2)) for u, i in QUERIES]
    expected = [naive_influence(model, slope, 3, 0.1) for slope in slopes]
    assert_near(why.influence(of.Margin(QUERIES, over=[2] * 5)), expected)

    mean = along(model, *((1 / 5, u, i) for u, i in QUERIES))
    expected = naive_influence(model, mean, 3, 0.1)
    assert_near(why.influence(of.Mean(of.Score(QUERIES)))[0], expected)

    targets = [1.0, 5.0, 3.0, 2.0, 4.0]
    expected = []
    for (u, i), target in zip(QUERIES, targets, strict=True):

        def slope(tables, u=u, i=i, target=target):
            p, q, b, c = tables
            score = model.global_mean_ + b[u] + c[i] + p[u] @ q[i]
            return (target - score) * along(model, (1, u, i))(tables)

        expected.append(naive_influence(model, slope, 3, 0.1))
    assert_near(why.influence(of.HeldOutLoss(QUERIES, targets, "squared")), expected)


def test_a_function_that_moves_every_item():
    model = fit(ratings())

    def size(parameters):
        q = parameters.item_factors
        return (q**2).sum() / 2, {"item_factors": q}

    def slope(tables):
        q = tables.item_factors
        found = np.zeros((model.data_.n_users + len(q), 5))
        found[model.data_.n_users :, :4] = q
        return found

    why = ForwardInfluence(model, n_steps=2, learning_rate=0.1)
    assert_near(why.influence(of.Function(size))[0], naive_influence(model, slope, 2, 0.1))


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_small_steps_are_the_dot_product(loss, n_steps):
    """Half the learning rate, half the distance."""
    model = fit(data_for(loss), loss=loss)
    dot = GradientSimilarity(model).influence(QUERIES)

    def distance(learning_rate):
        why = ForwardInfluence(model, n_steps=n_steps, learning_rate=learning_rate)
        return np.abs(why.influence(QUERIES) - dot).max()

    far, near = distance(2e-4), distance(1e-4)
    assert 1e-6 < near < 0.01 * np.abs(dot).max()
    assert abs(far / near - 2) < 0.02


def test_float32_does_not_swallow_small_steps():
    model = fit(ratings(), dtype="float32")
    dot = GradientSimilarity(model).influence(QUERIES)
    why = ForwardInfluence(model, learning_rate=1e-12, n_steps=3)
    assert_near(why.influence(QUERIES), dot, 1e-5)


def test_a_query_does_not_depend_on_the_others():
    model = fit(ratings())
    why = ForwardInfluence(model, n_steps=5, learning_rate=0.3, n_threads=1)
    together = why.influence(QUERIES)
    for n, pair in enumerate(QUERIES):
        assert same_bits(why.influence([pair]), together[n : n + 1])
    assert (why.learning_rate, ForwardInfluence(model).learning_rate) == (0.3, 0.1 * 0.05)


def test_threads_change_no_bit_and_explain_is_the_top():
    data = data_for("logistic", n_users=130, n_items=90, n=4_100)
    model = fit(data, loss="logistic", dtype="float32", n_epochs=2)
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=37), rng.integers(90, size=37)])
    once = ForwardInfluence(model, n_steps=2, n_threads=1).influence(queries)
    assert once.dtype == np.float32
    more = ForwardInfluence(model, n_steps=2, n_threads=3)
    assert same_bits(more.influence(queries), once)
    explained = more.explain(queries, k=3)
    top = np.argsort(-once, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(explained.train_index, top)
    assert (explained.method, explained.units) == ("forward-influence", "rank")


def test_self_influence_is_the_diagonal():
    data = ratings()
    why = ForwardInfluence(fit(data))
    own = np.diagonal(why.influence(np.column_stack([data.users, data.items])))
    assert same_bits(why.self_influence([5, 3, 5]), own[[5, 3, 5]])
    assert why.self_influence([]).shape == (0,)


def test_the_model_is_left_as_it_is():
    model = fit(ratings())
    before = [table.copy() for table in model.trajectory_.end.tables]
    ForwardInfluence(model, n_steps=3, learning_rate=1.0).influence(QUERIES)
    after = model.trajectory_.end.tables
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("n_steps", [0, -1, 1.5, True, "3", None])
def test_bad_number_of_steps(n_steps):
    with pytest.raises(ParameterError, match="n_steps must be an integer >= 1, not"):
        ForwardInfluence(fit(ratings()), n_steps=n_steps)


@pytest.mark.parametrize("learning_rate", [0, -0.1, np.nan, np.inf, True, "much"])
def test_bad_learning_rate(learning_rate):
    with pytest.raises(ParameterError, match="learning_rate must be a finite number > 0, not"):
        ForwardInfluence(fit(ratings()), learning_rate=learning_rate)


def test_bad_input():
    with pytest.raises(NotFittedError):
        ForwardInfluence(MatrixFactorization())
    with pytest.raises(ParameterError, match="a MatrixFactorization is needed, not str"):
        ForwardInfluence("model")
    triples = fi.DistMult(n_factors=4, n_epochs=1, rng=0).fit(graph())
    with pytest.raises(ParameterError, match="a DistMult has none: use GradientSimilarity"):
        ForwardInfluence(triples)
    model = fit(ratings())
    with pytest.raises(DivergenceError, match="50 steps of learning_rate=1e\\+10 along query 0"):
        ForwardInfluence(model, n_steps=50, learning_rate=1e10).influence(QUERIES)
    model.trajectory_.end.tables.item_factors[2, 1] = np.nan
    with pytest.raises(DataError, match="item 2 holds NaN"):
        ForwardInfluence(model).influence(QUERIES)
