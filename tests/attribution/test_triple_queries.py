"""What can be asked of a knowledge graph: triples of raw ids in every usual shape."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fastinfluence import Interactions, Triples
from fastinfluence.attribution.triple_queries import read_questions
from fastinfluence.errors import DataError, ParameterError, UnknownIdError

HEADS, RELATIONS, TAILS = ["bob", "ann", "bob"], [30, 10, 30], ["cyd", "ann", "dan"]
COLUMNS = {"head": HEADS, "relation": RELATIONS, "tail": TAILS}
DATA = Triples.from_arrays(
    ["ann", "bob", "cyd"], [10, 20, 30], ["bob", "cyd", "ann"], test=(["dan"], [10], ["eve"])
)  # dan and eve only in a held-out triple


def as_objects():
    array = np.empty((3, 3), object)
    array[:, 0], array[:, 1], array[:, 2] = HEADS, RELATIONS, TAILS
    return array


SHAPES = {
    "list of tuples": list(zip(HEADS, RELATIONS, TAILS, strict=True)),
    "tuple of lists": tuple(map(list, zip(HEADS, RELATIONS, TAILS, strict=True))),
    "array of objects": as_objects(),
    "rows of an array": list(as_objects()),
    "dict": COLUMNS,
    "dict in another order": {name: COLUMNS[name] for name in ("tail", "head", "relation")},
    "dict with more": {"note": ["x"] * 3, **COLUMNS, "rank": [1, 2, np.nan]},
    "dict of other names": dict(zip("abc", COLUMNS.values(), strict=True)),
    "pandas": pd.DataFrame(COLUMNS),
    "pandas with an index": pd.DataFrame({"x": 1, **COLUMNS}, index=[5, 5, 5]),
    "polars": pl.DataFrame(COLUMNS),
    "arrow": pa.table(COLUMNS),
    "triples": Triples.from_arrays(HEADS, RELATIONS, TAILS),
}


def lists(questions):
    return [column.tolist() for column in questions]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    found = read_questions(SHAPES[shape], "tail", DATA)
    assert [column.dtype for column in found] == [np.int32] * 3 + [bool]
    assert lists(found) == [[1, 0, 1], [2, 0, 2], [2, 0, 3], [False] * 3]


def test_what_can_be_gone_through_only_once():
    found = read_questions(zip(HEADS, RELATIONS, TAILS, strict=True), "tail", DATA)
    assert lists(found)[:3] == [[1, 0, 1], [2, 0, 2], [2, 0, 3]]


def test_held_out_triples_over_the_same_maps():
    assert lists(read_questions(DATA.test, "tail", DATA)) == [[3], [0], [4], [False]]


def test_integers_in_one_array():
    data = Triples.from_arrays([5, 7], [1, 2], [7, 7])
    found = read_questions(np.array([[7, 1, 5], [5, 2, 7]]), "head", data)
    assert lists(found) == [[1, 0], [0, 1], [0, 1], [True, True]]


@pytest.mark.parametrize(
    ("predict", "expected"),
    [
        ("tail", [False] * 3),
        ("head", [True] * 3),
        (["head", "tail", "head"], [True, False, True]),
        (np.array(["tail", "tail", "head"]), [False, False, True]),
    ],
)
def test_sides(predict, expected):
    found = read_questions(SHAPES["list of tuples"], predict, DATA)
    assert found.predict_head.tolist() == expected
    targets = [h if head else t for h, t, head in zip(*lists(found)[::2], expected, strict=True)]
    assert found.targets.tolist() == targets


@pytest.mark.parametrize("predict", ["both", 1, None, ["tail", "both", "head"], [0, 1, 0]])
def test_no_sides(predict):
    with pytest.raises(ParameterError, match=r"predict=.* is not known: use 'tail' or 'head'"):
        read_questions(SHAPES["list of tuples"], predict, DATA)


def test_too_few_sides():
    with pytest.raises(ParameterError, match="a side of 2 queries, but there are 3"):
        read_questions(SHAPES["list of tuples"], ["tail", "head"], DATA)


# ---------------------------------------------------------------- open ends

OPEN_ENDS = [("bob", 30, None), (None, 10, "ann"), ("ann", 10, "bob")]


@pytest.mark.parametrize(
    "queries",
    [
        OPEN_ENDS,
        np.array(OPEN_ENDS, object),
        {name: [row[j] for row in OPEN_ENDS] for j, name in enumerate(COLUMNS)},
        pl.DataFrame(OPEN_ENDS, schema=list(COLUMNS), orient="row"),
        pa.table({name: [row[j] for row in OPEN_ENDS] for j, name in enumerate(COLUMNS)}),
    ],
)
def test_an_open_end_is_the_one_asked_for(queries):
    """Whatever side the others are asked for."""
    for predict, last in (("tail", False), ("head", True)):
        found = read_questions(queries, predict, DATA)
        assert lists(found) == [[1, -1, 0], [2, 0, 0], [-1, 0, 1], [False, True, last]]
        answered = found.answered(np.array([4, 3, 0 if last else 1], np.int32))
        assert lists(answered) == [[1, 3, 0], [2, 0, 0], [4, 0, 1], [False, True, last]]


def test_all_ends_open():
    found = read_questions([("bob", 10, None), ("ann", 30, None)], "tail", DATA)
    assert lists(found) == [[1, 0], [0, 2], [-1, -1], [False, False]]


def test_one_end_at_most():
    with pytest.raises(DataError, match="query 1 has neither head nor tail"):
        read_questions([("bob", 10, None), (None, 10, None)], "tail", DATA)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "queries",
    [[], (), np.empty((0, 3), int), {name: [] for name in COLUMNS}, pd.DataFrame(COLUMNS)[:0]],
)
def test_nothing_to_ask(queries):
    with pytest.raises(DataError, match="no queries to explain: give at least one"):
        read_questions(queries, "tail", DATA)


@pytest.mark.parametrize(
    "queries",
    [
        5,
        None,
        "abc",
        ("bob", 10, "ann"),
        ["abc", "def"],
        [("bob", 10)],
        [("bob", 10, "ann", 1)],
        [("bob", 10, "ann"), 3],
        Interactions.from_arrays([1], [2]),
    ],
)
def test_what_is_no_triple(queries):
    with pytest.raises(DataError, match=r"sequence of \(head, relation, tail\) triples"):
        read_questions(queries, "tail", DATA)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 4), (2, 3, 3)])
def test_arrays_of_another_shape(shape):
    with pytest.raises(DataError, match=r"has the shape \(n, 3\), not \(\d"):
        read_questions(np.zeros(shape), "tail", DATA)


@pytest.mark.parametrize("names", ["ab", "abcd", ["head", "relation", "b", "c"]])
def test_tables_without_the_columns(names):
    with pytest.raises(DataError, match=r"hold heads, relations and tails.*the columns are"):
        read_questions({name: [] for name in names}, "tail", DATA)


def test_columns_of_different_lengths():
    with pytest.raises(DataError, match="3 heads, 2 relations and 3 tails"):
        read_questions(COLUMNS | {"relation": [10, 20]}, "tail", DATA)


def test_strangers_are_named_with_the_nearest():
    with pytest.raises(UnknownIdError, match=r"unknown entity 'bobo' and 1 other.*nearest.*'bob'"):
        read_questions([("bobo", 10, "ann"), ("zoe", 10, None)], "tail", DATA)
    with pytest.raises(UnknownIdError, match=r"unknown entity 'anne'; nearest known: 'ann'"):
        read_questions([("bob", 10, "anne")], "tail", DATA)
    with pytest.raises(UnknownIdError, match=r"unknown relation '10'.*10 \(an integer"):
        read_questions([("bob", "10", "ann")], "tail", DATA)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([("bob", None, "ann")], r"relations\[0\].*missing"),
        ([("bob", 10, "ann"), ("bob", np.nan, "ann")], r"relations\[1\].*missing"),
        ([("bob", 10, "ann"), (None, 10, "ann"), (np.nan, 10, "ann")], r"entities\[2\].*missing"),
        (pd.DataFrame(COLUMNS | {"tail": ["cyd", None, "dan"]}), r"entities\[1\].*missing"),
        ([("bob", 10, ""), ("bob", 10, "ann")], r"entities\[0\].*missing"),
    ],
)
def test_missing_ids(queries, message):
    with pytest.raises(DataError, match=message):
        read_questions(queries, "tail", DATA)
