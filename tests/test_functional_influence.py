"""Influence functions of arrays: dense systems, our own models, other libraries' models."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from oracles import hessian as oracle
from planted import positives, ratings, same_bits

import fastinfluence as fi
from fastinfluence import functional as F
from fastinfluence.errors import ConvergenceWarning, DataError, NegativeCurvature, ParameterError
from fastinfluence.training.recipe import LOSSES

N_USERS, N_ITEMS, K, N = 8, 7, 3, 34
DAMPING, L2, MEAN = 0.2, 0.05, 0.3


@pytest.fixture(params=["squared", "logistic"])
def problem(request):
    """Keywords of `influence_mf` but for the queries; pairs 3 and 7 occur twice."""
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.permutation(N_USERS * N_ITEMS)[:N], N_ITEMS)
    users[-2:], items[-2:] = users[[3, 7]], items[[3, 7]]
    loss = request.param
    return {
        "users": users,
        "items": items,
        "values": rng.normal(size=N) if loss == "squared" else rng.integers(0, 2, N),
        "user_factors": rng.normal(0, 0.6, (N_USERS, K)),
        "item_factors": rng.normal(0, 0.6, (N_ITEMS, K)),
        "user_biases": rng.normal(0, 0.3, N_USERS),
        "item_biases": rng.normal(0, 0.3, N_ITEMS),
        "sample_weight": rng.choice([0.0, 0.5, 1.0, 2.0], N),
        "loss": loss,
        "mean": MEAN,
        "regularization": L2,
        "damping": DAMPING,
    }


def every_pair():
    return np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)


def without_biases(problem):
    return problem | {"user_biases": None, "item_biases": None}


def dense(given, users, items, *, rows_only=False):
    """Influence (n_queries, n) by dense systems; of the pair's own two rows with `rows_only`."""
    halves = [given["user_factors"], given["item_factors"]]
    unbiased = given["user_biases"] is None
    biases = [given[name] for name in ("user_biases", "item_biases")]
    if unbiased:
        biases = [np.zeros(len(half)) for half in halves]
    rows = np.concatenate([np.column_stack(pair) for pair in zip(halves, biases, strict=True)])
    columns = (given[name] for name in ("users", "items", "values", "sample_weight"))
    rated = zip(*columns, strict=True)
    examples = [oracle.Example(u, i, [[]], y, w) for u, i, y, w in rated]
    loss, l2 = LOSSES.index(given["loss"]), given["regularization"]
    whole = oracle.Problem(examples, rows, N_USERS, loss, MEAN, l2)
    matrix, gradients = oracle.hessian(whole), oracle.gradients(whole).reshape(len(examples), -1)
    matrix += given["damping"] * np.eye(len(matrix))
    found = []
    for u, i in zip(users, items, strict=True):
        kept = np.ones(rows.shape, bool)
        kept[:, -1] = not unbiased
        if rows_only:
            kept[[row for row in range(len(rows)) if row not in (u, N_USERS + i)]] = False
        kept = np.flatnonzero(kept)
        score = oracle.jacobian(whole, u, {i: 1}).ravel()[kept]
        found.append(-gradients[:, kept] @ np.linalg.solve(matrix[np.ix_(kept, kept)], score))
    return np.array(found)


@pytest.mark.parametrize("biased", [True, False])
def test_by_dense_systems(problem, biased):
    given = problem if biased else without_biases(problem)
    users, items = every_pair()
    found = F.influence_mf(**given, query_users=users, query_items=items, rtol=1e-11, n_threads=2)
    truth = dense(given, users, items)
    np.testing.assert_allclose(found.influence, truth, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.total, np.abs(truth).sum(1), rtol=1e-8)
    assert found.train_index is None
    assert found.report.converged.all()
    assert len(found.report) == len(users)
    assert found.report.damping == DAMPING


@pytest.mark.parametrize("biased", [True, False])
def test_rows_of_pairs_not_trained_on(problem, biased):
    given = problem if biased else without_biases(problem)
    store = F.influence_rows_mf(**given, n_threads=2)
    users, items = every_pair()
    unseen = ~np.isin(users * N_ITEMS + items, given["users"] * N_ITEMS + given["items"])
    users, items = users[unseen], items[unseen]
    assert len(users) > 10
    tables = given["user_factors"], given["item_factors"]
    found = F.explain_mf(*tables, store, users, items, k=N)
    result = np.zeros((len(users), N))
    query, rank = np.nonzero(found.train_index >= 0)
    result[query, found.train_index[query, rank]] = found.influence[query, rank]
    np.testing.assert_allclose(result, dense(given, users, items, rows_only=True), atol=1e-10)


@pytest.mark.parametrize("proponents", [True, False])
@pytest.mark.parametrize("k", [1, 4, N + 3])
def test_only_the_most_influential(problem, k, proponents):
    users, items = every_pair()
    given = problem | {"query_users": users, "query_items": items}
    whole = F.influence_mf(**given)
    found = F.influence_mf(**given, k=k, proponents=proponents)
    assert found.influence.shape == found.train_index.shape == (len(users), k)
    assert same_bits(found.total, whole.total)
    lists = zip(whole.influence, found.train_index, found.influence, strict=True)
    for row, index, influence in lists:
        order = np.argsort(-row if proponents else row, kind="stable")
        order = order[row[order] != 0][:k]
        assert index[: len(order)].tolist() == order.tolist()
        assert influence[: len(order)].tolist() == row[order].tolist()
        assert (index[len(order) :] == -1).all()
        assert np.isnan(influence[len(order) :]).all()


def arrays_of(model):
    """What the functions are given of a model of ours; its damping is that of the method."""
    data, tables = model.data_, model.trajectory_.end.tables
    return {
        "users": data.users,
        "items": data.items,
        "values": data.values,
        **tables._asdict(),
        "mean": model.global_mean_,
        "regularization": model.regularization,
        "loss": model.loss,
        "damping": 1 / (model.learning_rate * model.n_epochs),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_same_as_the_classes(loss, dtype):
    data = ratings() if loss == "squared" else positives(zeros=True)
    keywords = {"learning_rate": 0.05, "n_epochs": 6, "init_scale": 0.4, "rng": 0}
    model = fi.MatrixFactorization(
        n_factors=3, loss=loss, n_negatives=0, dtype=dtype, **keywords
    ).fit(data)
    given = arrays_of(model)
    users, items = np.divmod(np.arange(20), data.n_items)
    method = fi.InfluenceFunction(model)
    assert given["damping"] == pytest.approx(method.damping_)
    given["damping"] = method.damping_
    truth = method.influence(np.column_stack([users, items]))
    found = F.influence_mf(**given, query_users=users, query_items=items)
    assert same_bits(found.influence, truth)
    assert same_bits(found.report.residual, method.report_.residual)
    mine, its = F.influence_rows_mf(**given), fi.InfluenceFunction(model, scope="pair").rows
    for side in ("user_side", "item_side"):
        assert same_bits(getattr(mine, side).rows, getattr(its, side).rows)


def test_bits_do_not_depend_on_the_number_of_threads(problem):
    users, items = every_pair()
    one, many = (
        F.influence_mf(**problem, query_users=users[:m], query_items=items[:m], n_threads=n)
        for n, m in ((1, 16), (3, 50))
    )
    assert same_bits(one.influence, many.influence[:16])
    within = F.influence_mf(**problem, query_users=users[:16], query_items=items[:16], n_threads=3)
    assert same_bits(one.influence, within.influence)
    stores = [F.influence_rows_mf(**problem, n_threads=n) for n in (1, 3)]
    assert same_bits(stores[0].user_side.rows, stores[1].user_side.rows)


def test_values_keep_their_precision(problem):
    """0.1 is no float32 number: the gradient of an example at its minimum would not vanish."""
    one = {
        "users": [0], "items": [0], "values": [0.1], "user_biases": None, "item_biases": None,
        "user_factors": np.full((1, 1), 1.0), "item_factors": np.full((1, 1), 0.1),
    }  # fmt: skip
    found = F.influence_mf(**one, query_users=[0], query_items=[0], damping=1.0, regularization=0.0)
    assert abs(found.influence[0, 0]) < 1e-15


def test_no_queries(problem):
    found = F.influence_mf(**problem, query_users=[], query_items=[])
    assert found.influence.shape == (0, N)
    assert len(found.report) == 0
    found = F.influence_mf(**problem, query_users=[], query_items=[], k=2)
    assert found.influence.shape == found.train_index.shape == (0, 2)


def test_an_unfinished_solve_says_so(problem):
    queries = {"query_users": [0, 1], "query_items": [1, 2]}
    with pytest.warns(ConvergenceWarning, match="2 of 2 queries .* within 1 iterations") as caught:
        found = F.influence_mf(**problem, **queries, max_iterations=1, rtol=1e-9)
    assert caught[0].filename == __file__
    assert not found.report.converged.any()
    assert np.isfinite(found.influence).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_users": [N_USERS]}, "query_users holds codes .* 0 to 7 fit"),
        ({"query_items": [0, 1]}, "1 query users and 2 query items"),
        ({"users": np.zeros(N - 1, int)}, "do not make pairs"),
        ({"items": np.full(N, N_ITEMS)}, "items holds codes"),
        ({"values": np.full(N, np.nan)}, "row 0 is nan"),
        ({"values": np.ones(3)}, "values has shape"),
        ({"users": [], "items": [], "values": [], "sample_weight": None}, "no training examples"),
        ({"item_biases": None}, "None for both"),
        ({"user_biases": np.zeros(N_USERS, "float32")}, "all be float32 or all float64"),
        ({"user_factors": np.full((N_USERS, K), np.inf)}, "row of user 0 holds NaN or infinity"),
        ({"item_factors": np.ones((N_ITEMS, K + 1))}, "factors must be"),
        ({"sample_weight": np.full(N, -1.0)}, "sample_weight must be finite and >= 0"),
        ({"sample_weight": np.zeros(N)}, "every sample_weight is 0"),
        ({"loss": "bpr"}, "use one of squared, logistic"),
        ({"loss": "logistic", "values": np.full(N, 2.0)}, "needs values of 0 or 1"),
        ({"mean": np.nan}, "mean must be a finite number"),
        ({"regularization": -1}, "regularization must be"),
        ({"damping": -0.1}, "damping must be a finite number >= 0"),
        ({"damping": None}, "damping must be a finite number >= 0"),
        ({"rtol": 0}, "rtol must be a finite number > 0"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1"),
        ({"k": 0}, "k must be an integer >= 1"),
        ({"n_threads": 0}, "n_threads"),
    ],
)
@pytest.mark.parametrize("problem", ["squared"], indirect=True)
def test_bad_input(problem, change, message):
    given = problem | {"query_users": [0], "query_items": [1]} | change
    with pytest.raises((DataError, ParameterError), match=message):
        F.influence_mf(**given)
    ours = ("query_users", "query_items", "rtol", "max_iterations", "k")
    if not set(change) & set(ours):
        with pytest.raises((DataError, ParameterError), match=message):
            F.influence_rows_mf(**{name: it for name, it in given.items() if name not in ours})


def test_damping_is_asked_for(problem):
    del problem["damping"]
    with pytest.raises(TypeError, match="damping"):
        F.influence_mf(**problem, query_users=[0], query_items=[0])


@pytest.mark.parametrize("problem", ["squared"], indirect=True)
def test_singular_systems(problem):
    few = {name: problem[name][:4] for name in ("users", "items", "values", "sample_weight")}
    given = problem | few | {"damping": 0, "regularization": 0, "sample_weight": None}
    with pytest.raises(NegativeCurvature, match="the damping is 0"):
        F.influence_mf(**given, query_users=[0], query_items=[0])
    with pytest.raises(NegativeCurvature, match="do not determine its row") as caught:
        F.influence_rows_mf(**given)
    enough = float(str(caught.value).split("damping=")[2].split()[0])
    assert F.influence_rows_mf(**given | {"damping": enough}).dtype == "float64"


@pytest.mark.parametrize("problem", ["squared"], indirect=True)
def test_rows_without_biases_need_no_regularization(problem):
    """Least squares of three factors by seven items: what has no bias does not lack one."""
    users, items = every_pair()
    given = without_biases(problem) | {"damping": 0, "regularization": 0}
    given |= {"users": users[1:], "items": items[1:], "values": np.arange(1, len(users)) % 5}
    given |= {"sample_weight": np.ones(len(users) - 1)}
    store = F.influence_rows_mf(**given)
    tables = given["user_factors"], given["item_factors"]
    found = F.explain_mf(*tables, store, [0], [0], k=20)
    truth = dense(given, [0], [0], rows_only=True)[0]
    assert (found.train_index >= 0).sum() == N_USERS + N_ITEMS - 2
    for index, influence in zip(found.train_index[0], found.influence[0], strict=True):
        assert index == -1 or influence == pytest.approx(truth[index])


def test_a_score_that_nothing_moves(problem):
    zeros = {name: np.zeros_like(problem[name]) for name in ("user_factors", "item_factors")}
    given = without_biases(problem) | zeros
    found = F.influence_mf(**given, query_users=[0], query_items=[0])
    assert not found.influence.any()
    assert found.report.iterations.tolist() == [0]
    assert found.report.converged.all()


def test_rows_in_half_the_memory(problem):
    tables = {n: problem[n].astype("float32") for n in problem if n.endswith(("factors", "biases"))}
    assert F.influence_rows_mf(**problem | tables, row_dtype="bfloat16").dtype == "bfloat16"
    assert F.influence_rows_mf(**problem | tables).dtype == "float32"
    with pytest.raises(ParameterError, match="bfloat16 rows need"):
        F.influence_rows_mf(**problem, row_dtype="bfloat16")


def test_nothing_else_is_imported():
    code = (
        "import sys, numpy as np; from fastinfluence import functional as F\n"
        "P = np.ones((2, 1)); F.influence_mf([0, 1], [0, 1], [1, 2], P, P, None, None, [0], [1],"
        " damping=1)\n"
        "print(*(m for m in ('torch', 'pandas', 'pyarrow', 'matplotlib') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
