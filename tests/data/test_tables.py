"""Interactions from tables of every library, and from what is no table."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fastinfluence.data.interactions import Interactions
from fastinfluence.errors import DataError, MissingExtraError

COLUMNS = {
    "when": [7, 8, 9],
    "who": ["bo", "al", "bo"],
    "what": [30, 10, 20],
    "stars": [4.5, 3.0, 1.0],
}


class ArrowOnly:
    """Speaks the Arrow stream protocol and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


TABLES = {
    "dict": lambda columns: columns,
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow table": pa.table,
    "arrow batch": pa.RecordBatch.from_pydict,
    "arrow stream": lambda columns: ArrowOnly(pa.table(columns)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind):
    data = Interactions.from_table(TABLES[kind](COLUMNS), user="who", item="what", value="stars")
    assert data.user_ids[data.users].tolist() == COLUMNS["who"]
    assert data.item_ids[data.items].tolist() == COLUMNS["what"]
    assert data.values.tolist() == COLUMNS["stars"]


@pytest.mark.parametrize("kind", TABLES)
def test_columns_by_position(kind):
    data = Interactions.from_table(TABLES[kind](COLUMNS), user=1, item=2)
    assert data.user_ids[data.users].tolist() == COLUMNS["who"]
    assert not data.has_values


@pytest.mark.parametrize("kind", TABLES)
def test_missing_column_lists_those_there_are(kind):
    with pytest.raises(
        DataError, match="no column 'rating'; the columns are 'when', 'who', 'what', 'stars'"
    ):
        Interactions.from_table(TABLES[kind](COLUMNS), user="who", item="what", value="rating")


@pytest.mark.parametrize("kind", [k for k in TABLES if k != "dict"])
@pytest.mark.parametrize("gap", [["a", None, "b"], [1, None, 2]])
def test_null_id_is_named(kind, gap):
    table = TABLES[kind]({"u": gap, "i": [1, 2, 3]})
    with pytest.raises(DataError, match=r"users\[1\].* is missing"):
        Interactions.from_table(table)


@pytest.mark.parametrize(
    "users",
    [
        pd.Series(["b", "a"], dtype="category"),
        pd.Series(["b", "a"], dtype=object),
        pa.chunked_array([pa.array(["b", "a"]).dictionary_encode()]),
        pl.Series(["b", "a"], dtype=pl.Categorical),
    ],
)
def test_categories_and_objects(users):
    library = {"pandas": pd.DataFrame, "pyarrow": pa.table, "polars": pl.DataFrame}
    make = library[type(users).__module__.partition(".")[0]]
    data = Interactions.from_table(make({"u": users, "i": [1, 2]}))
    assert data.user_ids.tolist() == ["a", "b"]
    assert data.users.tolist() == [1, 0]


def test_pandas_nullable_integers():
    frame = pd.DataFrame(
        {"u": pd.array([3, 1], "Int64"), "i": [1, 2], "v": pd.array([1, 2], "Float32")}
    )
    assert Interactions.from_table(frame).user_ids.tolist() == [1, 3]
    frame = pd.DataFrame({"u": pd.array([3, None], "Int64"), "i": [1, 2]})
    with pytest.raises(DataError, match=r"users\[1\].*missing"):
        Interactions.from_table(frame)


def test_two_or_three_columns_need_no_names():
    pair = Interactions.from_table({"a": [1, 2], "b": [3, 4]})
    assert not pair.has_values
    rated = Interactions.from_table({"a": [1, 2], "b": [3, 4], "c": [5, 6]}, item_labels={3: "x"})
    assert rated.values.tolist() == [5, 6]
    assert rated.item_labels.tolist() == ["x", ""]


@pytest.mark.parametrize(
    "named", [{}, {"user": "who"}, {"item": "what"}, {"value": "stars"}, {"user": 1, "value": 3}]
)
def test_ambiguous_columns_must_be_told(named):
    with pytest.raises(DataError, match=r"say which columns hold users and items.*'when', 'who'"):
        Interactions.from_table(COLUMNS, **named)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"user": 4, "item": 1}, "no column at position 4; the columns are"),
        ({"user": -1, "item": 1}, "no column at position -1"),
        ({"user": "who", "item": 1}, "column 'who' is asked for twice"),
    ],
)
def test_bad_columns(named, message):
    with pytest.raises(DataError, match=message):
        Interactions.from_table(COLUMNS, **named)


def test_two_columns_of_one_name():
    frame = pd.DataFrame([[1, 2, 3]], columns=["u", "i", "u"])
    with pytest.raises(DataError, match="two columns are called 'u'"):
        Interactions.from_table(frame, user="u", item="i")


def test_long_lists_of_columns_are_cut():
    wide = {f"c{i}": [1] for i in range(40)}
    with pytest.raises(DataError, match=r"'c29' and 10 more$"):
        Interactions.from_table(wide)


@pytest.mark.parametrize("table", [np.ones((2, 2)), [[1, 2]], None, "ratings.csv"])
def test_no_table(table):
    with pytest.raises(DataError, match="is no table"):
        Interactions.from_table(table)


def test_lists_in_a_dict_keep_their_types():
    with pytest.raises(DataError, match="users mixes types"):
        Interactions.from_table({"u": ["a", 1], "i": [1, 2]})


def test_lazy_frames_must_be_collected():
    with pytest.raises(DataError, match=r"collect\(\)"):
        Interactions.from_table(pl.LazyFrame(COLUMNS), user="who", item="what")


def test_arrow_stream_without_pyarrow(monkeypatch):
    table = ArrowOnly(pa.table(COLUMNS))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastinfluence\[arrow\]'"):
        Interactions.from_table(table)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_frames_need_no_pyarrow(monkeypatch, kind):
    frame = TABLES[kind]({"u": [1, 2], "i": [1, 2]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert len(Interactions.from_table(frame)) == 2
