"""Arrays in, arrays out, on a GPU: what lies there stays there, with the numbers of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from fastinfluence import dispatch
from fastinfluence import functional as F
from fastinfluence.errors import DataError, DeviceError
from fastinfluence.kernels.structures import Record, Tables

N_USERS, N_ITEMS, K, N = 4, 5, 3, 12


@pytest.fixture
def memory():
    return dispatch.memory("cuda")


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.permutation(N_USERS * N_ITEMS)[:N], N_ITEMS)
    shapes = (N_USERS, K), (N_ITEMS, K), (N_USERS,), (N_ITEMS,)
    tables = Tables(*(rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes))
    return users, items, rng.normal(size=N).astype(np.float32), tables


def on_device(array):
    return not isinstance(array, np.ndarray)


def test_an_epoch_of_tables_that_lie_there(problem, memory):
    users, items, values, tables = problem
    there, rows = memory.put((tables, F.new_rows(N, K)))
    here, expected = Tables(*(table.copy() for table in tables)), F.new_rows(N, K)
    losses = [
        F.sgd_mf(users, items, values, *some, learning_rate=0.1, rows=of_some)
        for some, of_some in ((here, expected), (there, rows))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for mine, its in zip((*here, *expected), memory.fetch((*there, *rows)), strict=True):
        assert (mine == its).all()
    assert (here.user_factors != tables.user_factors).any()


def test_rows_are_recorded_packed_and_read_there(problem, memory):
    users, items, values, tables = problem
    options = {"n_epochs": 2, "learning_rate": 0.1}
    queries = {"query_users": [0, 1, 3], "query_items": [2, 0, 4], "k": 3}
    end, rows = F.rollback_mf(users, items, values, *memory.put(tables), **options)
    assert all(map(on_device, (*end, *rows)))
    store = F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS)
    assert on_device(store.user_side.rows)
    found = F.explain_mf(end.user_factors, end.item_factors, store, **queries)
    assert all(map(on_device, found))
    end, rows = F.rollback_mf(users, items, values, *tables, **options)
    store = F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS)
    expected = F.explain_mf(end.user_factors, end.item_factors, store, **queries)
    found = memory.fetch(found)
    assert (found.train_index == expected.train_index).all()
    np.testing.assert_allclose(found.influence, expected.influence, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)


@pytest.mark.parametrize("biases", [True, False])
def test_influence_functions_of_factors_that_lie_there(problem, memory, biases):
    users, items, values, tables = problem
    if not biases:
        tables = tables._replace(user_biases=None, item_biases=None)
    found, expected = (
        F.influence_mf(users, items, values, *some, [0, 2], [1, 4], damping=0.5, rtol=1e-6, k=4)
        for some in (memory.put(tables), tables)
    )
    assert on_device(found.influence)
    assert found.report.converged.all()
    assert (memory.fetch(found.train_index) == expected.train_index).all()
    np.testing.assert_allclose(memory.fetch(found.influence), expected.influence, rtol=1e-3)


def test_a_table_in_pieces_cannot_be_changed_in_place(problem, memory):
    users, items, values, tables = problem
    wide = memory.put(np.zeros((N_USERS, 2 * K), np.float32))
    tables = memory.put(tables)._replace(user_factors=wide[:, ::2])
    with pytest.raises(DataError, match="user_factors is changed in place"):
        F.sgd_mf(users, items, values, *tables)


@pytest.mark.parametrize("what", ["rows.user_rows", "squares.user_factors", "item_biases"])
def test_what_is_changed_must_lie_where_kernels_run(problem, memory, what):
    """In a copy on the device the changes would be lost."""
    users, items, values, tables = problem
    there = memory.put(tables)
    rows, squares = F.new_rows(N, K), Tables(*(np.ones_like(table) for table in tables))
    options = {"rows": memory.put(rows), "squares": memory.put(squares)}
    if what.startswith("rows"):
        options["rows"] = rows
    elif what.startswith("squares"):
        options["squares"] = squares
    else:
        there = there._replace(item_biases=tables.item_biases)
    with pytest.raises(DeviceError, match=f"{what} is changed in place.* a GPU .*not CPU memory"):
        F.sgd_mf(users, items, values, *there, **options)


def test_rows_on_the_device_of_tables_that_are_not(problem, memory):
    users, items, values, tables = problem
    rows = memory.put(F.new_rows(N, K))
    with pytest.raises(DeviceError, match=r"rows.user_rows .* CPU memory .*not a GPU"):
        F.sgd_mf(users, items, values, *tables, rows=rows)


def test_where_no_kernels_can_run(problem, memory, monkeypatch):
    users, items, values, tables = problem
    there = memory.put(tables)
    monkeypatch.setattr(dispatch, "cuda_problem", lambda: "the driver is gone")
    with pytest.raises(DeviceError, match="user_factors lies on a GPU: the driver is gone"):
        F.sgd_mf(users, items, values, *there)


def test_rows_packed_there_of_another_shape(memory):
    rows = Record(*memory.put(tuple(F.new_rows(3, K))))
    with pytest.raises(DataError, match="3 rows, 2 users and 2 items do not match"):
        F.pack_mf(rows, [0, 1], [0, 1], n_users=2, n_items=2)
