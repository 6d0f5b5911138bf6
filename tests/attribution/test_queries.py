"""What can be asked: pairs of raw ids in every usual shape."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fastinfluence import Interactions
from fastinfluence.attribution.queries import query_codes
from fastinfluence.errors import DataError, UnknownIdError

USERS, ITEMS = ["bob", "ann", "bob"], [30, 10, 30]
COLUMNS = {"user": USERS, "item": ITEMS}


@pytest.fixture(scope="module")
def data():
    return Interactions.from_arrays(["ann", "bob", "cyd"], [10, 20, 30])


def as_objects():
    array = np.empty((3, 2), object)
    array[:, 0], array[:, 1] = USERS, ITEMS
    return array


SHAPES = {
    "list of tuples": list(zip(USERS, ITEMS, strict=True)),
    "tuple of lists": tuple(map(list, zip(USERS, ITEMS, strict=True))),
    "array of objects": as_objects(),
    "rows of an array": list(as_objects()),
    "dict": COLUMNS,
    "dict of arrays": {name: np.array(column) for name, column in COLUMNS.items()},
    "dict in another order": {"item": ITEMS, "user": USERS},
    "dict with more": {"rating": [1, 2, np.nan], "item": ITEMS, "note": ["x"] * 3, "user": USERS},
    "dict of other names": {"who": USERS, "what": ITEMS},
    "pandas": pd.DataFrame(COLUMNS),
    "pandas with an index": pd.DataFrame({"x": 1, **COLUMNS, "y": 2}, index=[5, 5, 5]),
    "polars": pl.DataFrame(COLUMNS),
    "arrow": pa.table(COLUMNS),
    "interactions": Interactions.from_arrays(USERS, ITEMS, duplicates="keep"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(data, shape):
    users, items = query_codes(SHAPES[shape], data)
    assert users.dtype == items.dtype == np.int32
    assert users.tolist() == [1, 0, 1]
    assert items.tolist() == [2, 0, 2]


def test_what_can_be_gone_through_only_once(data):
    for queries in (zip(USERS, ITEMS, strict=True), (pair for pair in SHAPES["list of tuples"])):
        users, items = query_codes(queries, data)
        assert (users.tolist(), items.tolist()) == ([1, 0, 1], [2, 0, 2])


def test_integer_pairs_in_one_array():
    data = Interactions.from_arrays([5, 7], [1, 2])
    users, items = query_codes(np.array([[7, 1], [5, 2]]), data)
    assert (users.tolist(), items.tolist()) == ([1, 0], [0, 1])


@pytest.mark.parametrize(
    "queries", [[], (), np.empty((0, 2), int), {"user": [], "item": []}, pd.DataFrame(COLUMNS)[:0]]
)
def test_nothing_to_ask(data, queries):
    users, items = query_codes(queries, data)
    assert users.shape == items.shape == (0,)


@pytest.mark.parametrize(
    "queries",
    [
        5,
        None,
        "ab",
        ("bob", 10),
        ("ab", "cd"),
        ["ab", "cd"],
        [(1, 2, 3)],
        [(1,)],
        [("bob", 10), 3],
        [None],
    ],
)
def test_what_is_no_pair(data, queries):
    with pytest.raises(DataError, match=r"sequence of \(user, item\) pairs"):
        query_codes(queries, data)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 2, 2)])
def test_arrays_of_another_shape(data, shape):
    with pytest.raises(DataError, match=r"has the shape \(n, 2\), not \(\d"):
        query_codes(np.zeros(shape), data)


def test_tables_without_the_columns(data):
    with pytest.raises(DataError, match="the columns are 'a', 'b', 'c', 'd'"):
        query_codes({"a": [], "b": [], "c": [], "d": []}, data)


def test_columns_of_different_lengths(data):
    with pytest.raises(DataError, match="3 users but 2 items"):
        query_codes({"user": USERS, "item": [10, 20]}, data)


def test_strangers_are_named_with_the_count_of_the_others(data):
    with pytest.raises(UnknownIdError, match=r"unknown user 'bobo' and 1 other.*nearest.*'bob'"):
        query_codes([("bobo", 10), ("bob", 10), ("dan", 10), ("bobo", 10)], data)
    with pytest.raises(UnknownIdError, match=r"unknown item '10'.*10 \(an integer"):
        query_codes([("bob", "10")], data)


def test_missing_ids(data):
    with pytest.raises(DataError, match=r"users\[1\].*missing"):
        query_codes(pd.DataFrame({"user": ["bob", None], "item": [10, 20]}), data)
    with pytest.raises(DataError, match=r"items\[1\].*missing"):
        query_codes(pa.table({"user": ["bob", "ann"], "item": [10, None]}), data)
