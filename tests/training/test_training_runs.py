"""Training: the naive loop's numbers, equal bits, weights, early stopping, progress."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import sgd as oracle
from planted import LOSSES, OPTIMIZERS, data_for, positives, ratings, same_bits, same_tables

from fastinfluence import FastInfluenceError, MatrixFactorization
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.kernels.structures import Hyper
from fastinfluence.training import program as programs

SEVERAL_GROUPS = {"n_users": 130, "n_items": 90, "n": 4_100}


def fit(data, *, rng=0, n_factors=5, n_epochs=2, record=None, **keywords):
    given = {n: keywords.pop(n) for n in ("sample_weight", "validation") if n in keywords}
    model = MatrixFactorization(n_factors, n_epochs=n_epochs, rng=rng, **keywords)
    return model.fit(data, record=record, **given)


def tables_of(model):
    return model.trajectory_.end.tables


def train_naively(trajectory):
    """Rows, sums of squares and losses of the same run by the naive loop in float64."""
    program, start = trajectory.program, trajectory.checkpoints[0]
    recipe = program.recipe
    theta = oracle.rows_of(start.tables)
    squares = start.squares and oracle.rows_of(start.squares)
    losses = []
    for epoch in range(trajectory.n_epochs):
        hyper = Hyper(program.mean, recipe.rate(epoch), recipe.regularization, recipe.epsilon)
        total = oracle.sgd_epoch(
            theta,
            squares,
            program.examples,
            program.schedule.pointers,
            program.sampler,
            hyper,
            recipe.loss_code,
            epoch,
            None,
        )
        losses.append(total / program.weights.sum())
    return theta, losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-4)])
def test_follows_the_naive_loop(loss, optimizer, dtype, tolerance):
    data = data_for(loss)
    weights = np.random.default_rng(1).choice([0, 0.5, 1, 2], len(data))
    model = fit(
        data,
        n_epochs=3,
        loss=loss,
        optimizer=optimizer,
        learning_rate=0.05,
        learning_rate_decay=0.7,
        dtype=dtype,
        sample_weight=weights,
    )
    theta, losses = train_naively(model.trajectory_)
    for kind, factors, biases in (
        ("user", model.user_factors_, model.user_biases_),
        ("item", model.item_factors_, model.item_biases_),
    ):
        assert factors.dtype == biases.dtype == dtype
        expected = np.array([theta[kind, code] for code in range(len(biases))])
        np.testing.assert_allclose(factors, expected[:, :-1], rtol=0, atol=tolerance)
        np.testing.assert_allclose(biases, expected[:, -1], rtol=0, atol=tolerance)
    np.testing.assert_allclose(model.trajectory_.losses, losses, rtol=tolerance)


def test_mean_belongs_to_the_squared_loss_alone():
    data = ratings()
    assert fit(data).global_mean_ == np.mean(data.values, dtype=float)
    assert fit(data, sample_weight=data.values).global_mean_ == fit(data).global_mean_
    assert fit(positives(), loss="bpr").global_mean_ == 0


# ---------------------------------------------------------------- equal bits


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_threads_change_nothing(loss, optimizer, monkeypatch):
    monkeypatch.setattr(programs, "_LEAST_WORK", 0)
    data = data_for(loss, **SEVERAL_GROUPS)
    runs = [
        fit(data, loss=loss, optimizer=optimizer, n_threads=n_threads, record="rollback")
        for n_threads in (1, 2, None)
    ]
    first = runs[0].trajectory_
    assert first.program.schedule.n_groups == 2
    for other in runs[1:]:
        assert other.trajectory_.end.same_bits(first.end)
        assert other.trajectory_.losses == first.losses
        assert same_tables(other.trajectory_.record, first.record)


@pytest.mark.parametrize("loss", LOSSES)
def test_recording_changes_nothing(loss):
    data = data_for(loss)
    assert same_tables(
        tables_of(fit(data, loss=loss)), tables_of(fit(data, loss=loss, record="rollback"))
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_seed_decides(loss):
    data = data_for(loss)
    one, same, other = (fit(data, loss=loss, rng=seed) for seed in (0, 0, 1))
    assert same_tables(tables_of(one), tables_of(same))
    for a, b in zip(tables_of(one)[:2], tables_of(other)[:2], strict=True):
        assert not same_bits(a, b)


def test_generator_as_rng():
    data = ratings()
    one, same = (fit(data, rng=np.random.default_rng(5)) for _ in range(2))
    assert same_tables(tables_of(one), tables_of(same))
    generator = np.random.default_rng(5)
    first, second = (fit(data, rng=generator) for _ in range(2))
    assert same_tables(tables_of(one), tables_of(first))
    assert not same_tables(tables_of(first), tables_of(second))


def test_without_a_seed_runs_differ_and_can_still_be_replayed():
    one, other = (fit(ratings(), rng=None) for _ in range(2))
    assert not same_tables(tables_of(one), tables_of(other))
    one.trajectory_.verify()


def test_fitting_again_forgets_the_first_time():
    model = MatrixFactorization(5, n_epochs=2, rng=0).fit(ratings(seed=3))
    model.fit(ratings())
    assert same_tables(tables_of(model), tables_of(fit(ratings())))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_one_is_no_weight(loss):
    data = data_for(loss)
    weighted = fit(data, loss=loss, sample_weight=[1] * len(data))
    assert same_tables(tables_of(weighted), tables_of(fit(data, loss=loss)))


def test_weight_two_is_twice_the_step():
    """The whole step, regularization included; powers of two leave no rounding."""
    data = ratings()
    double = fit(data, sample_weight=np.full(len(data), 2.0), learning_rate=0.01)
    assert same_tables(tables_of(double), tables_of(fit(data, learning_rate=0.02)))


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_only_of_left_out_examples_stay_at_the_start(loss):
    data = data_for(loss)
    gone = data.users == data.users[0]
    model = fit(data, loss=loss, sample_weight=~gone)
    start = model.trajectory_.checkpoints[0].tables
    user = data.users[0]
    np.testing.assert_array_equal(model.user_factors_[user], start.user_factors[user])
    assert model.user_biases_[user] == 0
    others = np.setdiff1d(data.users[~gone], [user])
    assert (model.user_factors_[others] != start.user_factors[others]).any(1).all()


@pytest.mark.parametrize("loss", ["logistic", "bpr"])
def test_leaving_one_out_moves_nobodys_negatives(loss):
    """The item rows that move are exactly those of the others' items and negatives."""
    data = positives(n_users=10, n_items=200, n=20)
    program = fit(data, loss=loss).trajectory_.program
    touched = {
        j: {int(data.items[j])}
        | {
            int(item)
            for item in oracle.negatives(program.sampler, 0, j, data.users[j], data.items[j], 0)
        }
        for j in range(len(data))
    }
    only_of_one = 0
    for left_out in range(len(data)):
        weights = np.arange(len(data)) != left_out
        model = fit(data, loss=loss, n_epochs=1, sample_weight=weights)
        start = model.trajectory_.checkpoints[0].tables
        moved = np.flatnonzero((model.item_factors_ != start.item_factors).any(axis=1))
        expected = set().union(*(items for j, items in touched.items() if j != left_out))
        assert set(moved.tolist()) == expected
        only_of_one += len(touched[left_out] - expected)
    assert only_of_one > 0


def test_negatives_come_from_the_block_and_are_unknown():
    data = positives(**SEVERAL_GROUPS)
    program = fit(data, loss="logistic", n_epochs=1).trajectory_.program
    known = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    group_of = np.empty(data.n_items, int)
    for group in range(2):
        bounds = program.schedule.pool_pointers[group : group + 2]
        group_of[program.schedule.pool[slice(*bounds)]] = group
    for j in range(0, len(data), 97):
        user, item = int(data.users[j]), int(data.items[j])
        # The sampler speaks of rows of the working tables.
        user_row = int(np.flatnonzero(program.schedule.user_order == user)[0])
        item_row = int(np.flatnonzero(program.schedule.pool == item)[0])
        drawn = oracle.negatives(program.sampler, 1, j, user_row, item_row, group_of[item])
        for negative in program.schedule.pool[drawn].tolist():
            assert (user, negative) not in known
            assert group_of[negative] == group_of[item]


# ---------------------------------------------------------------- validation, early stopping

OVERFIT = {"n_factors": 8, "learning_rate": 0.15, "regularization": 0.0, "init_scale": 0.3}


@pytest.fixture(scope="module")
def split():
    return ratings(30, 20, 400, seed=4).split(0.3, rng=0)


def test_validation_loss_is_half_the_squared_error(split):
    train, test = split
    model = fit(train, validation=test)
    assert len(model.trajectory_.validation_losses) == 2
    error = model.predict(test.users, test.items) - test.values
    np.testing.assert_allclose(
        model.trajectory_.validation_losses[-1], 0.5 * np.mean(error**2), rtol=1e-5
    )


@pytest.mark.parametrize("loss", ["logistic", "bpr"])
def test_validation_loss_of_sampled_losses(loss):
    train, test = positives(n=100).split(0.3, rng=0)
    trajectory = fit(train, loss=loss, validation=test, dtype="float64").trajectory_
    program = trajectory.program
    examples = program.examples._replace(
        users=test.users,
        items=test.items,
        values=test.values,
        weights=np.ones(len(test)),
        ids=np.arange(len(test)),
    )
    hyper = Hyper(0.0, 0.0, 0.0, 0.0)
    expected = oracle.mean_loss(
        trajectory.end.tables, examples, program.sampler, hyper, program.recipe.loss_code
    )
    np.testing.assert_allclose(trajectory.validation_losses[-1], expected, rtol=1e-12)


def test_watching_a_validation_set_changes_nothing(split):
    train, test = split
    assert same_tables(tables_of(fit(train, validation=test)), tables_of(fit(train)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_early_stopping_ends_at_the_best_epoch(split, optimizer):
    train, test = split
    patience = 3
    stopped = fit(
        train,
        validation=test,
        n_epochs=60,
        early_stopping=patience,
        optimizer=optimizer,
        record="rollback",
        **OVERFIT,
    )
    trajectory = stopped.trajectory_
    watched = trajectory.validation_losses
    best = int(np.argmin(watched)) + 1
    assert 1 < best < 60 - patience
    assert len(watched) == best + patience
    assert stopped.n_epochs_ == trajectory.n_epochs == len(trajectory.losses) == best
    assert max(trajectory.checkpoints) == best
    assert trajectory.record is None  # it would hold the epochs that are not kept
    trajectory.verify()
    asked = fit(train, n_epochs=best, optimizer=optimizer, **OVERFIT)
    assert trajectory.end.same_bits(asked.trajectory_.end)
    assert trajectory.losses == asked.trajectory_.losses


def test_early_stopping_that_never_stops_runs_to_the_end(split):
    train, test = split
    model = fit(
        train, validation=test, n_epochs=4, early_stopping=9, learning_rate=1e-3, record="rollback"
    )
    assert model.n_epochs_ == 4
    assert model.trajectory_.record is not None
    assert same_tables(tables_of(model), tables_of(fit(train, n_epochs=4, learning_rate=1e-3)))


@pytest.mark.parametrize("patience", [0, -1, 1.5, "3", True])
def test_bad_patience(split, patience):
    with pytest.raises(ParameterError, match=f"early_stopping must be.*not {patience!r}"):
        fit(split[0], validation=split[1], early_stopping=patience)


def test_early_stopping_needs_a_validation_set(split):
    with pytest.raises(ParameterError, match="validation="):
        fit(split[0], early_stopping=2)


def test_validation_must_fit_the_training_data(split):
    with pytest.raises(DataError, match="other ids"):
        fit(split[0], validation=ratings(30, 21, 400))
    with pytest.raises(DataError, match="Interactions, not list"):
        fit(split[0], validation=[(1, 2)])
    clicks = positives(30, 20, 100)
    with pytest.raises(DataError, match="row 0 of the validation set"):
        fit(clicks, loss="logistic", validation=ratings(30, 20, 400, seed=4))


def test_validation_with_equal_ids_of_its_own_is_fine(split):
    train, test = split
    copy = ratings(30, 20, 100, seed=9)
    assert copy.user_map is not train.user_map
    assert len(fit(train, validation=copy).trajectory_.validation_losses) == 2
    assert len(test)


# ---------------------------------------------------------------- checkpoints, progress, divergence


def test_checkpoints_are_kept_of_every_epoch():
    model = fit(ratings(), n_epochs=5)
    assert sorted(model.trajectory_.checkpoints) == [0, 1, 2, 3, 4, 5]
    shorter = fit(ratings(), n_epochs=3)
    assert model.trajectory_.checkpoints[3].same_bits(shorter.trajectory_.end)


@pytest.mark.parametrize(
    ("room", "kept"), [(11, range(11)), (10.9, [0, 2, 4, 6, 8, 10]), (3.5, [0, 4, 8, 10])]
)
def test_checkpoints_thin_out_where_memory_is_short(monkeypatch, room, kept):
    size = fit(ratings()).trajectory_.end.nbytes
    where = "fastinfluence.models.matrix_factorization.memory_budget"
    monkeypatch.setattr(where, lambda: int(room * size))
    model = fit(ratings(), n_epochs=10)
    assert sorted(model.trajectory_.checkpoints) == list(kept)
    model.trajectory_.verify()


def test_the_best_epoch_is_kept_between_thin_checkpoints(monkeypatch, split):
    train, test = split
    where = "fastinfluence.models.matrix_factorization.memory_budget"
    monkeypatch.setattr(where, lambda: 0)
    model = fit(train, validation=test, n_epochs=60, early_stopping=3, **OVERFIT)
    assert sorted(model.trajectory_.checkpoints) == [0, model.n_epochs_]
    model.trajectory_.verify()


def test_progress_bar_shows_the_losses(capsys, split):
    train, test = split
    model = MatrixFactorization(4, n_epochs=2, rng=0)
    model.fit(train, validation=test, show_progress=True)
    shown = capsys.readouterr().err
    assert f"loss={model.trajectory_.losses[-1]:.4f}" in shown
    assert f"validation={model.trajectory_.validation_losses[-1]:.4f}" in shown
    model.fit(train, show_progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("loss", LOSSES)
def test_divergence_says_what_to_do(loss):
    with pytest.raises(FastInfluenceError, match=r"diverged in epoch \d+.*lower learning_rate"):
        fit(data_for(loss), loss=loss, n_epochs=30, learning_rate=1e4, regularization=1.0)


def test_training_lowers_the_loss():
    for loss in LOSSES:
        losses = fit(data_for(loss), loss=loss, n_epochs=30, learning_rate=0.05).trajectory_.losses
        assert losses[-1] < 0.9 * losses[0]
