"""HYDRA's walk back through a log against two vectors, and two numbers, an example forwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import hydra as oracle
from oracles import steps as walk
from planted import LOSSES, OPTIMIZERS, data_for
from test_replay_kernel import program_of, trajectory_of

from fastinfluence.kernels.cpu import hydra
from fastinfluence.kernels.cpu.lanes import LANES
from fastinfluence.training.backward import backward

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}  # relative to the largest entry
FILTERS = [(0.0, None), (0.0, 0.0), (0.7, 0.0), (0.0, 0.3), (0.9, 0.1), (0.6, None)]


class Case:
    """Random gradients in every lane of some rows of a run."""

    def __init__(self, program, seed=0, share=0.6):
        rng = np.random.default_rng(seed)
        self.program, self.trajectory = program, trajectory_of(program)
        self.n_users = program.data.n_users
        n_rows = self.n_users + program.data.n_items
        self.held = np.flatnonzero(rng.random(n_rows) < share)
        self.places = np.full(n_rows, -1, np.int32)
        self.places[self.held] = rng.permutation(len(self.held))
        shape = len(self.held), program.recipe.n_factors + 1, LANES
        self.rows = rng.standard_normal(shape).astype(program.dtype)

    def gradient(self, lane):
        """That of a lane, by name of the row."""
        names = [
            ("user", row) if row < self.n_users else ("item", row - self.n_users)
            for row in self.held.tolist()
        ]
        rows = self.rows[self.places[self.held], :, lane].astype(float)
        return dict(zip(names, rows, strict=True))

    @property
    def pushes(self):
        run = walk.run(self.program, self.trajectory.checkpoints[0], self.trajectory.n_epochs)
        return oracle.pushes_of_pairs(run.steps)

    def influence(self, momentum, decay, memory_budget=2**30):
        program, n = self.program, len(self.program.data)
        carried, factors, epoch = np.array([1.0, 0.0]), np.empty(n), -1
        left, out = np.ones_like(self.rows[:, :, 0]), np.zeros((n, LANES), program.dtype)
        taken = program.examples.weights != 0
        for stage in backward(self.trajectory, memory_budget=memory_budget, show_progress=False):
            hyper = program.hyper(stage.epoch)
            if stage.epoch != epoch:
                epoch, rates = stage.epoch, np.full(n, float(hyper.learning_rate))
                hydra.step_filter(rates, taken, momentum, decay or 0.0, carried, factors)
            hydra.hydra_steps(
                self.rows, left, self.places[: self.n_users], self.places[self.n_users :],
                program.examples, stage.log, hyper, program.recipe.loss_code, factors,
                decay is None, stage.start, stage.stop, out,
            )  # fmt: skip
        return out

    def naive_influence(self, momentum, decay, lanes=(0, 5)):
        """By training index, two vectors an example."""
        pushes, order = self.pushes, self.program.order
        found = np.zeros((len(order), len(lanes)))
        for t in {push.t for push in pushes}:
            response = oracle.full(pushes, t, momentum, decay)
            found[order[t]] = [oracle.along(self.gradient(lane), response) for lane in lanes]
        return found


def assert_near(got, expected, tolerance):
    scale = np.abs(expected).max()
    assert scale > 1e-3  # there is something to compare
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("momentum", "decay"), FILTERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_vectors_an_example(loss, momentum, decay):
    data = data_for(loss, n_users=6, n_items=9, n=24)
    case = Case(program_of(data, loss=loss))
    expected = case.naive_influence(momentum, decay)
    assert_near(case.influence(momentum, decay)[:, [0, 5]], expected, 1e-12)


@pytest.mark.parametrize("decay", [None, 0.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimizers_and_precisions(dtype, loss, optimizer, decay):
    data = data_for(loss, n_users=6, n_items=9, n=24)
    case = Case(program_of(data, loss=loss, optimizer=optimizer, dtype=dtype))
    expected = case.naive_influence(0.0, decay)
    tolerance = TOLERANCE[dtype]
    if optimizer == "adagrad":  # a first gradient near 0 is scaled up with its rounding
        tolerance *= 20
    assert_near(case.influence(0.0, decay)[:, [0, 5]], expected, tolerance)


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(LOSSES),
    st.sampled_from([1, 2, 5, 19]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.floats(0, 0.99),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(0, 10**6),
)
def test_at_random(loss, k, n_negatives, n_groups, momentum, decay, seed):
    data = data_for(loss, n_users=5, n_items=8, n=18, seed=seed)
    program = program_of(
        data, loss=loss, n_factors=k, n_negatives=n_negatives, n_groups=n_groups, seed=seed
    )
    case = Case(program, seed, share=1)
    expected = case.naive_influence(momentum, decay, lanes=[3])
    assert_near(case.influence(momentum, decay)[:, [3]], expected, 1e-11)


@settings(deadline=None, max_examples=10)
@given(st.floats(0, 0.99), st.floats(0, 1), st.integers(0, 10**6))
def test_lean_is_full(momentum, decay, seed):
    """Two numbers an example are the two vectors, and the walk back is both."""
    data = data_for("squared", n_users=5, n_items=6, n=15, seed=seed)
    case = Case(program_of(data, seed=seed), seed, share=1)
    by_position = oracle.lean(case.pushes, case.gradient(2), 15, momentum, decay)
    lean = np.empty(15)
    lean[case.program.order] = by_position
    full = case.naive_influence(momentum, decay, lanes=[2])[:, 0]
    assert_near(lean, full, 1e-12)
    assert_near(case.influence(momentum, decay)[:, 2], lean, 1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pieces_of_the_log_change_no_bit(optimizer):
    data = data_for("logistic", n_users=40, n_items=30, n=300)
    program = program_of(data, loss="logistic", optimizer=optimizer, n_groups=4)
    case = Case(program)
    once = case.influence(0.5, None)
    pieces = case.influence(0.5, None, memory_budget=90 * program.log_bytes)
    np.testing.assert_array_equal(pieces, once)


def test_lanes_are_independent():
    data = data_for("bpr", n_users=6, n_items=9, n=28)
    case = Case(program_of(data, loss="bpr", dtype="float32"))
    once = case.influence(0.5, 0.1)
    order = np.random.default_rng(0).permutation(LANES)
    order[3] = order[4]
    case.rows = np.ascontiguousarray(case.rows[:, :, order])
    np.testing.assert_array_equal(case.influence(0.5, 0.1), once[:, order])


def test_weight_zero_is_no_step():
    """Neither has it influence, nor does momentum or decay go on in it."""
    data = data_for("squared", n_users=6, n_items=9, n=28)
    case = Case(program_of(data))
    got = case.influence(0.9, 0.2)
    left_out = np.asarray(case.program.weights) == 0
    assert left_out.any()
    assert not got[left_out].any()
    assert got[~left_out].any(axis=1).sum() > 10


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 12), st.floats(0, 0.99), st.floats(0, 1), st.integers(0, 10**6))
def test_filter_is_the_end_of_an_impulse(n, momentum, decay, seed):
    rng = np.random.default_rng(seed)
    rates, taken = rng.random(n), rng.random(n) < 0.8
    carried, factors = np.array([1.0, 0.0]), np.empty(n)
    cut = n // 2  # an epoch ends here
    hydra.step_filter(rates[cut:], taken[cut:], momentum, decay, carried, factors[cut:])
    hydra.step_filter(rates[:cut], taken[:cut], momentum, decay, carried, factors[:cut])
    for impulse in range(n):
        velocity = response = 0.0
        for t in np.flatnonzero(taken):
            velocity = momentum * velocity + decay * response + (t == impulse)
            response -= rates[t] * velocity
        np.testing.assert_allclose(factors[impulse], response, rtol=1e-12, atol=1e-14)
