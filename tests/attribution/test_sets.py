"""Explanation sets: against the loop written out, against sets taken at once, as text and table."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from planted import LOSSES, data_for, ratings, same_bits

import fastinfluence as fi
from fastinfluence import CurvatureRollback, GradientRollback, MatrixFactorization, Replay
from fastinfluence.attribution import explain_set
from fastinfluence.attribution.objectives import Function, HeldOutLoss, Margin, Mean, Score
from fastinfluence.errors import DataError, ParameterError, UnknownIdError
from fastinfluence.evaluation import leave_out

METHODS = [GradientRollback, CurvatureRollback, Replay]


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 8, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


@pytest.fixture(scope="module")
def model():
    return fit(ratings(n_users=40, n_items=30, n=600), n_epochs=20)


def unseen(data, n):
    """Pairs that are not in the data."""
    seen = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    rng = np.random.default_rng(7)
    drawn = zip(rng.integers(data.n_users, size=99), rng.integers(data.n_items, size=99))  # noqa: B905
    return [(int(u), int(i)) for u, i in drawn if (u, i) not in seen][:n]


def value_of(model, objective):
    quantity = objective.bind(model.data_, model.trajectory_.recipe)
    return quantity.values(model._tables(), model.global_mean_)[0]


def written_out(kind, model, objective, size, chunk, **options):
    """The greedy loop on models that are fitted like any other."""
    recipe = model.get_params() | {"n_epochs": model.n_epochs_}
    weights = np.ones(len(model.data_))
    current, taken, estimates, values = model, [], [], [value_of(model, objective)]
    while len(taken) < size:
        influence = kind(current, **options).influence(objective, dense=True)[0]
        order = np.argsort(-influence, kind="stable")[: min(chunk, size - len(taken))]
        order = order[influence[order] > 0]
        if len(order) == 0:
            break
        taken.extend(order.tolist())
        estimates.extend(influence[order].tolist())
        weights[order] = 0
        current = MatrixFactorization(**recipe).fit(model.data_, sample_weight=weights)
        values.append(value_of(current, objective))
    return taken, estimates, values


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loop_written_out(loss, kind):
    data = data_for(loss, n_users=20, n_items=30, n=400)
    model = fit(data, loss=loss)
    [pair] = unseen(data, 1)
    found = kind(model).explain_set(pair, 10, chunk=4)
    taken, estimates, values = written_out(kind, model, Score([pair]), 10, 4)
    assert len(taken) == 10
    assert found.train_index.tolist() == taken
    assert found.influence.tolist() == estimates
    assert found.sizes.tolist() == [0, 4, 8, 10]
    assert found.values.tolist() == values
    assert found.method == kind.name
    assert found.units == kind.units


OBJECTIVES = {
    "margin": lambda a, b: Margin([a], b[1]),
    "loss": lambda a, b: HeldOutLoss([a], 5),
    "mean": lambda a, b: Mean([a, b]),
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_other_objectives(model, name, kind):
    objective = OBJECTIVES[name](*unseen(model.data_, 2))
    found = kind(model).explain_set(objective, 6, chunk=3)
    taken, estimates, values = written_out(kind, model, objective, 6, 3)
    assert found.train_index.tolist() == taken
    assert found.influence.tolist() == estimates
    assert found.values.tolist() == values
    assert found.values[-1] < found.values[0]


def square_of_biases(parameters):
    return (parameters.item_biases**2).sum() / 2, {"item_biases": parameters.item_biases}


def test_a_function_of_the_parameters(model):
    objective = Function(square_of_biases)
    found = Replay(model).explain_set(objective, 4, chunk=2)
    assert found.train_index.tolist() == written_out(Replay, model, objective, 4, 2)[0]
    assert found.pair is None
    assert found.side.tolist() == [""] * 4
    for kind in (GradientRollback, CurvatureRollback):
        with pytest.raises(ParameterError, match="use Replay"):
            kind(model).explain_set(objective, 4)


def test_the_drop_is_that_of_leaving_out(model):
    [pair] = unseen(model.data_, 1)
    found = Replay(model).explain_set(pair, 12, chunk=5)
    sets = [found.train_index[:size] for size in found.sizes[1:]]
    np.testing.assert_allclose(found.drop[1:], leave_out(model, [pair], sets)[0], atol=1e-6)
    assert found.drop[0] == found.estimated_drop[0] == 0
    assert found.estimated_drop[2] == pytest.approx(found.influence[:10].sum())
    assert len(found.drop) == len(found.estimated_drop) == 4


def test_sets_beat_what_is_taken_at_once(model):
    pairs = unseen(model.data_, 8)
    why = Replay(model)
    at_once = why.explain(pairs, 20).train_index
    one_shot = leave_out(model, pairs, at_once).diagonal()
    greedy = np.array([why.explain_set(pair, 20, chunk=5).drop[-1] for pair in pairs])
    assert greedy.mean() > 1.2 * one_shot.mean()
    assert (greedy >= 0.98 * one_shot).all()
    assert (greedy > 0).all()


def test_one_chunk_is_the_list_of_explain(model):
    [pair] = unseen(model.data_, 1)
    for kind in METHODS:
        found = kind(model).explain_set(pair, 5, chunk=50)
        explained = kind(model).explain([pair], 5)
        assert found.train_index.tolist() == explained.train_index[0].tolist()
        assert found.influence.tolist() == explained.influence[0].tolist()
        assert found.sizes.tolist() == [0, 5]
        assert found.side.tolist() == explained.side[0].tolist()


def test_fewer_than_asked_for_where_no_more_raise_the_prediction():
    data = fi.Interactions.from_arrays(
        ["ann", "ann", "bob", "cid", "cid"], ["x", "y", "y", "x", "z"], [5, 5, 1, 4, 2]
    )
    why = CurvatureRollback(fit(data))
    found = why.explain_set(("bob", "x"), 4, chunk=1)
    assert found.train_index.tolist() == [0, 3]  # the ratings of x; that of bob lowered it
    assert found.sizes.tolist() == [0, 1, 2]
    assert found.side.tolist() == ["item", "item"]
    # The only rating of x is below the mean, and the user has none.
    stranger = fi.Interactions.from_arrays(
        [0, 1], [0, 1], [2, 4], user_ids=["ann", "bob", "cid"], item_ids=["x", "y"]
    )
    nothing = CurvatureRollback(fit(stranger)).explain_set(("cid", "x"), 1)
    assert len(nothing) == 0
    assert nothing.drop.tolist() == nothing.estimated_drop.tolist() == [0.0]
    assert "; no training example raised it." in nothing.because()
    assert nothing.to_dict()["value"].tolist() == []


def test_what_has_no_weight_is_not_in_a_set():
    data = ratings(n_users=20, n_items=15, n=150)
    [pair] = unseen(data, 1)
    first = Replay(fit(data)).explain_set(pair, 3).train_index
    weights = np.ones(150)
    weights[first] = 0
    again = Replay(fit(data, sample_weight=weights)).explain_set(pair, 20, chunk=7).train_index
    assert len(again) == len(np.unique(again)) == 20
    assert not np.isin(first, again).any()


def test_a_model_that_stopped_early():
    train, validation = ratings(n_users=20, n_items=15, n=200).split(0.3, rng=0)
    model = MatrixFactorization(
        4, n_epochs=60, learning_rate=0.1, regularization=0, early_stopping=2, rng=0
    ).fit(train, validation=validation)
    assert model.n_epochs_ < 60
    [pair] = unseen(train, 1)
    found = Replay(model).explain_set(pair, 4, chunk=2)
    expected = leave_out(model, [pair], [found.train_index])
    assert found.drop[-1] == pytest.approx(expected[0, 0], abs=1e-6)


# ---------------------------------------------------------------- the method on other models


def test_the_same_method_on_another_model(model, tmp_path):
    other = fit(ratings(n_users=40, n_items=30, n=600, seed=1))
    queries = [(3, 4), (5, 6)]
    for kind, options in (
        (Replay, {"hops": 1, "memory_budget": 2**28}),
        (CurvatureRollback, {"row_dtype": "bfloat16", "n_threads": 1}),
        (GradientRollback, {"row_dtype": "bfloat16", "credit": "gradient"}),
    ):
        again = kind(model, **options).on(other, queries)
        assert type(again) is kind
        assert again.model is other
        expected = kind(other, **options).influence(queries, dense=True)
        assert same_bits(again.influence(queries, dense=True), expected)
        assert not same_bits(kind(other).influence(queries, dense=True), expected)
    kept = GradientRollback(model, path=tmp_path / "rows")  # the rows of one model
    assert same_bits(
        kept.on(other).influence(queries, dense=True),
        GradientRollback(other).influence(queries, dense=True),
    )
    few = CurvatureRollback(model).on(other, queries)
    with pytest.raises(ParameterError, match="were not computed"):
        few.influence([(7, 4)])


def test_options_reach_the_models_on_the_way(model):
    [pair] = unseen(model.data_, 1)
    near, all_of_it = Replay(model, hops=1), Replay(model)
    found = near.explain_set(pair, 9, chunk=3)
    assert found.train_index.tolist() == written_out(Replay, model, Score([pair]), 9, 3, hops=1)[0]
    assert (
        found.train_index.tolist() != all_of_it.explain_set(pair, 9, chunk=3).train_index.tolist()
    )
    few = CurvatureRollback(model, rows=[pair])
    whole = CurvatureRollback(model)
    assert few.explain_set(pair, 9).values.tolist() == whole.explain_set(pair, 9).values.tolist()


def test_methods_can_be_copied(model):
    again = copy.copy(Replay(model, hops=2))
    assert again.on(model).hops == 2


def test_the_model_stays_as_it_was(model):
    fingerprint = model.trajectory_.fingerprint()
    Replay(model).explain_set(unseen(model.data_, 1)[0], 4, chunk=2)
    assert model.trajectory_.fingerprint() == fingerprint
    model.trajectory_.verify()


# ---------------------------------------------------------------- queries, and bad ones


def test_ways_to_ask(model):
    user, item = unseen(model.data_, 1)[0]
    expected = Replay(model).explain_set([(user, item)], 3).train_index.tolist()
    for query in (
        (user, item),
        [user, item],
        np.array([user, item]),
        np.array([[user, item]]),
        {"user": [user], "item": [item]},
        Score([(user, item)]),
    ):
        assert Replay(model).explain_set(query, 3).train_index.tolist() == expected
    assert explain_set(Replay(model), (user, item), 3).train_index.tolist() == expected


def test_bad_input(model):
    why = Replay(model)
    for size, message in (
        (0, "size must be an integer >= 1, not 0"),
        (-3, "size must be an integer >= 1"),
        (2.5, "size must be an integer >= 1"),
        (True, "size must be an integer >= 1"),
        (600, "size=600, but no more than 599 examples can be left out"),
    ):
        with pytest.raises(ParameterError, match=message):
            why.explain_set((0, 0), size)
    with pytest.raises(ParameterError, match="chunk must be an integer >= 1, not 0"):
        why.explain_set((0, 0), 3, chunk=0)
    for queries in ([(0, 0), (1, 1)], Score([(0, 0), (1, 1)]), Margin([(0, 0), (1, 1)], 2)):
        with pytest.raises(ParameterError, match="one query, not 2"):
            why.explain_set(queries, 3)
    with pytest.raises(DataError, match="no queries"):
        why.explain_set([], 3)
    with pytest.raises(DataError, match="queries are a sequence of"):
        why.explain_set("ab", 3)
    with pytest.raises(UnknownIdError, match="unknown user 40"):
        why.explain_set((40, 0), 3)
    with pytest.raises(UnknownIdError, match="unknown item 99"):
        why.explain_set(Margin([(0, 0)], 99), 3)


def test_examples_without_weight_cannot_be_left_out():
    weights = np.zeros(60)
    weights[:5] = 1
    why = Replay(fit(ratings(), sample_weight=weights))
    assert len(why.explain_set((0, 0), 4)) <= 4
    with pytest.raises(ParameterError, match="no more than 4 examples"):
        why.explain_set((0, 0), 5)


# ---------------------------------------------------------------- for people and libraries


def test_as_text():
    data = fi.Interactions.from_arrays(
        ["ann", "ann", "bob", "cid", "cid"], ["x", "y", "y", "x", "z"], [5, 5, 1, 4, 2]
    )
    model = fit(data)
    found = CurvatureRollback(model).explain_set(("bob", "x"), 2)
    lines = found.because().split("\n")
    assert lines[0] == (
        f"bob → x: {found.values[0]:.4g}, but {found.values[1]:.4g} when trained without these 2 "
        "examples"
    )
    assert lines[1] == f"  {found.influence[0]:+.3g}  ann → x: 5  (same item)"
    assert lines[2].endswith("cid → x: 4  (same item)")
    assert lines[3].startswith(f"  (together {found.drop[1]:+.3g} by retraining, ")
    assert len(lines) == 4
    assert repr(found) == found.because()
    assert "  and 1 more\n" in found.because(1)
    assert "without this example" in repr(CurvatureRollback(model).explain_set(("bob", "x"), 1))
    crude = GradientRollback(model).explain_set(("bob", "x"), 2).because()
    assert "these numbers order the examples" in crude
    assert "by estimate" not in crude
    with pytest.raises(ParameterError, match="n must be"):
        found.because(0)


def test_names_of_what_is_explained(model):
    why = Replay(model)
    for objective, name in (
        ((3, 4), "3 → 4"),
        (Margin([(3, 4)], 5), "3 → 4 over 5"),
        (HeldOutLoss([(3, 4)], 2), "HeldOutLoss of 3 → 4"),
        (Mean([(3, 4), (5, 6)]), "Mean"),
    ):
        assert why.explain_set(objective, 1).because().startswith(f"{name}: ")


def test_as_a_table():
    data = ratings(user_labels=[f"user {n}" for n in range(12)])
    found = Replay(fit(data)).explain_set((3, 4), 5, chunk=2)
    table = found.to_pandas()
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert table["train_index"].tolist() == found.train_index.tolist()
    assert table["train_user"].tolist() == data.users[found.train_index].tolist()
    assert table["train_item"].tolist() == data.items[found.train_index].tolist()
    assert table["train_value"].tolist() == data.values[found.train_index].tolist()
    assert table["influence"].tolist() == found.influence.tolist()
    assert table["side"].tolist() == found.side.tolist()
    assert table["without"].tolist() == [2, 2, 4, 4, 5]
    assert table["value"].tolist() == found.values[[1, 1, 2, 2, 3]].tolist()
    assert table["train_user_label"].tolist() == [
        f"user {u}" for u in data.users[found.train_index]
    ]
    assert "train_item_label" not in table


def test_one_bar_shows_the_progress(model, capsys):
    CurvatureRollback(model).explain_set((3, 4), 4, chunk=2, show_progress=True)
    shown = capsys.readouterr().err
    assert "set: 100%" in shown
    assert "4/4" in shown
    assert "value=" in shown
    assert "curvature" not in shown
