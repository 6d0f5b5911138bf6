from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from influence_cases import STORES, make_case
from oracles import panels as panels_oracle

both = pytest.mark.parametrize("backend", ["cpu", "cuda"])


@both
@pytest.mark.parametrize("store", STORES)
def test_packs_rows(backend, store):
    rng = np.random.default_rng(2)
    sizes, k = [3, 0, 17, 32, 5], 4
    dtype = np.float64 if store == np.float64 else np.float32
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n = int(pointers[-1])
    factors, biases = rng.standard_normal((n, k)).astype(dtype), rng.standard_normal(n)
    rows = factors, biases.astype(dtype), rng.permutation(n), pointers
    out = np.zeros(n * (k + 1), store)
    for first, last in ((0, 3), (3, 5)):
        Kernels(backend, "panels").pack_rows(*rows, first, last, out)
    np.testing.assert_array_equal(out, panels_oracle.pack_rows(*rows, store))


@both
@pytest.mark.parametrize("store", STORES)
def test_self_influence_of_a_stretch_of_examples(backend, store):
    model = make_case(n_users=3, n_items=4, n_train=40, store=store, kind="whole")
    users, items = np.empty(40, np.int32), np.empty(40, np.int32)
    for side, codes in ((model.user_side, users), (model.item_side, items)):
        codes[side.order] = np.repeat(np.arange(len(side.pointers) - 1), np.diff(side.pointers))
    pairs = list(zip(users.tolist(), items.tolist(), strict=True))
    case = make_case(n_users=3, n_items=4, store=store, kind="whole", queries=pairs)
    by_pair = case.user_side.order[case.own_places]
    out = np.full(40, np.nan, case.user_vectors.dtype)
    for start, stop in ((0, 15), (15, 40)):
        Kernels(backend, "rows").self_influence(
            case.user_side,
            case.item_side,
            (case.own_places, case.own_item_places),
            case.item_vectors,
            case.user_vectors,
            users,
            items,
            by_pair[start:stop],
            start,
            out,
        )
    np.testing.assert_array_equal(out, np.diag(case.influence))
