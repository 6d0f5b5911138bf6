"""Curvature Rollback of triples against explicit matrices, and against one row's adjoint."""

from __future__ import annotations

import numpy as np
import pytest
from graph_problems import LOSSES, OPTIMIZERS, backward, make_problem, new_record, problems
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_curvature as oracle
from oracles.graph_sgd import ADAM, DENSE, SGD, Example, slots_of

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import graph_curvature, graph_replay
from fastinfluence.kernels.structures import LANES

ASKED = {  # what a step asks: reciprocal rows, or relations read backwards, or tails alone
    "reciprocal": {"reciprocal": True},
    "flipped": {"reciprocal": False},
    "tail only": {"reciprocal": False, "sides": 1},
}
SAMPLED = {"sampled": 3, "all": "all"}

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_model = pytest.mark.parametrize("is_complex", [False, True], ids=["distmult", "complex"])


def walk_of(problem, rows):
    d, n = problem.state.rows.shape[1], len(rows)
    slots = np.full(len(problem.state.rows), -1, np.int32)
    slots[rows] = np.arange(n)
    has_momenta = problem.setting.optimizer in (ADAM, DENSE)
    return structures.GraphCurvature(
        np.tile(np.eye(d, dtype=problem.dtype), (n, 1, 1)),
        np.zeros((n if has_momenta else 0, d, d), problem.dtype),
        slots,
        np.zeros(n, np.int64),
        np.ones(n),
    )


def roll_back(problem, *, dealt=None, cuts=()):
    """Changes of every triple, and the walks; `dealt` are the rows of each, one has all."""
    dealt = [range(len(problem.state.rows))] if dealt is None else dealt
    walks = [walk_of(problem, list(rows)) for rows in dealt]
    changes = new_record(problem).changes
    for epoch, start, stop, log in backward(problem, cuts):
        for walk in walks:
            graph_curvature.roll_back_triples(
                walk, problem.graph, problem.examples, log, problem.hyper, epoch, start, stop,
                changes,
            )  # fmt: skip
    return changes, walks


def assert_near(got, expected, tolerance):
    assert got.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- the naive matrices


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("sampled", SAMPLED)
@each_optimizer
@each_loss
@each_model
def test_is_the_naive_product_of_matrices(is_complex, loss, optimizer, sampled, asked):
    problem = make_problem(
        1, n_entities=4, n_relations=2, n_examples=4, half=1, n_negatives=SAMPLED[sampled],
        complex=is_complex, loss=loss, optimizer=optimizer, learning_rate=0.2, **ASKED[asked],
    )  # fmt: skip
    changes, _ = roll_back(problem)
    expected = oracle.rollback(*problem.naive).changes
    assert np.abs(expected).max() > 1e-2
    assert_near(changes, expected, 1e-9)


@settings(deadline=None, max_examples=12)
@given(
    problems(dtype=np.float64, unit_norm=False, half=2, n_examples=5, n_entities=3),
    st.booleans(),
)
def test_follows_the_naive_walk(problem, cut):
    changes, _ = roll_back(problem, cuts=[2] if cut else [])
    expected = oracle.rollback(*problem.naive).changes
    assert_near(changes, expected, 1e-9)


@each_optimizer
@each_loss
@each_model
def test_self_loops_and_two_entities(is_complex, loss, optimizer):
    """The subject is the answer, or the one other candidate, all the time."""
    for n_entities, loops in ((2, 0.4), (3, 1)):
        problem = make_problem(
            n_entities=n_entities, loops=loops, n_examples=4, half=1, reciprocal=False,
            complex=is_complex, loss=loss, optimizer=optimizer,
        )  # fmt: skip
        changes, _ = roll_back(problem)
        assert_near(changes, oracle.rollback(*problem.naive).changes, 1e-9)
        if loops == 1:
            assert not changes[:, 1].any()


def test_momentum_over_hundreds_of_steps():
    """A relation of the first triple only rests on its momentum for the whole epoch."""
    problem = make_problem(
        n_examples=230, half=1, optimizer=DENSE, weighted=False, loops=0, n_epochs=1,
        sides=1, n_negatives=1, n_entities=2,
    )  # fmt: skip
    problem.examples.relations[:] = 1
    problem.examples.relations[0] = 0
    changes, _ = roll_back(problem, cuts=[100])
    assert_near(changes, oracle.rollback(*problem.naive).changes, 1e-9)


# ---------------------------------------------------------------- the adjoint of one row


@pytest.mark.parametrize("sampled", SAMPLED)
@pytest.mark.parametrize("asked", ASKED)
@each_loss
@each_model
def test_with_sgd_it_is_replay_through_one_row(is_complex, loss, asked, sampled):
    problem = make_problem(
        n_examples=14, complex=is_complex, loss=loss, n_negatives=SAMPLED[sampled], **ASKED[asked]
    )
    changes, _ = roll_back(problem)
    n_rows, d = problem.state.rows.shape
    rows = np.arange(LANES) % n_rows
    vectors = np.random.default_rng(0).normal(size=(LANES, d))
    adjoint = structures.RowAdjoint(np.zeros((n_rows, d, LANES)), *(np.zeros((0, d, LANES)),) * 2)
    allowed = np.zeros(n_rows, np.uint16)
    for lane, row in enumerate(rows):
        adjoint.rows[row, :, lane] = vectors[lane]
        allowed[row] |= np.uint16(1 << lane)
    influence = np.zeros((problem.n, LANES))
    for epoch, start, stop, log in backward(problem):
        graph_replay.replay_triples(
            adjoint, problem.graph, problem.examples, log, problem.hyper, epoch, start, stop,
            allowed, influence,
        )  # fmt: skip
    compared = 0
    for t, example in enumerate(problem.naive[2]):
        names = slots_of(problem.setting, Example(*example))
        for lane, row in enumerate(rows.tolist()):
            if row in names:
                got = vectors[lane] @ changes[t, names.index(row)]
                assert got == pytest.approx(influence[t, lane], rel=1e-11, abs=1e-14)
                compared += 1
    assert compared > 30


# ---------------------------------------------------------------- walks, pieces, precision


@settings(deadline=None, max_examples=20)
@given(problems(unit_norm=False), st.integers(0, 99))
def test_dealing_the_rows_and_cutting_the_log_change_no_bit(problem, seed):
    rng = np.random.default_rng(seed)
    changes, (whole,) = roll_back(problem)
    rows = rng.permutation(len(problem.state.rows)).tolist()
    cut = int(rng.integers(1, len(rows)))
    cuts = np.flatnonzero(rng.random(problem.n) < 0.3)
    dealt = [rows[:cut], rows[cut:]]
    parted, walks = roll_back(problem, dealt=dealt, cuts=cuts[cuts > 0].tolist())
    np.testing.assert_array_equal(parted, changes)
    for some, walk in zip(dealt, walks, strict=True):
        np.testing.assert_array_equal(walk.matrices, whole.matrices[some])
        np.testing.assert_array_equal(walk.touched, whole.touched[some])
        np.testing.assert_array_equal(walk.growth, whole.growth[some])


@each_optimizer
def test_rows_that_are_not_looked_at_get_nothing(optimizer):
    problem = make_problem(optimizer=optimizer)
    head = int(problem.examples.heads[np.flatnonzero(problem.examples.weights)[0]])
    changes, _ = roll_back(problem)
    some, _ = roll_back(problem, dealt=[[head]])
    expected = np.zeros_like(changes)
    for t, example in enumerate(problem.naive[2]):
        names = slots_of(problem.setting, Example(*example))
        if head in names:
            expected[t, names.index(head)] = changes[t, names.index(head)]
    assert expected.any()
    np.testing.assert_array_equal(some, expected)


@settings(deadline=None, max_examples=20)
@given(problems(dtype=np.float32, unit_norm=False))
def test_float32_is_near_float64(problem):
    changes, _ = roll_back(problem)
    precise = problem._replace(
        state=structures.RowState(
            *(a.astype(np.float64) if a.dtype == np.float32 else a for a in problem.state)
        ),
        examples=problem.examples._replace(weights=problem.examples.weights.astype(np.float64)),
    )
    assert changes.dtype == np.float32
    np.testing.assert_allclose(changes, roll_back(precise)[0], rtol=0, atol=1e-3)


# ---------------------------------------------------------------- growth, vanishing


LOOK = graph_curvature.LOOK_EVERY


@pytest.mark.parametrize("optimizer", [SGD, DENSE])
def test_growth_is_the_greatest_gain_seen(optimizer):
    """Every so many touches of a row are looked at; without regularization they grow."""
    problem = make_problem(
        n_entities=2, n_relations=1, n_examples=30, half=1, n_epochs=2, optimizer=optimizer,
        learning_rate=0.2, regularization=0.0, n_negatives=1, reciprocal=False,
    )  # fmt: skip
    _, (walk,) = roll_back(problem)
    found = oracle.rollback(*problem.naive)
    expected = [max([1.0, *gains[LOOK - 1 :: LOOK]]) for gains in found.gains.values()]
    np.testing.assert_array_equal(walk.touched, [len(gains) for gains in found.gains.values()])
    assert max(expected) > 1.1
    np.testing.assert_allclose(walk.growth, expected, rtol=1e-6)


def test_a_matrix_that_has_vanished_is_left_alone():
    """Regularization multiplies it by .1 a touch: after the first look nothing is left of it."""
    problem = make_problem(
        n_entities=2, n_relations=2, n_examples=80, half=1, n_epochs=1, linear=False,
        learning_rate=0.9, regularization=1.0, weighted=False, loops=0, sides=1, n_negatives=1,
        reciprocal=False,
    )  # fmt: skip
    problem.examples.heads[:], problem.examples.tails[:] = 0, 1
    problem.examples.relations[:] = 0
    problem.examples.relations[:3] = 1
    changes, (walk,) = roll_back(problem)
    expected = oracle.rollback(*problem.naive)
    assert_near(changes, expected.changes, 1e-9)
    assert walk.touched.tolist() == [-1, -1, -1, 3]
    assert not walk.matrices[:3].any()
    assert walk.matrices[3].any()
    assert not changes[: 80 - LOOK, :2].any()
    assert changes[80 - LOOK :, :2].any(axis=(1, 2)).all()
    assert changes[:3, 2].any(axis=1).all()
    assert 0 < np.abs(expected.changes[: 80 - LOOK, :2]).max() < graph_curvature.VANISHED


def test_what_is_merely_small_is_carried_on():
    """Halved at every touch, a matrix is 2e-10 at the first look."""
    problem = make_problem(
        n_entities=2, n_relations=1, n_examples=LOOK + 20, half=1, n_epochs=1, linear=False,
        learning_rate=0.5, regularization=1.0, weighted=False, loops=0, sides=1, n_negatives=1,
        reciprocal=False,
    )  # fmt: skip
    problem.examples.heads[:], problem.examples.tails[:] = 0, 1
    changes, (walk,) = roll_back(problem)
    expected = oracle.rollback(*problem.naive).changes
    assert walk.touched.tolist() == [problem.n] * 3
    sizes = np.linalg.norm(expected, axis=2)
    assert sizes[0].max() < 1e-14
    errors = np.linalg.norm(changes - expected, axis=2)
    np.testing.assert_array_less(errors, 1e-9 * sizes)
