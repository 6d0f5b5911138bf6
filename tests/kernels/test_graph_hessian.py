"""The loss of triples at fixed rows against the naive one: Hessian, gradients, blocks."""

from __future__ import annotations

import numpy as np
import pytest
from graph_problems import LOSSES, make_problem, problems
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_hessian as oracle

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import graph_hessian
from fastinfluence.kernels.structures import LANES

TOLERANCE = {np.float32: 2e-4, np.float64: 1e-11}
EPOCHS = st.sampled_from([(0, 1), (1, 2), (2, 5)])

each_loss = pytest.mark.parametrize("loss", LOSSES)
each_model = pytest.mark.parametrize("is_complex", [False, True], ids=["distmult", "complex"])


def point_of(problem, epochs=(0, 2)):
    examples, sampler, hyper = problem.examples, problem.sampler, problem.hyper
    return structures.GraphPoint(
        problem.state.rows, problem.graph, examples, sampler, hyper, *epochs
    )


def panel_of(problem, seed=0):
    shape = *problem.state.rows.shape, LANES
    return np.random.default_rng(seed).normal(size=shape).astype(problem.dtype)


def naive(problem, epochs):
    setting, rows, examples = problem.naive
    return setting, rows.astype(np.float64), examples, range(*epochs)


def product(problem, panel, epochs=(0, 2), *, full):
    out = np.zeros_like(panel)
    graph_hessian.graph_products(point_of(problem, epochs), panel, full, 0, problem.n, out)
    return out


def blocks_of(problem, epochs=(0, 2), bounds=None):
    n_rows, d = problem.state.rows.shape
    blocks = np.zeros((n_rows, d, d), problem.dtype)
    graph_hessian.graph_blocks(point_of(problem, epochs), *(bounds or (0, n_rows)), blocks)
    return blocks


def assert_near(got, expected, tolerance):
    assert got.shape == expected.shape
    scale = max(1e-3, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def difference(problem, panel, lane, epochs, distance=1e-5):
    """The change of the naive gradient along a lane of a panel."""
    setting, rows, examples, some = naive(problem, epochs)
    ends = [
        oracle.gradients_of(setting, rows + step * panel[:, :, lane], examples, some).sum(0)
        for step in (distance, -distance)
    ]
    return (ends[0] - ends[1]) / (2 * distance)


# ---------------------------------------------------------------- Hessian


@settings(deadline=None, max_examples=25)
@given(problems(half=2, n_epochs=1), EPOCHS, st.integers(0, 99))
def test_gauss_newton_is_the_naive_matrix(problem, epochs, seed):
    panel = panel_of(problem, seed)
    got = product(problem, panel, epochs, full=False)
    matrix = oracle.gauss_newton(*naive(problem, epochs))
    expected = (matrix @ panel.reshape(-1, LANES)).reshape(panel.shape)
    assert_near(got, expected, TOLERANCE[problem.dtype])


@settings(deadline=None, max_examples=25)
@given(problems(dtype=np.float64, n_epochs=1), EPOCHS, st.integers(0, 99), st.integers(0, 15))
def test_hessian_is_the_change_of_the_naive_gradient(problem, epochs, seed, lane):
    panel = panel_of(problem, seed)
    got = product(problem, panel, epochs, full=True)[:, :, lane]
    assert_near(got, difference(problem, panel, lane, epochs), 1e-6)


@each_loss
@each_model
@pytest.mark.parametrize("n_negatives", [3, "all"])
def test_two_entities_and_self_loops(is_complex, loss, n_negatives):
    """The subject stands among its own candidates all the time, as the answer or beside it."""
    for n_entities, loops in ((2, 0.4), (4, 1)):
        problem = make_problem(
            n_entities=n_entities, loops=loops, n_negatives=n_negatives, complex=is_complex,
            loss=loss, reciprocal=False,
        )  # fmt: skip
        panel = panel_of(problem)
        got = product(problem, panel, full=True)[:, :, 3]
        assert_near(got, difference(problem, panel, 3, (0, 2)), 1e-6)
        assert np.abs(got - product(problem, panel, full=False)[:, :, 3]).max() > 1e-2


@each_loss
@each_model
def test_both_matrices_are_symmetric_and_gauss_newton_has_no_negative_curvature(is_complex, loss):
    problem = make_problem(complex=is_complex, loss=loss, regularization=0.0)
    panel = panel_of(problem).reshape(-1, LANES)
    for full in (False, True):
        found = product(problem, panel.reshape(*problem.state.rows.shape, LANES), full=full)
        gram = panel.T @ found.reshape(-1, LANES)
        np.testing.assert_allclose(gram, gram.T, atol=1e-12 * np.abs(gram).max())
        assert full or np.linalg.eigvalsh(gram).min() > -1e-12


def test_visits_add_up():
    problem = make_problem(n_examples=9)
    panel = panel_of(problem)
    parts = np.zeros_like(panel)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        graph_hessian.graph_products(point_of(problem), panel, True, start, stop, parts)
    assert_near(parts, product(problem, panel, full=True), 1e-13)


# ---------------------------------------------------------------- gradients and losses


@settings(deadline=None, max_examples=25)
@given(problems(n_epochs=1), EPOCHS, st.integers(0, 99))
def test_losses_gradients_and_norms(problem, epochs, seed):
    point, panel, n = point_of(problem, epochs), panel_of(problem, seed), problem.n
    tolerance = TOLERANCE[problem.dtype]
    gradients = oracle.gradients_of(*naive(problem, epochs))
    credits_, norms = np.zeros((n, LANES), problem.dtype), np.zeros(n, problem.dtype)
    values = np.zeros(n)
    graph_hessian.graph_credits(point, panel, 0, n, credits_)
    graph_hessian.graph_norms(point, 0, n, norms)
    graph_hessian.graph_losses(point, 0, n, values)
    assert_near(credits_, -np.einsum("jrd,rdq->jq", gradients, panel), tolerance)
    assert_near(norms, np.sqrt((gradients**2).sum((1, 2))), tolerance)
    assert_near(values, oracle.losses(*naive(problem, epochs)), tolerance)


def test_a_part_of_the_visits_is_all_that_is_written():
    problem = make_problem(n_examples=9, weighted=False)
    point, panel = point_of(problem), panel_of(problem)
    found = np.zeros((9, LANES)), np.zeros(9), np.zeros(9)
    graph_hessian.graph_credits(point, panel, 3, 7, found[0])
    graph_hessian.graph_norms(point, 3, 7, found[1])
    graph_hessian.graph_losses(point, 3, 7, found[2])
    for array in found:
        assert not array[:3].any()
        assert not array[7:].any()
        assert array[3:7].all()


# ---------------------------------------------------------------- blocks


@settings(deadline=None, max_examples=25)
@given(problems(half=2, n_epochs=1), EPOCHS)
def test_blocks_are_those_of_the_naive_matrix(problem, epochs):
    n_rows, d = problem.state.rows.shape
    matrix = oracle.gauss_newton(*naive(problem, epochs)).reshape(n_rows, d, n_rows, d)
    expected = np.stack([matrix[row, :, row] for row in range(n_rows)])
    assert_near(blocks_of(problem, epochs), expected, TOLERANCE[problem.dtype])


def test_rows_on_their_own_have_the_same_bits():
    problem = make_problem(dtype=np.float32, complex=True, n_negatives="all")
    whole, parts = blocks_of(problem), 0
    for bounds in ((0, 3), (3, 6), (6, len(problem.state.rows))):
        part = blocks_of(problem, bounds=bounds)
        assert not part[: bounds[0]].any()
        assert not part[bounds[1] :].any()
        parts = parts + part
    assert parts.tobytes() == whole.tobytes()
