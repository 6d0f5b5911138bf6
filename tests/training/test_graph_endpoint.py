"""The training loss of triples at fixed parameters, as a whole: numbers, order, equal bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_hessian as oracle
from planted import same_bits
from test_graph_program import assert_near, naive, program_of, triples

import fastinfluence as fi
from fastinfluence import objectives
from fastinfluence.errors import DataError
from fastinfluence.kernels.structures import LANES, GraphTables
from fastinfluence.training import graph_endpoint


def rows_of(program, seed=0):
    return np.random.default_rng(seed).normal(size=(program.n_rows, program.recipe.n_factors)) / 2


def endpoint_of(program, rows=None, **keywords):
    rows = rows_of(program) if rows is None else rows
    return program.endpoint(GraphTables(rows.astype(program.dtype)), **keywords)


def panel_of(endpoint, seed=0):
    shape = endpoint.n_rows, endpoint.d, LANES
    return np.random.default_rng(seed).normal(size=shape).astype(endpoint.dtype)


def product(endpoint, panel, **keywords):
    out = np.full_like(panel, 7)
    endpoint.product(panel, out, **keywords)
    return out


def expected_of(program, rows):
    """Losses and gradients by training index, and the Gauss-Newton matrix, by the naive loops."""
    setting, _, examples = naive(program)
    stop = 1 if setting.fixed or setting.n_negatives == "all" else setting.n_epochs
    arguments = setting, rows, examples, range(max(0, stop - 4), stop)
    visits = np.argsort(program.order)
    losses, gradients = oracle.losses(*arguments), oracle.gradients_of(*arguments)
    return losses[visits], gradients[visits], oracle.gauss_newton(*arguments)


# ---------------------------------------------------------------- the naive numbers


@settings(deadline=None, max_examples=12)
@given(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(["distmult", "complex"]),
            "loss": st.sampled_from(["softmax", "logistic"]),
            "n_negatives": st.sampled_from([2, "all"]),
            "sides": st.sampled_from(["both", "tail"]),
            "reciprocal": st.booleans(),
            "fixed_negatives": st.booleans(),
            "shuffle": st.booleans(),
            "n_epochs": st.sampled_from([1, 3, 6]),
            "seed": st.integers(0, 2**62),
        }
    )
)
def test_is_the_naive_loss(keywords):
    data = triples(n=8, seed=keywords["seed"])
    weights = np.random.default_rng(1).choice([0, 0.5, 1, 2], len(data))
    weights[0] = 1
    program = program_of(data, weights, **keywords)
    rows = rows_of(program)
    endpoint = endpoint_of(program, rows)
    assert (endpoint.n_rows, endpoint.d, endpoint.n) == (*rows.shape, 8)
    panel = panel_of(endpoint)
    losses, gradients, matrix = expected_of(program, rows)
    assert_near(endpoint.losses(), losses, 1e-11)
    assert_near(endpoint.norms(), np.sqrt((gradients**2).sum((1, 2))), 1e-11)
    assert_near(endpoint.credit(panel), -np.einsum("jrd,rdq->jq", gradients, panel), 1e-11)
    flat = matrix @ panel.reshape(-1, LANES)
    assert_near(product(endpoint, panel), flat.reshape(panel.shape), 1e-11)
    squares = matrix.reshape(*rows.shape, *rows.shape)
    expected = np.stack([squares[row, :, row] for row in range(len(rows))])
    assert_near(endpoint.blocks(), expected, 1e-11)


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_gradients_and_hessian_by_differences(loss):
    program = program_of(loss=loss)
    rows = rows_of(program)
    endpoint = endpoint_of(program, rows)
    panel, basis = panel_of(endpoint), panel_of(endpoint, 1)
    ends = [
        endpoint.at(GraphTables(rows + distance * panel[:, :, 2])) for distance in (1e-5, -1e-5)
    ]
    slopes = (ends[0].losses() - ends[1].losses()) / 2e-5
    assert_near(-endpoint.credit(panel)[:, 2], slopes, 1e-7)
    gradient = -(ends[0].credit(basis) - ends[1].credit(basis)).sum(0) / 2e-5
    curved = product(endpoint, basis, full=True)
    assert_near(np.einsum("rd,rdq->q", panel[:, :, 2], curved), gradient, 1e-7)
    assert np.abs(curved - product(endpoint, basis)).max() > 1e-2


def test_gradients_of_queries_one_a_lane():
    model = fi.ComplEx(6, n_epochs=2, dtype="float64", rng=0).fit(triples())
    objective = objectives.LogProbability([(0, 0, tail) for tail in range(5)] * 4)
    quantity = objective.bind(model.data_, model.trajectory_.recipe)
    tables = model.trajectory_.end.tables
    endpoint = model.trajectory_.program.endpoint(tables)
    expected = quantity.dense_gradient(0, 20, tables, 0.0)
    np.testing.assert_array_equal(endpoint.panel(quantity, 0), expected[:, :, :LANES])
    rest = endpoint.panel(quantity, LANES)
    np.testing.assert_array_equal(rest[:, :, :4], expected[:, :, LANES:])
    assert not rest[:, :, 4:].any()


def test_other_weights():
    program = program_of()
    weights = np.random.default_rng(0).choice([0, 0.5, 1, 2], 24)
    endpoint, expected = endpoint_of(program).reweighted(weights), endpoint_of(program)
    panel = panel_of(endpoint)
    np.testing.assert_allclose(endpoint.losses(), weights * expected.losses())
    np.testing.assert_allclose(endpoint.credit(panel), weights[:, None] * expected.credit(panel))
    other = endpoint_of(program_of(weights=weights))
    assert same_bits(product(endpoint, panel), product(other, panel))
    assert same_bits(endpoint.blocks(), other.blocks())


# ---------------------------------------------------------------- equal bits


@pytest.mark.parametrize("n_negatives", [3, "all"])
def test_threads_change_no_bit(n_negatives):
    program = program_of(n_negatives=n_negatives, dtype="float32")
    rows = rows_of(program)
    alone = endpoint_of(program, rows)
    panel = panel_of(alone)
    for n_threads in (2, 3, 5):
        endpoint = endpoint_of(program, rows, n_threads=n_threads)
        for full in (False, True):
            mine, other = (product(e, panel, full=full) for e in (alone, endpoint))
            assert same_bits(mine, other)
            assert same_bits(product(endpoint, panel, full=full), other)  # and twice the same
        for name in ("losses", "norms", "blocks"):
            assert same_bits(getattr(alone, name)(), getattr(endpoint, name)())
        assert same_bits(alone.credit(panel), endpoint.credit(panel))
        twin = endpoint.twin()
        assert same_bits(product(twin, panel), product(alone, panel))
        assert not any(np.shares_memory(a, b) for a in twin._sums for b in endpoint._sums)


def test_large_tables_are_added_up_in_fewer_parts(monkeypatch):
    program = program_of()
    panel = panel_of(endpoint_of(program))
    expected = product(endpoint_of(program), panel)
    size = panel.nbytes
    for room, parts in ((0, 1), (3 * size, 3), (100 * size, 8)):
        monkeypatch.setattr(graph_endpoint, "_ROOM", room)
        endpoint = endpoint_of(program)
        assert_near(product(endpoint, panel), expected, 1e-12)
        assert len(endpoint._parts) == parts


def test_rows_without_numbers_whose_squares_are_denormal():
    program = program_of(dtype="float32")
    rows = rows_of(program)
    rows[3, :3] = 1e-21, -1e-40, 1e-18
    endpoint = endpoint_of(program, rows)
    expected = rows.astype(np.float32)
    expected[3, :2] = 0
    np.testing.assert_array_equal(endpoint.rows, expected)


# ---------------------------------------------------------------- bad input


def test_parameters_that_are_no_numbers_or_do_not_fit():
    program = program_of()
    rows = rows_of(program)
    rows[4, 1] = np.nan
    with pytest.raises(DataError, match=r"row 4 .*NaN"):
        endpoint_of(program, rows)
    good = endpoint_of(program)
    with pytest.raises(DataError, match=r"row 4 .*NaN"):
        good.at(GraphTables(rows))
    with pytest.raises(DataError, match="shape"):
        endpoint_of(program, rows[:-1])
