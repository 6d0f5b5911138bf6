"""Random models with credited changes: as the read-out kernels take them, and the truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from oracles import readout, rows

from fastinfluence.kernels.cpu.jit import kernel
from fastinfluence.kernels.cpu.panels import decode, encode, pack_rows
from fastinfluence.kernels.structures import Side

STORES = [np.float32, np.float64, np.uint16]

NUMBERS = {
    "real": lambda rng, shape: rng.standard_normal(shape),
    # Sums of these are exact in every dtype: equal influences tie, and compare with ==.
    "whole": lambda rng, shape: rng.integers(-2, 3, shape),
    "constant": lambda rng, shape: np.ones(shape),
}


class Case(NamedTuple):
    """A model, the changes credited to its examples, and queries."""

    user_side: Side
    item_side: Side
    user_vectors: np.ndarray  # (n_users, d): factors and 1
    item_vectors: np.ndarray  # (n_items, d)
    query_users: np.ndarray
    query_items: np.ndarray
    own_bounds: np.ndarray  # (n_queries, 2) of each query's pair in own_places
    own_places: np.ndarray  # (n_train,) places in user order, by user and item
    own_item_places: np.ndarray  # (n_train,) places in item order, likewise
    influence: np.ndarray  # (n_queries, n_train), NaN for no candidate: the truth
    rounding: float  # error to expect of one score, whatever cancels in it


@kernel
def _round_trip(changes, element):
    for row in changes:
        for f in range(row.shape[0]):
            element[0] = encode(row[f], element)
            row[f] = decode(element[0])


def pointers_of(codes, n_groups):
    return np.searchsorted(np.sort(codes), np.arange(n_groups + 1)).astype(np.int64)


def _side(changes, codes, n_groups, store):
    """Changes packed group by group, ascending in a group; and the place of every example."""
    order = np.argsort(codes, kind="stable").astype(np.int64)
    pointers = pointers_of(codes, n_groups)
    packed = np.zeros(changes.size, store)
    factors = np.ascontiguousarray(changes[:, :-1])
    pack_rows(factors, changes[:, -1], order, pointers, 0, n_groups, packed)
    for array in (packed, pointers, order):  # as stores are
        array.flags.writeable = False
    return Side(packed, pointers, order), np.argsort(order)


def _vectors(model_rows):
    """Factors and 1: what a change of the opposite row is multiplied with."""
    vectors = model_rows.copy()
    vectors[:, -1] = 1
    return vectors


def _random_queries(rng, n_queries, users, items, n_users, n_items):
    """Random pairs, every third of them a training pair."""
    queries = [(int(rng.integers(n_users)), int(rng.integers(n_items))) for _ in range(n_queries)]
    for n in range(0, n_queries if len(users) else 0, 3):
        j = rng.integers(len(users))
        queries[n] = int(users[j]), int(items[j])
    return queries


def make_case(
    seed=0,
    n_users=3,
    n_items=4,
    n_train=40,
    n_queries=20,
    k=5,
    store=np.float32,
    kind="real",
    queries=None,
):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if store == np.float64 else np.float32
    numbers = NUMBERS[kind]
    users, items = rng.integers(0, n_users, n_train), rng.integers(0, n_items, n_train)
    user_rows, item_rows, user_changes, item_changes = (
        numbers(rng, (n, k + 1)).astype(dtype) for n in (n_users, n_items, n_train, n_train)
    )
    for changes in (user_changes, item_changes):
        _round_trip(changes, np.zeros(1, store))
    user_side, user_places = _side(user_changes, users, n_users, store)
    item_side, item_places = _side(item_changes, items, n_items, store)

    if queries is None:
        queries = _random_queries(rng, n_queries, users, items, n_users, n_items)
    query_users, query_items = np.array(queries, np.int32).reshape(-1, 2).T.copy()

    longest = [
        np.linalg.norm(a, axis=1).max(initial=1)
        for a in (user_rows, item_rows, user_changes, item_changes)
    ]
    rounding = 8 * float(np.finfo(dtype).eps) * max(longest) ** 2

    by_pair = np.lexsort((items, users))
    known = list(zip(users[by_pair].tolist(), items[by_pair].tolist(), strict=True))
    bounds = readout.find_pairs(known, query_users.tolist(), query_items.tolist())
    return Case(
        user_side,
        item_side,
        _vectors(user_rows),
        _vectors(item_rows),
        query_users,
        query_items,
        np.array(bounds, np.int64).reshape(-1, 2),
        user_places[by_pair],
        item_places[by_pair],
        rows.influence(user_rows, item_rows, user_changes, item_changes, users, items, queries),
        rounding,
    )


@st.composite
def cases(draw, **fixed):
    arguments = {
        "seed": draw(st.integers(0, 10**6)),
        "n_users": draw(st.integers(1, 5)),
        "n_items": draw(st.integers(1, 6)),
        "n_train": draw(st.integers(0, 60)),
        "n_queries": draw(st.integers(0, 15)),
        "k": draw(st.integers(1, 20)),
        "store": draw(st.sampled_from(STORES)),
        "kind": draw(st.sampled_from(sorted(NUMBERS))),
    }
    return make_case(**{**arguments, **fixed})
