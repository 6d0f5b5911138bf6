"""Unlearning: rows without what examples did to them, and the model that has them."""

from __future__ import annotations

import numpy as np
import pytest
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_bits, same_tables

import fastinfluence as fi
from fastinfluence import CurvatureRollback, GradientRollback, MatrixFactorization, Replay
from fastinfluence.attribution import curvature_rollback
from fastinfluence.attribution.unlearning import _credited
from fastinfluence.errors import DataError, NotFittedError, ParameterError
from fastinfluence.evaluation import unlearning_distance

METHODS = ["gradient-rollback", "curvature-rollback"]
CLASSES = {"gradient-rollback": GradientRollback, "curvature-rollback": CurvatureRollback}


def fit(data, **keywords):
    keywords = {"n_factors": 5, "n_epochs": 4, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(data)


@pytest.fixture(scope="module")
def model():
    return fit(ratings(n_users=40, n_items=30, n=600), n_factors=8, n_epochs=20)


def credited_rows(model, method):
    """Changes (n, k + 1) credited to all examples, users' rows and items' rows, one at a time."""
    store, data, k = CLASSES[method](model).rows, model.data_, model.n_factors
    sides = []
    for side, codes in ((store.user_side, data.users), (store.item_side, data.items)):
        rows = np.empty((len(data), k + 1))
        for j in range(len(data)):
            touched, sums = _credited(side, np.array([j]), codes[[j]], len(data), k + 1)
            assert touched.tolist() == [codes[j]]
            rows[j] = sums[0]
        sides.append(rows)
    return sides


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unlearning_everything_gives_back_the_start(dtype):
    model = fit(ratings(n_users=130, n_items=90, n=4_100), dtype=dtype, n_threads=2)
    assert model.trajectory_.program.schedule.n_groups > 1
    unlearned = model.unlearn(np.arange(4_100), method="gradient-rollback")
    start = model.trajectory_.checkpoints[0].tables
    for got, right in zip(unlearned._tables(), start, strict=True):
        assert got.dtype == dtype
        # float32: the updates of 20 to 60 examples were rounded on their way in
        atol = 1e-10 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(got, right, rtol=0, atol=atol)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_changes_of_all_examples_of_a_row_are_taken_back_together(loss, optimizer, method):
    model = fit(data_for(loss), loss=loss, optimizer=optimizer, dtype="float64")
    data, chosen = model.data_, [3, 4, 11, 30, 31, 32, 47, 59]
    users, items = (table.copy() for table in model._tables()[:2])
    user_biases, item_biases = (table.copy() for table in model._tables()[2:])
    by_user, by_item = credited_rows(model, method)
    assert np.abs(by_user).max() > 0.01
    for j in chosen:
        u, i = data.users[j], data.items[j]
        users[u] -= by_user[j, :-1]
        user_biases[u] -= by_user[j, -1]
        items[i] -= by_item[j, :-1]
        item_biases[i] -= by_item[j, -1]
    unlearned = model.unlearn([*chosen, 3], method=method)  # one named twice is taken back once
    expected = (users, items, user_biases, item_biases)
    for got, right in zip(unlearned._tables(), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_the_changes_are_those_that_influence_reads(method):
    """The influence of a single example is the score that unlearning it takes away."""
    model = fit(ratings(), dtype="float64")
    data, query = model.data_, (3, 5)
    influence = CLASSES[method](model).influence([query], dense=True)[0]
    found = np.flatnonzero(influence)
    assert len(found) > 5
    before = model.predict(*query)
    for j in found:
        after = model.unlearn([j], method=method).predict(*query)
        assert before - after == pytest.approx(influence[j], abs=1e-12)
    stranger = np.flatnonzero((data.users != 3) & (data.items != 5))[0]
    assert model.unlearn([stranger], method=method).predict(*query) == before


@pytest.mark.parametrize("method", METHODS)
def test_other_rows_stay(model, method):
    data = model.data_
    unlearned = model.unlearn([17], method=method)
    for codes, place in ((data.users, 0), (data.items, 1)):
        others = np.arange(len(model._tables()[place])) != codes[17]
        for mine, its in zip(unlearned._tables()[place::2], model._tables()[place::2], strict=True):
            assert same_bits(mine[others], its[others])
            assert not same_bits(mine, its)


def test_the_model_stays_as_it_was(model):
    before = [table.copy() for table in model._tables()]
    model.unlearn([1, 2, 3])
    assert same_tables(before, model._tables())
    model.trajectory_.verify()


@pytest.mark.parametrize("method", METHODS)
def test_an_object_instead_of_a_name(model, method, tmp_path):
    by_name = model.unlearn([4, 70, 71], method=method)
    made = CLASSES[method](model, path=tmp_path / "rows")
    assert same_tables(model.unlearn([4, 70, 71], method=made)._tables(), by_name._tables())


def test_rows_stored_as_bfloat16(model):
    exact = model.unlearn([4, 70, 71])
    stored = model.unlearn([4, 70, 71], method=CurvatureRollback(model, row_dtype="bfloat16"))
    for mine, its, now in zip(stored._tables(), exact._tables(), model._tables(), strict=True):
        assert np.abs(mine - its).max() <= 2**-8 * np.abs(its - now).max()
        assert not same_bits(mine, its)


def test_only_the_rows_that_are_needed_are_computed(model, monkeypatch):
    asked = []
    walk = curvature_rollback._roll_back

    def watched(trajectory, held, *others):
        asked.append(held)
        return walk(trajectory, held, *others)

    monkeypatch.setattr(curvature_rollback, "_roll_back", watched)
    model.unlearn([4, 70, 71])
    [(users, items)] = asked
    assert users.tolist() == np.unique(model.data_.users[[4, 70, 71]]).tolist()
    assert items.tolist() == np.unique(model.data_.items[[4, 70, 71]]).tolist()


def test_a_model_that_was_saved(model, tmp_path):
    model.save(tmp_path / "run")
    loaded = fi.load(tmp_path / "run")
    assert same_tables(loaded.unlearn([5])._tables(), model.unlearn([5])._tables())
    why = CurvatureRollback(model)  # of the same training run
    assert same_tables(loaded.unlearn([5], method=why)._tables(), model.unlearn([5])._tables())


def test_examples_without_weight_have_nothing_to_unlearn():
    data = ratings()
    weights = np.ones(60)
    weights[[7, 8]] = 0
    model = MatrixFactorization(n_factors=4, rng=0).fit(data, sample_weight=weights)
    for method in METHODS:
        assert same_tables(model.unlearn([7, 8], method=method)._tables(), model._tables())
    distance = unlearning_distance(model, [7])
    assert np.isnan(distance.affected_rows)
    assert np.isnan(distance.all_parameters)
    assert distance.predictions == distance.predictions_before == 0


# ---------------------------------------------------------------- the model that comes back


def test_it_predicts_and_recommends(model):
    unlearned = model.unlearn([17, 18])
    data = model.data_
    assert isinstance(unlearned, MatrixFactorization)
    users, items = np.divmod(np.arange(40 * 30), 30)
    p, q, b, c = unlearned._tables()
    expected = model.global_mean_ + b[users] + c[items] + (p[users] * q[items]).sum(1)
    np.testing.assert_allclose(unlearned.predict(users, items), expected, rtol=1e-5)
    assert unlearned.predict(*_ids(data, 17)) != model.predict(*_ids(data, 17))
    recommended, scores = unlearned.recommend(k=3)
    np.testing.assert_allclose(
        scores[:, 0], unlearned.predict(data.user_ids, recommended[:, 0]), rtol=1e-5
    )
    user = data.users[17]
    assert data.items[17] not in unlearned.recommend(user, 30 - _known(data, user))[0]
    assert "fitted on 600 examples" in repr(unlearned)
    assert "some unlearned since" in repr(unlearned)
    assert "unlearned" not in repr(model)
    assert unlearned.get_params() == model.get_params()


def _ids(data, j):
    return data.user_ids[data.users[j]], data.item_ids[data.items[j]]


def _known(data, user):
    return len(np.unique(data.items[data.users == user]))


def test_what_needs_a_trajectory_says_that_there_is_none(model, tmp_path):
    unlearned = model.unlearn([17])
    assert not hasattr(unlearned, "trajectory_")
    for purpose, ask in (
        ("explaining it", lambda: Replay(unlearned)),
        ("explaining it", lambda: CurvatureRollback(unlearned)),
        ("explaining it", lambda: GradientRollback(unlearned)),
        ("saving it", lambda: unlearned.save(tmp_path / "run")),
        ("unlearning", lambda: unlearned.unlearn([3])),
    ):
        with pytest.raises(NotFittedError) as error:
            ask()
        assert str(error.value).startswith(f"{purpose} needs a Trajectory")
        assert "predict and recommend are possible" in str(error.value)
    with pytest.raises(NotFittedError, match="not fitted yet: call fit before unlearning"):
        MatrixFactorization().unlearn([0])


def test_it_can_be_fitted_again(model):
    unlearned = model.unlearn([17]).fit(model.data_)
    assert same_tables(unlearned._tables(), model._tables())
    Replay(unlearned)
    assert "unlearned" not in repr(unlearned)


# ---------------------------------------------------------------- beside training again


def test_unlearning_is_nearer_to_training_again_than_doing_nothing(model):
    chosen = np.random.default_rng(0).choice(600, (12, 2), replace=False)
    found = np.array([unlearning_distance(model, pair) for pair in chosen])
    affected, everything, predictions, before = found.T
    assert (affected < 1).all()
    assert affected.mean() < 0.6
    assert (everything < 1).all()
    assert (everything > affected).all()  # other rows stay as they were
    assert predictions.mean() < 0.6 * before.mean()
    # Gradient Rollback overstates what training made of the examples
    crude = np.array([unlearning_distance(model, pair, "gradient-rollback") for pair in chosen])
    assert crude[:, 0].mean() > 2 * affected.mean()


@pytest.mark.parametrize("method", METHODS)
def test_what_the_distances_are(model, method):
    data, chosen = model.data_, [17, 18, 200]
    found = unlearning_distance(model, chosen, CLASSES[method](model))
    assert found == unlearning_distance(model, chosen, method)
    then, now = model.unlearn(chosen, method=method)._tables(), model._tables()
    truth = model.trajectory_.retrain(without=chosen)

    def flat(tables, users, items):
        return np.concatenate([t[s].ravel() for t, s in zip(tables, [users, items] * 2)])  # noqa: B905

    every, scores = slice(None), lambda t: t[0] @ t[1].T + t[2][:, None] + t[3]
    users, items = np.unique(data.users[chosen]), np.unique(data.items[chosen])
    for ratio, some in ((found[0], (users, items)), (found[1], (every, every))):
        a, b, c = (flat(tables, *some) for tables in (then, now, truth))
        expected = np.linalg.norm(a - c) / np.linalg.norm(b - c)
        assert ratio == pytest.approx(expected, rel=1e-4)
    for rms, tables in ((found[2], then), (found[3], now)):
        expected = np.sqrt(np.mean((scores(tables) - scores(truth))[users] ** 2))
        assert rms == pytest.approx(expected, rel=1e-3)


def test_scores_in_pieces(model, monkeypatch):
    whole = unlearning_distance(model, np.arange(0, 600, 7))
    monkeypatch.setattr("fastinfluence.evaluation.unlearning._SCORES_AT_ONCE", 100)
    assert unlearning_distance(model, np.arange(0, 600, 7)) == pytest.approx(whole)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("ask", [MatrixFactorization.unlearn, unlearning_distance])
def test_bad_examples(model, ask):
    for wrong, message in (
        ([], "examples is empty"),
        ([600], "examples holds 600, which is no training index: they go from 0 to 599"),
        ([3, -1], "examples holds -1"),
        ([1.5], "examples takes training indices, not float64"),
        (["x"], "examples takes training indices"),
    ):
        with pytest.raises(DataError, match=message):
            ask(model, wrong)


def test_bad_methods(model):
    for wrong, message in (
        ("replay", "'replay' does not credit examples"),
        (Replay(model), "Replay does not credit examples with changes of rows"),
        (None, "NoneType does not credit"),
        (GradientRollback(fit(model.data_)), "GradientRollback is of another model"),
        (CurvatureRollback(model, rows=[(0, 0)]), "the rows of user .* were not computed"),
    ):
        with pytest.raises(ParameterError, match=message):
            model.unlearn([17], method=wrong)
    with pytest.raises(DataError, match="nothing is left to train on"):
        unlearning_distance(model, np.arange(600))
    with pytest.raises(ParameterError, match="MatrixFactorization is needed"):
        unlearning_distance(None, [0])
    with pytest.raises(NotFittedError, match="evaluating it"):
        unlearning_distance(model.unlearn([17]), [0])
