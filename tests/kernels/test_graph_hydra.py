"""HYDRA's walk back through the log of triples against two vectors a triple forwards."""

from __future__ import annotations

import numpy as np
import pytest
from graph_problems import LOSSES, OPTIMIZERS, backward, make_problem, problems
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_sgd
from oracles import hydra as oracle

from fastinfluence.kernels.cpu import graph_hydra, hydra, row_optimizers
from fastinfluence.kernels.structures import LANES

LANE = 4
TOLERANCE = {np.float64: 1e-11, np.float32: 2e-4}


class Case:
    """Random gradients in every lane of some rows of a model."""

    def __init__(self, problem, seed=0, share=0.6):
        rng = np.random.default_rng(seed)
        # Triples go by their ids, which outside of these tests are training indices.
        ids = np.arange(problem.n)
        self.problem, self.numbered = problem, problem.examples._replace(ids=ids)
        n_rows, d = problem.state.rows.shape
        self.held = np.flatnonzero(rng.random(n_rows) < share)
        self.places = np.full(n_rows, -1, np.int32)
        self.places[self.held] = rng.permutation(len(self.held))
        self.rows = rng.normal(size=(len(self.held), d, LANES)).astype(problem.dtype)

    def influence(self, momentum, decay, cuts=()):
        problem, hyper = self.problem, self.problem.hyper
        steps = problem.n * hyper.sides
        carried, factors, last = np.array([1.0, 0.0]), np.empty(steps), -1
        left, out = np.ones_like(self.rows[:, :, 0]), np.zeros((problem.n, LANES), problem.dtype)
        taken = np.repeat(problem.examples.weights != 0, hyper.sides)
        for epoch, start, stop, log in backward(problem, cuts):
            if epoch != last:
                last, sizes = epoch, row_optimizers.step_sizes(hyper, epoch * steps, steps)
                hydra.step_filter(sizes[1:], taken, momentum, decay or 0.0, carried, factors)
            graph_hydra.hydra_triples(
                self.rows, left, self.places, problem.graph, self.numbered, log, hyper, epoch,
                factors, decay is None, start, stop, out,
            )  # fmt: skip
        return out

    def naive_influence(self, momentum, decay):
        setting, start, examples = self.problem.naive
        steps = graph_sgd.run(setting, start, examples).steps
        pushes = oracle.pushes_of_triples(setting, steps, self.problem.n)
        gradient = dict(
            zip(self.held.tolist(), self.rows[self.places[self.held], :, LANE], strict=True)
        )
        return np.array(
            [
                oracle.along(gradient, oracle.full(pushes, t, momentum, decay))
                for t in range(self.problem.n)
            ]
        )


def assert_near(got, expected, tolerance):
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("decay", [None, 0.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("is_complex", [False, True], ids=["distmult", "complex"])
def test_two_vectors_a_triple(is_complex, loss, optimizer, decay):
    for n_negatives, reciprocal in ((3, True), ("all", False)):
        problem = make_problem(
            loss=loss, optimizer=optimizer, complex=is_complex, n_negatives=n_negatives,
            reciprocal=reciprocal,
        )  # fmt: skip
        case = Case(problem)
        expected = case.naive_influence(0.0, decay)
        assert np.abs(expected).max() > 1e-3
        assert_near(case.influence(0.0, decay)[:, LANE], expected, 1e-11)


@settings(deadline=None, max_examples=20)
@given(
    problems(unit_norm=False), st.floats(0, 0.99), st.one_of(st.none(), st.floats(0, 1)),
    st.integers(0, 99),
)  # fmt: skip
def test_at_random(problem, momentum, decay, seed):
    case = Case(problem, seed)
    expected = case.naive_influence(momentum, decay)
    assert_near(case.influence(momentum, decay)[:, LANE], expected, TOLERANCE[problem.dtype])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pieces_of_the_log_change_no_bit(optimizer):
    case = Case(make_problem(optimizer=optimizer, complex=True))
    once, pieces = case.influence(0.5, None), case.influence(0.5, None, cuts=[2, 3, 9])
    np.testing.assert_array_equal(pieces, once)


def test_lanes_are_independent():
    case = Case(make_problem(complex=True, dtype=np.float32))
    once = case.influence(0.0, None)
    order = np.random.default_rng(0).permutation(LANES)
    order[3] = order[4]
    case.rows = np.ascontiguousarray(case.rows[:, :, order])
    np.testing.assert_array_equal(case.influence(0.0, None), once[:, order])
