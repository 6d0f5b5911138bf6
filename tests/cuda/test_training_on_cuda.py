"""Models trained on CUDA are those trained on the CPU, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from backends import memory_of
from planted import LOSSES, data_for, ratings, same_tables

from fastinfluence import MatrixFactorization
from fastinfluence.errors import DeviceError, DivergenceError
from fastinfluence.training.backward import backward


def fit(data, device, *, record=None, **keywords):
    validation = keywords.pop("validation", None)
    model = MatrixFactorization(5, n_epochs=2, rng=0, device=device, **keywords)
    return model.fit(data, record=record, validation=validation)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("loss", LOSSES)
def test_same_model(loss, optimizer):
    data = data_for(loss, n=25)
    keywords = {"loss": loss, "optimizer": optimizer, "record": "rollback"}
    mine, other = (fit(data, device, **keywords).trajectory_ for device in ("cpu", "cuda"))
    assert other.end.same_bits(mine.end)
    assert same_tables(other.record, mine.record)
    assert all(isinstance(table, np.ndarray) for table in (*other.end.tables, *other.record))
    np.testing.assert_allclose(other.losses, mine.losses, rtol=1e-6)
    other.verify()  # on the CPU


def test_runs_again_on_cuda():
    trajectory = fit(ratings(n=25), "cpu", record="rollback").trajectory_
    assert same_tables(trajectory.replay(device="cuda"), trajectory.record)


def test_validation_loss():
    train, test = ratings(n=40).split(0.3, rng=0)
    mine, other = (fit(train, device, validation=test) for device in ("cpu", "cuda"))
    losses = [model.trajectory_.validation_losses for model in (mine, other)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "bpr"])
def test_walks_back_the_same_steps(loss):
    trajectory = fit(data_for(loss, n=25), "cpu", loss=loss).trajectory_
    seen = []
    for device in ("cpu", "cuda"):
        seen.append([])
        for stage in backward(trajectory, memory_budget=2**20, device=device):
            log = memory_of(device).fetch(stage.log)
            assert isinstance(stage.slots, np.ndarray)
            np.testing.assert_array_equal(log[0], stage.slots)
            seen[-1].append([stage.epoch, stage.start, stage.stop, *(a.tobytes() for a in log)])
    assert seen[0] == seen[1]


def test_a_program_is_placed_once():
    program = fit(ratings(n=25), "cpu").trajectory_.program
    there = program.on("cuda")
    assert there.device == "cuda"
    assert program.on("cuda") is there
    assert there.on("cpu") is program
    assert there.placed is there.placed
    heavier = there.reweighted(np.full(25, 2.0))
    np.testing.assert_array_equal(heavier.placed.examples.weights.copy_to_host(), 2)
    np.testing.assert_array_equal(there.placed.examples.weights.copy_to_host(), 1)


def test_divergence_is_found():
    with pytest.raises(DivergenceError, match="lower learning_rate"):
        fit(ratings(n=25), "cuda", learning_rate=1e30)


def test_a_device_that_trains_nothing():
    with pytest.raises((DeviceError, ValueError), match="torch"):
        fit(ratings(n=25), "torch:cpu")
