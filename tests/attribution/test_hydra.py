"""Hydra by definition, its relations to Gradient Rollback and Replay, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import adjoint
from oracles import hydra as oracle
from oracles import steps as walk
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_bits

import fastinfluence as fi
from fastinfluence import GradientRollback, Hydra, Interactions, MatrixFactorization, Replay
from fastinfluence.errors import (
    DataError,
    NotFittedError,
    ParameterError,
    ReplayMismatch,
    UnknownIdError,
)

PAIRS = [(0, 1), (5, 3), (5, 4), (0, 3), (11, 8)]
of = fi.objectives


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def naive_influence(model, gradients_at, momentum=0.0, decay=None):
    """Two vectors an example, forwards through the naive run."""
    trajectory = model.trajectory_
    program = trajectory.program
    run = walk.run(program, trajectory.checkpoints[0], trajectory.n_epochs)
    pushes, gradients = oracle.pushes_of_pairs(run.steps), gradients_at(program, run.end)
    found = np.zeros((len(gradients), len(model.data_)))
    for t in {push.t for push in pushes}:
        response = oracle.full(pushes, t, momentum, decay)
        found[:, program.order[t]] = [oracle.along(g, response) for g in gradients]
    return found


def scores(pairs):
    """Gradients of scores, by row."""

    def gradients_at(program, end):
        placed = [
            (walk.name_of(program, "user", u)[1], walk.name_of(program, "item", i)[1])
            for u, i in pairs
        ]
        return [adjoint.score_gradient(end, *pair) for pair in placed]

    return gradients_at


def unseen(data):
    known = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    return [(u, i) for u in range(data.n_users) for i in range(data.n_items) if (u, i) not in known]


def assert_near(got, expected, tolerance=1e-11):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- by definition


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_influence_by_definition(loss, optimizer):
    """Trained pairs and others, a user and an item without examples, weights, falling rates."""
    data = data_for(loss, n_users=8, n_items=7, n=14, seed=4)
    lonely = [np.flatnonzero(np.bincount(c, minlength=n) == 0)[0] for c, n in
              ((data.users, 8), (data.items, 7))]  # fmt: skip
    queries = [(0, 1), (data.users[3], data.items[3]), (lonely[0], 2), (3, lonely[1])]
    weights = np.random.default_rng(1).choice([0, 0.4, 1, 2.5], 14)
    model = fit(
        data, loss=loss, optimizer=optimizer, sample_weight=weights, learning_rate_decay=0.7,
        regularization=0.3,
    )  # fmt: skip
    assert_near(Hydra(model).influence(queries), naive_influence(model, scores(queries)))


@settings(deadline=None, max_examples=10)
@given(st.floats(0, 0.95), st.one_of(st.none(), st.floats(0, 0.5)), st.integers(0, 99))
def test_momentum_and_decay(momentum, decay, seed):
    data = ratings(n=30, seed=seed)
    model = fit(data, regularization=0.2)
    why = Hydra(model, momentum=momentum, weight_decay=decay)
    assert_near(why.influence(PAIRS), naive_influence(model, scores(PAIRS), momentum, decay))


def test_any_objective_is_its_gradient_read_at_the_end():
    data = ratings()
    model = fit(data)
    why = Hydra(model)
    plain = why.influence(PAIRS)
    over = why.influence([(u, 2) for u, _ in PAIRS])
    assert_near(why.influence(of.Margin(PAIRS, over=2)), plain - over)
    values = np.array([1.0, 5, 3, 4, 2])
    slopes = (values - model.predict(*np.transpose(PAIRS)))[:, None]
    losses = of.HeldOutLoss(PAIRS, values=values)
    assert_near(why.influence(losses), slopes * plain)
    assert_near(why.influence(of.Mean(losses)), (slopes * plain).mean(axis=0, keepdims=True))

    def length(parameters):
        p = parameters.user_factors
        return (p**2).sum() / 2, {"user_factors": p}

    def length_gradient(program, end):
        rows = {name: row.copy() for name, row in end.items() if name[0] == "user"}
        for row in rows.values():
            row[-1] = 0
        return [rows]

    assert_near(why.influence(of.Function(length)), naive_influence(model, length_gradient))


def test_positive_means_that_training_raised_the_score():
    data = Interactions.from_arrays([0, 1], [0, 1], [5, 1])
    raised, lowered = Hydra(fit(data, init_scale=0.01)).self_influence()
    assert raised > 0 > lowered


# ---------------------------------------------------------------- what it equals


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_decay_it_is_gradient_rollback_where_that_is_linear(optimizer):
    """No example moved both rows of a pair that is none; Adagrad: without regularization."""
    data = ratings()
    regularization, decay = (0.1, 0.0) if optimizer == "sgd" else (0.0, None)
    model = fit(data, optimizer=optimizer, regularization=regularization)
    pairs = unseen(data)
    expected = GradientRollback(model).influence(pairs, dense=True)
    assert_near(Hydra(model, weight_decay=decay).influence(pairs), expected)


def test_without_decay_it_is_the_linear_part_of_gradient_rollback():
    """With rows P, Q and changes g, h of an example of the pair itself: (P . h + Q . g)."""
    data = ratings()
    model = fit(data)
    pairs = np.column_stack([data.users, data.items])
    rollback = GradientRollback(model).self_influence()
    record = model.trajectory_.replay(show_progress=False)
    visits = model.trajectory_.visits()
    squares = (record.user_rows * record.item_rows).sum(axis=1)[visits]
    expected = rollback + squares  # P.Q - (P - g).(Q - h) = P.h + Q.g - g.h
    assert np.abs(squares).max() > 1e-3
    found = Hydra(model, weight_decay=0).influence(pairs)
    assert_near(np.diagonal(found), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_is_replay(loss):
    data = data_for(loss)
    weights = np.random.default_rng(1).choice([0, 0.4, 1, 2.5], len(data))
    model = fit(data, loss=loss, sample_weight=weights, learning_rate_decay=0.7)
    exact = Replay(model).influence(PAIRS)
    assert_near(Hydra(model, hessian="forward").influence(PAIRS), exact, 1e-9)
    assert np.abs(Hydra(model).influence(PAIRS) - exact).max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_over_many_blocks_of_the_schedule(loss):
    """Several panels of examples, logs of less than an epoch, and more queries than lanes."""
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    model = fit(data, loss=loss, n_epochs=2)
    assert model.trajectory_.program.schedule.n_groups > 1
    some = np.random.default_rng(0).choice(len(data), 40, replace=False)
    queries = np.column_stack([np.arange(20), np.arange(20)])
    options = {"hessian": "forward", "examples": some}
    found = Hydra(model, n_threads=2, memory_budget=2**23, **options).influence(queries)
    assert_near(found[:, some], Replay(model).influence(queries)[:, some], 1e-9)
    assert np.isnan(found).sum() == 20 * (len(data) - 40)
    assert same_bits(found, Hydra(model, n_threads=1, **options).influence(queries))


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from(LOSSES), st.sampled_from([1, 3, 8]), st.sampled_from([0.0, 0.1]),
    st.integers(0, 999),
)  # fmt: skip
def test_forward_is_replay_at_random(loss, k, l2, seed):
    data = data_for(loss, n=30, seed=seed)
    model = fit(data, loss=loss, n_factors=k, regularization=l2, rng=seed)
    some = np.random.default_rng(seed).choice(30, 18, replace=False)
    found = Hydra(model, hessian="forward", examples=some).influence(PAIRS)
    assert_near(found[:, some], Replay(model).influence(PAIRS)[:, some], 1e-9)


# ---------------------------------------------------------------- explanations


def test_explain_takes_the_largest():
    model = fit(ratings())
    why = Hydra(model)
    influence = why.influence(PAIRS)
    explained = why.explain(PAIRS, k=60)
    assert (explained.method, explained.units) == ("hydra", "rank")
    order = np.argsort(-influence, axis=1, kind="stable")
    taken = np.take_along_axis(influence, order, axis=1)
    there = ~np.isnan(explained.influence)
    np.testing.assert_array_equal(there.sum(axis=1), (influence != 0).sum(axis=1))
    np.testing.assert_array_equal(explained.influence[there], taken[taken != 0])
    lowered = why.explain(PAIRS, k=1, proponents=False)
    np.testing.assert_array_equal(lowered.influence[:, 0], influence.min(axis=1))
    np.testing.assert_allclose(explained.total_influence, np.abs(influence).sum(axis=1))


def test_explanations_of_forward_hold_the_examples_followed():
    model = fit(ratings())
    why = Hydra(model, hessian="forward", examples=[7, 3, 41, 7])
    explained = why.explain(PAIRS, k=5)
    assert explained.units == "effect"
    assert (np.sort(explained.train_index[:, :3], axis=1) == [3, 7, 41]).all()
    assert (explained.train_index[:, 3:] == -1).all()
    np.testing.assert_allclose(why.self_influence([3, 7]), Replay(model).self_influence([3, 7]))
    assert np.isnan(why.self_influence([4])).all()
    none = Hydra(model, hessian="forward", examples=[])
    assert np.isnan(none.influence(PAIRS)).all()


def test_training_is_followed_forwards_once(monkeypatch):
    runs = []
    true = fi.attribution.responses.forward
    counted = lambda *args, **kwargs: runs.append(1) or true(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(fi.attribution.responses, "forward", counted)
    why = Hydra(fit(ratings()), hessian="forward", examples=range(20))
    for pair in PAIRS:
        why.influence([pair])
    assert len(runs) == 1


def test_self_influence_is_the_diagonal():
    data = ratings()
    why = Hydra(fit(data))
    own = why.influence(np.column_stack([data.users, data.items]))
    assert same_bits(why.self_influence(), np.diagonal(own).copy())
    some = np.random.default_rng(0).permutation(len(data))[:20]
    assert same_bits(why.self_influence(some), np.diagonal(own)[some])
    assert why.self_influence([]).shape == (0,)


def test_the_same_options_for_another_model():
    data = ratings()
    options = {"momentum": 0.5, "weight_decay": 0.1}
    other = fit(data, rng=1)
    moved = Hydra(fit(data), **options).on(other)
    assert same_bits(moved.influence(PAIRS), Hydra(other, **options).influence(PAIRS))


# ---------------------------------------------------------------- company


@pytest.mark.parametrize(
    ("loss", "optimizer"), [("squared", "adagrad"), ("logistic", "sgd"), ("bpr", "sgd")]
)
def test_threads_memory_and_company_change_nothing(loss, optimizer):
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    model = fit(data, loss=loss, optimizer=optimizer, dtype="float32", n_epochs=2)
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=40), rng.integers(90, size=40)])
    once = Hydra(model, n_threads=1).influence(queries)
    assert same_bits(Hydra(model, n_threads=3).influence(queries), once)
    assert same_bits(Hydra(model, memory_budget=2**21).influence(queries), once)
    assert same_bits(Hydra(model).influence(queries[17:19]), once[17:19])


def test_nobody_near_has_no_influence():
    """Without Hessians only steps on the query's own rows count; a pair of loners has none."""
    data = ratings(n_users=9, n_items=8, n=10, seed=3)
    influence = Hydra(fit(data)).influence([(u, i) for u in range(9) for i in range(8)])
    users, items = np.divmod(np.arange(72), 8)
    near = (users[:, None] == data.users) | (items[:, None] == data.items)
    assert not near.any(axis=1).all()
    np.testing.assert_array_equal(influence != 0, near)
    lonely = np.flatnonzero(~near.any(axis=1))[0]
    pair = [(users[lonely], items[lonely])]
    assert not Hydra(fit(data)).influence(pair).any()
    assert (Hydra(fit(data)).explain(pair, k=2).train_index == -1).all()


@pytest.mark.parametrize("hessian", [None, "forward"])
def test_what_depends_on_no_row(hessian):
    model = fit(ratings())
    constant = of.Function(lambda parameters: (1.0, {}))
    influence = Hydra(model, hessian=hessian).influence(constant)
    np.testing.assert_array_equal(influence, np.zeros((1, 60)))


# ---------------------------------------------------------------- what cannot be done


def test_needs_a_fitted_model():
    with pytest.raises(NotFittedError, match="not fitted"):
        Hydra(MatrixFactorization())
    with pytest.raises(ParameterError, match="MatrixFactorization"):
        Hydra("model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hessian": "full"}, "hessian='full' is not known: use None or 'forward'"),
        ({"hessian": True}, "hessian=True is not known"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), not 1.0"),
        ({"momentum": -0.1}, "momentum must be"),
        ({"momentum": float("nan")}, "momentum must be"),
        ({"momentum": "0.9"}, "momentum must be"),
        ({"weight_decay": -1}, "weight_decay must be a finite number >= 0, not -1"),
        ({"weight_decay": float("inf")}, "weight_decay must be"),
        ({"weight_decay": [0.1, 0.2]}, "weight_decay must be"),
        ({"weight_decay": True}, "weight_decay must be"),
        ({"examples": [1]}, "with hessian='forward' only"),
        ({"hessian": "forward", "momentum": 0.5}, "leave momentum and weight_decay out"),
        ({"hessian": "forward", "weight_decay": 0}, "leave momentum and weight_decay out"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ParameterError, match=message):
        Hydra(fit(ratings()), **options)


def test_options_that_adagrad_does_not_have():
    model = fit(ratings(), optimizer="adagrad")
    with pytest.raises(ParameterError, match=r"adagrad: use\s+Replay"):
        Hydra(model, hessian="forward")
    for options in ({"momentum": 0.9}, {"weight_decay": 0.0}):
        with pytest.raises(ParameterError, match="trained with adagrad: leave them out"):
            Hydra(model, **options)


def test_wrong_examples():
    model = fit(ratings())
    with pytest.raises(DataError, match="examples holds 60"):
        Hydra(model, hessian="forward", examples=[3, 60])
    with pytest.raises(DataError, match="examples takes training indices"):
        Hydra(model, hessian="forward", examples=[0.5])


@pytest.mark.parametrize("hessian", [None, "forward"])
def test_a_changed_run_is_not_replayed(hessian):
    model = fit(ratings())
    model.trajectory_.checkpoints[3].tables.item_factors[0] *= 1.01
    with pytest.raises(ReplayMismatch):
        Hydra(model, hessian=hessian).influence([(0, 1)])


def test_a_run_without_its_start():
    model = fit(ratings())
    del model.trajectory_.checkpoints[0]
    with pytest.raises(ParameterError, match=r"after epoch 0: train again"):
        Hydra(model)


def test_wrong_queries():
    why = Hydra(fit(ratings()))
    with pytest.raises(UnknownIdError, match="unknown user 99"):
        why.influence([(99, 0)])
    with pytest.raises(DataError, match="no queries"):
        why.explain([])
    with pytest.raises(ParameterError, match=r"use influence\(\)"):
        why.explain(of.Mean([(0, 1)]))


def test_memory_budget():
    model = fit(ratings(), n_factors=60)
    small = {"memory_budget": 2**20}
    wide = fit(ratings(n_users=200, n_items=100, n=60), n_factors=60)
    with pytest.raises(ParameterError, match=r"16 queries take .* larger memory_budget"):
        Hydra(wide, **small).influence([(0, 1)])
    with pytest.raises(ParameterError, match=r"following 60 examples takes .* follow fewer"):
        Hydra(wide, hessian="forward", **small).influence([(0, 1)])
    few = Hydra(model, hessian="forward", examples=[0, 1], **small).influence([(0, 1)])
    assert np.isfinite(few[:, :2]).all()
