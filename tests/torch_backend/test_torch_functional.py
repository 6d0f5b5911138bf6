"""Arrays in, arrays out: tensors in give tensors out, computed where they lie."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastinfluence import dispatch
from fastinfluence import functional as F
from fastinfluence.errors import DeviceError
from fastinfluence.functional import homes

torch = pytest.importorskip("torch")

N_USERS, N_ITEMS, K, N = 6, 5, 3, 20


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.permutation(N_USERS * N_ITEMS)[:N], N_ITEMS)
    shapes = (N_USERS, K), (N_ITEMS, K), (N_USERS,), (N_ITEMS,)
    tables = [rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes]
    return users, items, rng.normal(size=N).astype(np.float32), tables


def tensors(arrays):
    return [torch.from_numpy(array.copy()) for array in arrays]


def test_tensors_in_give_tensors_out(problem):
    users, items, values, tables = problem
    end, rows = F.rollback_mf(users, items, values, *tensors(tables), n_epochs=2)
    assert all(isinstance(array, torch.Tensor) for array in (*end, *rows))
    store = F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS)
    found = F.explain_mf(end.user_factors, end.item_factors, store, [0, 1], [2, 3], k=3)
    assert all(isinstance(array, torch.Tensor) for array in found)
    end, rows = F.rollback_mf(users, items, values, *tables, n_epochs=2)
    store = F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS)
    expected = F.explain_mf(end.user_factors, end.item_factors, store, [0, 1], [2, 3], k=3)
    assert all(isinstance(array, np.ndarray) for array in expected)
    for mine, its in zip(found, expected, strict=True):
        assert (mine.numpy() == its).all()


def test_influence_functions_of_tensors(problem):
    users, items, values, tables = problem
    found = F.influence_mf(users, items, values, *tensors(tables), [0], [1], damping=0.5)
    expected = F.influence_mf(users, items, values, *tables, [0], [1], damping=0.5)
    assert isinstance(found.influence, torch.Tensor)
    assert (found.influence.numpy() == expected.influence).all()
    assert found.train_index is None
    assert found.report.converged.all()


def test_tables_of_tensors_are_changed_in_place(problem):
    users, items, values, tables = problem
    given = tensors(tables)
    F.sgd_mf(users, items, values, *given)
    F.sgd_mf(users, items, values, *tables)
    for mine, its in zip(given, tables, strict=True):
        assert (mine.numpy() == its).all()


def test_tables_of_tensors_that_gradients_are_wanted_of(problem):
    """The parameters of a module, say."""
    users, items, values, tables = problem
    given = [tensor.requires_grad_() for tensor in tensors(tables)]
    end, rows = F.rollback_mf(users, items, values, *given, n_epochs=1)
    expected, _ = F.rollback_mf(users, items, values, *tables, n_epochs=1)
    for mine, its in zip(end, expected, strict=True):
        assert (mine.detach().numpy() == its).all()
    rows = rows._replace(user_rows=rows.user_rows.requires_grad_())
    F.pack_mf(rows, users, items, n_users=N_USERS, n_items=N_ITEMS)
    F.sgd_mf(users, items, values, *given)
    assert (given[0].detach().numpy() == expected.user_factors).all()
    assert all(tensor.requires_grad for tensor in given)


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device."""

    place = "cuda:0"

    @property
    def device(self):
        return torch.device(self.place)


def elsewhere(array, place="cuda:0"):
    tensor = torch.from_numpy(array).as_subclass(Elsewhere)
    tensor.place = place
    return tensor


def test_tensors_on_different_devices(problem):
    users, items, values, tables = problem
    given = [*tensors(tables[:3]), elsewhere(tables[3])]
    with pytest.raises(DeviceError, match="item_biases lies on cuda:0, user_factors on cpu: move"):
        F.influence_mf(users, items, values, *given, [0], [1], damping=0.5)


@pytest.mark.parametrize(
    ("place", "problem_of_cuda", "backend"),
    [
        ("cuda:0", None, "cuda"),
        ("cuda:0", "no numba-cuda", "torch:cuda:0"),
        ("cuda:1", None, "torch:cuda:1"),
        ("mps", None, "torch:mps"),
        ("cpu", None, "cpu"),
    ],
)
def test_which_kernels_take_tensors(monkeypatch, place, problem_of_cuda, backend):
    monkeypatch.setattr(dispatch, "cuda_problem", lambda: problem_of_cuda)
    assert homes.home_of(factors=elsewhere(np.zeros(3), place)).backend == backend


def test_nothing_trains_on_other_devices_of_torch(problem, monkeypatch):
    users, items, values, tables = problem
    there = SimpleNamespace(backend="torch:mps")
    monkeypatch.setattr("fastinfluence.functional.training.home_of", lambda **_: there)
    with pytest.raises(DeviceError, match="no kernels that train on mps"):
        F.sgd_mf(users, items, values, *tables)


class OnlyDlpack:
    """An array on a device that knows no other protocol."""

    def __init__(self, tensor, kind=2):
        self.tensor, self.kind = tensor, kind

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.kind, 0


def test_arrays_on_a_device_that_know_dlpack_only(monkeypatch):
    tensor = torch.arange(3.0)
    monkeypatch.setattr(torch, "from_dlpack", lambda array: array.tensor)
    assert homes.taken_over(OnlyDlpack(tensor)) is tensor
    in_cpu_memory = OnlyDlpack(tensor, kind=1)
    assert homes.taken_over(in_cpu_memory) is in_cpu_memory
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError, match=r"DLPack type 2.*fastinfluence\[torch\]"):
        homes.taken_over(OnlyDlpack(np.zeros(3)))
