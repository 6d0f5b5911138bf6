"""Interactions: codes, orders, splits, policies, and every bad input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fastinfluence.data.interactions import Interactions
from fastinfluence.errors import DataError, ParameterError, UnknownIdError


@pytest.fixture
def small() -> Interactions:
    return Interactions.from_arrays(
        ["bo", "al", "al", "cy", "bo"],
        [5, 9, 5, 5, 7],
        [1, 2, 3, 4.5, 5],
        item_labels={5: "Five", 9: "Nine"},
    )


def triples(data: Interactions) -> list[tuple]:
    return list(
        zip(
            data.user_ids[data.users].tolist(),
            data.item_ids[data.items].tolist(),
            data.values.tolist(),
            strict=True,
        )
    )


pairs = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40, unique=True
)


# ------------------------------------------------------------------ codes and ids


def test_codes_follow_sorted_ids_and_arrays_are_typed(small):
    assert small.user_ids.tolist() == ["al", "bo", "cy"]
    assert small.item_ids.tolist() == [5, 7, 9]
    assert small.users.tolist() == [1, 0, 0, 2, 1]
    assert small.items.tolist() == [0, 2, 0, 0, 1]
    assert (small.users.dtype, small.items.dtype, small.values.dtype) == ("i4", "i4", "f4")
    assert (len(small), small.n_users, small.n_items, small.has_values) == (5, 3, 3, True)


@given(pairs, st.sampled_from(["dense", "sparse", "strings"]), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_raw_rows_survive_and_maps_ignore_row_order(rows, form, random):
    make = {"dense": int, "sparse": lambda x: x * 10**14 + 3, "strings": lambda x: f"ü{x}"}[form]
    users, items = [make(u) for u, _ in rows], [make(i) for _, i in rows]
    data = Interactions.from_arrays(users, items)
    assert triples(data) == [(u, i, 1.0) for u, i in zip(users, items, strict=True)]
    assert data.user_ids.tolist() == sorted(set(users))
    shuffled = random.sample(range(len(rows)), len(rows))
    again = Interactions.from_arrays([users[j] for j in shuffled], [items[j] for j in shuffled])
    np.testing.assert_array_equal(again.item_ids, data.item_ids)


@pytest.mark.parametrize(
    "users",
    [
        np.array([3, 1], np.uint8),
        np.array([3.0, 1.0]),
        [3, np.int64(1)],
        np.array([3, 1], object),
        np.array([3, 1.0], object),
    ],
)
def test_integer_ids_of_any_dtype(users):
    data = Interactions.from_arrays(users, ["x", "y"])
    assert data.user_ids.dtype == np.int64
    assert data.user_ids[data.users].tolist() == [3, 1]


def test_given_ids_make_rows_codes_and_keep_the_unrated():
    data = Interactions.from_arrays(
        [2, 0], [1, 1], user_ids=["z", "y", "x"], item_ids=[10, 4], user_labels=["Z", "", "X"]
    )
    assert triples(data) == [("x", 4, 1.0), ("z", 4, 1.0)]
    assert data.user_index(["y", "z"]).tolist() == [1, 0]
    assert data.item_index([4, 10, 4]).tolist() == [1, 0, 1]
    assert [data.user_name(c) for c in range(3)] == ["Z", "y", "X"]
    assert data.by_user.pointers.tolist() == [0, 1, 1, 2]


def test_labels_by_mapping_fall_back_to_the_id(small):
    assert small.item_labels.tolist() == ["Five", "", "Nine"]
    assert [small.item_name(c) for c in range(3)] == ["Five", "7", "Nine"]
    assert small.user_name(0) == "al"
    assert small.user_labels is None


def test_index_accepts_scalars_and_nothing(small):
    assert small.user_index("cy").tolist() == [2]
    assert small.item_index(9).tolist() == [2]
    assert small.item_index([]).tolist() == []
    assert small.item_index(np.array([7, 5])).dtype == np.int32


@pytest.mark.parametrize(
    ("kind", "ids", "message"),
    [
        ("user", ["bo", "Ali", "zz", "Ali"], r"unknown user 'Ali' and 1 other.*'al'"),
        ("user", [7], "unknown user 7"),
        ("item", [8], "unknown item 8; nearest known: 7, 9, 5"),
        ("item", "5", r"unknown item '5'; nearest known: 5 \(an integer, not a string\)"),
        ("item", ["x"], "unknown item 'x'$"),
        ("item", -5, "unknown item -5"),
        ("item", 10**12, "unknown item 1000000000000; nearest known: 9"),
    ],
)
def test_unknown_ids_are_named(small, kind, ids, message):
    with pytest.raises(UnknownIdError, match=message):
        (small.user_index if kind == "user" else small.item_index)(ids)


def test_number_asked_of_string_ids_is_explained():
    data = Interactions.from_arrays(["42", "43"], [0, 1])
    with pytest.raises(UnknownIdError, match=r"unknown user 42; .*'42' \(a string, not an int"):
        data.user_index([42])


def test_nearest_among_very_many_ids():
    names = [f"{'ab'[i % 2]}{i:05d}" for i in range(25_000)]
    data = Interactions.from_arrays(names, np.zeros(25_000, int))
    with pytest.raises(UnknownIdError, match="nearest known: 'b00001'"):
        data.user_index("b00001x")


# ------------------------------------------------------------------ orders


@given(pairs, st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_orders_against_lexsort(rows, unrated):
    users, items = np.array(rows).T
    data = Interactions.from_arrays(
        users, items, user_ids=np.arange(9 + unrated), item_ids=np.arange(9 + unrated)
    )
    for grouping, codes in ((data.by_user, data.users), (data.by_item, data.items)):
        np.testing.assert_array_equal(grouping.order, np.argsort(codes, kind="stable"))
        np.testing.assert_array_equal(
            np.diff(grouping.pointers), np.bincount(codes, None, 9 + unrated)
        )
    np.testing.assert_array_equal(data.by_pair, np.lexsort((data.items, data.users)))


def test_immutable(small):
    with pytest.raises(AttributeError):
        small.users = small.items
    for array in (small.users, small.items, small.values, small.by_user.order, small.item_ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_does_not_hold_on_to_the_callers_arrays():
    users, values = np.zeros(1, np.int32), np.ones(1, np.float32)
    data = Interactions.from_arrays(users, [0], values)
    users[0], values[0] = 9, 9
    assert triples(data) == [(0, 0, 1.0)]


# ------------------------------------------------------------------ repeated pairs


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("last", [(2, 2, 3.0), (1, 1, 8.0), (1, 3, 16.0)]),
        ("sum", [(1, 1, 13.0), (2, 2, 3.0), (1, 3, 16.0)]),
        ("keep", [(1, 1, 1.0), (2, 2, 3.0), (1, 1, 4.0), (1, 1, 8.0), (1, 3, 16.0)]),
    ],
)
def test_policies(policy, expected):
    data = Interactions.from_arrays(
        [1, 2, 1, 1, 1], [1, 2, 1, 1, 3], [1, 3, 4, 8, 16], duplicates=policy
    )
    assert triples(data) == expected


def test_sum_counts_rows_without_values():
    data = Interactions.from_arrays([1, 1, 2], [5, 5, 5], duplicates="sum")
    assert data.has_values
    assert data.values.tolist() == [2, 1]
    assert not Interactions.from_arrays([1, 1, 2], [5, 5, 5], duplicates="last").has_values


def test_repeats_are_refused_by_default():
    with pytest.raises(DataError, match=r"2 of 5 rows .*first \('b', 7\) in row 2.*'last'.*'keep'"):
        Interactions.from_arrays(["b", "a", "b", "a", "c"], [7, 1, 7, 1, 1])


def test_unknown_policy():
    with pytest.raises(ParameterError, match="'first' is none of error, last, sum, keep"):
        Interactions.from_arrays([1], [1], duplicates="first")


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("users", "items", "values", "message"),
    [
        ([], [], None, "data are empty"),
        ([1, 2], [1], None, "users has 2 rows but items has 1"),
        ([1, 2], [1, 2], [1], "have 2 rows but values has 1"),
        ([[1]], [1], None, r"users must be one-dimensional, not of shape \(1, 1\)"),
        (1, [1], None, "users must be one-dimensional"),
        ([[1], [1, 2]], [1], None, "users is not an array of ids"),
        ([1, 2], [1, 2], [[1], [2, 3]], "values is not an array of numbers"),
        ([1, 2], [1, 2], [[1], [2]], "values must be one-dimensional"),
        ([0, -4, -1], [1, 2, 3], None, r"users\[1\] = -4 is negative.*1 more"),
        ([0, 1], [1, -2], None, r"items\[1\] = -2 is negative"),
        ([0, np.nan], [1, 2], None, r"users\[1\] = nan is missing"),
        ([0, 1.5], [1, 2], None, r"users\[1\] = 1.5 is no whole number"),
        ([0, np.inf], [1, 2], None, r"users\[1\] = inf is no whole number"),
        (["a", None], [1, 2], None, r"users\[1\] is missing"),
        (["a", float("nan")], [1, 2], None, r"users\[1\] is missing"),
        (["a", ""], [1, 2], None, r"users\[1\] = '' is missing"),
        (["a", 3], [1, 2], None, r"users mixes types: users\[0\] = 'a', users\[1\] = 3"),
        ([object(), object()], [1, 2], None, r"integers or strings, but users\[0\] = <object"),
        ([True, False], [1, 2], None, "users must be integers or strings, not bool"),
        (np.array(["2020-01-01"], "M8[D]"), [1], None, "users must be .* not datetime64"),
        (np.array([2**64 - 1], np.uint64), [1], None, "too large for int64"),
        ([2**70], [1], None, "too large for int64"),
        ([0, 1], [1, 2], [1, np.nan], r"values\[1\] = nan is not a finite"),
        ([0, 1], [1, 2], [-np.inf, 1], r"values\[0\] = -inf is not a finite"),
        ([0, 1], [1, 2], [1, 1e300], r"values\[1\] = 1e\+300 is not a finite float32"),
        ([0, 1], [1, 2], ["4.5", "good"], r"values\[1\] = 'good' is not a number"),
        ([0, 1], [1, 2], [1, None], r"values\[1\] = None is not a number"),
    ],
)
def test_bad_rows_are_named(users, items, values, message):
    with pytest.raises(DataError, match=message):
        Interactions.from_arrays(users, items, values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"user_ids": ["a"]}, r"users\[1\] = 1 is no position in user_ids \(1 ids\)"),
        ({"user_ids": ["a", "a"]}, "user_ids holds 'a' repeatedly"),
        ({"user_labels": ["x"]}, r"user_labels has shape \(1,\), but there are 2 users"),
    ],
)
def test_bad_ids_and_labels(given, message):
    with pytest.raises(DataError, match=message):
        Interactions.from_arrays([0, 1], [5, 5], **given)


def test_strings_are_no_codes():
    with pytest.raises(DataError, match="users must be codes"):
        Interactions.from_arrays(["a"], [0], user_ids=["a"])


# ------------------------------------------------------------------ scipy


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil"])
def test_from_csr_keeps_shape(form):
    matrix = sparse.coo_array(([2.0, 3.0], ([0, 2], [1, 3])), shape=(4, 5)).asformat(form)
    data = Interactions.from_csr(matrix, user_ids=list("abcd"))
    assert sorted(triples(data)) == [("a", 1, 2.0), ("c", 3, 3.0)]
    assert (data.n_users, data.n_items) == (4, 5)
    np.testing.assert_array_equal(data.to_csr().toarray(), matrix.toarray())


def test_from_csr_does_not_add_up_repeats_unasked():
    matrix = sparse.coo_array(([2.0, 3.0], ([0, 0], [1, 1])), shape=(1, 2))
    with pytest.raises(DataError, match="repeat"):
        Interactions.from_csr(matrix)
    assert Interactions.from_csr(matrix, duplicates="sum").values.tolist() == [5]


@pytest.mark.parametrize("matrix", [np.ones((2, 2)), [[1]], None])
def test_from_csr_refuses_what_is_not_sparse(matrix):
    with pytest.raises(DataError, match="no scipy sparse matrix"):
        Interactions.from_csr(matrix)


def test_from_csr_without_entries():
    with pytest.raises(DataError, match="empty"):
        Interactions.from_csr(sparse.csr_array((3, 3)))


@given(pairs)
@settings(deadline=None, max_examples=25)
def test_to_csr_is_canonical(rows):
    users, items = np.array(rows).T
    data = Interactions.from_arrays(users, items, np.arange(1, len(rows) + 1))
    matrix = data.to_csr()
    assert matrix.has_canonical_format
    dense = np.zeros((data.n_users, data.n_items), np.float32)
    dense[data.users, data.items] = data.values
    np.testing.assert_array_equal(matrix.toarray(), dense)


# ------------------------------------------------------------------ splits


def test_split_parts_the_rows_over_the_same_maps():
    data = Interactions.from_arrays(np.arange(100) % 10, np.arange(100) // 10, np.arange(100))
    train, test = data.split(0.25, rng=3)
    assert (len(train), len(test)) == (75, 25)
    assert sorted([*train.values, *test.values]) == list(range(100))
    assert (np.diff(train.values) > 0).all()
    assert train.user_map is test.user_map is data.user_map
    again, _ = data.split(0.25, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(again.values, train.values)
    other, _ = data.split(0.25, rng=4)
    assert (other.values != train.values).any()


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1e-9, float("nan")])
def test_split_refuses_an_empty_side(small, fraction):
    with pytest.raises(ParameterError, match="leaves train or test empty"):
        small.split(fraction)


def test_leave_one_out_takes_one_row_of_each_able_user(small):
    seen = set()
    for seed in range(20):
        train, test = small.leave_one_out(rng=seed)
        assert sorted(test.users.tolist()) == [0, 1]  # cy has one row only
        assert sorted(triples(train) + triples(test)) == sorted(triples(small))
        seen.add(tuple(test.values.tolist()))
    assert len(seen) == 4


def test_leave_one_out_needs_a_second_row():
    with pytest.raises(DataError, match="no user has two rows"):
        Interactions.from_arrays([1, 2], [1, 1]).leave_one_out()


def test_select_by_mask_and_by_index(small):
    assert triples(small.select([3, 0])) == [triples(small)[3], triples(small)[0]]
    np.testing.assert_array_equal(small.select(small.values > 2).values, [3, 4.5, 5])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(5, bool), "selection is empty"),
        ([], "selection is empty"),
        ([True], "mask has shape"),
        ([5], "go from 0 to 4"),
        ([-1], "go from 0 to 4"),
        ([0.0], "boolean mask or a list"),
    ],
)
def test_select_refuses(small, rows, message):
    with pytest.raises(DataError, match=message):
        small.select(rows)


# ------------------------------------------------------------------ saved parts


def assert_equal(a: Interactions, b: Interactions) -> None:
    assert a.has_values == b.has_values
    assert a.arrays().keys() == b.arrays().keys()
    for name, array in a.arrays().items():
        assert array.dtype == b.arrays()[name].dtype
        np.testing.assert_array_equal(array, b.arrays()[name])


def test_parts_round_trip(small):
    assert_equal(Interactions.from_parts(small.arrays()), small)
    plain = Interactions.from_arrays([1, 1], [5, 5], duplicates="keep")
    assert_equal(Interactions.from_parts(plain.arrays()), plain)
    assert all(array.dtype != object for array in small.arrays().values())


def test_parts_stay_memory_mapped(small, tmp_path):
    parts = {}
    for name, array in small.arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
        parts[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    data = Interactions.from_parts(parts)
    assert np.shares_memory(data.users, parts["users"])
    assert np.shares_memory(data.values, parts["values"])
    np.testing.assert_array_equal(data.by_pair, small.by_pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": None}, "saved interactions lack users"),
        ({"users": np.array([0, 9, 0, 0, 0], np.int32)}, "codes outside 0 to 2"),
        ({"users": np.zeros(5)}, "saved users must be int32 codes"),
        ({"items": np.zeros(4, np.int32)}, "differ in length"),
        ({"values": np.zeros(5)}, "float32 values"),
    ],
)
def test_damaged_parts(small, change, message):
    parts = {**small.arrays(), **change}
    with pytest.raises(DataError, match=message):
        Interactions.from_parts({name: a for name, a in parts.items() if a is not None})


def test_pickles(small):
    assert_equal(pickle.loads(pickle.dumps(small)), small)


# ------------------------------------------------------------------ for people


def test_repr_reads_well(small):
    text = repr(small)
    assert text.startswith(
        "Interactions: 5 rows, 3 users, 3 items (55.56% of all pairs), values 1 to 5"
    )
    assert "  bo → Five: 1" in text.splitlines()
    without = Interactions.from_arrays(np.arange(9), np.arange(9))
    assert repr(without).splitlines()[1:] == [*(f"  {i} → {i}" for i in range(5)), "  …"]


def test_html_is_escaped():
    data = Interactions.from_arrays(["<b>&"], ["<script>"])
    page = data._repr_html_()
    assert "&lt;b&gt;&amp;" in page
    assert "<script>" not in page
