from __future__ import annotations

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence import functional as F
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.kernels.structures import Tables

N_USERS, N_ITEMS, K = 12, 9, 5


class OnlyDlpack:
    """Has no ``__array__``, as arrays of some libraries."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class OnlyArray:
    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.permutation(N_USERS * N_ITEMS)[:70], N_ITEMS)
    tables = (
        rng.normal(0, 0.3, (N_USERS, K)),
        rng.normal(0, 0.3, (N_ITEMS, K)),
        np.zeros(N_USERS),
        np.zeros(N_ITEMS),
    )
    return users, items, rng.normal(size=70), tables


def naive_epoch(users, items, values, tables, rate, regularization, mean=0.0):
    """One pass, written out; also what every example changed."""
    p, q, b, c = (table.copy() for table in tables)
    changes = []
    for u, i, y in zip(users, items, values, strict=True):
        error = mean + b[u] + c[i] + p[u] @ q[i] - y
        old = p[u].copy(), q[i].copy(), b[u], c[i]
        p[u] = old[0] - rate * (error * old[1] + regularization * old[0])
        q[i] = old[1] - rate * (error * old[0] + regularization * old[1])
        b[u] -= rate * (error + regularization * old[2])
        c[i] -= rate * (error + regularization * old[3])
        changes.append((p[u] - old[0], q[i] - old[1], (b[u] - old[2], c[i] - old[3])))
    return (p, q, b, c), [np.array(part) for part in zip(*changes, strict=True)]


def test_one_pass_and_its_rows(problem):
    users, items, values, tables = problem
    expected, changes = naive_epoch(users, items, values, tables, 0.05, 0.02, mean=0.3)
    mine = [table.copy() for table in tables]
    rows = F.new_rows(len(users), K, "float64")
    F.sgd_mf(
        users, items, values, *mine, mean=0.3, learning_rate=0.05, regularization=0.02, rows=rows
    )
    for table, its in zip(mine, expected, strict=True):
        np.testing.assert_allclose(table, its, rtol=1e-12)
    for row, its in zip(rows, changes, strict=True):
        np.testing.assert_allclose(row, its, atol=1e-14)


def test_rollback_is_the_passes_on_copies(problem):
    users, items, values, tables = problem
    before = [table.copy() for table in tables]
    end, rows = F.rollback_mf(
        users, items, values, *tables, n_epochs=3, learning_rate=0.05, learning_rate_decay=0.5
    )
    for table, its in zip(tables, before, strict=True):
        np.testing.assert_array_equal(table, its)
    mine, again = [t.copy() for t in tables], F.new_rows(len(users), K, "float64")
    for rate in (0.05, 0.025, 0.0125):
        F.sgd_mf(users, items, values, *mine, learning_rate=rate, rows=again)
    for table, its in zip(end, mine, strict=True):
        np.testing.assert_array_equal(table, its)
    for row, its in zip(rows, again, strict=True):
        np.testing.assert_array_equal(row, its)
    np.testing.assert_allclose(
        rows.user_rows.sum(0), (end.user_factors - before[0]).sum(0), atol=1e-12
    )


def naive_influence(p, q, rows, users, items, u, i):
    """f(theta) - f(theta - gamma_j) for every example j."""
    result = np.full(len(users), np.nan)
    for j in range(len(users)):
        if users[j] != u and items[j] != i:
            continue
        row_u, bias_u = p[u].copy(), 0.0
        row_i, bias_i = q[i].copy(), 0.0
        if users[j] == u:
            row_u, bias_u = row_u - rows.user_rows[j], -rows.biases[j, 0]
        if items[j] == i:
            row_i, bias_i = row_i - rows.item_rows[j], -rows.biases[j, 1]
        result[j] = p[u] @ q[i] - (row_u @ row_i + bias_u + bias_i)
    return result


@pytest.mark.parametrize("proponents", [True, False])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_explain_by_definition(problem, k, proponents):
    users, items, values, tables = problem
    (p, q, _, _), rows = F.rollback_mf(users, items, values, *tables, n_epochs=2)
    store = F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS)
    query_users, query_items = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    found = F.explain_mf(p, q, store, query_users, query_items, k, proponents=proponents)
    for n, (u, i) in enumerate(zip(query_users, query_items, strict=True)):
        truth = naive_influence(p, q, rows, users, items, u, i)
        order = np.argsort(-truth if proponents else truth, kind="stable")
        order = order[np.isfinite(truth[order])][:k]
        assert found.train_index[n, : len(order)].tolist() == order.tolist()
        assert (found.train_index[n, len(order) :] == -1).all()
        np.testing.assert_allclose(found.influence[n, : len(order)], truth[order], atol=1e-12)
        assert np.isnan(found.influence[n, len(order) :]).all()
        assert found.total[n] == pytest.approx(np.nansum(np.abs(truth)))


@pytest.mark.parametrize("wrap", [OnlyArray, OnlyDlpack, list])
def test_foreign_arrays(problem, wrap):
    users, items, values, tables = problem
    mine = [table.copy() for table in tables]
    F.sgd_mf(users, items, values, *mine, learning_rate=0.05)
    foreign = [table.copy() for table in tables]
    F.sgd_mf(wrap(users), wrap(items), wrap(values), *foreign, learning_rate=0.05)
    for table, its in zip(foreign, mine, strict=True):
        np.testing.assert_array_equal(table, its)


def test_torch_tensors_share_their_memory(problem):
    torch = pytest.importorskip("torch")
    users, items, values, tables = problem
    tensors = [torch.tensor(table) for table in tables]
    F.sgd_mf(torch.tensor(users), torch.tensor(items), torch.tensor(values), *tensors)
    mine = [table.copy() for table in tables]
    F.sgd_mf(users, items, values, *mine)
    for tensor, its in zip(tensors, mine, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), its)


def test_read_only_and_memory_mapped_arrays(problem, tmp_path):
    users, items, values, tables = problem
    (p, q, _b, _c), rows = F.rollback_mf(users, items, values, *tables, n_epochs=2)
    store = F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS, row_dtype="float64")
    expected = F.explain_mf(p, q, store, [0, 5], [1, 2], k=4)

    def mapped(array, name):
        np.save(tmp_path / name, array)
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    sides = [
        type(side)(*(mapped(array, f"{n}{field}") for field, array in side._asdict().items()))
        for n, side in enumerate((store.user_side, store.item_side))
    ]
    again = F.explain_mf(mapped(p, "p"), mapped(q, "q"), F.RowStore(*sides), [0, 5], [1, 2], k=4)
    for mine, its in zip(again, expected, strict=True):
        np.testing.assert_array_equal(mine, its)
    start = [mapped(table, f"t{n}") for n, table in enumerate(tables)]
    end, _ = F.rollback_mf(mapped(users, "u"), mapped(items, "i"), mapped(values, "v"), *start,
                           n_epochs=2)  # fmt: skip
    np.testing.assert_array_equal(end.user_factors, p)


def test_same_numbers_as_the_classes():
    rng = np.random.default_rng(3)
    users, items = np.divmod(rng.permutation(30 * 20)[:300], 20)
    data = fi.Interactions.from_arrays(users, items, rng.integers(1, 6, 300))
    model = fi.MatrixFactorization(n_factors=4, n_epochs=3, rng=1).fit(data)
    trajectory = model.trajectory_
    order = trajectory.program.schedule.order
    end, rows = F.rollback_mf(
        data.users[order], data.items[order], data.values[order], *trajectory.checkpoints[0].tables,
        n_epochs=3, mean=model.global_mean_,
    )  # fmt: skip
    assert end.user_factors.tobytes() == model.user_factors_.tobytes()
    assert rows.item_rows.tobytes() == trajectory.replay().item_rows.tobytes()


@pytest.mark.parametrize("loss", ["logistic", "bpr"])
def test_sampled_losses_learn_and_record(loss):
    rng = np.random.default_rng(4)
    users, items = np.divmod(rng.permutation(30 * 20)[:200], 20)
    tables = [rng.normal(0, 0.1, (30, 4)), rng.normal(0, 0.1, (20, 4)), np.zeros(30), np.zeros(20)]
    rows = F.new_rows(200, 4, "float64")
    squares = Tables(*map(np.zeros_like, tables))
    losses = [
        F.sgd_mf(
            users,
            items,
            np.ones(200),
            *tables,
            loss=loss,
            n_negatives=3,
            epoch=epoch,
            learning_rate=0.1,
            squares=squares,
            rows=rows,
        )
        for epoch in range(20)
    ]
    assert losses[-1] < 0.7 * losses[0]
    assert np.abs(rows.user_rows).min() > 0
    with pytest.raises(ParameterError, match="n_negatives >= 1"):
        F.sgd_mf(users, items, np.ones(200), *tables, loss="bpr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": np.array([0, 1, 99])}, "users holds codes from 0 to 99; 0 to 11 fit"),
        ({"items": np.array([0, -1, 2])}, "items holds codes from -1"),
        ({"items": np.array([0, 1])}, "do not make pairs"),
        ({"users": np.array([0.5, 1.0, 2.0])}, "vector of integer codes"),
        ({"values": np.array([1.0, np.nan, 2.0])}, "row 1 is nan"),
        ({"user_factors": np.zeros((N_USERS, K + 1))}, "factors must be"),
        ({"user_biases": np.zeros(N_USERS + 1)}, "biases must be"),
        ({"user_biases": np.zeros(N_USERS, "float32")}, "all be float32 or all float64"),
        ({"item_factors": np.asfortranarray(np.ones((N_ITEMS, K)))}, "C-contiguous and writable"),
        ({"rows": F.new_rows(4, K, "float64")}, "make it with new_rows"),
        ({"rows": F.new_rows(3, K, "float32")}, "make it with new_rows"),
        ({"loss": "hinge"}, "use one of squared, logistic, bpr"),
        ({"sample_weight": np.ones(2)}, "sample_weight has shape"),
    ],
)
def test_bad_input_of_sgd(change, message):
    given = {
        "users": np.array([0, 1, 2]),
        "items": np.array([0, 1, 2]),
        "values": np.ones(3),
        "user_factors": np.ones((N_USERS, K)),
        "item_factors": np.ones((N_ITEMS, K)),
        "user_biases": np.zeros(N_USERS),
        "item_biases": np.zeros(N_ITEMS),
    }
    with pytest.raises((DataError, ParameterError), match=message):
        F.sgd_mf(**given | change)


def test_bad_input_of_explain(problem):
    users, items, values, tables = problem
    (p, q, _, _), rows = F.rollback_mf(users, items, values, *tables, n_epochs=1)
    store = F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS)
    with pytest.raises(DataError, match="0 to 11 fit"):
        F.explain_mf(p, q, store, [N_USERS], [0])
    with pytest.raises(DataError, match="do not make pairs"):
        F.explain_mf(p, q, store, [0, 1], [0])
    with pytest.raises(DataError, match="do not fit a store"):
        F.explain_mf(p[:-1], q, store, [0], [0])
    with pytest.raises(DataError, match="width"):
        F.explain_mf(p[:, :3], q[:, :3], store, [0], [0])
    with pytest.raises(ParameterError, match="k must be"):
        F.explain_mf(p, q, store, [0], [0], k=0)
    with pytest.raises(DataError, match="do not match"):
        F.pack_mf(rows, users[:-1], items, n_users=N_USERS, n_items=N_ITEMS)
    with pytest.raises(ParameterError, match="bfloat16 rows need"):
        F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS, row_dtype="bfloat16")
