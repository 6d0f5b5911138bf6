"""The adjoints of triples' steps against retraining, and against what scaling gradients does."""

from __future__ import annotations

import numpy as np
import pytest
from graph_problems import LOSSES, OPTIMIZERS, backward, make_problem, problems, train
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_sgd as oracle
from oracles.graph_sgd import ADAGRAD, ADAM, DENSE, SGD

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import graph_replay, row_adjoints, row_optimizers
from fastinfluence.kernels.structures import LANES

ALL_LANES = 2**LANES - 1
ASKED = {  # what a step asks: reciprocal rows, or relations read backwards, or tails alone
    "reciprocal": {"reciprocal": True},
    "flipped": {"reciprocal": False},
    "tail only": {"reciprocal": False, "sides": 1},
}
SAMPLED = {"sampled": 3, "all": "all"}

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_model = pytest.mark.parametrize("is_complex", [False, True], ids=["distmult", "complex"])


class Quantities:
    """A nonlinear function of the rows in every lane."""

    def __init__(self, problem, seed=0):
        shape = *problem.state.rows.shape, LANES
        self.slopes = np.random.default_rng(seed).normal(size=shape).astype(problem.dtype)

    def values(self, rows):
        return np.einsum("rdq,rd->q", self.slopes, rows + rows**2 / 3)

    def gradients(self, rows):
        return self.slopes * (1 + rows * rows.dtype.type(2 / 3))[:, :, None]


def everywhere(problem):
    return np.full(len(problem.state.rows), ALL_LANES, np.uint16)


def replay(problem, gradients, *, allowed=None, cuts=()):
    """Influences (n, LANES), and the adjoint of where training started."""
    empty = np.zeros((0, *gradients.shape[1:]), gradients.dtype)
    adjoint = structures.RowAdjoint(
        gradients.copy(),
        np.zeros_like(gradients) if problem.setting.optimizer in (ADAM, DENSE) else empty,
        np.zeros_like(gradients) if problem.setting.optimizer != SGD else empty,
    )
    influence = np.zeros((problem.n, LANES), problem.dtype)
    allowed = everywhere(problem) if allowed is None else allowed
    for epoch, start, stop, log in backward(problem, cuts):
        graph_replay.replay_triples(
            adjoint, problem.graph, problem.examples, log, problem.hyper, epoch, start, stop,
            allowed, influence,
        )  # fmt: skip
    return influence, adjoint


def replayed(problem, quantities, **keywords):
    return replay(problem, quantities.gradients(train(problem)[0].rows), **keywords)


def reweighted(problem, place, factor):
    weights = problem.examples.weights.copy()
    weights[place] *= factor
    return problem._replace(examples=problem.examples._replace(weights=weights))


def differences(problem, quantities, place, distance=1e-5):
    """w dphi/dw of one triple by training twice."""
    ends = [
        quantities.values(train(reweighted(problem, place, 1 + step))[0].rows)
        for step in (distance, -distance)
    ]
    return (ends[0] - ends[1]) / (2 * distance)


def assert_near(got, expected, tolerance, floor=1e-3):
    scale = np.abs(expected).max()
    assert scale > floor  # there is something to compare
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- the derivative of retraining


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("sampled", SAMPLED)
@each_optimizer
@each_loss
@each_model
def test_is_the_derivative_of_training(is_complex, loss, optimizer, sampled, asked):
    for seed, epsilon in ((0, 1e-3), (1, 1e-7)):
        problem = make_problem(
            seed, n_examples=10, complex=is_complex, loss=loss, optimizer=optimizer,
            n_negatives=SAMPLED[sampled], epsilon=epsilon, **ASKED[asked],
        )  # fmt: skip
        quantities = Quantities(problem)
        influence, _ = replayed(problem, quantities)
        places = np.flatnonzero(problem.examples.weights)
        expected = [differences(problem, quantities, place) for place in places]
        assert_near(influence[places], np.array(expected), 1e-6)
        assert not influence[problem.examples.weights == 0].any()


@settings(deadline=None, max_examples=15)
@given(problems(dtype=np.float64, unit_norm=False, half=2), st.integers(0, 99), st.integers(0, 14))
def test_is_the_derivative_of_the_naive_loop(problem, seed, place):
    setting, start, examples = problem.naive
    place %= problem.n
    weight = problem.examples.weights[place]
    if weight == 0:
        return
    quantities = Quantities(problem, seed)
    influence, _ = replayed(problem, quantities)
    (slope,) = oracle.influence_by_differences(setting, start, examples, quantities.values, [place])
    scale = max(1e-3, np.abs(slope).max())
    np.testing.assert_allclose(influence[place], weight * slope, rtol=0, atol=1e-6 * scale)


@each_optimizer
def test_derivative_by_the_start(optimizer):
    problem = make_problem(optimizer=optimizer, complex=True)
    quantities = Quantities(problem)
    _, adjoint = replayed(problem, quantities)
    for at in [(0, 0), (2, 3), (problem.graph.n_entities, 1), (-1, 2)]:
        ends = []
        for distance in (1e-5, -1e-5):
            rows = problem.state.rows.copy()
            rows[at] += distance
            moved = problem._replace(state=problem.state._replace(rows=rows))
            ends.append(quantities.values(train(moved)[0].rows))
        assert_near(adjoint.rows[at], (ends[0] - ends[1]) / 2e-5, 1e-6)


@each_optimizer
@each_loss
def test_two_entities_and_self_loops(loss, optimizer):
    """The subject stands among its own candidates all the time, as the answer or beside it."""
    for n_entities, loops in ((2, 0.4), (4, 1)):
        for is_complex in (False, True):
            keywords = {"complex": is_complex, "loss": loss, "optimizer": optimizer}
            problem = make_problem(n_entities=n_entities, loops=loops, n_negatives=4, **keywords)
            quantities = Quantities(problem)
            influence, _ = replayed(problem, quantities)
            places = np.flatnonzero(problem.examples.weights)[:4]
            expected = [differences(problem, quantities, place) for place in places]
            assert_near(influence[places], np.array(expected), 1e-6)


def test_momentum_over_hundreds_of_steps():
    """A relation of the first triple only rests on its momentum for the whole epoch."""
    problem = make_problem(n_examples=230, half=1, optimizer=DENSE, weighted=False, loops=0)
    problem.examples.relations[:] = 1
    problem.examples.relations[0] = 0
    quantities = Quantities(problem)
    influence, _ = replayed(problem, quantities, cuts=[100])
    assert_near(influence[0], differences(problem, quantities, 0), 1e-6)


# ---------------------------------------------------------------- scaling all gradients


@pytest.mark.parametrize("n_negatives", [3, "all"])
@each_loss
@each_model
def test_all_influences_are_the_derivative_by_the_learning_rate(is_complex, loss, n_negatives):
    problem = make_problem(complex=is_complex, loss=loss, n_negatives=n_negatives)
    quantities = Quantities(problem)
    influence, _ = replayed(problem, quantities)
    ends = []
    for factor in (1 + 1e-5, 1 - 1e-5):
        hyper = problem.hyper._replace(
            learning_rate=problem.hyper.learning_rate * factor,
            decline=problem.hyper.decline * factor,
        )
        ends.append(quantities.values(train(problem._replace(hyper=hyper))[0].rows))
    assert_near(influence.sum(0), (ends[0] - ends[1]) / 2e-5, 1e-6)


@pytest.mark.parametrize("optimizer", [ADAGRAD, ADAM, DENSE])
@each_loss
@each_model
def test_all_influences_are_minus_the_derivative_by_epsilon(is_complex, loss, optimizer):
    """Larger gradients are to Adagrad and Adam what a smaller addend to the root is."""
    problem = make_problem(complex=is_complex, loss=loss, optimizer=optimizer, epsilon=0.05)
    quantities = Quantities(problem)
    influence, _ = replayed(problem, quantities)
    ends = []
    for factor in (1 + 1e-5, 1 - 1e-5):
        hyper = problem.hyper._replace(epsilon=problem.hyper.epsilon * factor)
        ends.append(quantities.values(train(problem._replace(hyper=hyper))[0].rows))
    assert_near(influence.sum(0), (ends[1] - ends[0]) / 2e-5, 1e-6)


# ---------------------------------------------------------------- company, pieces, masks


@settings(deadline=None, max_examples=20)
@given(problems(unit_norm=False), st.integers(0, 99))
def test_a_quantity_has_the_same_bits_in_any_company(problem, seed):
    rng = np.random.default_rng(seed)
    gradients = Quantities(problem, seed).gradients(train(problem)[0].rows)
    influence, adjoint = replay(problem, gradients)
    order = rng.permutation(LANES)
    moved, moved_adjoint = replay(problem, np.ascontiguousarray(gradients[:, :, order]))
    assert moved.tobytes() == np.ascontiguousarray(influence[:, order]).tobytes()
    lane, other = rng.choice(LANES, 2, replace=False)
    alone = np.zeros_like(gradients)
    alone[:, :, other] = gradients[:, :, lane]
    single, single_adjoint = replay(problem, alone)
    np.testing.assert_array_equal(single[:, other], influence[:, lane])
    assert not np.delete(single, other, axis=1).any()
    for whole, shuffled, part in zip(adjoint, moved_adjoint, single_adjoint, strict=True):
        np.testing.assert_array_equal(shuffled, whole[..., order])
        np.testing.assert_array_equal(part[..., other], whole[..., lane])


@settings(deadline=None, max_examples=20)
@given(problems(unit_norm=False), st.integers(0, 99))
def test_pieces_of_the_log_change_no_bit(problem, seed):
    cuts = np.flatnonzero(np.random.default_rng(seed).random(problem.n) < 0.4)
    gradients = Quantities(problem, seed).gradients(train(problem)[0].rows)
    whole = replay(problem, gradients)
    pieces = replay(problem, gradients, cuts=cuts[cuts > 0].tolist())
    np.testing.assert_array_equal(pieces[0], whole[0])
    for part, all_of_it in zip(pieces[1], whole[1], strict=True):
        np.testing.assert_array_equal(part, all_of_it)


@pytest.mark.parametrize("optimizer", [SGD, ADAGRAD, ADAM])
def test_triples_of_weight_0_might_as_well_not_be_there(optimizer):
    """But for time: rates and Adam's corrections count the steps that were left out."""
    problem = make_problem(optimizer=optimizer, linear=False, complex=True)
    problem.examples.weights[[3, 7, 11]] = 0
    quantities = Quantities(problem)
    influence, _ = replayed(problem, quantities)
    assert not influence[[3, 7, 11]].any()
    if optimizer != ADAM:
        kept = problem.examples.weights != 0
        columns = (np.ascontiguousarray(column[kept]) for column in problem.examples)
        less = problem._replace(examples=structures.TripleExamples(*columns))
        np.testing.assert_array_equal(influence[kept], replayed(less, quantities)[0])


def frozen_run(problem, free, place=0, factor=1.0, path=None):
    """Rows after every step of the naive loop; rows that are not free follow `path`."""
    setting, start, examples = reweighted(problem, place, factor).naive
    trainer, found = oracle.Trainer(setting, start, examples), []
    for epoch in range(setting.n_epochs):
        for t in range(problem.n):
            for side in range(setting.sides):
                trainer.step(epoch, t, side)
                if path is not None:
                    trainer.rows[~free] = path[len(found)][~free]
                found.append(trainer.rows.copy())
    return found


@each_optimizer
@each_loss
def test_influence_through_some_rows_only(loss, optimizer):
    """The others stand where they stood in training, whatever happens to these."""
    problem = make_problem(
        3, n_examples=8, complex=True, loss=loss, optimizer=optimizer, weighted=False
    )
    quantities, rng = Quantities(problem), np.random.default_rng(1)
    masks = rng.random((2, len(problem.state.rows))) < 0.4
    masks[:, problem.examples.heads[2]] = True
    allowed = everywhere(problem)
    for lane in range(LANES):
        allowed[~masks[lane % 2]] &= np.uint16(ALL_LANES ^ (1 << lane))
    gradients = quantities.gradients(train(problem)[0].rows)
    for lane in range(LANES):
        gradients[~masks[lane % 2], :, lane] = 0
    influence, _ = replay(problem, gradients, allowed=allowed)
    for kind, free in enumerate(masks):
        path = frozen_run(problem, free)
        ends = [
            quantities.values(frozen_run(problem, free, 2, 1 + distance, path)[-1])
            for distance in (1e-5, -1e-5)
        ]
        assert_near(influence[2, kind::2], ((ends[0] - ends[1]) / 2e-5)[kind::2], 1e-6)
    missed = np.abs(influence - replay(problem, gradients)[0]).max()
    assert missed > 1e-3 * np.abs(influence).max()


@settings(deadline=None, max_examples=25)
@given(problems(dtype=np.float32, unit_norm=False), st.integers(0, 99))
def test_float32_is_near_float64(problem, seed):
    quantities = Quantities(problem, seed)
    influence, _ = replayed(problem, quantities)
    precise = problem._replace(
        state=structures.RowState(
            *(a.astype(np.float64) if a.dtype == np.float32 else a for a in problem.state)
        ),
        examples=problem.examples._replace(weights=problem.examples.weights.astype(np.float64)),
    )
    quantities.slopes = quantities.slopes.astype(np.float64)
    expected, _ = replayed(precise, quantities)
    assert influence.dtype == np.float32
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(influence, expected, rtol=0, atol=5e-3 * scale)


# ---------------------------------------------------------------- one row's move


def moved(hyper, tables, gradient, clock, time):
    """Row, momenta and squares (the first axis) behind a catch-up and a step."""
    row, momenta, squares = (table.copy() for table in tables)
    sizes = row_optimizers.step_sizes(hyper, 0, time + 1)
    if hyper.optimizer == OPTIMIZERS.index(DENSE):
        table, sums = row_optimizers.decays(hyper), np.empty(row_optimizers.TERMS)
        row_optimizers.catch_up(hyper, row, momenta, squares, clock, time, 0, sizes, table, sums)
    row_optimizers.move(hyper, row, momenta, squares, gradient, sizes[time + 1])
    return np.array([row, momenta, squares])


@pytest.mark.parametrize("waited", [0, 1, 5, 500])
@each_optimizer
def test_move_back_is_the_transpose_of_a_move(optimizer, waited):
    hyper = make_problem(optimizer=optimizer, epsilon=1e-2, linear=False).hyper
    rng = np.random.default_rng(0)
    clock, time = 4, 4 + waited
    tables = rng.normal(size=(3, 5))
    tables[2] = rng.random(5) / 10
    gradient = rng.normal(size=5)
    adjoints = rng.normal(size=(3, 5, LANES))
    back = adjoints.copy()
    out = np.empty((5, LANES))
    dense = optimizer == DENSE
    keep1, keep2 = (hyper.beta1**waited, hyper.beta2**waited) if dense else (1.0, 1.0)
    sizes = row_optimizers.step_sizes(hyper, 0, time + 1)
    row_adjoints.move_back(
        hyper, sizes[time + 1], gradient, tables[1], tables[2], keep1, keep2, *back, out
    )
    if dense:
        row_adjoints.catch_up_back(hyper, tables[1], tables[2], clock, time, 0, sizes, *back)

    def derivative(change):
        ends = [moved(hyper, *change(distance), clock, time) for distance in (1e-6, -1e-6)]
        return np.einsum("kf,kfq->q", (ends[0] - ends[1]) / 2e-6, adjoints)

    for f in range(5):

        def by_gradient(distance, f=f):
            changed = gradient.copy()
            changed[f] += distance
            return tables, changed

        np.testing.assert_allclose(out[f], derivative(by_gradient), rtol=1e-6, atol=1e-7)
        for kind in {SGD: [], ADAGRAD: [2]}.get(optimizer, [1, 2]):

            def by_state(distance, f=f, kind=kind):
                changed = tables.copy()
                changed[kind, f] += distance
                return changed, gradient

            np.testing.assert_allclose(back[kind, f], derivative(by_state), rtol=1e-6, atol=1e-7)


@each_optimizer
def test_a_row_that_never_had_a_gradient(optimizer):
    """The root has no derivative at 0; the squares of zeros say nothing, the rest is finite."""
    hyper = make_problem(optimizer=optimizer, epsilon=1e-7).hyper
    nothing, adjoints = np.zeros(3), np.ones((3, 3, LANES))
    out = np.empty((3, LANES))
    sizes = row_optimizers.step_sizes(hyper, 0, 9)
    row_adjoints.move_back(hyper, sizes[9], nothing, nothing, nothing, 1.0, 1.0, *adjoints, out)
    row_adjoints.catch_up_back(hyper, nothing, nothing, 2, 8, 0, sizes, *adjoints)
    assert np.isfinite(out).all()
    assert np.isfinite(adjoints).all()
    np.testing.assert_array_equal(adjoints[0], 1)
