"""Triples: codes, splits, orders, what is known, policies, and every bad input."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfluence.data import Triples
from fastinfluence.data.ids import Coded
from fastinfluence.errors import DataError, ParameterError, UnknownIdError

TRAIN = [
    ("New York", "part of", "usa"),
    ("usa", "trades: with/for", "中国"),
    ("中国", "trades: with/for", "usa"),
    ("usa", "is", "usa"),
    ("Zürich", "part of", "Schweiz"),
]
VALIDATION = [("Bern", "part of", "Schweiz"), ("usa", "trades: with/for", "Schweiz")]
TEST = [("åland", "borders", "Bern")]


def from_rows(rows, **given) -> Triples:
    return Triples.from_arrays(*zip(*rows, strict=True), **given)


@pytest.fixture
def small() -> Triples:
    return from_rows(TRAIN, validation=VALIDATION, test=tuple(zip(*TEST, strict=True)))


def raw(data: Triples) -> list[tuple]:
    return list(zip(*(column.tolist() for column in data.columns().values()), strict=True))


def assert_equal(a: Triples, b: Triples) -> None:
    assert a.arrays().keys() == b.arrays().keys()
    for name, array in a.arrays().items():
        assert array.dtype == b.arrays()[name].dtype
        np.testing.assert_array_equal(array, b.arrays()[name])


# ------------------------------------------------------------------ codes and ids


def test_training_ids_come_first_and_sorted_then_the_others(small):
    assert small.entity_ids.tolist() == [
        *("New York", "Schweiz", "Zürich", "usa", "中国"),
        *("Bern", "åland"),
    ]
    assert small.relation_ids.tolist() == ["is", "part of", "trades: with/for", "borders"]
    assert (len(small), small.n_entities, small.n_relations) == (5, 7, 4)
    assert small.heads.tolist() == [0, 3, 4, 3, 2]
    assert small.relations.tolist() == [1, 2, 2, 0, 1]
    assert small.tails.tolist() == [3, 4, 3, 3, 1]
    assert {small.heads.dtype, small.relations.dtype, small.tails.dtype} == {np.dtype("i4")}


def test_splits_keep_every_row_over_the_same_maps(small):
    assert (raw(small), raw(small.validation), raw(small.test)) == (TRAIN, VALIDATION, TEST)
    assert list(small.splits) == ["validation", "test"]
    for split in small.splits.values():
        assert split.entity_map is small.entity_map
        assert split.relation_map is small.relation_map
        assert split.splits == {}
    assert from_rows(TRAIN).splits == {}


def test_what_training_does_not_hold(small):
    assert small.entity_ids[small.unseen_entities].tolist() == ["Bern", "åland"]
    assert small.relation_ids[small.unseen_relations].tolist() == ["borders"]
    assert small.unseen_entities.dtype == np.int32
    assert from_rows(TRAIN).unseen_entities.tolist() == []


rows = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=30
)


@given(rows, rows, st.sampled_from(["integers", "strings", "coded"]))
@settings(deadline=None, max_examples=60)
def test_raw_rows_survive_in_every_form(train, test, form):
    def column(values):
        if form == "integers":
            return np.array(values) * 10**12
        names = [f"ü {value}" for value in values]
        distinct = list(dict.fromkeys(names))
        codes = np.array([distinct.index(name) for name in names], np.int32)
        return names if form == "strings" else Coded(codes, np.array(distinct))

    parts = [tuple(map(column, zip(*part, strict=True))) for part in (train, test)]
    data = Triples.from_arrays(*parts[0], test=parts[1], duplicates="keep")
    make = (lambda v: v * 10**12) if form == "integers" else (lambda v: f"ü {v}")
    assert raw(data) == [tuple(map(make, row)) for row in train]
    assert raw(data.test) == [tuple(map(make, row)) for row in test]
    seen = {e for h, _, t in train for e in (h, t)}
    rest = {e for h, _, t in test for e in (h, t)} - seen
    assert data.entity_ids.tolist() == [make(e) for e in [*sorted(seen), *sorted(rest)]]
    assert data.unseen_entities.tolist() == list(range(len(seen), len(seen) + len(rest)))


def test_given_ids_make_rows_codes_and_keep_the_unused():
    data = Triples.from_arrays(
        [2, 0],
        [0, 0],
        [0, 0],
        test=np.array([[1, 0, 1]]),
        entity_ids=["z", "y", "x"],
        relation_ids=["r", "s"],
    )
    assert raw(data) == [("x", "r", "z"), ("z", "r", "z")]
    assert raw(data.test) == [("y", "r", "y")]
    assert data.unseen_entities.tolist() == data.unseen_relations.tolist() == [1]
    assert "in none of these triples" in repr(data)


def test_self_loops_and_a_relation_with_one_triple_are_kept():
    data = from_rows([("a", "r", "a"), ("b", "once", "a"), ("a", "r", "b")])
    assert raw(data)[0] == ("a", "r", "a")
    assert np.diff(data.by_relation.pointers).tolist() == [1, 2]


def test_index_names_strangers_and_offers_the_nearest(small):
    assert small.entity_index(["usa", "Bern"]).tolist() == [3, 5]
    assert small.relation_index("borders").tolist() == [3]
    with pytest.raises(UnknownIdError, match=r"unknown entity 'Usa' and 2 other unknown entities;"):
        small.entity_index(["Usa", "x", "y"])
    with pytest.raises(UnknownIdError, match="unknown entity 'zurich'; nearest known: 'Zürich'"):
        small.entity_index("zurich")
    with pytest.raises(UnknownIdError, match=r"unknown relation 'part-of'.*'part of'"):
        small.relation_index("part-of")


def test_names(small):
    assert small.triple_name(0) == "New York — part of → usa"
    assert small.name(6, 3, 5) == "åland — borders → Bern"
    named = small.with_labels({"usa": "United States"}, {"is": "is the same as"})
    assert named.triple_name(3) == "United States — is the same as → United States"
    assert named.validation.triple_name(1) == "United States — trades: with/for → Schweiz"
    assert named.validation.entity_map is named.entity_map
    assert named.entity_index("usa").tolist() == [3]
    assert small.entity_labels is None


def test_labels_at_birth():
    data = from_rows([("q1", "p1", "q2")], entity_labels=["One", ""], relation_labels={"p1": "of"})
    assert data.triple_name(0) == "One — of → q2"
    with pytest.raises(DataError, match=r"entity_labels .* \(1,\), but there are 2 entities"):
        from_rows([("q1", "p1", "q2")], entity_labels=["One"])


# ------------------------------------------------------------------ orders


@given(rows)
@settings(deadline=None, max_examples=60)
def test_orders_against_numpy(train):
    data = from_rows(train, entity_ids=np.arange(7), relation_ids=np.arange(4), duplicates="keep")
    for grouping, codes, n in (
        (data.by_head, data.heads, 7),
        (data.by_tail, data.tails, 7),
        (data.by_relation, data.relations, 4),
    ):
        np.testing.assert_array_equal(grouping.order, np.argsort(codes, kind="stable"))
        np.testing.assert_array_equal(np.diff(grouping.pointers), np.bincount(codes, None, n))
    for grouping, codes in (
        (data.by_head_relation, data.heads),
        (data.by_relation_tail, data.tails),
    ):
        keys = codes.astype(np.int64) * 4 + data.relations
        distinct, counts = np.unique(keys, return_counts=True)
        np.testing.assert_array_equal(grouping.keys, distinct)
        np.testing.assert_array_equal(grouping.pointers, [0, *np.cumsum(counts)])
        np.testing.assert_array_equal(grouping.order, np.argsort(keys, kind="stable"))


def test_orders_are_made_once_and_nothing_can_be_changed(small):
    assert small.by_head_relation is small.by_head_relation
    assert small.known("tail") is small.known("tail")
    with pytest.raises(AttributeError):
        small.heads = small.tails
    for array in (small.heads, small.by_tail.order, small.entity_ids, small.known("head").answers):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_does_not_hold_on_to_the_callers_arrays():
    heads, codes = np.array([0, 1]), np.zeros(2, np.int32)
    data = Triples.from_arrays(heads, codes, [1, 0], relation_ids=["r"])
    heads[:], codes[:] = 9, 9
    assert raw(data) == [(0, "r", 1), (1, "r", 0)]


@given(rows, rows, rows)
@settings(deadline=None, max_examples=60)
def test_known_answers_against_sets(train, validation, test):
    data = from_rows(train, validation=validation, test=test, duplicates="keep")
    everything = {*train, *validation, *test}
    for predict in ("tail", "head"):
        known = data.known(predict)
        expected: dict[tuple, set] = {}
        for h, r, t in everything:
            given, answer = (h, t) if predict == "tail" else (t, h)
            expected.setdefault((given, r), set()).add(answer)
        assert len(known.keys) == len(expected)
        assert (np.diff(known.keys) > 0).all()
        questions = list(expected)
        entities = data.entity_index([e for e, _ in questions])
        relations = data.relation_index([r for _, r in questions])
        starts, stops = data.answers(predict, entities, relations)
        assert starts.dtype == stops.dtype == np.int64
        for question, start, stop in zip(questions, starts, stops, strict=True):
            answers = known.answers[start:stop]
            assert (np.diff(answers) > 0).all()
            assert set(data.entity_ids[answers].tolist()) == expected[question]


def test_questions_nobody_answers(small):
    starts, stops = small.answers("tail", [6, 6], [3, 0])
    assert (stops - starts).tolist() == [1, 0]
    with pytest.raises(ParameterError, match="predict='tails' is neither 'tail' nor 'head'"):
        small.known("tails")


# ------------------------------------------------------------------ repeated triples


def test_policies():
    repeated = [("b", "r", "a"), ("a", "r", "b"), ("b", "r", "a"), ("b", "s", "a")]
    with pytest.raises(
        DataError, match=r"1 of 4 training triples .*first \('b', 'r', 'a'\) in row 2:.*'first'"
    ):
        from_rows(repeated)
    assert raw(from_rows(repeated, duplicates="first")) == [repeated[0], repeated[1], repeated[3]]
    assert raw(from_rows(repeated, duplicates="keep")) == repeated
    with pytest.raises(ParameterError, match="'last' is none of error, first, keep"):
        from_rows(repeated, duplicates="last")


def test_repeats_are_looked_for_inside_each_part():
    same = from_rows(TRAIN, test=TRAIN[:2])
    assert raw(same.test) == TRAIN[:2]
    with pytest.raises(DataError, match=r"1 of 2 test triples repeat .*in row 1"):
        from_rows(TRAIN, test=[TRAIN[0], TRAIN[0]])
    assert raw(from_rows(TRAIN, test=[TRAIN[0]] * 2, duplicates="first").test) == TRAIN[:1]


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("heads", "relations", "tails", "message"),
    [
        ([], [], [], "there are no triples: the data are empty"),
        (["a", "b"], ["r"], ["b", "a"], "heads has 2 rows but relations has 1"),
        (["a"], ["r"], ["b", "a"], "heads has 1 rows but tails has 2"),
        (["a", ""], ["r", "r"], ["b", "a"], r"heads\[1\] = '' is missing"),
        (["a", "b"], ["r", None], ["b", "a"], r"relations\[1\] is missing"),
        (["a"], ["r"], [np.nan], r"tails\[0\] = nan is missing"),
        ([1, 2], ["r", "r"], [0, -2], r"tails\[1\] = -2 is negative"),
        ([1, 2], ["r", "r"], ["1", "2"], "heads are integers but tails are strings: entities"),
        ([["a"]], ["r"], ["b"], r"heads must be one-dimensional, not of shape \(1, 1\)"),
        (["a", 1], ["r", "r"], ["b", "b"], "heads mixes types"),
    ],
)
def test_bad_rows_are_named(heads, relations, tails, message):
    with pytest.raises(DataError, match=message):
        Triples.from_arrays(heads, relations, tails)


@pytest.mark.parametrize("empty", [[], ([], [], []), np.empty((0, 3), int)])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_empty_split_is_refused(empty, split):
    with pytest.raises(DataError, match=f"{split} is empty: give it a triple, or leave it out"):
        from_rows(TRAIN, **{split: empty})


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([("a", "r")], r"test must be a tuple .* or triples \(n, 3\), not of shape \(1, 2\)"),
        ("usa", r"not of shape \(\)"),
        ((["a"], ["r", "r"], ["b"]), "test heads has 1 rows but test relations has 2"),
        (([1], ["r"], ["b"]), "test heads are integers but test tails are strings"),
        ([("a", "r", None)], r"test tails\[0\] is missing"),
    ],
)
def test_bad_splits_are_named(test, message):
    with pytest.raises(DataError, match=message):
        from_rows(TRAIN, test=test)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"entity_ids": ["a"]}, r"heads\[1\] = 1 is no position in entity_ids \(1 ids\)"),
        ({"entity_ids": ["a", "a"]}, "entity_ids holds 'a' repeatedly"),
        ({"relation_ids": ["r"], "test": ([0], ["r"], [0])}, "test relations must be codes"),
    ],
)
def test_bad_codes(given, message):
    with pytest.raises(DataError, match=message):
        Triples.from_arrays([0, 1], [0, 0], [0, 0], **given)


def test_missing_name_among_coded_ones():
    names = Coded(np.array([0, 1, 1], np.int32), np.array(["a", ""]))
    with pytest.raises(DataError, match=r"heads\[1\] = '' is missing.*\(1 more like it\)"):
        Triples.from_arrays(names, ["r"] * 3, ["a"] * 3)


# ------------------------------------------------------------------ tables and PyKEEN

TABLE = {"year": [1, 2], "object": ["b", "a"], "subject": ["a", "c"], "says": ["r", "s"]}
NAMED = {"head": "subject", "relation": "says", "tail": "object"}


@pytest.mark.parametrize("make", [dict, pd.DataFrame, pl.DataFrame, pa.table])
def test_tables_of_every_kind(make):
    data = Triples.from_table(make(TABLE), **NAMED, test=make(TABLE))
    assert raw(data) == raw(data.test) == [("a", "r", "b"), ("c", "s", "a")]
    assert raw(Triples.from_table(make(TABLE), head=2, relation=3, tail=1)) == raw(data)


def test_three_columns_need_no_names_two_and_four_do():
    three = {"h": ["a"], "r": ["likes"], "t": ["b"]}
    assert raw(Triples.from_table(three)) == [("a", "likes", "b")]
    with pytest.raises(DataError, match=r"say which of 4 columns hold heads.*'year', 'object'"):
        Triples.from_table(TABLE)
    with pytest.raises(DataError, match=r"say which of 2 columns .*tail=\.\.\.\)"):
        Triples.from_table({"h": ["a"], "t": ["b"]})
    with pytest.raises(DataError, match=r"say which hold heads"):
        Triples.from_table(three, head="h")
    with pytest.raises(DataError, match="there is no column 'x'"):
        Triples.from_table(three, head="x", relation="r", tail="t")


class Tensor:
    """What of a torch tensor is used, as if it lay on another device."""

    def __init__(self, values):
        self.values = values

    def cpu(self):
        return np.array(self.values)


def factory(rows, entities=("b", "a", "c"), relations=("r",)):
    return SimpleNamespace(
        mapped_triples=Tensor(rows),
        entity_to_id={name: code for code, name in enumerate(entities)},
        relation_to_id={name: code for code, name in enumerate(relations)},
    )


def test_pykeen_factories_keep_their_codes():
    data = Triples.from_pykeen(factory([(0, 0, 1), (0, 0, 1)]), test=factory([(2, 0, 1)]))
    assert data.entity_ids.tolist() == ["b", "a", "c"]
    assert (data.heads.tolist(), data.tails.tolist()) == ([0, 0], [1, 1])
    assert raw(data.test) == [("c", "r", "a")]
    assert data.validation is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Triples.from_pykeen([("a", "r", "b")]), "a list is no PyKEEN TriplesFactory"),
        (
            lambda: Triples.from_pykeen(factory([(0, 0, 1)]), factory([(0, 0, 1)], entities="abc")),
            "validation factory has another entity_to_id",
        ),
        (
            lambda: Triples.from_pykeen(
                SimpleNamespace(
                    mapped_triples=np.zeros((1, 3), int),
                    entity_to_id={"a": 1},
                    relation_to_id={"r": 0},
                )
            ),
            "entity_to_id must number the entity names 0 to 0",
        ),
        (lambda: Triples.from_pykeen(factory([(0, 1)])), r"mapped_triples must be \(n, 3\)"),
    ],
)
def test_no_pykeen_factory(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_real_pykeen_factory():
    triples = pytest.importorskip("pykeen.triples")
    made = triples.TriplesFactory.from_labeled_triples(np.array(TRAIN))
    assert sorted(raw(Triples.from_pykeen(made))) == sorted(TRAIN)


# ------------------------------------------------------------------ parts of the data, saved


def test_select_keeps_maps_and_splits(small):
    chosen = small.select([4, 0])
    assert raw(chosen) == [TRAIN[4], TRAIN[0]]
    assert chosen.test is small.test
    assert raw(small.select(small.heads == small.tails)) == [TRAIN[3]]
    with pytest.raises(DataError, match="selection is empty"):
        small.select(np.zeros(5, bool))
    with pytest.raises(DataError, match="go from 0 to 4"):
        small.select([5])


def test_columns_of_some_rows(small):
    columns = small.columns([3, 0])
    assert {name: column.tolist() for name, column in columns.items()} == {
        "head": ["usa", "New York"],
        "relation": ["is", "part of"],
        "tail": ["usa", "usa"],
    }


def test_parts_round_trip(small):
    named = small.with_labels({"usa": "United States"}, {"is": "is"})
    for data in (small, named, from_rows(TRAIN), from_rows(TRAIN, test=TEST)):
        assert_equal(Triples.from_parts(data.arrays()), data)
        assert_equal(pickle.loads(pickle.dumps(data)), data)


def test_parts_stay_memory_mapped(small, tmp_path):
    parts = {}
    for name, array in small.arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
        parts[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    data = Triples.from_parts(parts)
    assert np.shares_memory(data.heads, parts["heads"])
    assert np.shares_memory(data.test.tails, parts["test_tails"])
    np.testing.assert_array_equal(data.by_head_relation.order, small.by_head_relation.order)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": None}, "saved triples lack heads"),
        ({"heads": np.full(5, 7, np.int32)}, "saved heads holds codes outside 0 to 6"),
        ({"relations": np.zeros(5)}, "saved relations must be int32 codes"),
        ({"tails": np.zeros(4, np.int32)}, "saved heads, relations, tails differ in length"),
        ({"test_tails": None}, "hold test_heads but not all of test_heads, test_relations"),
        ({"test_relations": np.array([4], np.int32)}, "test_relations holds codes outside 0 to 3"),
    ],
)
def test_damaged_parts(small, change, message):
    parts = {**small.arrays(), **change}
    with pytest.raises(DataError, match=message):
        Triples.from_parts({name: a for name, a in parts.items() if a is not None})


# ------------------------------------------------------------------ for people


def test_repr_reads_well(small):
    assert repr(small).splitlines() == [
        "Triples: 5 triples, 7 entities, 4 relations, validation 2, test 1",
        "  2 entities occur only in validation or test",
        "  1 relation occurs only in validation or test",
        "  New York — part of → usa",
        "  usa — trades: with/for → 中国",
        "  中国 — trades: with/for → usa",
        "  usa — is → usa",
        "  Zürich — part of → Schweiz",
    ]
    assert repr(from_rows([("a", "r", f"b{i}") for i in range(6)])).endswith("→ b4\n  …")
    assert repr(from_rows([("a", "r", "a")])).startswith(
        "Triples: 1 triple, 1 entity, 1 relation\n"
    )


def test_html_is_escaped():
    page = from_rows([("<b>", "&", "<script>")])._repr_html_()
    assert "<td>&lt;b&gt;</td><td>&amp;</td>" in page
    assert "<script>" not in page
