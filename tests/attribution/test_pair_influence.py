"""Influence functions of two rows: dense systems, exact leave-one-out, trained pairs, promises."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import row_blocks as oracle
from oracles import sgd as sgd_oracle
from planted import LOSSES, data_for, graph, ratings, same_bits
from scipy.stats import spearmanr

import fastinfluence as fi
from fastinfluence import GradientRollback, Interactions, MatrixFactorization
from fastinfluence.attribution.pair_influence import PairInfluence
from fastinfluence.errors import (
    DataError,
    NegativeCurvature,
    NotFittedError,
    ParameterError,
    RunDirectoryError,
)

HESSIANS = ["gauss-newton", "full"]


def fit(data, *, sample_weight=None, **keywords):
    defaults = {
        "n_factors": 4, "n_epochs": 6, "learning_rate": 0.05, "init_scale": 0.4, "rng": 0,
        "regularization": 0.05, "dtype": "float64",
    }  # fmt: skip
    return MatrixFactorization(**(defaults | keywords)).fit(data, sample_weight=sample_weight)


def all_pairs(data):
    users, items = np.divmod(np.arange(data.n_users * data.n_items), data.n_items)
    return np.column_stack([users, items])


def with_duplicates(loss):
    """Data in which some pairs occur two and three times, and some users and items never."""
    data = data_for(loss, n_users=9, n_items=12, n=30, seed=4)
    again = np.array([*range(30), 3, 7, 3])
    return Interactions.from_arrays(
        data.users[again], data.items[again],
        data.values[again] if loss != "squared" else 1.0 + np.arange(33) % 5,
        user_ids=np.arange(10), item_ids=np.arange(13), duplicates="keep",
    )  # fmt: skip


def examples_of(model):
    """The training examples at the model's parameters, as the oracle takes them.

    Losses are averaged over the negatives of the last four epochs.
    """
    trajectory, data = model.trajectory_, model.data_
    program, recipe = trajectory.program, trajectory.recipe
    assert program.schedule.n_groups == 1
    epochs = range(max(0, recipe.n_epochs - 4), recipe.n_epochs)
    found = []
    for j in range(len(data)):
        whole = oracle.Example(int(data.users[j]), [int(data.items[j])], [0.0], [0.0], [0.0])
        for epoch in epochs:
            share = program.weights[j] / len(epochs)
            candidates = [*whole.candidates[:1], *negatives(program, epoch, j)]
            slopes, curvatures = derivatives(model, j, candidates)
            whole.gradients[0] += share * slopes[0]
            whole.curvatures[0] += share * curvatures[0]
            whole.l2[0] += share * recipe.regularization
            whole.candidates.extend(candidates[1:])
            whole.gradients.extend(share * slope for slope in slopes[1:])
            whole.curvatures.extend(share * curvature for curvature in curvatures[1:])
            whole.l2.extend([share * recipe.regularization] * len(slopes[1:]))
        found.append(whole)
    return found


def negatives(program, epoch, j):
    """Items drawn for an example."""
    data, recipe = program.data, program.recipe
    if recipe.loss == "squared" or data.values[j] == 0:
        return []
    user, item = (
        int(places[code])
        for places, code in zip(program.places, (data.users[j], data.items[j]), strict=True)
    )
    drawn = sgd_oracle.negatives(program.sampler, epoch, j, user, item, 0)
    return [int(program.schedule.pool[place]) for place in drawn]


def derivatives(model, j, candidates):
    """First and second derivatives of the loss by the scores (``bpr``: the leads)."""
    recipe, (user_rows, item_rows) = model.trajectory_.recipe, rows_of(model)
    p = user_rows[model.data_.users[j]]
    scores = [
        model.global_mean_ + p[-1] + item_rows[i, -1] + p[:-1] @ item_rows[i, :-1]
        for i in candidates
    ]
    slopes = sgd_oracle.score_gradients(scores, float(model.data_.values[j]), recipe.loss_code)
    if recipe.loss == "squared":
        return slopes, [1.0]
    return slopes, [abs(slope) * (1 - abs(slope)) for slope in slopes]


def rows_of(model):
    tables = model.trajectory_.end.tables
    return (
        np.column_stack([tables.user_factors, tables.user_biases]).astype(float),
        np.column_stack([tables.item_factors, tables.item_biases]).astype(float),
    )


def naive_influence(model, queries, *, damping, hessian):
    """(n_queries, n_train) from the dense system of every query; NaN: shares neither row."""
    return oracle.influence(
        examples_of(model), queries, *rows_of(model), model.trajectory_.recipe.loss_code,
        damping=damping, full=hessian == "full",
    )  # fmt: skip


def trained(data):
    return np.unique(np.column_stack([data.users, data.items]), axis=0)


# ---------------------------------------------------------------- by definition


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("loss", LOSSES)
def test_influence_is_the_dense_solution(loss, hessian):
    """All pairs at once: unseen, trained on once, twice and thrice; empty users and items."""
    data = with_duplicates(loss)
    weights = np.random.default_rng(0).choice([0, 1, 1, 2.0], len(data))
    model = fit(data, loss=loss, sample_weight=weights)
    queries, damping = all_pairs(data), 3.0
    expected = naive_influence(model, queries, damping=damping, hessian=hessian)
    why = PairInfluence(model, hessian=hessian, damping=damping)
    sparse = why.influence(queries)
    assert sparse.nnz == np.count_nonzero(~np.isnan(expected))
    candidate, expected = ~np.isnan(expected), np.nan_to_num(expected)
    np.testing.assert_allclose(sparse.toarray(), expected, rtol=1e-9, atol=1e-9)
    own = data.users * data.n_items + data.items
    np.testing.assert_allclose(
        why.self_influence(), expected[own, np.arange(len(data))], rtol=1e-9, atol=1e-9
    )
    for proponents, sign in ((True, 1), (False, -1)):
        lists = why.explain(queries, k=5, proponents=proponents)
        best = -np.sort(-np.where(candidate, sign * expected, -np.inf), axis=1)[:, :5]
        found = lists.train_index >= 0
        rows = np.nonzero(found)[0]
        np.testing.assert_allclose(
            lists.influence[found], expected[rows, lists.train_index[found]], rtol=1e-9, atol=1e-9
        )
        ranked = np.isfinite(best)
        np.testing.assert_allclose(
            sign * lists.influence[ranked], best[ranked], rtol=1e-9, atol=1e-9
        )
    np.testing.assert_allclose(lists.total_influence, np.abs(expected).sum(1), rtol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_full_and_gauss_newton_part_on_trained_pairs_only(loss):
    data = with_duplicates(loss)
    model = fit(data, loss=loss)
    mine, its = (PairInfluence(model, hessian=h, damping=5.0) for h in HESSIANS)
    queries = all_pairs(data)
    known = (queries[:, None] == trained(data)[None]).all(2).any(1)
    a, b = (why.influence(queries, dense=True) for why in (mine, its))
    assert same_bits(a[~known], b[~known])
    assert (np.abs(a - b)[known].max(1) > 1e-9).all()


def test_what_a_link_is_worth():
    """One example of the pair, everything a number: the two rows' system by hand."""
    data = Interactions.from_arrays([0], [0], [2.0])
    model = fit(data, n_factors=1, regularization=0.0, n_epochs=1)
    tables = model.trajectory_.end.tables
    p, q = float(tables.user_factors[0, 0]), float(tables.item_factors[0, 0])
    error = float(model.predict([0], [0])[0]) - 2.0
    x = np.array([q, 1, p, 1])
    expected = -x @ np.linalg.solve(np.outer(x, x) + 0.5 * np.eye(4), error * x)
    got = PairInfluence(model, damping=0.5).influence([(0, 0)], dense=True)
    np.testing.assert_allclose(got, [[expected]], rtol=1e-12)


def test_exact_leave_one_out_of_a_ridge():
    """Items held: leverage makes of the influence what solving again without j gives."""
    data, damping = ratings(n_users=6, n_items=14, n=60), 0.3
    model = fit(data, regularization=0.0, n_factors=3)
    tables, mean = model.trajectory_.end.tables, model.global_mean_
    x_all = np.column_stack([tables.item_factors, np.ones(data.n_items)])

    def ridge(members):
        x = x_all[data.items[members]]
        y = data.values[members].astype(float) - mean - tables.item_biases[data.items[members]]
        return np.linalg.solve(x.T @ x + damping * np.eye(4), x.T @ y)

    for user in range(data.n_users):  # to the optimum, where single gradients add up to the L2
        row = ridge(np.flatnonzero(data.users == user))
        tables.user_factors[user], tables.user_biases[user] = row[:-1], row[-1]
    why = PairInfluence(model, damping=damping)
    seen, n_checked = set(map(tuple, trained(data).tolist())), 0
    for user in range(data.n_users):
        members = np.flatnonzero(data.users == user)
        x = x_all[data.items[members]]
        leverage = np.einsum("nd,de,ne->n", x, np.linalg.inv(x.T @ x + damping * np.eye(4)), x)
        for item in range(data.n_items):
            if (user, item) in seen:
                continue
            found = why.influence([(user, item)], dense=True)[0, members] / (1 - leverage)
            without = [ridge(members[members != j]) for j in members]
            truth = x_all[item] @ (ridge(members) - np.array(without)).T
            np.testing.assert_allclose(found, truth, rtol=1e-8, atol=1e-10)
            n_checked += 1
    assert n_checked > 10


# ---------------------------------------------------------------- promises


@pytest.mark.parametrize("loss", LOSSES)
def test_threads_change_no_bit(loss):
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    model = fit(data, loss=loss, n_epochs=2, dtype="float32")
    queries = np.concatenate([all_pairs(data)[::13], trained(data)])
    one, two = (PairInfluence(model, n_threads=n) for n in (1, 2))
    assert same_bits(one.influence(queries).data, two.influence(queries).data)
    lists = [why.explain(queries, k=4) for why in (one, two)]
    assert same_bits(lists[0].influence, lists[1].influence)
    assert same_bits(lists[0].train_index, lists[1].train_index)
    assert same_bits(one.self_influence(), two.self_influence())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("row_dtype", ["float32", "bfloat16"])
def test_float32(loss, row_dtype):
    data = with_duplicates(loss)
    model = fit(data, loss=loss, dtype="float32")
    queries = all_pairs(data)
    expected = np.nan_to_num(naive_influence(model, queries, damping=2.0, hessian="gauss-newton"))
    got = PairInfluence(model, damping=2.0, row_dtype=row_dtype).influence(queries, dense=True)
    assert got.dtype == np.float32
    tolerance = 1e-5 if row_dtype == "float32" else 1e-2
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_other_objectives_go_through_scores():
    data = with_duplicates("squared")
    why = PairInfluence(fit(data), damping=2.0)
    users, items = data.users[:2], data.items[:2]
    over = items[::-1].copy()
    upper = why.influence(np.column_stack([users, items]), dense=True)
    lower = why.influence(np.column_stack([users, over]), dense=True)
    margin = fi.objectives.Margin(np.column_stack([users, items]), over=over)
    np.testing.assert_allclose(why.influence(margin, dense=True), upper - lower, atol=1e-12)
    best = why.explain(margin, k=3)
    np.testing.assert_allclose(best.influence[:, 0], (upper - lower).max(1), rtol=1e-12)


def test_bulk_is_what_explain_finds(tmp_path):
    data = with_duplicates("squared")
    why = PairInfluence(fit(data, dtype="float32"))
    assert why.explain_to(tmp_path / "all", k=3) == data.n_users * data.n_items
    shards = fi.storage.open_shards(tmp_path / "all")
    found = np.concatenate([shard["influence"] for shard in shards])
    assert same_bits(found, why.explain(all_pairs(data), k=3).influence)


def test_closer_to_retraining_than_gradient_rollback():
    data = ratings(n_users=40, n_items=30, n=500)
    model = fit(data, n_epochs=20, learning_rate=0.02)
    rng = np.random.default_rng(1)
    queries = np.column_stack([rng.integers(0, 40, 6), rng.integers(0, 30, 6)])
    queries[0] = data.users[0], data.items[0]
    mine, its = (
        method(model).influence(queries, dense=True) for method in (PairInfluence, GradientRollback)
    )
    truth = fi.evaluation.leave_one_out(model, queries, show_progress=False)
    near = [np.flatnonzero(row) for row in truth.adjacent]
    of_mine, of_its = (
        [spearmanr(found[n, j], truth.change[n, j])[0] for n, j in enumerate(near)]
        for found in (mine, its)
    )
    assert np.mean(of_mine) > max(0.8, np.mean(of_its) + 0.1)
    size, true = (
        np.concatenate([a[n, j] for n, j in enumerate(near)]) for a in (mine, truth.change)
    )
    assert 0.5 < (size @ true) / (size @ size) < 2


def test_it_is_a_scope_of_the_influence_function():
    model = fit(ratings())
    why = fi.InfluenceFunction(model, scope="pair", damping=2.0)
    assert type(why) is type(why.on(model)) is fi.PairInfluence
    assert why.on(model).damping_ == 2
    with pytest.raises(ParameterError, match="for a model of triples use scope='global'"):
        fi.InfluenceFunction(fi.DistMult(n_factors=2, n_epochs=1).fit(graph()), scope="pair")


def test_default_damping_and_units():
    model = fit(ratings(), n_epochs=6, learning_rate=0.05)
    why = PairInfluence(model)
    assert (why.name, why.units) == ("influence-function-pair", "effect")
    assert why.damping_ == pytest.approx(1 / (6 * 0.05))
    assert why.explain([(0, 0)], k=2).units == "effect"
    assert PairInfluence(model, damping=7).on(model).damping_ == 7


def test_rows_on_disk(tmp_path):
    model = fit(ratings(), dtype="float32")
    queries = all_pairs(model.data_)
    first = PairInfluence(model, damping=2.0, path=tmp_path / "rows")
    again = PairInfluence(model, damping=2.0, path=tmp_path / "rows", hessian="full")
    other = PairInfluence(model, damping=2.0, hessian="full")
    assert same_bits(again.influence(queries).data, other.influence(queries).data)
    assert not same_bits(first.influence(queries).data, other.influence(queries).data)
    with pytest.raises(RunDirectoryError, match="stored otherwise"):
        PairInfluence(model, damping=3.0, path=tmp_path / "rows")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("damping", [-1, np.nan, np.inf, "much", True, [1.0]])
def test_damping_that_is_none(damping):
    with pytest.raises(ParameterError, match="damping must be a finite number >= 0, not"):
        PairInfluence(fit(ratings()), damping=damping)


def test_unknown_hessian():
    with pytest.raises(ParameterError, match="use 'gauss-newton' or 'full'"):
        PairInfluence(fit(ratings()), hessian="fisher")


def test_not_fitted():
    with pytest.raises(NotFittedError):
        PairInfluence(MatrixFactorization())


def test_parameters_that_are_not_finite():
    model = fit(ratings())
    model.trajectory_.end.tables.item_factors[3, 1] = np.nan
    with pytest.raises(DataError, match="item 3 holds NaN"):
        PairInfluence(model)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_singular_block_names_the_damping_that_would_do(dtype):
    """Fewer ratings than factors, and nothing else to hold the row."""
    data = ratings(n_users=12, n_items=9, n=30)
    model = fit(data, n_factors=8, regularization=0.0, dtype=dtype)
    with pytest.raises(NegativeCurvature, match=r"the row of user \d+: its smallest") as info:
        PairInfluence(model, damping=0)
    damping = float(str(info.value).split("; damping=")[1].split()[0])
    assert 0 < damping < 1e-2
    PairInfluence(model, damping=damping)


def test_an_indefinite_pair_names_the_damping_that_would_do():
    """A large error pulls the two rows apart: the full Hessian of the pair has no minimum."""
    data = Interactions.from_arrays([0, 0, 1], [0, 1, 0], [9.0, 1.0, 1.0])
    model = fit(data, init_scale=0.1, n_epochs=1, learning_rate=0.01)
    message = r"on the pair \(0, 0\): its smallest eigenvalue is -\d"
    why = PairInfluence(model, hessian="full", damping=0.5)
    why.influence([(1, 1)])  # not trained on
    for ask in (why.explain, why.influence):
        with pytest.raises(NegativeCurvature, match=message):
            ask([(0, 0)])
    with pytest.raises(NegativeCurvature, match="or hessian='gauss-newton'") as info:
        why.self_influence()
    damping = float(str(info.value).split("; damping=")[1].split()[0])
    assert 0.5 < damping < 20
    PairInfluence(model, hessian="full", damping=damping).influence([(0, 0)])
