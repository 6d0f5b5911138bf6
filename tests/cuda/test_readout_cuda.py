from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from influence_cases import STORES, make_case, pointers_of
from oracles import readout as oracle
from readout_cases import assert_like_oracle, read_out

import fastinfluence as fi
from fastinfluence.attribution.placed_rows import placed
from fastinfluence.errors import DeviceError
from fastinfluence.kernels.structures import Queries
from fastinfluence.storage import open_shards

CPU, CUDA = Kernels("cpu", "readout"), Kernels("cuda", "readout")
both = pytest.mark.parametrize("kernels", [CPU, CUDA], ids=repr)


@both
@pytest.mark.parametrize("store", STORES)
def test_ties_go_by_training_index(kernels, store):
    case = make_case(n_users=2, n_items=2, n_train=24, n_queries=3, k=9, store=store, kind="whole")
    assert_like_oracle(kernels, case, 5, -1, exact=True)


@both
@pytest.mark.parametrize(("store", "width"), [*zip(STORES, [3, 16, 20], strict=True)])
def test_real_numbers(kernels, store, width):
    case = make_case(n_users=2, n_items=2, n_train=30, n_queries=3, k=width, store=store)
    assert_like_oracle(kernels, case, 1, 1, exact=False)


@both
@pytest.mark.parametrize(("kind", "k"), [("whole", 40), ("constant", 12)])
def test_one_user_of_many_examples(kernels, kind, k):
    """Two tiles, in two parts in the simulator; lists longer than a warp; all scores equal."""
    case = make_case(n_users=1, n_items=4, n_train=270, n_queries=1, k=3, kind=kind)
    assert_like_oracle(kernels, case, k, 1, exact=True)


@both
def test_fewer_examples_than_asked_for(kernels):
    case = make_case(n_users=3, n_items=3, n_train=4, n_queries=3, kind="whole")
    assert_like_oracle(kernels, case, 33, 1, exact=True)


def test_more_queries_than_a_tile_holds():
    pairs = [(0, 0)] * 17
    case = make_case(n_users=1, n_items=1, n_train=3, kind="whole", queries=pairs)
    assert len(CUDA.tile_units(case.user_side.pointers, np.array([0, 65]))) > 1
    top = read_out(CUDA, case, 2)
    assert (top.values == top.values[0]).all()
    assert_like_oracle(CUDA, case, 2, 1, exact=True)


def test_totals_are_left_out_on_request():
    case = make_case(n_users=1, n_items=1, n_train=20, n_queries=2)
    with_totals, without = read_out(CUDA, case, 3), read_out(CUDA, case, 3, totals=False)
    np.testing.assert_array_equal(with_totals.values, without.values)
    assert without.totals.size == 0


@pytest.mark.parametrize("seed", range(20))
def test_units_cover_every_query_and_row(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0, 1, 128, 129, 300, 5000, 100_000], 6)
    counts = rng.choice([0, 1, 16, 17, 64, 300, 40_000], 6)
    pointers, query_pointers = (np.concatenate([[0], np.cumsum(a)]) for a in (sizes, counts))
    units = CUDA.tile_units(pointers, query_pointers)
    rows = np.zeros(query_pointers[-1], np.int64)
    for group, start, stop, first, last, in_parts in units:
        assert query_pointers[group] <= start < stop <= query_pointers[group + 1]
        assert 0 <= first < last <= sizes[group]
        assert first % 128 == 0
        assert in_parts == (last - first < sizes[group])
        rows[start:stop] += last - first
    np.testing.assert_array_equal(rows, np.repeat(sizes, counts))
    assert (np.diff(units[:, 3] - units[:, 4]) >= 0).all()


@both
def test_finds_pairs(kernels):
    rng = np.random.default_rng(0)
    known = sorted(
        zip(rng.integers(0, 4, 30).tolist(), rng.integers(0, 5, 30).tolist(), strict=True)
    )
    users, items = np.array(known, np.int32).T.copy()
    query_users, query_items = (rng.integers(0, n, 20).astype(np.int32) for n in (4, 5))
    starts, stops = np.full(20, -1), np.full(20, -1)
    pointers = pointers_of(users, 4)
    for start, stop in ((0, 7), (7, 20)):
        kernels.find_pairs(pointers, items, query_users, query_items, start, stop, starts, stops)
    expected = oracle.find_pairs(known, query_users.tolist(), query_items.tolist())
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected


def test_dtypes_without_a_kernel():
    case = make_case(n_train=5, n_queries=1)
    vectors = case.item_vectors.astype(np.float64)
    queries = Queries(np.zeros(1, np.int64), np.zeros(1, np.int32), vectors)
    units = np.zeros((0, 6), np.int64)
    with pytest.raises(DeviceError, match="not float32 with float64"):
        CUDA.read_side(1.0, case.user_side, queries, (), units, 0, 0, ())


# ---------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(3)
    pairs = rng.permutation(12)[:10]
    data = fi.Interactions.from_arrays(pairs // 4, pairs % 4, rng.normal(size=10))
    return fi.MatrixFactorization(n_factors=3, n_epochs=2, rng=0).fit(data, record="rollback")


@pytest.mark.parametrize("row_dtype", [None, "bfloat16"])
def test_explains_as_on_the_cpu(model, row_dtype):
    here, there = (
        fi.GradientRollback(model, row_dtype=row_dtype, device=device) for device in ("cpu", "cuda")
    )
    queries = [(model.data_.user_ids[0], model.data_.item_ids[n]) for n in range(3)]
    mine, its = (method.explain(queries, k=4) for method in (here, there))
    np.testing.assert_array_equal(its.train_index, mine.train_index)
    for part in ("influence", "prediction", "total_influence"):
        np.testing.assert_allclose(getattr(its, part), getattr(mine, part), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(there.self_influence(), here.self_influence(), rtol=1e-5, atol=1e-7)


def test_explains_into_a_folder_as_on_the_cpu(model, tmp_path):
    queries = [(model.data_.user_ids[1], model.data_.item_ids[n]) for n in range(2)]
    columns = []
    for device in ("cpu", "cuda"):
        method = fi.GradientRollback(model, device=device)
        assert method.explain_to(tmp_path / device, queries, k=2, proponents=False) == 2
        columns.append(open_shards(tmp_path / device)[:])
    np.testing.assert_array_equal(columns[1]["train_index"], columns[0]["train_index"])
    np.testing.assert_allclose(columns[1]["influence"], columns[0]["influence"], rtol=1e-5)


def test_a_store_stays_on_the_device(model):
    method = fi.GradientRollback(model, device="cuda")
    queries = [(model.data_.user_ids[0], model.data_.item_ids[0])]
    method.explain(queries, k=1)
    there = placed(method.rows, "cuda")
    method.explain(queries, k=1)
    assert placed(method.rows, "cuda") is there
