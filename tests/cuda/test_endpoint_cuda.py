"""The training loss at fixed parameters on a device is that on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from endpoints import fit, panel_of, random_tables, weights_of
from planted import data_for

from fastinfluence import dispatch, objectives
from fastinfluence.training.endpoint import Endpoint

MEMORY = dispatch.memory("cuda")


@pytest.fixture(scope="module", params=["logistic", "bpr"])
def program(request):
    data = data_for(request.param, n_users=2, n_items=3, n=5, seed=1)
    weights = weights_of(len(data))
    return fit(data, loss=request.param, sample_weight=weights, n_epochs=2).trajectory_.program


@pytest.fixture(scope="module")
def endpoints(program):
    tables = random_tables(program)
    return program.endpoint(tables), program.endpoint(tables, n_threads=2, device="cuda")


def assert_near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def products(endpoint, *, full):
    """The product with a panel, the coupling, the reduced product, all in CPU memory."""
    memory, found = dispatch.memory(endpoint.device), []
    panel = panel_of(endpoint)

    def double(right, x):
        """Any solve of the users will do."""
        solved = memory.fetch(x).copy()
        solved[: endpoint.n_users] = 2 * memory.fetch(right)[: endpoint.n_users]
        memory.store(x, solved)

    for name, before in (("product", ()), ("coupling", ()), ("reduced_product", (double,))):
        given, out = memory.put(panel.copy()), memory.put(np.full_like(panel, np.nan))
        getattr(endpoint, name)(*before, given, out, full=full)
        rows = slice(0 if name == "product" else endpoint.n_users, None)
        found.append(memory.fetch(out)[rows])
    return found


@pytest.mark.parametrize("full", [False, True])
def test_products(endpoints, full):
    here, there = endpoints
    for expected, found in zip(*(products(e, full=full) for e in (here, there)), strict=True):
        assert_near(found, expected)


def test_arrays_are_on_the_device(endpoints):
    here, there = endpoints
    assert isinstance(there, Endpoint)
    assert (here.device, there.device) == ("cpu", "cuda")
    assert (here.dtype, here.scratch_bytes) == (there.dtype, there.scratch_bytes)
    quantity = objectives.Score([(0, 1), (1, 2)]).bind(here._program.data, here._program.recipe)
    panel = there.panel(quantity, 0)
    for array in (there.rows, panel, there.blocks(), there.credit(panel)):
        assert not isinstance(array, np.ndarray)
    assert_near(MEMORY.fetch(panel), here.panel(quantity, 0))
    assert_near(MEMORY.fetch(there.rows), here.rows)
    assert_near(MEMORY.fetch(there.blocks()), here.blocks())
    expected = here.credit(here.panel(quantity, 0))
    assert_near(MEMORY.fetch(there.credit(panel)), expected)


def test_numbers_of_examples_are_in_cpu_memory(endpoints):
    here, there = endpoints
    for name in ("losses", "norms", "own_credit"):
        assert_near(getattr(there, name)(), getattr(here, name)())
    changes = np.zeros((here.n_rows, here.d))
    changes[1] = 0.1
    drops = (endpoint.loss_drops(changes, np.array([1])) for endpoint in (there, here))
    np.testing.assert_array_equal(*drops)


def test_other_parameters_and_weights(endpoints):
    here, there = endpoints
    tables, weights = random_tables(here._program, 5), weights_of(here.n, 3)
    for change in (
        lambda endpoint: endpoint.at(tables),
        lambda endpoint: endpoint.reweighted(weights).twin(),
    ):
        expected, found = change(here), change(there)
        assert found.device == "cuda"
        assert_near(found.losses(), expected.losses())
        panel = panel_of(here)
        assert_near(
            MEMORY.fetch(found.credit(MEMORY.put(panel))), expected.credit(panel)
        )  # fmt: skip
