"""Triples in torch: read-out of row changes, and ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from backends import Kernels, memory_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_readout as oracle
from ranks_cases import count, whole_numbers
from test_graph_readout import KINDS, case

from fastinfluence.attribution.triples.rows import LinkReadout, _units
from fastinfluence.kernels.structures import GraphTables, Influences, Links

torch = pytest.importorskip("torch")
GRAPH_READOUT, RANKS = Kernels("torch", "graph_readout"), Kernels("torch", "ranks")

few = settings(deadline=None, max_examples=20, derandomize=True)


def read(kind, some_case, cut=1):
    """The matrix of influences, dense with NaN where it has no entry."""
    data, graph, rows, changes, links = some_case
    readout = LinkReadout(data, graph, GraphTables(rows), changes, 1)
    groups, group_of = readout._group(links, 1)
    pointers, indices = readout._candidates(groups, group_of, links.targets, 1)
    out = Influences(pointers, indices, np.full(len(indices), np.nan, rows.dtype))
    units = _units(np.diff(groups.touched_pointers), GRAPH_READOUT.TOGETHER)
    bounds = np.linspace(0, len(units), cut + 1).astype(int).tolist()
    for start, stop in itertools.pairwise(bounds):
        GRAPH_READOUT.read_links(
            KINDS.index(kind), graph, rows, rows[:0], readout.store, groups, units, start, stop, out
        )  # fmt: skip
    dense = np.full((len(links.targets), len(data)), np.nan, rows.dtype)
    dense[np.repeat(np.arange(len(dense)), np.diff(pointers)), indices] = out.values
    return dense


def expected_of(kind, some_case):
    data, graph, rows, changes, links = some_case
    triples = data.heads, data.relations, data.tails
    return oracle.influence(kind, graph, rows, changes, triples, links)


@few
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    n_entities=st.integers(2, 40),
    n_relations=st.integers(1, 4),
    n=st.integers(1, 30),
    half=st.integers(1, 9),
    is_complex=st.booleans(),
    reciprocal=st.booleans(),
    size=st.sampled_from([1e-3, 0.3, 3.0]),
)
def test_influence_is_that_of_tables_without_the_changes(kind, seed, half, **options):
    some = case(seed, d=2 * half, n_links=4, **options)
    np.testing.assert_allclose(read(kind, some), expected_of(kind, some), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_complex", [False, True])
def test_small_influences_are_accurate_in_float32(kind, is_complex):
    """Changes are computed as changes: an influence of 1e-6 has as many digits as one of 1."""
    for size in (1e-6, 1e-2):
        some = case(3, size=size, is_complex=is_complex, d=20, scale=0.5, dtype="float32")
        data, graph, rows, changes, links = some
        wide = data, graph, rows.astype(np.float64), changes.astype(np.float64), links
        found, expected = read(kind, some), read(kind, wide)
        largest = np.nanmax(np.abs(expected), axis=1, keepdims=True)
        assert found.dtype == np.float32
        assert np.nanmax(np.abs(found - expected) / largest) < 5e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [5.0, 30.0])
def test_huge_changes_overflow_nowhere(dtype, size):
    some = case(4, size=size, d=8, dtype=dtype, n_entities=20)
    tolerance = 2e-4 if dtype == "float32" else 1e-10
    for kind in KINDS:
        found, expected = read(kind, some), expected_of(kind, some)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_bfloat16(kind):
    """Of tensors: numpy has none."""
    from fastinfluence.kernels.torch import graph_readout

    data, graph, rows, changes, links = some = case(3, is_complex=True, d=20, scale=0.5)
    expected, memory = read(kind, some), memory_of("torch")
    readout = LinkReadout(data, graph, GraphTables(rows), changes, 1)
    groups, group_of = readout._group(links, 1)
    pointers, indices = readout._candidates(groups, group_of, links.targets, 1)
    store, groups, pointers, indices = memory.put((readout.store, groups, pointers, indices))
    store = store._replace(changes=store.changes.bfloat16())
    units = torch.tensor(_units(groups.touched_pointers.diff().numpy(), 256))
    rows = torch.tensor(rows).bfloat16()
    values = torch.full(indices.shape, torch.nan, dtype=torch.bfloat16)
    graph_readout.read_links(
        KINDS.index(kind), graph, rows, None, store, groups, units, 0, len(units),
        Influences(pointers, indices, values),
    )  # fmt: skip
    expected = expected[~np.isnan(expected)]
    error = np.abs(values.double().numpy() - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_several_units_and_little_memory(kind, monkeypatch):
    from fastinfluence.kernels.torch import batches, graph_readout

    some = case(5, n=400, n_links=8, n_relations=1)
    whole, exact = read(kind, some), {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(read(kind, some, cut=5), whole, **exact)
    for module in (batches, graph_readout):
        monkeypatch.setattr(module, "CHUNK", 1)
    np.testing.assert_allclose(read(kind, some), whole, **exact)
    data, graph, rows, changes, links = some
    few_links = Links(*(column[:3] for column in links))
    np.testing.assert_allclose(
        whole[:3], expected_of(kind, (data, graph, rows, changes, few_links)), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_self_influence_is_the_influence_on_the_own_score(is_complex, reciprocal):
    data, graph, rows, changes, _ = case(8, is_complex=is_complex, reciprocal=reciprocal)
    own = Links(data.heads, data.relations + np.int32(7), np.zeros(25, bool), data.tails)
    store = LinkReadout(data, graph, GraphTables(rows), changes, 1).store
    found = np.full(25, np.nan)
    for start, stop in ((0, 11), (11, 25)):
        GRAPH_READOUT.self_influence(graph, rows, store, own, start, stop, found)
    expected = np.diag(expected_of("score", (data, graph, rows, changes, own)))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- ranks


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 17, 513])
def test_counts_are_those_of_the_oracle(n, dtype, monkeypatch):
    arguments, expected = whole_numbers(n, 150, dtype)
    found = count(RANKS, *arguments, [(0, 7), (7, 7), (7, 150)])
    np.testing.assert_array_equal(found, expected)
    from fastinfluence.kernels.torch import ranks

    monkeypatch.setattr(ranks, "CHUNK", 1)
    np.testing.assert_array_equal(count(RANKS, *arguments), expected)


def test_questions_outside_the_stretch_are_left_alone():
    table, vectors = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    greater, equal = count(RANKS, table, vectors, np.zeros(4, np.int32), [[]] * 4, [(1, 3)])
    assert greater.tolist() == [-7, 1, 1, -7]
    assert equal.tolist() == [-7, 2, 2, -7]


def test_what_is_no_number_never_ranks_well():
    table = np.array([[1.0], [np.nan], [3.0], [2.0]], np.float32)
    vectors = np.ones((3, 1), np.float32)
    greater, equal = count(RANKS, table, vectors, np.array([0, 1, 2], np.int32), [[], [], [1]])
    assert greater.tolist() == [3, 3, 0]
    assert equal.tolist() == [0, 0, 0]
