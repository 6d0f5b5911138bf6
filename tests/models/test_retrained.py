"""Models trained again without some examples, as models with a Trajectory of their own."""

from __future__ import annotations

import numpy as np
import pytest
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_tables

import fastinfluence as fi
from fastinfluence import MatrixFactorization
from fastinfluence.errors import DataError, FastInfluenceError, NotFittedError
from fastinfluence.models.retrained import predrawn, without


def fit(data, *, sample_weight=None, validation=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    model = MatrixFactorization(**keywords)
    return model.fit(data, sample_weight=sample_weight, validation=validation)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_it_ends_where_retrain_ends(loss, optimizer):
    data = data_for(loss)
    weights = np.random.default_rng(1).choice([0, 0.4, 1, 2.5], len(data))
    model = fit(data, loss=loss, optimizer=optimizer, sample_weight=weights)
    end = model.trajectory_.end
    again = without(model, [3, 8, 3])
    assert same_tables(
        again.trajectory_.end.tables, model.trajectory_.retrain(without=[3, 8], n_threads=2)
    )
    assert same_tables(again._tables(), again.trajectory_.end.tables)
    again.trajectory_.verify()
    assert model.trajectory_.end is end  # the model stays as it was
    assert not same_tables(end.tables, again.trajectory_.end.tables)
    assert same_tables(without(predrawn(model), [3, 8])._tables(), again._tables())
    assert same_tables(without(model, [])._tables(), end.tables)


def test_the_same_examples_can_be_left_out_one_after_the_other():
    model = fit(ratings(), rng=np.random.default_rng(3))  # the seed of a generator is not lost
    step_by_step = without(without(model, [5]), [11, 2])
    assert same_tables(step_by_step._tables(), without(model, [2, 5, 11])._tables())
    assert step_by_step.get_params()["rng"] == model.trajectory_.recipe.seed


def test_a_run_that_stopped_early_is_repeated_as_long_as_it_was():
    train, validation = ratings(n_users=20, n_items=15, n=200).split(0.3, rng=0)
    model = fit(
        train, n_epochs=60, learning_rate=0.1, early_stopping=2, validation=validation,
        regularization=0,
    )  # fmt: skip
    assert model.n_epochs_ < 60
    again = without(model, [7])
    assert again.n_epochs_ == model.n_epochs_
    assert same_tables(again._tables(), model.trajectory_.retrain(without=[7]))


def test_it_is_a_model_like_others(tmp_path):
    model = fit(ratings(), n_epochs=5)
    again = without(model, [4])
    assert sorted(again.trajectory_.checkpoints) == [0, 1, 2, 3, 4, 5]
    assert len(again.trajectory_.losses) == 5
    assert fi.CurvatureRollback(again).influence([(0, 0)], dense=True)[0, 4] == 0
    again.save(tmp_path / "run")
    assert same_tables(fi.load(tmp_path / "run")._tables(), again._tables())


def test_many_blocks_and_threads():
    model = fit(ratings(n_users=130, n_items=90, n=4_100), n_threads=2)
    assert model.trajectory_.program.schedule.n_groups > 1
    again = without(model, np.arange(40))
    assert same_tables(again._tables(), model.trajectory_.retrain(without=np.arange(40)))


def test_checkpoints_keep_to_the_memory_budget(monkeypatch):
    model = fit(ratings(), n_epochs=4)
    monkeypatch.setattr("fastinfluence.models.retrained.memory_budget", lambda: 1)
    again = without(model, [4])
    assert sorted(again.trajectory_.checkpoints) == [0, 4]
    assert same_tables(again._tables(), model.trajectory_.retrain(without=[4]))


def test_bad_input():
    model = fit(ratings())
    for wrong, message in (
        ([60], "examples holds 60, which is no training index"),
        ([-1], "examples holds -1"),
        ([0.5], "examples takes training indices"),
        (np.arange(60), "nothing is left to train on"),
    ):
        with pytest.raises(DataError, match=message):
            without(model, wrong)
    with pytest.raises(NotFittedError, match="call fit before training it again"):
        without(MatrixFactorization(), [0])


def test_a_run_that_diverges_says_so():
    model = fit(ratings())
    program = model.trajectory_.program
    model.trajectory_.program = program.reweighted(50 * program.weights)
    with pytest.raises(FastInfluenceError, match="training diverged in epoch"):
        without(model, [0])
