"""What no evaluation can answer gets an error that says so, before any work; the rest an answer."""

from __future__ import annotations

import numpy as np
import pytest
from planted import ratings

import fastinfluence as fi
from fastinfluence import GradientRollback, MatrixFactorization, evaluation
from fastinfluence.errors import (
    DataError,
    NotFittedError,
    ParameterError,
    ReplayMismatch,
    RunDirectoryError,
    UnknownIdError,
)
from fastinfluence.training import Program, Trajectory

PAIRS = [(0, 0), (3, 5)]
LISTS = [[4, 5], [6, 7]]

EVALUATIONS = {
    "leave_one_out": lambda model, queries: evaluation.leave_one_out(model, queries),
    "leave_out": lambda model, queries: evaluation.leave_out(model, queries, [[1, 2]]),
    "multi_seed": lambda model, queries: evaluation.multi_seed(model, queries, [1, 2], [0]),
    "subset_removal": lambda model, queries: evaluation.subset_removal(model, queries, 0.1, 2),
    "deletion_curve": lambda model, queries: evaluation.deletion_curve(
        model, queries, {"a": LISTS}, [1]
    ),
    "deletion_effect": lambda model, queries: evaluation.deletion_effect(
        model, queries, {"a": LISTS}, [1]
    ),
    "tail_patch": lambda model, queries: evaluation.tail_patch(model, queries, LISTS),
    "sample_examples": lambda model, queries: evaluation.sample_examples(model, queries),
    "compare": lambda model, queries: evaluation.compare([Ours(model)], queries, train=[0, 1]),
}
every = pytest.mark.parametrize("call", EVALUATIONS.values(), ids=EVALUATIONS)


class Ours:
    """A method of any model, whose influence is all 0."""

    name, units = "ours", "rank"

    def __init__(self, model):
        self.model = model

    def influence(self, queries):
        return np.zeros((2, 60))


def fit(data=None, **keywords):
    keywords = {"n_factors": 3, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(ratings() if data is None else data)


@pytest.fixture(scope="module")
def model():
    return fit()


@every
def test_no_queries(model, call):
    with pytest.raises(DataError, match="no queries to explain: give at least one"):
        call(model, [])


@every
@pytest.mark.parametrize(
    ("pairs", "message"), [([(0, 0), (77, 5)], "unknown user 77"), ([(0, 99), (1, 1)], "item 99")]
)
def test_unknown_pairs(model, call, pairs, message):
    with pytest.raises(UnknownIdError, match=message):
        call(model, pairs)


@every
def test_no_model_or_none_that_was_trained_here(model, call):
    with pytest.raises(NotFittedError, match="call fit before"):
        call(MatrixFactorization(), PAIRS)
    with pytest.raises(NotFittedError, match="needs a Trajectory"):
        call(model.unlearn([3]), PAIRS)


@every
def test_a_trajectory_without_its_start(call):
    model = fit()
    del model.trajectory_.checkpoints[0]
    with pytest.raises(ParameterError, match="does not hold where training started"):
        call(model, PAIRS)


RETRAINING = [name for name in EVALUATIONS if name not in ("tail_patch", "sample_examples")]


@pytest.mark.parametrize("name", [name for name in RETRAINING if name != "multi_seed"])
def test_data_that_are_not_those_of_the_model(name):
    """Somebody put other values under a model: nothing can be compared with it."""
    model, data = fit(), ratings()
    values = data.values.copy()
    values[17] += 1
    other = fi.Interactions.from_arrays(
        data.users, data.items, values, user_ids=data.user_ids, item_ids=data.item_ids
    )
    old = model.trajectory_
    program = Program(other, old.program.weights, old.recipe)
    changed = Trajectory(program, old.checkpoints, old.losses, [])
    with pytest.raises(ReplayMismatch, match="the data, the parameters or the checkpoints have"):
        EVALUATIONS[name](MatrixFactorization()._take(changed), PAIRS)


def test_a_run_whose_data_file_changed(model, tmp_path):
    model.save(tmp_path / "run")
    file = tmp_path / "run" / "data" / "values.npy"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="'values' is damaged"):
        fi.load(tmp_path / "run")


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_run_without_a_checkpoint(model, tmp_path, epoch):
    model.save(tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / f"0000{epoch}" / "tables" / "item_factors.npy"
    file.unlink()
    with pytest.raises(RunDirectoryError, match="'item_factors' is missing"):
        fi.load(tmp_path / "run")


def test_fewer_checkpoints_change_nothing(model):
    old = model.trajectory_
    ends = {epoch: old.checkpoints[epoch] for epoch in (0, 3)}
    thin = MatrixFactorization()._take(Trajectory(old.program, ends, old.losses, []))
    for name in ("leave_one_out", "deletion_effect"):
        mine, its = (EVALUATIONS[name](m, PAIRS) for m in (thin, model))
        what = "change" if name == "leave_one_out" else "after"
        np.testing.assert_array_equal(getattr(mine, what), getattr(its, what))


@pytest.mark.parametrize("pair", [(12, 0), (0, 9), (12, 9)])
def test_a_user_or_an_item_without_ratings_may_be_asked_about(pair):
    model = fit(ratings(user_ids=np.arange(13), item_ids=np.arange(10)))
    why = GradientRollback(model)
    comparison = evaluation.compare([why], [pair], others=60)
    assert np.isfinite(comparison.truth.change).all()
    found = np.flatnonzero(comparison.estimates["gradient-rollback"][0])
    assert comparison.truth.adjacent[0, found].all()
    if pair == (12, 9):
        assert not comparison.truth.adjacent.any()
        assert (comparison.truth.change == 0).all()
        assert np.isnan(comparison.rows[0]["spearman_all"])
    effect = evaluation.deletion_effect(model, [pair], {"own": why.explain([pair], 2)}, [2])
    row = {row["method"]: row for row in effect.rows}["neighbourhood"]
    assert row["examples"] == (0 if pair == (12, 9) else 2)
    assert np.isfinite(evaluation.tail_patch(model, [pair], [[3]])).all()


def test_without_every_rating_of_a_user_the_score_is_that_of_a_stranger(model):
    """His row stays at its start, with bias 0; his items have lost his ratings."""
    data = model.data_
    his = np.flatnonzero(data.users == 3)
    tables = model.trajectory_.retrain(without=his)
    start = model.trajectory_.checkpoints[0].tables
    np.testing.assert_array_equal(tables.user_factors[3], start.user_factors[3])
    assert tables.user_biases[3] == 0
    factors = start.user_factors[3].astype(float) @ tables.item_factors[5].astype(float)
    expected = model.global_mean_ + tables.item_biases[5] + factors
    now = float(model.predict(3, 5)[0])
    change = evaluation.leave_out(model, [(3, 5)], [his])[0, 0]
    assert now - change == pytest.approx(expected, rel=1e-6)
    lists = np.append(his, np.full(60 - len(his), -1))[None]
    effect = evaluation.deletion_effect(model, [(3, 5)], {"all of his": lists}, [60])
    assert effect.after[0, 0] == pytest.approx(expected, rel=1e-6)
    assert effect.n_removed[0, 0] == len(his)
