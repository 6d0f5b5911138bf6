"""The read-out of row changes on triples on CUDA, against copies of the tables."""

from __future__ import annotations

import numpy as np
import pytest
from graph_readout_cases import KINDS, case, compared, stranger

from fastinfluence import dispatch
from fastinfluence.attribution.triples.rows import LinkReadout
from fastinfluence.errors import DeviceMemoryError
from fastinfluence.kernels.structures import GraphTables, Links

CUDA = {"device": "cuda"}
SMALL = {"n_entities": 5, "n": 12, "n_links": 2, "d": 4}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Room for arrays is full of NaN, or of -7."""
    memory = dispatch.memory("cuda")
    empty = memory.empty

    def poisoned(shape, dtype):
        found = empty(shape, dtype)
        value = np.nan if np.dtype(dtype).kind == "f" else -7
        memory.store(found, np.full(shape, value, dtype))
        return found

    monkeypatch.setattr(memory, "empty", poisoned)


def wide(some):
    data, graph, rows, changes, links = some
    return data, graph, rows.astype(np.float64), changes.astype(np.float64), links


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"is_complex": False, "reciprocal": True, "size": 3.0, "d": 5},
        {"is_complex": True, "reciprocal": False},
        {"is_complex": True, "reciprocal": True, "n": 22, "n_relations": 1, "n_links": 1},
    ],
    ids=["distmult", "complex-flipped", "several-units"],
)
def test_influence_is_that_of_tables_without_the_changes(kind, options):
    dense, expected = compared(kind, case(11, **(SMALL | options)), **CUDA)
    np.testing.assert_allclose(dense, expected, rtol=1e-9, atol=1e-11)


def test_two_entities_that_both_lose_nearly_all_of_their_score():
    some = case(392, n_entities=2, n=27, d=6, is_complex=True, size=3.0, n_links=1)
    dense, expected = compared("log-probability", some, **CUDA)
    np.testing.assert_allclose(dense, expected, rtol=1e-9, atol=1e-10)


def test_more_entities_than_a_tile():
    some = case(6, n_entities=131, n=9, n_links=1, n_relations=1, d=10)
    dense, expected = compared("probability", some, **CUDA)
    np.testing.assert_allclose(dense, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_small_influences_are_accurate_in_float32(kind):
    some = case(3, **(SMALL | {"d": 10}), size=1e-6, is_complex=True, scale=0.5, dtype="float32")
    dense, _ = compared(kind, some, **CUDA)
    expected, _ = compared(kind, wide(some))
    largest = np.nanmax(np.abs(expected), axis=1, keepdims=True)
    assert dense.dtype == np.float32
    assert np.nanmax(np.abs(dense - expected) / largest) < 5e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_changes_overflow_nowhere(dtype):
    some = case(4, **SMALL, size=30.0, dtype=dtype)
    dense, expected = compared("log-probability", some, **CUDA)
    tolerance = 2e-4 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(dense, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["score", "log-probability"])
def test_a_link_nobody_shares_anything_with(kind):
    dense, expected = compared(kind, stranger(), **CUDA)
    np.testing.assert_allclose(dense, expected, rtol=1e-12)


@pytest.mark.parametrize("reciprocal", [False, True])
def test_self_influence_is_that_of_the_cpu(reciprocal):
    data, graph, rows, changes, _ = case(8, is_complex=True, reciprocal=reciprocal)
    own = Links(data.heads, data.relations + np.int32(7), np.zeros(25, bool), data.tails)
    found, expected = (
        LinkReadout(data, graph, GraphTables(rows), changes, 1, device).self_influence(own, 1)
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def read(some, kind="probability"):
    data, graph, rows, changes, links = some
    return LinkReadout(data, graph, GraphTables(rows), changes, 1, "cuda").influence(kind, links, 1)


def test_pieces_change_no_bit(monkeypatch):
    """Neither single groups and units at a time nor a call for each unit."""
    some = case(5, **(SMALL | {"n": 18, "n_relations": 1}))
    whole = read(some)
    monkeypatch.setattr(dispatch.kernels("graph_readout", "cuda"), "SCRATCH", 1)
    one_by_one = lambda work, _: [(unit, unit + 1) for unit in range(len(work))]  # noqa: E731
    monkeypatch.setattr(dispatch, "even_parts", one_by_one)
    np.testing.assert_array_equal(read(some).data, whole.data)


def test_more_entities_than_a_grid_is_high(monkeypatch):
    """Only the first dimension of a grid may be longer than 65,535."""
    softmax, memory, grids = dispatch.kernels("graph_softmax", "cuda"), dispatch.memory("cuda"), []
    monkeypatch.setattr(softmax, "launch", lambda kernel, blocks, *_, **__: grids.append(blocks))
    monkeypatch.setattr(memory, "empty", lambda shape, dtype: memory.put(np.empty(shape, dtype)))
    softmax.answer(None, 2**16 * softmax.RIGHT, memory.put(np.ones((1, 3), np.float32)))
    assert (2**16, 1) in grids


def test_less_memory_takes_smaller_pieces_and_too_little_is_told(monkeypatch):
    some, most = case(5, **SMALL), 1
    whole, kernels = read(some, "score"), dispatch.kernels("graph_readout", "cuda")
    read_links = kernels.read_links

    def short_of_memory(*arguments):
        if len(arguments[5].targets) > most:
            raise DeviceMemoryError("out of device memory: 96 bytes for an array (12,)")
        read_links(*arguments)

    monkeypatch.setattr(kernels, "read_links", short_of_memory)
    found = read(some, "score")
    np.testing.assert_array_equal(found.data, whole.data)
    np.testing.assert_array_equal(found.indptr, whole.indptr)
    np.testing.assert_array_equal(found.indices, whole.indices)
    most = 0
    with pytest.raises(DeviceMemoryError, match="one link: out of device memory: 96 bytes"):
        read(some, "score")
