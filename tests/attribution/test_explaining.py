"""Explaining in bulk: lists against the whole matrix, batches, threads, shards, budgets."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import readout as oracle
from planted import LOSSES, data_for, positives, ratings, same_bits

from fastinfluence import Explanations, GradientRollback, Interactions, MatrixFactorization
from fastinfluence.errors import ParameterError, RunDirectoryError, UnknownIdError
from fastinfluence.storage import ShardWriter, open_shards

SPARSE = {"n_users": 8, "n_items": 7, "n": 12, "seed": 1}  # some without an example


def fit(data, *, sample_weight=None, **keywords):
    defaults = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "init_scale": 0.4, "rng": 0}
    return MatrixFactorization(**(defaults | keywords)).fit(data, sample_weight=sample_weight)


def all_pairs(data):
    users, items = np.divmod(np.arange(data.n_users * data.n_items), data.n_items)
    return np.column_stack([data.user_ids[users], data.item_ids[items]])


def matrix_of(why, queries):
    """Influence (n_queries, n_train), NaN for examples that share no row with the query."""
    sparse = why.influence(queries)
    found = np.full(sparse.shape, np.nan)
    for n in range(len(found)):
        stretch = slice(sparse.indptr[n], sparse.indptr[n + 1])
        found[n, sparse.indices[stretch]] = sparse.data[stretch]
    return found


def assert_same_lists(one, other):
    assert same_bits(one.train_index, other.train_index)
    assert same_bits(one.influence, other.influence)
    assert same_bits(one.prediction, other.prediction)


@pytest.mark.parametrize("proponents", [True, False])
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("loss", LOSSES)
def test_lists_against_the_whole_matrix(loss, k, proponents):
    """Bit for bit: unseen and training pairs, users and items without examples, k too large."""
    data = data_for(loss, **SPARSE)
    why = GradientRollback(fit(data, loss=loss))
    queries = all_pairs(data)
    explained = why.explain(queries, k=k, proponents=proponents)
    sign = 1 if proponents else -1
    matrix = matrix_of(why, queries)
    values, indices, totals = oracle.explain(matrix, k, sign)
    assert explained.train_index.shape == explained.influence.shape == (56, k)
    np.testing.assert_array_equal(explained.train_index, indices)
    np.testing.assert_array_equal(explained.influence, np.where(indices < 0, np.nan, sign * values))
    np.testing.assert_allclose(explained.total_influence, totals, rtol=1e-6)
    np.testing.assert_array_equal(explained.prediction, why.model.predict(*queries.T))
    assert (explained.method, explained.units) == ("gradient-rollback", "rank")
    assert (explained.train_index == -1).all(axis=1).any()  # neither user nor item has examples


def test_coverage_is_the_share_of_the_lists():
    why = GradientRollback(fit(ratings(n=80)))
    queries = all_pairs(why.data)
    whole = np.nansum(np.abs(matrix_of(why, queries)), axis=1)
    some = why.explain(queries, k=3)
    shown = np.nansum(np.abs(some.influence), axis=1, dtype=float)
    np.testing.assert_allclose(some.coverage, shown / whole, rtol=1e-6)
    assert (some.coverage < 1).any()
    np.testing.assert_allclose(why.explain(queries, k=60).coverage, 1, rtol=1e-6)


def test_no_examples_is_an_empty_explanation():
    data = Interactions.from_arrays([0], [0], [4], user_ids=["a", "b"], item_ids=["x", "y"])
    explained = GradientRollback(fit(data)).explain([("b", "y"), ("a", "y"), ("b", "x")], k=2)
    assert explained.train_index.tolist() == [[-1, -1], [0, -1], [0, -1]]
    assert np.isnan(explained.influence[0]).all()
    assert np.isnan(explained.coverage[0])
    assert len(explained[0]) == 0
    assert "no training example shares its user or its item" in explained.because(0)


def test_ties_go_by_training_index():
    """Examples of weight 0 changed nothing: all of them have influence 0 exactly."""
    data = ratings(n_users=3, n_items=40, n=100)
    weights = np.zeros(100)
    weights[data.users == 0] = 1
    why = GradientRollback(fit(data, sample_weight=weights))
    item = int(data.items[data.users == 1][0])
    explained = why.explain([(1, item)], k=100)
    listed = explained.train_index[0]
    tied = listed[(explained.influence[0] == 0) & (listed >= 0)]
    expected = np.flatnonzero((weights == 0) & ((data.users == 1) | (data.items == item)))
    np.testing.assert_array_equal(tied, expected)
    assert len(tied) > 20


def test_both_rows_of_a_training_pair_are_taken_back_at_once():
    """For the pair's own example the products of the two changes must not count twice."""
    data = ratings()
    model = fit(data, learning_rate=0.3, n_epochs=20, dtype="float64")
    why = GradientRollback(model)
    j = 7
    user, item = int(data.users[j]), int(data.items[j])
    record = model.trajectory_.replay()
    at = model.trajectory_.visits()[j]
    p, q = model.user_factors_[user], model.item_factors_[item]
    dp, dq = record.user_rows[at], record.item_rows[at]
    expected = p @ q - (p - dp) @ (q - dq) + record.biases[at].sum()
    assert abs(dp @ dq) > 1e-3
    np.testing.assert_allclose(why.influence([(user, item)], dense=True)[0, j], expected)
    np.testing.assert_allclose(why.self_influence()[j], expected)
    listed = why.explain([(user, item)], k=60)
    np.testing.assert_allclose(listed.influence[listed.train_index == j], [expected])
    assert listed.side[listed.train_index == j] == ["both"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_self_influence_is_the_diagonal(dtype):
    data = ratings()
    why = GradientRollback(fit(data, dtype=dtype))
    own = Interactions.from_arrays(data.users, data.items)
    diagonal = np.diagonal(why.influence(own, dense=True))
    assert same_bits(why.self_influence(), np.ascontiguousarray(diagonal))


def test_repeated_pairs_are_examples_of_their_own():
    users, items = [0, 0, 0, 1, 1], [0, 0, 1, 0, 0]
    data = Interactions.from_arrays(users, items, [5, 4, 3, 2, 1], duplicates="keep")
    why = GradientRollback(fit(data))
    matrix = matrix_of(why, [(0, 0), (1, 1)])
    assert np.isnan(matrix).tolist() == [[False] * 5, [True, True, False, False, False]]
    np.testing.assert_array_equal(why.self_influence()[:2], matrix[0, :2])
    values, indices, _ = oracle.explain(matrix, 5, 1)
    explained = why.explain([(0, 0), (1, 1)], k=5)
    np.testing.assert_array_equal(explained.train_index, indices)
    np.testing.assert_array_equal(explained.influence[indices >= 0], values[indices >= 0])


def test_dense_is_sparse_with_zeros():
    why = GradientRollback(fit(ratings(**SPARSE)))
    queries = all_pairs(why.data)
    sparse, dense = why.influence(queries), why.influence(queries, dense=True)
    assert dense.shape == sparse.shape == (56, 12)
    assert same_bits(sparse.toarray(), dense)
    assert sparse.nnz < dense.size


def test_queries_as_given_come_back():
    data = Interactions.from_arrays(["ann", "bob", "bob"], ["x", "x", "y"], [1, 2, 3])
    explained = GradientRollback(fit(data)).explain({"item": ["y", "x"], "user": ["ann", "bob"]})
    assert isinstance(explained, Explanations)
    assert [(one.user, one.item) for one in explained] == [("ann", "y"), ("bob", "x")]
    assert len(GradientRollback(fit(data)).explain([], k=3)) == 0
    assert explained[:0].train_index.shape == (0, 10)


# ---------------------------------------------------------------- what changes nothing


@pytest.fixture(scope="module")
def larger():
    return fit(ratings(60, 50, 1_500), n_factors=7)


def test_batches_threads_and_company_change_no_bit(larger):
    queries = np.random.default_rng(0).permutation(all_pairs(larger.data_))
    whole = GradientRollback(larger, n_threads=1).explain(queries, k=5)
    for keywords in ({"batch_size": 7}, {"batch_size": 1_000}, {"batch_size": 10**6}):
        assert_same_lists(GradientRollback(larger).explain(queries, k=5, **keywords), whole)
    two = GradientRollback(larger, n_threads=2)
    assert_same_lists(two.explain(queries, k=5), whole)
    assert_same_lists(two.explain(queries[100:110], k=5), whole[100:110])
    assert_same_lists(two.explain(queries[::-1], k=5), whole[::-1])
    one = GradientRollback(larger, n_threads=1)
    assert same_bits(two.influence(queries[:99]).data, one.influence(queries[:99]).data)
    assert same_bits(two.self_influence(), one.self_influence())


def test_a_longer_list_begins_with_the_shorter(larger):
    why = GradientRollback(larger)
    queries = all_pairs(larger.data_)[::17]
    longest = why.explain(queries, k=200)
    for k in (1, 2, 10, 100):
        shorter = why.explain(queries, k=k)
        np.testing.assert_array_equal(shorter.train_index, longest.train_index[:, :k])
        np.testing.assert_array_equal(shorter.influence, longest.influence[:, :k])


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_names_of_ids_change_nothing(loss):
    """Codes are what training sees: names in the same order leave every bit as it is."""
    data = data_for(loss, n=90)
    names = np.array([f"user {code:02}" for code in range(12)])
    renamed = Interactions.from_arrays(
        names[data.users], data.items * 10 + 3, data.values if data.has_values else None
    )
    # only those with an example get a code of their own: here that is everybody
    assert (renamed.n_users, renamed.n_items) == (data.n_users, data.n_items)
    lists = [
        GradientRollback(fit(some, loss=loss)).explain(some.select(np.arange(20)))
        for some in (data, renamed)
    ]
    assert_same_lists(*lists)


def test_names_given_in_code_order_may_be_any():
    data = ratings()
    names = np.random.default_rng(0).permutation(12)
    renamed = ratings(user_ids=names)
    expected = GradientRollback(fit(data)).explain([(3, 4), (5, 6)])
    found = GradientRollback(fit(renamed)).explain([(names[3], 4), (names[5], 6)])
    assert_same_lists(found, expected)


def test_values_of_queries_and_other_columns_are_not_read():
    why = GradientRollback(fit(ratings()))
    rated = {"user": [3], "item": [4], "rating": [float("nan")]}
    assert_same_lists(why.explain(rated), why.explain([(3, 4)]))


# ---------------------------------------------------------------- into a folder


def columns_of(reader):
    return reader[0 : len(reader)]


def assert_shards_hold(path, explained):
    columns = columns_of(open_shards(path))
    for name, expected in (
        ("user", explained.users),
        ("item", explained.items),
        ("prediction", explained.prediction),
        ("train_index", explained.train_index),
        ("influence", explained.influence),
    ):
        assert same_bits(columns[name], expected)


@pytest.mark.parametrize("proponents", [True, False])
def test_folder_holds_what_explain_returns(larger, tmp_path, proponents):
    why = GradientRollback(larger)
    queries = all_pairs(larger.data_)[::3]
    n = why.explain_to(tmp_path / "x", queries, k=4, proponents=proponents, batch_size=300)
    assert n == len(queries)
    assert open_shards(tmp_path / "x").n_shards == 4
    assert_shards_hold(tmp_path / "x", why.explain(queries, k=4, proponents=proponents))


@pytest.mark.parametrize("batch_size", [None, 45, 100, 120])
def test_all_pairs(larger, tmp_path, batch_size):
    why = GradientRollback(larger)
    assert why.explain_to(tmp_path / "x", k=3, batch_size=batch_size) == 60 * 50
    assert_shards_hold(tmp_path / "x", why.explain(all_pairs(larger.data_), k=3))


def stop_after(monkeypatch, n_blocks):
    """A writer whose process dies, in effect, before block `n_blocks`."""
    append, calls = ShardWriter.append, []

    def stopping(self, columns):
        if len(calls) == n_blocks:
            raise KeyboardInterrupt
        calls.append(1)
        append(self, columns)

    monkeypatch.setattr(ShardWriter, "append", stopping)


@pytest.mark.parametrize(("first", "again"), [(333, 500), (333, None), (45, 500)])
@pytest.mark.parametrize("everything", [True, False])
def test_resumed_is_as_if_never_stopped(larger, tmp_path, monkeypatch, everything, first, again):
    why, path = GradientRollback(larger), tmp_path / "x"
    queries = None if everything else all_pairs(larger.data_)[::-1]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            why.explain_to(path, queries, k=3, batch_size=first)
    with pytest.raises(RunDirectoryError, match="resume=True"):
        open_shards(path)
    assert why.explain_to(path, queries, k=3, batch_size=again, resume=True) == 3_000
    expected = all_pairs(larger.data_) if everything else queries
    assert_shards_hold(path, why.explain(expected, k=3))
    assert why.explain_to(path, queries, k=3, resume=True) == 3_000  # nothing left to do


def test_only_the_same_call_is_resumed(larger, tmp_path):
    why, path = GradientRollback(larger), tmp_path / "x"
    queries = [(0, 0), (1, 1)]
    why.explain_to(path, queries, k=3)
    with pytest.raises(RunDirectoryError, match="exists already"):
        why.explain_to(path, queries, k=3)
    for other, arguments in (
        (why, {"queries": queries, "k": 4}),
        (why, {"queries": queries[::-1], "k": 3}),
        (why, {"queries": queries, "k": 3, "proponents": False}),
        (why, {"k": 3}),
        (GradientRollback(larger, row_dtype="bfloat16"), {"queries": queries, "k": 3}),
        (GradientRollback(fit(larger.data_, rng=1)), {"queries": queries, "k": 3}),
    ):
        with pytest.raises(RunDirectoryError, match="cannot be resumed"):
            other.explain_to(path, resume=True, **arguments)


# ---------------------------------------------------------------- what is refused


def test_influence_keeps_to_the_memory_budget(monkeypatch, larger):
    why = GradientRollback(larger)
    monkeypatch.setattr("fastinfluence.attribution.base.memory_budget", lambda: 2**20)
    queries = all_pairs(larger.data_)[:300]
    assert why.influence(queries).shape == (300, 1_500)
    with pytest.raises(ParameterError, match="dense=False, or use explain"):
        why.influence(queries, dense=True)
    with pytest.raises(ParameterError, match="ask for fewer queries or use explain"):
        why.influence(np.tile(queries, (20, 1)))


@pytest.mark.parametrize("k", [0, -3, 2.0, True, None])
def test_bad_k(larger, tmp_path, k):
    why = GradientRollback(larger)
    message = f"k must be an integer >= 1, not {k!r}"
    with pytest.raises(ParameterError, match=message):
        why.explain([(0, 0)], k=k)
    with pytest.raises(ParameterError, match=message):
        why.explain_to(tmp_path / "x", k=k)
    assert not (tmp_path / "x").exists()


def test_bad_batch_size_and_strangers(larger, tmp_path):
    why = GradientRollback(larger)
    for batch_size in (0, 2.5):
        with pytest.raises(ParameterError, match="batch_size"):
            why.explain([(0, 0)], batch_size=batch_size)
    with pytest.raises(UnknownIdError, match="unknown user 60"):
        why.explain([(60, 0)])
    with pytest.raises(UnknownIdError, match="unknown item 50 and 1 other"):
        why.explain_to(tmp_path / "x", [(0, 50), (0, 51)])
    assert not (tmp_path / "x").exists()


def test_progress_bar(larger, tmp_path, capsys):
    why = GradientRollback(larger)
    why.explain([(0, 0)], show_progress=True)
    assert "explain" in capsys.readouterr().err
    why.explain_to(tmp_path / "x", [(0, 0)], show_progress=True)
    assert "1/1" in capsys.readouterr().err
    GradientRollback(fit(positives(), loss="bpr"), show_progress=True)
    assert "replay" in capsys.readouterr().err
    why.explain([(0, 0)])
    assert capsys.readouterr().err == ""
