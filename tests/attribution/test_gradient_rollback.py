"""Gradient Rollback: its definition in float64, its rows, its lists, its promises."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import rows as rows_oracle
from oracles import sgd as sgd_oracle
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_tables

from fastinfluence import GradientRollback, Interactions, MatrixFactorization
from fastinfluence.errors import ReplayMismatch
from fastinfluence.kernels.structures import Hyper


def fit(data, *, record=None, sample_weight=None, **keywords):
    defaults = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "init_scale": 0.4, "rng": 0}
    model = MatrixFactorization(**(defaults | keywords))
    return model.fit(data, record=record, sample_weight=sample_weight)


def all_pairs(data):
    users, items = np.divmod(np.arange(data.n_users * data.n_items), data.n_items)
    return np.column_stack([data.user_ids[users], data.item_ids[items]])


def naive_influence(model):
    """The definition: (all pairs, n_train) float64, NaN where an example shares neither row.

    Training runs in dictionaries of float64 rows; each example's own changes are added up; every
    pair is scored with the rows as they are and with the changes taken back.
    """
    trajectory, data = model.trajectory_, model.data_
    program, recipe = trajectory.program, trajectory.recipe
    theta, record = sgd_oracle.rows_of(trajectory.checkpoints[0].tables), {}
    squares = trajectory.checkpoints[0].squares and sgd_oracle.rows_of(
        trajectory.checkpoints[0].squares
    )
    for epoch in range(trajectory.n_epochs):
        hyper = Hyper(program.mean, recipe.rate(epoch), recipe.regularization, recipe.epsilon)
        sgd_oracle.sgd_epoch(
            theta,
            squares,
            program.examples,
            program.schedule.pointers,
            program.sampler,
            hyper,
            recipe.loss_code,
            epoch,
            record,
        )
    nothing = np.zeros(recipe.n_factors + 1)
    visits = trajectory.visits()
    changes = [
        np.array([record.get((visits[j], side), nothing) for j in range(len(data))])
        for side in ("user", "item")
    ]
    rows = [
        np.array([theta[side, code] for code in range(n)])
        for side, n in (("user", data.n_users), ("item", data.n_items))
    ]
    pairs = [(u, i) for u in range(data.n_users) for i in range(data.n_items)]
    return rows_oracle.influence(*rows, *changes, data.users, data.items, pairs)


# ---------------------------------------------------------------- by definition


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-4)])
def test_influence_by_definition(loss, optimizer, dtype, tolerance):
    """All pairs at once: unseen ones, training pairs, users and items without examples."""
    rng = np.random.default_rng(2)
    data = data_for(loss, n_users=8, n_items=7, n=14, seed=4)
    assert (np.bincount(data.users, minlength=8) == 0).any()
    assert (np.bincount(data.items, minlength=7) == 0).any()
    weights = rng.choice([0, 1, 1, 2.0], len(data))
    model = fit(data, loss=loss, optimizer=optimizer, dtype=dtype, sample_weight=weights)
    expected = naive_influence(model)
    why = GradientRollback(model)
    sparse = why.influence(all_pairs(data))
    assert sparse.dtype == dtype
    assert sparse.nnz == np.count_nonzero(~np.isnan(expected))
    found = np.full(expected.shape, np.nan)
    for n in range(len(expected)):
        columns = sparse.indices[sparse.indptr[n] : sparse.indptr[n + 1]]
        assert (np.diff(columns) > 0).all()
        found[n, columns] = sparse.data[sparse.indptr[n] : sparse.indptr[n + 1]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    own = data.users * data.n_items + data.items
    np.testing.assert_allclose(
        why.self_influence(), expected[own, np.arange(len(data))], rtol=0, atol=tolerance
    )


def test_positive_means_that_training_raised_the_score():
    """A rating above the mean raises its own prediction, one below lowers it."""
    users, items, values = [0, 1], [0, 1], [5, 1]
    model = fit(Interactions.from_arrays(users, items, values), init_scale=0.01)
    raised, lowered = GradientRollback(model).self_influence()
    assert raised > 0 > lowered


@pytest.mark.parametrize("loss", LOSSES)
def test_a_last_example_is_taken_back_exactly(loss):
    """One epoch, and nobody after it reads its rows: the estimate is the retrained truth."""
    data = data_for(loss, n_users=40, n_items=60, n=90, seed=1)
    model = fit(data, loss=loss, n_epochs=1, dtype="float64")
    trajectory = model.trajectory_
    sampler, order = trajectory.program.sampler, trajectory.program.schedule.order
    why = GradientRollback(model)
    later_users, later_items, checked = set(), set(), 0
    for j in order[::-1].tolist():
        user, item = int(data.users[j]), int(data.items[j])
        touched = [item]
        if loss != "squared" and data.values[j] > 0:
            touched += sgd_oracle.negatives(sampler, 0, j, user, item, 0)
        if user not in later_users and not later_items & set(touched):
            checked += 1
            # Pairs of the user with items that no negative of j is: their rows alone differ.
            others = [i for i in range(data.n_items) if i not in touched[1:]]
            without = trajectory.retrain(without=[j])
            scores = without.user_factors[user] @ without.item_factors.T
            scores += without.user_biases[user] + without.item_biases + model.global_mean_
            truth = model.predict(user, others) - scores[others]
            estimate = why.influence([(user, i) for i in others], dense=True)[:, j]
            np.testing.assert_allclose(estimate, truth, rtol=0, atol=1e-13)
            assert np.abs(truth).max() > 1e-4
        later_users.add(user)
        later_items |= set(touched)
    assert checked >= 5


def test_ranks_like_leave_one_out_after_little_training():
    from scipy.stats import spearmanr

    data = ratings(60, 40, 1_100, seed=5)
    model = fit(data, n_factors=8, n_epochs=2, learning_rate=0.02, dtype="float64")
    rng = np.random.default_rng(0)
    known = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    unseen = [(u, i) for u in range(60) for i in range(40) if (u, i) not in known]
    queries = [unseen[n] for n in rng.choice(len(unseen), 6, replace=False)]
    matrix = GradientRollback(model).influence(queries)
    correlations = []
    for n, (user, item) in enumerate(queries):
        examples = matrix.indices[matrix.indptr[n] : matrix.indptr[n + 1]]
        estimates = matrix.data[matrix.indptr[n] : matrix.indptr[n + 1]]
        assert len(examples) >= 15
        here = model.predict(user, item)[0]
        truth = []
        for j in examples:
            p, q, b, c = model.trajectory_.retrain(without=[j])
            truth.append(here - (model.global_mean_ + b[user] + c[item] + p[user] @ q[item]))
        correlations.append(spearmanr(estimates, truth).statistic)
    assert np.mean(correlations) >= 0.95
    assert min(correlations) >= 0.9


# ---------------------------------------------------------------- the rows


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_recorded_rows_are_the_rebuilt_ones(loss, optimizer, dtype):
    data = data_for(loss)
    keywords = {"loss": loss, "optimizer": optimizer, "dtype": dtype}
    recorded = GradientRollback(fit(data, record="rollback", **keywords)).rows
    rebuilt = GradientRollback(fit(data, **keywords)).rows
    assert same_tables(recorded.user_side, rebuilt.user_side)
    assert same_tables(recorded.item_side, rebuilt.item_side)
    assert np.abs(recorded.user_side.rows).max() > 1e-3


def test_credit_by_update_and_by_gradient_are_one_number():
    model = fit(ratings(), optimizer="adagrad")
    by_update, by_gradient = (
        GradientRollback(model, credit=c).rows for c in ("update", "gradient")
    )
    assert same_tables(by_update.user_side, by_gradient.user_side)


def test_early_stopped_model_is_credited_with_the_epochs_it_kept():
    train, test = ratings(30, 20, 400, seed=4).split(0.3, rng=0)
    keywords = {"n_factors": 8, "learning_rate": 0.15, "regularization": 0.0, "init_scale": 0.3}
    stopping = MatrixFactorization(n_epochs=60, early_stopping=3, rng=0, **keywords)
    stopped = stopping.fit(train, validation=test, record="rollback")
    short = fit(train, n_epochs=stopped.n_epochs_, **keywords)
    rows, expected = GradientRollback(stopped).rows, GradientRollback(short).rows
    assert same_tables(rows.user_side, expected.user_side)
    assert same_tables(rows.item_side, expected.item_side)


@pytest.mark.parametrize("record", [None, "rollback"])
def test_a_changed_model_is_not_rebuilt(record):
    model = fit(ratings(), record=record)
    model.trajectory_.checkpoints[0].tables.item_factors[0] *= 1.01
    if record:
        GradientRollback(model)  # was recorded while training, nothing is replayed
    else:
        with pytest.raises(ReplayMismatch):
            GradientRollback(model)


def test_changes_of_all_examples_add_up_to_what_training_did():
    """Squared loss has no negatives: every step of a row belongs to one of its examples."""
    model = fit(ratings(), dtype="float64", record="rollback")
    trajectory = model.trajectory_
    start, record = trajectory.checkpoints[0].tables, trajectory.record
    examples = trajectory.program.examples
    for codes, rows, biases, before, after, bias in (
        (examples.users, record.user_rows, record.biases[:, 0], start.user_factors,
         model.user_factors_, model.user_biases_),
        (examples.items, record.item_rows, record.biases[:, 1], start.item_factors,
         model.item_factors_, model.item_biases_),
    ):  # fmt: skip
        total, total_bias = np.zeros_like(before), np.zeros_like(bias)
        np.add.at(total, codes, rows)
        np.add.at(total_bias, codes, biases)
        np.testing.assert_allclose(before + total, after, atol=1e-13)
        np.testing.assert_allclose(total_bias, bias, atol=1e-13)
