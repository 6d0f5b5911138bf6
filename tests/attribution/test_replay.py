"""Replay against retraining, its identities, its truncations, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import adjoint as oracle
from oracles import steps as walk
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_bits

import fastinfluence as fi
from fastinfluence import CurvatureRollback, Interactions, MatrixFactorization, Replay
from fastinfluence.attribution import dense, replay
from fastinfluence.errors import (
    DataError,
    NotFittedError,
    ParameterError,
    ReplayMismatch,
    UnknownIdError,
)
from fastinfluence.kernels.cpu.lanes import LANES


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def slopes(model, objective, directions, distance=1e-5):
    """Derivative (n_queries, m) of an objective by the weights, along some directions."""
    trajectory = model.trajectory_
    quantity = fi.objectives.as_objective(objective).bind(model.data_, trajectory.recipe)

    def values(weights):
        tables = trajectory.retrain(sample_weight=weights)
        return quantity.values(tables, model.global_mean_)

    weights = trajectory.program.weights
    return np.column_stack(
        [
            (values(weights + distance * v) - values(weights - distance * v)) / (2 * distance)
            for v in directions
        ]
    )


def assert_near(got, expected, tolerance):
    """Equal up to a share of the largest entry of every row."""
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert (scale > 1e-3).all()
    np.testing.assert_array_less(np.abs(got - expected) / scale, tolerance)


def weights_of(n):
    return np.random.default_rng(1).choice([0.4, 1, 2.5], n)


def test_same_number_of_lanes():
    assert replay.LANES == LANES


# ---------------------------------------------------------------- the truth


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_derivative_of_retraining(loss, optimizer):
    """An unseen pair, one trained on, and a user and an item without any example."""
    data = data_for(loss, n_users=8, n_items=7, n=14, seed=4)
    lonely = [np.flatnonzero(np.bincount(c, minlength=n) == 0)[0] for c, n in
              ((data.users, 8), (data.items, 7))]  # fmt: skip
    queries = [(0, 1), (data.users[3], data.items[3]), (lonely[0], 2), (3, lonely[1])]
    weights = weights_of(14)
    model = fit(data, loss=loss, optimizer=optimizer, sample_weight=weights)
    expected = weights * slopes(model, queries, np.eye(14))
    assert_near(Replay(model).influence(queries), expected, 1e-6)


def test_any_objective():
    data = ratings()
    model = fit(data)

    def energy(parameters):
        p, b = parameters.user_factors, parameters.item_biases
        value = (p**2).sum() / 2 + (b**3).sum()
        return value, {"user_factors": p, "item_biases": 3 * b**2}

    of = fi.objectives
    pairs = [(0, 1), (5, 3), (5, 4)]
    for objective in (
        of.Margin(pairs, over=2),
        of.HeldOutLoss(pairs, values=[1, 5, 3]),
        of.Mean(of.HeldOutLoss(data.split(0.5, rng=0)[1])),
        of.Function(energy),
    ):
        expected = slopes(model, objective, np.eye(len(data)))
        assert_near(Replay(model).influence(objective), expected, 1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_many_blocks_of_the_schedule(loss):
    """Along random directions: every entry counts, wherever its rows stand."""
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    model = fit(data, loss=loss, n_epochs=2)
    assert model.trajectory_.program.schedule.n_groups > 1
    queries = [(0, 1), (77, 30), (129, 89)]
    directions = np.random.default_rng(0).standard_normal((4, len(data)))
    got = Replay(model, n_threads=2).influence(queries) @ directions.T
    assert_near(got, slopes(model, queries, directions), 1e-6)


def test_ranks_like_leave_one_out():
    """Examples that share no row with the query included."""
    from scipy.stats import spearmanr

    data = ratings(40, 30, 500, seed=5)
    model = fit(data, n_factors=8, n_epochs=5, learning_rate=0.02)
    queries = [(3, 4), (20, 7), (31, 29)]
    users, items = np.transpose(queries)
    estimates = Replay(model).influence(queries)
    examples = np.random.default_rng(0).choice(len(data), 120, replace=False)
    truth = np.empty((3, len(examples)))
    for n, j in enumerate(examples):
        p, q, b, c = model.trajectory_.retrain(without=[j])
        scores = model.global_mean_ + b[users] + c[items] + (p[users] * q[items]).sum(axis=1)
        truth[:, n] = model.predict(users, items) - scores
    for mine, right in zip(estimates[:, examples], truth, strict=True):
        assert spearmanr(mine, right).statistic >= 0.97
        assert np.sum(mine * right) / np.sum(mine**2) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_influences_add_up_to_the_derivative_by_the_learning_rate(loss):
    data = data_for(loss)
    weights = weights_of(len(data))
    queries = [(0, 1), (5, 3)]

    def values(distance):
        rate = 0.05 * (1 + distance)
        model = fit(data, loss=loss, learning_rate=rate, sample_weight=weights)
        return model.predict(*np.transpose(queries))

    influence = Replay(fit(data, loss=loss, sample_weight=weights)).influence(queries)
    expected = (values(1e-5) - values(-1e-5)) / 2e-5
    assert_near(influence.sum(axis=1, keepdims=True), expected[:, None], 1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_component_has_no_influence(optimizer):
    """Users 0 to 2 never meet the items of users 3 to 5."""
    users, items = np.divmod(np.arange(18), 3)
    values = np.random.default_rng(0).uniform(1, 5, 18)
    data = Interactions.from_arrays(users, items + 3 * (users >= 3), values)
    influence = Replay(fit(data, optimizer=optimizer, dtype="float32")).influence([(0, 1)])[0]
    assert influence[users < 3].all()
    assert not influence[users >= 3].any()


def test_weight_zero_has_no_influence():
    data = ratings()
    weights = np.ones(len(data))
    weights[[3, 30]] = 0
    influence = Replay(fit(data, sample_weight=weights)).influence([(0, 1), (4, 4)])
    assert np.flatnonzero((influence == 0).any(axis=0)).tolist() == [3, 30]


def test_a_duplicated_example_shares_the_influence():
    """Nearly equal (the order of visits tells them apart), together nearly a doubled weight."""
    data = ratings()
    at = 7
    users, items, values = (np.append(a, a[at]) for a in (data.users, data.items, data.values))
    twice = Interactions.from_arrays(users, items, values, duplicates="keep")
    queries = [(users[at], (items[at] + 1) % 9), (users[at], items[at])]
    small = {"learning_rate": 0.005, "n_epochs": 10}
    first, second = Replay(fit(twice, **small)).influence(queries)[:, [at, -1]].T
    np.testing.assert_allclose(first, second, rtol=0.05)
    weights = np.ones(len(data))
    weights[at] = 2
    doubled = Replay(fit(data, sample_weight=weights, **small)).influence(queries)[:, at]
    np.testing.assert_allclose(first + second, doubled, rtol=0.05)


# ---------------------------------------------------------------- hops


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_hops_by_definition(loss, hops):
    """The naive derivative with the same rows forbidden."""
    data = data_for(loss, n_users=16, n_items=14, n=24)
    weights = np.where(np.arange(24) % 5 == 0, 0, weights_of(24))
    model = fit(data, loss=loss, sample_weight=weights)
    trajectory, queries = model.trajectory_, [(0, 1), (5, 3), (data.users[2], data.items[2])]
    program = trajectory.program
    run = walk.run(program, trajectory.checkpoints[0], trajectory.n_epochs)
    got = Replay(model, hops=hops).influence(queries)
    exact = Replay(model).influence(queries)
    for n, (user, item) in enumerate(queries):
        near = {("user", user), ("item", item)}
        if hops == 2:
            for j in np.flatnonzero(weights):
                ends = ("user", int(data.users[j])), ("item", int(data.items[j]))
                if ends[0] == ("user", user) or ends[1] == ("item", item):
                    near |= set(ends)
        names = {walk.name_of(program, *name) for name in near}
        gradient = oracle.score_gradient(
            run.end, walk.name_of(program, "user", user)[1], walk.name_of(program, "item", item)[1]
        )
        expected = oracle.reverse(run.steps, gradient, hops=names).weights
        expected = weights * walk.in_training_order(program, expected)
        np.testing.assert_allclose(got[n], expected, rtol=1e-9, atol=1e-13)
    assert np.abs(got - exact).max() > 1e-5


def test_one_hop_is_curvature_rollback():
    """Of an unseen pair: two rows that no step moves together."""
    data = ratings()
    model = fit(data)
    seen = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    unseen = [(u, i) for u in range(12) for i in range(9) if (u, i) not in seen]
    expected = CurvatureRollback(model).influence(unseen, dense=True)
    got = Replay(model, hops=1).influence(unseen)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)


# ---------------------------------------------------------------- one result, however computed


@pytest.fixture(scope="module")
def grouped():
    """Trained in several groups, in float32."""
    data = ratings(130, 90, 4_100)
    model = fit(data, dtype="float32", n_factors=5)
    assert model.trajectory_.program.schedule.n_groups > 1
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=37), rng.integers(90, size=37)])
    return model, queries, Replay(model, n_threads=1).influence(queries)


def test_threads_and_walks_change_no_bit(grouped, monkeypatch):
    model, queries, once = grouped
    assert once.dtype == np.float32
    walks = []
    backward = dense.backward
    monkeypatch.setattr(
        dense, "backward", lambda *a, **k: walks.append(k["memory_budget"]) or backward(*a, **k)
    )
    few = Replay(model, n_threads=2, memory_budget=1_300_000)
    assert same_bits(few.influence(queries), once)
    assert len(walks) == 3  # of 16, 16 and 5
    assert same_bits(Replay(model, n_threads=3).influence(queries), once)
    assert len(walks) == 4
    alone = np.concatenate([Replay(model).influence(queries[n : n + 1]) for n in (0, 20, 36)])
    assert same_bits(alone, once[[0, 20, 36]])


def test_a_saved_model_gives_the_same_bits(grouped, tmp_path):
    model, queries, once = grouped
    model.save(tmp_path / "run")
    assert same_bits(Replay(fi.load(tmp_path / "run")).influence(queries), once)


def test_an_early_stopped_model_is_explained_by_the_epochs_it_kept():
    train, test = ratings(30, 20, 400, seed=4).split(0.3, rng=0)
    keywords = {"n_factors": 8, "learning_rate": 0.15, "regularization": 0.0}
    stopped = MatrixFactorization(n_epochs=60, early_stopping=3, rng=0, **keywords)
    stopped.fit(train, validation=test)
    short = MatrixFactorization(n_epochs=stopped.n_epochs_, rng=0, **keywords).fit(train)
    queries = [(0, 1), (4, 4)]
    assert same_bits(Replay(stopped).influence(queries), Replay(short).influence(queries))


# ---------------------------------------------------------------- explaining


@pytest.mark.parametrize("proponents", [True, False])
def test_explain_is_the_top_of_influence(grouped, proponents):
    model, queries, once = grouped
    explained = Replay(model).explain(queries, k=7, proponents=proponents)
    order = np.argsort(-once if proponents else once, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(explained.train_index, order)
    assert same_bits(explained.influence, np.take_along_axis(once, order, axis=1))
    np.testing.assert_allclose(explained.total_influence, np.abs(once).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(explained.prediction, model.predict(*queries.T), rtol=1e-6)
    assert (explained.method, explained.units) == ("replay", "effect")
    assert explained.proponents == proponents
    assert set(explained.side.ravel()) <= {"user", "item", "both", "other"}


def test_explain_a_margin():
    model = fit(ratings())
    margin = fi.objectives.Margin([(0, 1), (3, 2)], over=5)
    explained = Replay(model).explain(margin, k=60)
    influence = Replay(model).influence(margin)
    assert same_bits(explained.influence, -np.sort(-influence, axis=1))
    ahead = model.predict([0, 3], [1, 2]) - model.predict([0, 3], 5)
    np.testing.assert_allclose(explained.prediction, ahead, rtol=1e-12)
    assert explained.users.tolist() == [0, 3]


def test_positive_means_that_training_raised_the_score():
    data = Interactions.from_arrays([0, 1], [0, 1], [5, 1])
    raised, lowered = Replay(fit(data, init_scale=0.01)).self_influence()
    assert raised > 0 > lowered


def test_self_influence_is_the_diagonal():
    data = ratings()
    why = Replay(fit(data))
    own = why.influence(np.column_stack([data.users, data.items]))
    assert same_bits(why.self_influence(), np.diagonal(own).copy())
    some = np.random.default_rng(0).permutation(len(data))[:20]
    assert same_bits(why.self_influence(some), np.diagonal(own)[some])
    assert why.self_influence([]).shape == (0,)


# ---------------------------------------------------------------- what cannot be done


def test_needs_a_fitted_model():
    with pytest.raises(NotFittedError, match="not fitted"):
        Replay(MatrixFactorization())
    with pytest.raises(ParameterError, match="MatrixFactorization"):
        Replay("model")


@pytest.mark.parametrize("hops", [0, 3, True, "1"])
def test_wrong_hops(hops):
    with pytest.raises(ParameterError, match="hops must be 1, 2 or None"):
        Replay(fit(ratings()), hops=hops)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_changed_run_is_not_replayed(epoch):
    model = fit(ratings())
    model.trajectory_.checkpoints[epoch].tables.item_factors[0] *= 1.01
    with pytest.raises(ReplayMismatch):
        Replay(model).influence([(0, 1)])


def test_a_run_without_its_start():
    model = fit(ratings())
    del model.trajectory_.checkpoints[0]
    with pytest.raises(ParameterError, match=r"after epoch 0.*GradientRollback"):
        Replay(model)


def test_wrong_queries():
    why = Replay(fit(ratings()))
    with pytest.raises(UnknownIdError, match="unknown user 99"):
        why.influence([(99, 0)])
    with pytest.raises(DataError, match="no queries"):
        why.explain([])
    with pytest.raises(ParameterError, match="k must be"):
        why.explain([(0, 1)], k=0)
    with pytest.raises(ParameterError, match=r"use influence\(\)"):
        why.explain(fi.objectives.Mean([(0, 1)]))
    with pytest.raises(DataError, match="train_index holds 60"):
        why.self_influence([3, 60])


def test_memory_budget(grouped):
    model, queries, once = grouped
    with pytest.raises(ParameterError, match="below 1 MiB"):
        Replay(model, memory_budget=1000)
    with pytest.raises(ParameterError, match=r"16 queries take .* larger memory_budget"):
        Replay(fit(model.data_, n_factors=60), memory_budget=2**20).influence([(0, 1)])
    with pytest.raises(ParameterError, match="use explain"):
        Replay(model, memory_budget=1_300_000).influence(np.tile(queries, (4, 1)))
    explained = Replay(model, memory_budget=1_300_000).explain(np.tile(queries, (4, 1)), k=1)
    np.testing.assert_array_equal(explained.train_index[:37, 0], once.argmax(axis=1))
