"""MatrixFactorization as its users see it: parameters, predict, recommend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import LOSSES, data_for, pairs, positives, ratings

from fastinfluence import Interactions, MatrixFactorization
from fastinfluence.errors import DataError, NotFittedError, ParameterError, UnknownIdError


def fit(data, **keywords):
    keywords = {"n_factors": 5, "n_epochs": 3, "rng": 0, "init_scale": 0.5} | keywords
    return MatrixFactorization(**keywords).fit(data)


def dense(model):
    """All scores (n_users, n_items) in float64, from the attributes."""
    p, q = model.user_factors_.astype(float), model.item_factors_.astype(float)
    biases = model.user_biases_[:, None].astype(float) + model.item_biases_
    return model.global_mean_ + biases + p @ q.T


def naive_recommendations(scores, known, k):
    """Codes of the k best unknown items of every user, ties by code."""
    scores = scores.copy()
    for user, item in known:
        scores[user, item] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def known_pairs(data):
    return zip(data.users.tolist(), data.items.tolist(), strict=True)


def test_attributes_and_repr():
    data = ratings()
    model = MatrixFactorization(5, n_epochs=2, rng=0)
    assert repr(model) == "MatrixFactorization(n_factors=5, n_epochs=2, rng=0)"
    assert model.fit(data) is model
    assert model.user_factors_.shape == (12, 5)
    assert model.item_factors_.shape == (9, 5)
    assert model.user_biases_.shape == (12,)
    assert model.item_biases_.shape == (9,)
    assert model.n_epochs_ == 2
    assert model.data_ is data
    assert "fitted on 60 examples of 12 users and 9 items in 2 epochs" in repr(model)


def test_get_params_makes_the_same_model_again():
    model = MatrixFactorization(7, loss="bpr", learning_rate=0.3, rng=4, n_threads=1)
    again = MatrixFactorization(**model.get_params())
    assert again.get_params() == model.get_params()
    assert again.learning_rate == 0.3


@pytest.mark.parametrize(
    "keywords",
    [{"n_factors": 0}, {"loss": "hinge"}, {"n_threads": 0}, {"rng": -3}, {"dtype": "int8"}],
)
def test_hyper_parameters_are_checked_in_fit(keywords):
    (name,) = keywords
    with pytest.raises(ParameterError, match=name):
        fit(ratings(), **keywords)


def test_bad_arguments_of_fit():
    model = MatrixFactorization(4)
    with pytest.raises(DataError, match="ndarray: make one with"):
        model.fit(np.ones((3, 3)))
    with pytest.raises(ParameterError, match="record must be None or 'rollback', not True"):
        model.fit(ratings(), record=True)
    with pytest.raises(NotFittedError, match="call fit first"):
        model.predict([0], [0])


def test_a_failed_fit_leaves_the_model_as_it_was():
    model = fit(ratings())
    before = model.user_factors_.copy()
    with pytest.raises(DataError):
        model.fit(ratings(), sample_weight=[1.0])
    np.testing.assert_array_equal(model.user_factors_, before)
    assert model.trajectory_.end.tables.user_factors is model.user_factors_


# ---------------------------------------------------------------- predict


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
def test_predict_against_all_scores(loss, dtype):
    model = fit(data_for(loss), loss=loss, dtype=dtype)
    data = model.data_
    users, items = np.divmod(np.arange(data.n_users * data.n_items), data.n_items)
    predicted = model.predict(users, items)
    assert predicted.dtype == dtype
    truth = dense(model)
    np.testing.assert_allclose(predicted.reshape(truth.shape), truth, rtol=1e-5, atol=1e-6)


def test_predict_goes_by_raw_ids():
    users, items = pairs(6, 5, 20, np.random.default_rng(0))
    letters, numbers = np.array(list("fedcba")), np.array([50, 3, 11, 7, 1000])
    model = fit(Interactions.from_arrays(letters[users], numbers[items], users % 5 + 1.0))
    data = model.data_
    predicted = model.predict(["a", "f", "a"], [7, 1000, 3])
    expected = dense(model)[data.user_index(["a", "f", "a"]), data.item_index([7, 1000, 3])]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_predict_broadcasts_a_single_id():
    model = fit(ratings())
    for_all = model.predict(3, [0, 1, 2])
    np.testing.assert_array_equal(for_all, model.predict([3, 3, 3], [0, 1, 2]))
    np.testing.assert_array_equal(model.predict([3, 4], 1), model.predict([3, 4], [1, 1]))
    assert model.predict(3, 1).shape == (1,)
    assert model.predict([], []).shape == (0,)


def test_predict_does_not_depend_on_the_company():
    """More pairs than a piece holds: each score has the bits it has alone."""
    model = fit(ratings(), n_factors=200)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 12, 4000), rng.integers(0, 9, 4000)
    together = model.predict(users, items)
    for at in (0, 1309, 1310, 1311, 3999):
        assert together[at] == model.predict(users[at], items[at])[0]


def test_predict_refuses():
    model = fit(ratings())
    with pytest.raises(DataError, match="2 users and 3 items do not make pairs"):
        model.predict([0, 1], [0, 1, 2])
    with pytest.raises(UnknownIdError, match="unknown user 99 and 1 other unknown user"):
        model.predict([99, 0, 98], [0, 0, 0])
    with pytest.raises(UnknownIdError, match="unknown item"):
        model.predict([0], ["x"])


# ---------------------------------------------------------------- recommend


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 8),
    st.integers(1, 40),
    st.sampled_from([1, 3, 64]),
    st.booleans(),
)
def test_recommend_against_all_scores(seed, n_users, n_items, n_factors, exclude_known):
    rng = np.random.default_rng(seed)
    n = rng.integers(1, n_users * n_items + 1)
    data = ratings(n_users, n_items, n, seed)
    model = fit(data, n_factors=n_factors, n_epochs=1, dtype="float64")
    known = set(known_pairs(data)) if exclude_known else set()
    per_user = np.bincount([user for user, _ in known], minlength=n_users)
    most = n_items - per_user.max(initial=0)
    if most == 0:
        with pytest.raises(ParameterError, match="k=1 is more than the 0 items left"):
            model.recommend(k=1)
        return
    k = int(rng.integers(1, most + 1))
    items, scores = model.recommend(k=k, exclude_known=exclude_known)
    expected = naive_recommendations(dense(model), known, k)
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_allclose(
        scores, np.take_along_axis(dense(model), expected, 1), rtol=0, atol=1e-12
    )


def test_recommended_scores_are_the_predictions():
    model = fit(ratings())
    items, scores = model.recommend(k=2)
    for user in range(12):
        np.testing.assert_allclose(model.predict(user, items[user]), scores[user], rtol=1e-5)


def test_known_items_are_left_out_and_can_be_kept():
    data = ratings()
    model = fit(data)
    known = set(known_pairs(data))
    items, _ = model.recommend(k=2)
    assert not {(user, item) for user in range(12) for item in items[user].tolist()} & known
    items, _ = model.recommend(k=9, exclude_known=False)
    assert {(user, item) for user in range(12) for item in items[user].tolist()} >= known


def test_ties_go_by_item_code():
    data = positives(n_users=4, n_items=40, n=20)
    model = fit(data, loss="bpr")
    model.item_factors_[:], model.item_biases_[:] = 0, 0
    items, scores = model.recommend(k=7)
    known = list(known_pairs(data))
    for user in range(4):
        free = [item for item in range(40) if (user, item) not in known]
        assert items[user].tolist() == free[:7]
        assert len(set(scores[user].tolist())) == 1


def test_some_users_in_any_order_and_repeatedly():
    model = fit(ratings())
    everyone = model.recommend(k=2)
    for users in ([7, 0, 7], np.array([3]), []):
        some = model.recommend(users, k=2)
        for all_of_them, part in zip(everyone, some, strict=True):
            np.testing.assert_array_equal(part, all_of_them[np.array(users, int)])
            assert part.shape == (len(users), 2)
    np.testing.assert_array_equal(model.recommend(7, k=2)[0], everyone[0][[7]])


def test_more_users_than_one_batch_and_any_threads(monkeypatch):
    data = ratings(40, 30, 300)
    one, two = (fit(data, n_threads=n) for n in (1, 2))
    whole = one.recommend(k=5)
    np.testing.assert_array_equal(two.recommend(k=5), whole)
    monkeypatch.setattr("fastinfluence.models.matrix_factorization._USERS_AT_ONCE", 7)
    np.testing.assert_array_equal(one.recommend(k=5), whole)


def test_repeated_pairs():
    """A pair kept twice is one known item, not two."""
    users, items = [0, 0, 0, 1], [0, 0, 1, 2]
    data = Interactions.from_arrays(users, items, [1, 2, 3, 4], duplicates="keep")
    model = fit(data)
    model.trajectory_.verify()
    assert model.recommend([0], k=1)[0].tolist() == [[2]]
    assert sorted(model.recommend([1], k=2)[0][0].tolist()) == [0, 1]
    with pytest.raises(ParameterError, match="k=2 is more than the 1 items left for user 0"):
        model.recommend(k=2)


def test_a_user_without_examples_gets_recommendations():
    data = Interactions.from_arrays([0], [1], user_ids=["a", "b"], item_ids=["x", "y", "z"])
    model = fit(data, loss="bpr")
    items, _ = model.recommend("b", k=3)
    assert sorted(items[0].tolist()) == ["x", "y", "z"]


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "3"])
def test_bad_k(k):
    with pytest.raises(ParameterError, match=f"k must be an integer >= 1, not {k!r}"):
        fit(ratings()).recommend(k=k)


def test_k_beyond_the_items_names_the_user():
    data = Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "z"])
    model = fit(data, loss="bpr")
    with pytest.raises(ParameterError, match="k=2 is more than the 1 items left for user 'ann'"):
        model.recommend(k=2)
    assert model.recommend("bob", k=2)[0].shape == (1, 2)
    with pytest.raises(ParameterError, match=r"k=4 is more than the 3 items left for user 'ann'$"):
        model.recommend("ann", k=4, exclude_known=False)


def test_recommend_refuses_strangers():
    with pytest.raises(UnknownIdError, match="unknown user 'bob'"):
        fit(ratings()).recommend(["bob"], k=1)
