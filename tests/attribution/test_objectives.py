"""What is explained: values, gradients, binding, and influence on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import same_bits

from fastinfluence import Interactions
from fastinfluence.attribution.objectives import (
    Function,
    HeldOutLoss,
    Margin,
    Mean,
    Parameters,
    Score,
    as_objective,
)
from fastinfluence.errors import DataError, ParameterError, UnknownIdError
from fastinfluence.kernels.structures import Tables
from fastinfluence.training import Recipe

N_USERS, N_ITEMS, K = 5, 4, 3
MEAN = 0.7
PAIRS = [(4, 0), (1, 2), (4, 0), (0, 3)]  # one of them twice
DATA = Interactions.from_arrays(
    [0, 1, 3], [0, 1, 1], [1, 2, 3], user_ids=np.arange(N_USERS), item_ids=np.arange(N_ITEMS)
)  # users 2 and 4 and items 2 and 3 have no example


def recipe(loss="squared", dtype="float64"):
    return Recipe(
        n_factors=K,
        loss=loss,
        optimizer="sgd",
        n_epochs=3,
        learning_rate=0.1,
        learning_rate_decay=1.0,
        regularization=0.1,
        n_negatives=None,
        init_scale=0.1,
        dtype=dtype,
        seed=0,
    )


def tables(seed=0, scale=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = (N_USERS, K), (N_ITEMS, K), (N_USERS,), (N_ITEMS,)
    return Tables(*((scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes))


def score(theta, user, item):
    p, q, b, c = theta
    return MEAN + b[user] + c[item] + p[user] @ q[item]


def curved(parameters):
    """A function of three of the four tables and of few of their rows."""
    p, q, b, _, mean = parameters
    inner = p[1] @ q[2] + mean * b[3]
    slope = np.cos(inner)
    gradient = {"user_factors": np.zeros_like(p), "item_factors": np.zeros_like(q),
                "user_biases": np.zeros_like(b)}  # fmt: skip
    gradient["user_factors"][1] = slope * q[2]
    gradient["item_factors"][2] = slope * p[1]
    gradient["user_biases"][3] = slope * mean
    return np.sin(inner), gradient


OVER = [3, 3, 2, 0]
TARGETS, BINARY = [2.0, -1.0, 0.5, 3.0], [1, 0, 0, 1]
OBJECTIVES = {
    "score": (Score(PAIRS), lambda t: [score(t, *pair) for pair in PAIRS]),
    "margin": (
        Margin(PAIRS, OVER),
        lambda t: [score(t, u, i) - score(t, u, o) for (u, i), o in zip(PAIRS, OVER, strict=True)],
    ),
    "squared loss": (
        HeldOutLoss(PAIRS, TARGETS),
        lambda t: [-((score(t, *p) - y) ** 2) / 2 for p, y in zip(PAIRS, TARGETS, strict=True)],
    ),
    "logistic loss": (
        HeldOutLoss(PAIRS, BINARY, loss="logistic"),
        lambda t: [
            -np.log1p(np.exp(-score(t, *p) if y else score(t, *p)))
            for p, y in zip(PAIRS, BINARY, strict=True)
        ],
    ),
    "mean": (
        Mean(HeldOutLoss(PAIRS, TARGETS)),
        lambda t: [np.mean([-((score(t, *p) - y) ** 2) / 2
                            for p, y in zip(PAIRS, TARGETS, strict=True)])],
    ),
    "mean of a margin": (
        Mean(Margin(PAIRS, 1)),
        lambda t: [np.mean([score(t, u, i) - score(t, u, 1) for u, i in PAIRS])],
    ),
    "function": (Function(curved), lambda t: [np.sin(t[0][1] @ t[1][2] + MEAN * t[2][3])]),
    "mean of a function": (
        Mean(Function(curved)),
        lambda t: [np.sin(t[0][1] @ t[1][2] + MEAN * t[2][3])],
    ),
}  # fmt: skip

NAMES = st.sampled_from(sorted(OBJECTIVES))
SEEDS = st.integers(0, 2**32 - 1)


def bound(name):
    return OBJECTIVES[name][0].bind(DATA, recipe())


def dense(found, n):
    """Gradients as an array (n, n_users + n_items, K + 1)."""
    result = np.zeros((n, N_USERS + N_ITEMS, K + 1))
    np.add.at(result, (found.user_queries, found.users), found.user_rows)
    np.add.at(result, (found.item_queries, N_USERS + found.items), found.item_rows)
    return result


# ---------------------------------------------------------------- values and gradients


@given(name=NAMES, seed=SEEDS, dtype=st.sampled_from([np.float32, np.float64]))
def test_values_by_definition(name, seed, dtype):
    theta = tables(seed, dtype=dtype)
    values = bound(name).values(theta, MEAN)
    assert values.dtype == np.float64
    exact = [table.astype(np.float64) for table in theta]
    # a function computes in the dtype it is given
    tolerance = 1e-4 if "function" in name and dtype == np.float32 else 1e-11
    np.testing.assert_allclose(values, OBJECTIVES[name][1](exact), rtol=0, atol=tolerance)


@given(name=NAMES, seed=SEEDS)
def test_gradients_against_finite_differences(name, seed):
    quantity, theta, step = bound(name), tables(seed), 1e-5
    found = dense(quantity.gradients(theta, MEAN), len(quantity))
    expected = np.zeros_like(found)
    for number, table in enumerate(theta):
        first = N_USERS if number % 2 else 0
        for place in np.ndindex(table.shape):
            sides = []
            for sign in (1, -1):
                moved = table.copy()
                moved[place] += sign * step
                changed = theta._replace(**{Tables._fields[number]: moved})
                sides.append(quantity.values(changed, MEAN))
            column = place[1] if len(place) == 2 else K
            expected[:, first + place[0], column] = (sides[0] - sides[1]) / (2 * step)
    size = 1 + np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * size)


@given(name=NAMES, seed=SEEDS)
def test_pairs_lead_to_the_gradients(name, seed):
    quantity, theta = bound(name), tables(seed)
    pairs = quantity.pairs(theta, MEAN)
    if "function" in name:
        assert pairs is None
        return
    assert (np.diff(pairs.queries) >= 0).all()
    expected = np.zeros((len(quantity), N_USERS + N_ITEMS, K + 1))
    for query, user, item, slope in zip(*pairs, strict=True):
        expected[query, user] += slope * np.append(theta.item_factors[item], 1)
        expected[query, N_USERS + item] += slope * np.append(theta.user_factors[user], 1)
    found = dense(quantity.gradients(theta, MEAN), len(quantity))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(name, dtype):
    quantity, theta = bound(name), tables(dtype=dtype)
    found = quantity.gradients(theta, MEAN)
    for queries, codes, rows in (found[:3], found[3:]):
        assert (queries.dtype, codes.dtype, rows.dtype) == (np.int64, np.int32, dtype)
        assert rows.shape == (len(codes), K + 1) == (len(queries), K + 1)
    if (pairs := quantity.pairs(theta, MEAN)) is not None:
        dtypes = [array.dtype for array in pairs]
        assert dtypes == [np.int64, np.int32, np.int32, np.float64]


def test_values_of_more_pairs_than_are_gathered_at_once(monkeypatch):
    expected = bound("score").values(tables(), MEAN)
    monkeypatch.setattr("fastinfluence.attribution.quantities._PAIRS_AT_ONCE", 3)
    np.testing.assert_array_equal(bound("score").values(tables(), MEAN), expected)


def test_losses_far_from_the_target_do_not_overflow():
    """Scores of a thousand: the loss is that score, its slope 1, and nothing warns."""
    theta = Tables(*(np.zeros_like(table) for table in tables()))
    theta.user_biases[:] = [1000, -1000, 0, 0, 0]
    quantity = HeldOutLoss([(0, 0), (1, 0)], [0, 1], "logistic").bind(DATA, recipe())
    np.testing.assert_array_equal(quantity.values(theta, 0.0), [-1000, -1000])
    np.testing.assert_array_equal(quantity.pairs(theta, 0.0).slopes, [-1, 1])
    quantity = HeldOutLoss([(0, 0), (1, 0)], [1, 0], "logistic").bind(DATA, recipe())
    np.testing.assert_array_equal(quantity.values(theta, 0.0), [0, 0])


# ---------------------------------------------------------------- binding


def test_main_pairs():
    for name in ("score", "margin", "squared loss"):
        quantity = bound(name)
        assert len(quantity) == quantity.n == 4
        assert list(zip(quantity.users.tolist(), quantity.items.tolist(), strict=True)) == PAIRS
        assert quantity.users.dtype == quantity.items.dtype == np.int32
    for name in ("mean", "function"):
        quantity = bound(name)
        assert (len(quantity), quantity.users, quantity.items) == (1, None, None)


def test_raw_ids_are_looked_up():
    data = Interactions.from_arrays(["ann", "bob", "bob"], ["x", "x", "y"])
    quantity = Margin([("bob", "y"), ("ann", "x")], over=["x", "y"]).bind(data, recipe())
    assert (quantity.users.tolist(), quantity.items.tolist()) == ([1, 0], [1, 0])
    assert quantity.over.tolist() == [0, 1]
    quantity = Margin([("bob", "y"), ("ann", "x")], over="y").bind(data, recipe())
    assert quantity.over.tolist() == [1, 1]


def test_an_objective_may_be_bound_often():
    """Also when it was made of what can be gone through once."""
    for objective in (
        Score(iter(PAIRS)),
        Margin(zip(*np.transpose(PAIRS), strict=True), over=(o for o in OVER)),
        HeldOutLoss(iter(PAIRS), (y for y in TARGETS)),
    ):
        for _ in range(2):
            assert len(objective.bind(DATA, recipe())) == 4


def test_what_is_no_objective_is_a_score():
    objective = Margin(PAIRS, 0)
    assert as_objective(objective) is objective
    assert isinstance(as_objective(PAIRS), Score)
    assert isinstance(Mean(PAIRS).objective, Score)


@pytest.mark.parametrize("loss", ["squared", "logistic", "bpr"])
def test_values_of_held_out_interactions_are_read(loss):
    rated = Interactions.from_arrays([0, 1], [1, 0], [0, 1])
    unrated = Interactions.from_arrays([0, 1], [1, 0])
    asked = None if loss != "bpr" else "logistic"
    quantity = HeldOutLoss(rated, loss=asked).bind(DATA, recipe(loss))
    assert quantity.targets.tolist() == [0, 1]
    assert quantity.loss == ("squared" if loss == "squared" else "logistic")
    assert HeldOutLoss(rated, [1, 1], asked).bind(DATA, recipe(loss)).targets.tolist() == [1, 1]
    if loss != "squared":
        assert HeldOutLoss(unrated, loss=asked).bind(DATA, recipe(loss)).targets.tolist() == [1, 1]
    assert HeldOutLoss(PAIRS, 1, asked).bind(DATA, recipe(loss)).targets.tolist() == [1] * 4


WRONG = {
    "unknown user": (Score([(0, 0), (7, 0)]), UnknownIdError, "unknown user 7"),
    "unknown item": (Mean(Score([(0, 9)])), UnknownIdError, "unknown item 9"),
    "unknown other item": (Margin(PAIRS, 8), UnknownIdError, "unknown item 8"),
    "no pairs": (Score([1, 2]), DataError, r"sequence of \(user, item\) pairs"),
    "too few others": (Margin(PAIRS, [0, 1]), DataError, "over has 2 items for 4 queries"),
    "no values": (HeldOutLoss(PAIRS), DataError, "squared loss on a pair needs its value"),
    "no values of interactions": (
        HeldOutLoss(Interactions.from_arrays([0], [0])), DataError, "needs its value",
    ),
    "too few values": (HeldOutLoss(PAIRS, [1, 2]), DataError, r"shape \(2,\) for 4 queries"),
    "NaN": (HeldOutLoss(PAIRS, [1, 2, np.nan, 3]), DataError, r"values\[2\] is nan.*finite"),
    "words": (HeldOutLoss(PAIRS, list("abcd")), DataError, "values must be numbers"),
    "ratings as labels": (
        HeldOutLoss(PAIRS, [1, 0, 4, 1], "logistic"), DataError, r"values\[2\] is 4.*0 or 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_bound(case):
    objective, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        objective.bind(DATA, recipe())


@pytest.mark.parametrize(
    "objective", [Score([]), Margin([], []), Mean(HeldOutLoss(np.empty((0, 2), int), []))]
)
def test_nothing_to_bind(objective):
    with pytest.raises(DataError, match="no queries"):
        objective.bind(DATA, recipe())


def test_losses_that_a_pair_does_not_have():
    with pytest.raises(ParameterError, match=r"loss='bpr'.*loss='logistic'"):
        HeldOutLoss(PAIRS).bind(DATA, recipe("bpr"))
    with pytest.raises(ParameterError, match="loss='bpr' is not known: use 'squared'"):
        HeldOutLoss(PAIRS, loss="bpr")


# ---------------------------------------------------------------- functions


def test_functions_read_the_parameters_and_cannot_write_them():
    theta, seen = tables(), []

    def writing(parameters):
        seen.append(parameters)
        parameters.item_biases[0] = 1
        return 0.0, {}

    with pytest.raises(ValueError, match="read-only"):
        Function(writing).bind(DATA, recipe()).values(theta, MEAN)
    assert isinstance(seen[0], Parameters)
    assert seen[0].global_mean == MEAN
    assert all(same_bits(a, b) for a, b in zip(seen[0][:4], theta, strict=True))
    assert all(table.flags.writeable for table in theta)


def test_names_left_out_have_no_gradient():
    quantity = Function(lambda _: (1, {})).bind(DATA, recipe())
    found = quantity.gradients(tables(), MEAN)
    assert found.user_rows.shape == found.item_rows.shape == (0, K + 1)
    assert quantity.values(tables(), MEAN).tolist() == [1.0]


ONES = np.ones((N_USERS, K))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, r"must return \(value, gradient\), not float"),
        ((1.0, {}, 3), r"must return \(value, gradient\)"),
        ((np.nan, {}), "value must be one finite number, not nan"),
        ((np.ones(1), {}), r"one finite number, not array\(\[1\.\]\)"),
        (("much", {}), "value is not a number"),
        ((1.0, ONES), "must map names of parameters to arrays, not be a ndarray"),
        ((1.0, {"factors": ONES}), "has the key 'factors': only user_factors, item_factors"),
        ((1.0, {"user_factors": ONES[1:]}), r"user_factors has shape \(4, 3\), not \(5, 3\)"),
        ((1.0, {"user_factors": ONES * np.inf}), "user_factors has 15 entries that are not finite"),
        ((1.0, {"user_factors": ONES * 1j}), "user_factors is not an array of numbers"),
        ((1.0, {"user_factors": [[1], [2, 3]]}), "user_factors is not an array of numbers"),
    ],
)
def test_what_functions_may_not_return(returned, message):
    quantity = Function(lambda _: returned).bind(DATA, recipe())
    for ask in (quantity.values, quantity.gradients):
        with pytest.raises(DataError, match=message):
            ask(tables(), MEAN)


def test_gradients_beyond_the_range_of_the_tables():
    quantity = Function(lambda _: (1.0, {"user_factors": ONES * 1e300})).bind(DATA, recipe())
    with pytest.raises(DataError, match="not finite"):
        quantity.gradients(tables(dtype=np.float32), MEAN)


def test_functions_must_be_callable():
    with pytest.raises(ParameterError, match="needs a callable, not float"):
        Function(1.0)
