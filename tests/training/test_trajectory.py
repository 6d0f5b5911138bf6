"""The Trajectory: replay, tampering, retraining."""

from __future__ import annotations

import numpy as np
import pytest
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_tables

from fastinfluence import MatrixFactorization
from fastinfluence.errors import DataError, ReplayMismatch
from fastinfluence.training import Trajectory


def fit(data, *, record=None, sample_weight=None, **keywords):
    keywords = {"n_factors": 5, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(data, record=record, sample_weight=sample_weight)


@pytest.fixture
def trajectory():
    return fit(ratings()).trajectory_


def test_attributes(trajectory):
    assert isinstance(trajectory, Trajectory)
    assert trajectory.n_epochs == trajectory.recipe.n_epochs == 3
    assert trajectory.end is trajectory.checkpoints[3]
    assert len(trajectory.data) == 60
    order = trajectory.program.schedule.order
    np.testing.assert_array_equal(order[trajectory.visits()], np.arange(60))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_replay_ends_in_the_same_bits(loss, optimizer):
    trajectory = fit(data_for(loss), loss=loss, optimizer=optimizer).trajectory_
    trajectory.verify()
    trajectory.replay()


@pytest.mark.parametrize("loss", LOSSES)
def test_replay_on_threads(loss):
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    trajectory = fit(data, loss=loss, n_threads=1, record="rollback").trajectory_
    trajectory.verify(n_threads=2)
    assert same_tables(trajectory.replay(n_threads=2), trajectory.record)


def test_replay_leaves_the_checkpoints_alone(trajectory):
    before = {epoch: state.copy() for epoch, state in trajectory.checkpoints.items()}
    trajectory.replay()
    trajectory.verify()
    trajectory.retrain(without=[0])
    assert all(trajectory.checkpoints[epoch].same_bits(state) for epoch, state in before.items())


# ---------------------------------------------------------------- tampering


def last_bit(array, at):
    """Change one number by the least there is."""
    array[at] = np.nextafter(array[at], array.dtype.type(10))


def tamper_with_a_parameter(trajectory):
    last_bit(trajectory.end.tables.item_biases, 0)


def tamper_with_the_start(trajectory):
    trajectory.checkpoints[0].tables.user_factors[3, 2] *= 1.001  # a last bit may round away


def tamper_with_a_value(trajectory):
    trajectory.program.examples.values[7] += 1


def tamper_with_the_order(trajectory):
    for array in trajectory.program.examples:
        array[[0, -1]] = array[[-1, 0]]


def tamper_with_a_weight(trajectory):
    trajectory.program.examples.weights[7] = 0


TAMPERINGS = [
    tamper_with_a_parameter,
    tamper_with_the_start,
    tamper_with_a_value,
    tamper_with_the_order,
    tamper_with_a_weight,
]


@pytest.mark.parametrize("tamper", TAMPERINGS)
def test_tampering_is_noticed(trajectory, tamper):
    tamper(trajectory)
    for run in (trajectory.verify, trajectory.replay):
        with pytest.raises(ReplayMismatch, match="have been changed since"):
            run()


def test_a_users_change_of_the_model_is_noticed():
    model = fit(ratings())
    model.user_factors_[0] *= 2
    with pytest.raises(ReplayMismatch, match="largest difference 0"):
        model.trajectory_.verify()


def test_adagrads_sums_belong_to_the_end():
    trajectory = fit(ratings(), optimizer="adagrad").trajectory_
    last_bit(trajectory.end.squares.user_biases, 0)
    with pytest.raises(ReplayMismatch):
        trajectory.verify()


# ---------------------------------------------------------------- retraining


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_retraining_without_examples_is_fitting_with_weight_0(loss, optimizer):
    data = data_for(loss)
    gone = [0, 17, 41]
    weights = np.ones(len(data))
    weights[gone] = 0
    keywords = {"loss": loss, "optimizer": optimizer}
    retrained = fit(data, **keywords).trajectory_.retrain(without=gone)
    fitted = fit(data, sample_weight=weights, **keywords)
    assert same_tables(retrained, fitted.trajectory_.end.tables)


@pytest.mark.parametrize("loss", LOSSES)
def test_retraining_without_nothing_is_the_end(loss):
    trajectory = fit(data_for(loss), loss=loss).trajectory_
    for without in ((), [], np.array([])):
        assert same_tables(trajectory.retrain(without=without), trajectory.end.tables)


def test_retraining_keeps_the_weights_of_the_run():
    data = ratings()
    weights = np.random.default_rng(0).choice([0.5, 1, 2], len(data))
    trajectory = fit(data, sample_weight=weights).trajectory_
    assert same_tables(trajectory.retrain(), trajectory.end.tables)
    again = weights.copy()
    again[5] = 0
    fitted = fit(data, sample_weight=again).trajectory_.end.tables
    assert same_tables(trajectory.retrain(without=[5]), fitted)


def test_retraining_with_other_weights():
    data = ratings()
    weights = np.linspace(0, 2, len(data))
    retrained = fit(data).trajectory_.retrain(sample_weight=weights, without=[30])
    weights[30] = 0
    fitted = fit(data, sample_weight=weights).trajectory_.end.tables
    assert same_tables(retrained, fitted)


def test_retraining_follows_the_epochs_that_were_kept():
    train, test = ratings(30, 20, 400, seed=4).split(0.3, rng=0)
    keywords = {"n_factors": 8, "learning_rate": 0.15, "regularization": 0.0, "init_scale": 0.3}
    model = MatrixFactorization(n_epochs=60, early_stopping=3, rng=0, **keywords)
    stopped = model.fit(train, validation=test).trajectory_
    assert stopped.n_epochs < 57
    short = fit(train, n_epochs=stopped.n_epochs, **keywords).trajectory_
    assert same_tables(stopped.retrain(without=[3]), short.retrain(without=[3]))


@pytest.mark.parametrize("loss", LOSSES)
def test_retraining_on_threads(loss):
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    trajectory = fit(data, loss=loss).trajectory_
    one, two = (trajectory.retrain(without=[1, 2], n_threads=n) for n in (1, 2))
    assert same_tables(one, two)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ([60], "holds 60, which is no training index: they go from 0 to 59"),
        ([0, -1], "holds -1, which is no training index"),  # an explanation's empty place
        (np.ones(60, bool), "takes training indices, not bool"),
        ([1.5], "takes training indices, not float64"),
        (["a"], "takes training indices"),
        (range(60), "nothing is left"),
    ],
)
def test_what_is_no_training_index(trajectory, without, message):
    with pytest.raises(DataError, match=message):
        trajectory.retrain(without=without)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(59), r"shape \(59,\)"),
        (np.ones((60, 1)), r"shape \(60, 1\)"),
        (np.full(60, -1.0), "row 0 is -1.0"),
        (np.where(np.arange(60) == 8, np.nan, 1), "row 8 is nan"),
        (np.where(np.arange(60) == 8, np.inf, 1), "row 8 is inf"),
        (np.zeros(60), "every sample_weight is 0"),
        ("heavy", "must be numbers"),
    ],
)
def test_bad_weights(trajectory, weights, message):
    with pytest.raises(DataError, match=message):
        trajectory.retrain(sample_weight=weights)
    with pytest.raises(DataError, match=message):
        fit(ratings(), sample_weight=weights)
