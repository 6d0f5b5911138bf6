from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import panels as oracle

from fastinfluence.kernels.cpu.jit import kernel
from fastinfluence.kernels.cpu.lanes import LANES
from fastinfluence.kernels.cpu.panels import decode, encode, pack_rows, panel_scores, unpack_row

STORES = [np.float32, np.float64, np.uint16]


@kernel
def encode_all(values, out):
    for i in range(values.shape[0]):
        out[i] = encode(values[i], out)


@kernel
def decode_all(elements, out):
    for i in range(elements.shape[0]):
        out[i] = decode(elements[i])


def packed(factors, biases, sources, pointers, store):
    """Everything packed in two calls that meet in the middle."""
    n_groups = len(pointers) - 1
    out = np.zeros(len(sources) * (factors.shape[1] + 1), store)
    for first, last in ((0, n_groups // 2), (n_groups // 2, n_groups)):
        pack_rows(factors, biases, sources, pointers, first, last, out)
    return out


def make_rows(seed, sizes, k, store):
    """Random rows in random places of groups of the given sizes."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    dtype = np.float64 if store == np.float64 else np.float32
    factors = rng.standard_normal((n, k)).astype(dtype)
    biases = rng.standard_normal((n, 2)).astype(dtype)[:, 1]  # strided, as records hold them
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return factors, biases, rng.permutation(n), pointers


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=50)
@given(st.lists(finite, max_size=20))
def test_bfloat16_is_the_nearest(values):
    values = np.array(values, np.float32)
    bits = np.zeros(len(values), np.uint16)
    encode_all(values, bits)
    assert bits.tolist() == [oracle.bfloat16(x) for x in values]
    restored = np.zeros(len(values), np.float32)
    decode_all(bits, restored)
    assert restored.tolist() == [oracle.widened(b) for b in bits]
    small = np.abs(values) < 3.3e38
    np.testing.assert_allclose(restored[small], values[small], rtol=2.0**-8, atol=1e-40)


def test_bfloat16_of_ties_and_infinities():
    halfway = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F800000, 0xFF800000], np.uint32)
    bits = np.zeros(5, np.uint16)
    encode_all(halfway.view(np.float32), bits)
    assert bits.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80]


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 99), sizes, st.integers(1, 20), st.sampled_from(STORES))
def test_packs_and_unpacks(seed, sizes, k, store):
    rows = make_rows(seed, sizes, k, store)
    factors, biases, sources, pointers = rows
    out = packed(*rows, store)
    np.testing.assert_array_equal(out, oracle.pack_rows(*rows, store))

    row = np.zeros(k + 1, factors.dtype)
    for group, (start, stop) in enumerate(itertools.pairwise(pointers)):
        for place in range(start, stop):
            unpack_row(out, pointers, group, place, row)
            expected = np.append(factors[sources[place]], biases[sources[place]])
            np.testing.assert_allclose(row, expected, rtol=2.0**-8 if store == np.uint16 else 0)


def scores(packed_rows, offset, n, queries, sign):
    """Scores of a group, and the guard entries before and behind the tile."""
    stride = -(-n // LANES) * LANES
    tile = np.full(len(queries) * stride + 2 * LANES, np.nan, queries.dtype)
    inner = tile[LANES:-LANES]
    sign = queries.dtype.type(sign)
    panel_scores(packed_rows, offset, n, queries, len(queries), inner, stride, sign)
    assert np.isnan(tile[:LANES]).all()
    assert np.isnan(tile[-LANES:]).all()
    matrix = inner.reshape(len(queries), stride)
    assert not matrix[:, n:].any()
    return matrix[:, :n]


def unpacked(packed_rows, pointers, group, width, dtype):
    rows = np.zeros((pointers[group + 1] - pointers[group], width), dtype)
    for j, row in enumerate(rows):
        unpack_row(packed_rows, pointers, group, pointers[group] + j, row)
    return rows


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 70])
def test_scores_have_the_bits_of_a_sum_in_order(n, store):
    sizes, width = [3, n, 5], 4
    rows = make_rows(n, sizes, width - 1, store)
    pointers = rows[3]
    data = packed(*rows, store)
    data.flags.writeable = False
    group = unpacked(data, pointers, 1, width, rows[0].dtype)
    queries = np.random.default_rng(n).standard_normal((15, width)).astype(rows[0].dtype)
    expected = oracle.panel_scores(group, queries)
    for sign in (1, -1):
        for n_queries in (1, 2, 3, 7, 8, 15):
            got = scores(data, pointers[1] * width, n, queries[:n_queries], sign)
            np.testing.assert_array_equal(got, sign * expected[:n_queries])


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("width", [2, 16, 17, 65, 201])
def test_scores_of_every_width(width, store):
    rows = make_rows(width, [40], width - 1, store)
    data = packed(*rows, store)
    group = unpacked(data, rows[3], 0, width, rows[0].dtype)
    queries = np.random.default_rng(0).standard_normal((9, width)).astype(rows[0].dtype)
    got = scores(data, 0, 40, queries, 1)
    exact = queries.astype(float) @ group.astype(float).T
    bound = (width + 2) * np.finfo(queries.dtype).eps * (np.abs(queries) @ np.abs(group).T)
    assert (np.abs(got - exact) <= bound).all()
