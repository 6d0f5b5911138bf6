from __future__ import annotations

import numpy as np
import pytest
from graph_problems import (
    CREDITS,
    DTYPES,
    LOSSES,
    OPTIMIZERS,
    make_problem,
    new_log,
    problems,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graph_sgd as oracle
from oracles.graph_sgd import ADAGRAD, ADAM, DENSE, GRADIENT, SGD, UPDATE

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import graph_sgd, row_optimizers

TOLERANCE = {np.float32: 2e-4, np.float64: 1e-10}  # relative to the largest entry


def assert_near(got, expected, dtype):
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        if isinstance(a, tuple):
            assert_same_bits(a, b)
        else:
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.tobytes() == b.tobytes()


def assert_like_oracle(problem, credits=(UPDATE, GRADIENT)):
    setting, _, examples = problem.naive
    found = oracle.run(*problem.naive)
    for credit in credits:
        state, record, losses = train(problem, credit=credit)
        assert_near(state.rows, found.rows, problem.dtype)
        if len(state.momenta):
            assert_near(state.momenta, found.momenta, problem.dtype)
        if len(state.squares):
            assert_near(state.squares, found.squares, problem.dtype)
        assert_near(np.array(losses), np.array(found.losses), problem.dtype)
        if found.steps:
            expected = oracle.record(setting, examples, found.steps, credit)
            assert_near(record.changes, expected, problem.dtype)


# ---------------------------------------------------------------- the naive loop's numbers


@settings(deadline=None, max_examples=80)
@given(problems(dtype=np.float64, unit_norm=False))
def test_trains_like_the_naive_loop(problem):
    assert_like_oracle(problem)


@settings(deadline=None, max_examples=25)
@given(problems(dtype=np.float32, unit_norm=False))
def test_trains_like_the_naive_loop_in_float32(problem):
    assert_like_oracle(problem)


@settings(deadline=None, max_examples=25)
@given(problems(unit_norm=True, dtype=np.float64))
def test_unit_norm(problem):
    """The change is that of the row on the sphere; its gradient's part has no meaning here."""
    assert_like_oracle(problem, [UPDATE])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("half", [1, 7, 8, 16, 17, 32, 50])
def test_every_width(half, is_complex, optimizer):
    keywords = {"complex": is_complex, "optimizer": optimizer, "n_examples": 4, "n_epochs": 1}
    for dtype in DTYPES:
        assert_like_oracle(make_problem(half=half, dtype=dtype, **keywords))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_entities_and_the_usual_epsilon(loss, optimizer):
    """The only negative is drawn every time, and is the subject unless the triple is a loop."""
    for n_negatives in (1, 4, "all"):
        keywords = {"n_negatives": n_negatives, "loss": loss, "optimizer": optimizer}
        assert_like_oracle(make_problem(n_entities=2, epsilon=1e-7, loops=0.4, **keywords))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_self_loops(optimizer):
    for reciprocal in (False, True):
        problem = make_problem(loops=1, reciprocal=reciprocal, optimizer=optimizer, complex=True)
        assert_like_oracle(problem)
        assert not train(problem, credit=UPDATE)[1].changes[:, 1].any()


def test_momentum_for_hundreds_of_steps():
    """A relation of the first triple only rests on its momentum to the end of the epoch."""
    problem = make_problem(n_examples=260, half=1, n_epochs=2, optimizer=DENSE, weighted=False)
    problem.examples.relations[:] = 1
    problem.examples.relations[0] = 0
    assert_like_oracle(problem, [UPDATE])


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("is_complex", [False, True])
def test_a_step_descends_the_documented_loss(is_complex, loss, weight):
    keywords = {"complex": is_complex, "loss": loss, "reciprocal": False, "learning_rate": 1.0}
    problem = make_problem(n_examples=1, n_epochs=1, sides=1, loops=0, linear=False, **keywords)
    problem.examples.weights[:] = weight
    setting, start, (example,) = problem.naive
    link = oracle.link_of(setting, oracle.Example(*example), 0)
    drawn = oracle.candidates_of(setting, oracle.Example(*example), link, 0, 0)
    after = train(problem)[0].rows
    for at in np.ndindex(*start.shape):
        ends = []
        for distance in (1e-5, -1e-5):
            moved = start.copy()
            moved[at] += distance
            ends.append(oracle.example_loss(setting, moved, link, *drawn))
        slope = (ends[0] - ends[1]) / 2e-5
        assert after[at] - start[at] == pytest.approx(-weight * slope, abs=1e-9)


# ---------------------------------------------------------------- recording and logging


@settings(deadline=None, max_examples=40)
@given(problems(), st.sampled_from(CREDITS), st.integers(0, 99))
def test_recording_and_logging_change_no_bit(problem, credit, seed):
    """Nor do pieces: of the state, the record, the log."""
    rng = np.random.default_rng(seed)
    visits = np.flatnonzero(rng.random(problem.n) < 0.6)
    cuts = np.flatnonzero(rng.random(problem.n) < 0.2)
    cuts = cuts[cuts > 0].tolist()
    state, _, losses = train(problem)
    recorded, record, own_losses = train(problem, credit=credit)
    assert_same_bits(recorded, state)
    assert own_losses == losses
    log = new_log(problem, visits)
    assert_same_bits(train(problem, log=log)[0], state)

    pieces, same_record, part_losses = train(problem, credit=credit, cuts=cuts)
    assert_same_bits(pieces, state)
    assert_same_bits(same_record, record)
    np.testing.assert_allclose(part_losses, losses, rtol=1e-12)
    same_log = new_log(problem, visits)
    assert_same_bits(train(problem, log=same_log, cuts=cuts)[0], state)
    assert_same_bits(same_log, log)


def assert_logged(problem, log, step):
    """One step's entry; dense Adam's state there is of the time when it was last brought up."""
    place = log.slots[step.t]
    entry, m = place * problem.setting.sides + step.side, len(step.candidates)
    assert log.n_candidates[entry] == m
    assert log.candidates[entry, :m].tolist() == step.candidates
    assert log.counts[entry, :m].tolist() == step.counts
    rows = [step.link.subject, step.link.relation, *step.candidates]
    b1, b2 = problem.setting.beta1, problem.setting.beta2
    for number, row in enumerate(rows):
        gradient = step.gradients[row]
        assert_near(log.rows[entry, number], step.before[row], problem.dtype)
        if problem.setting.optimizer == ADAGRAD:
            assert_near(log.squares[entry, number], step.squares[row] - gradient**2, problem.dtype)
        if problem.setting.optimizer in (ADAM, DENSE):
            age = 0
            if problem.setting.optimizer == DENSE:
                age = step.k - log.clocks[entry, number]
                assert 0 <= age <= step.k
            momenta = (step.momenta[row] - (1 - b1) * gradient) / b1
            squares = (step.squares[row] - (1 - b2) * gradient**2) / b2
            assert_near(log.momenta[entry, number] * b1**age, momenta, problem.dtype)
            assert_near(log.squares[entry, number] * b2**age, squares, problem.dtype)


@settings(deadline=None, max_examples=40)
@given(problems(), st.integers(0, 99))
def test_log_holds_what_the_steps_saw(problem, seed):
    visits = np.flatnonzero(np.random.default_rng(seed).random(problem.n) < 0.6)
    log = new_log(problem, visits)
    train(problem, log=log)
    found = oracle.run(*problem.naive)
    n_steps = problem.n * problem.setting.sides
    first = (problem.setting.n_epochs - 1) * n_steps
    seen = [s for s in found.steps if s.k >= first and s.t in visits]
    for step in seen:
        assert_logged(problem, log, step)
    assert (log.n_candidates != -7).sum() == len(seen)


@settings(deadline=None, max_examples=20)
@given(problems(optimizer=DENSE, dtype=np.float64))
def test_log_of_dense_adam_holds_the_rows_before_they_are_settled(problem):
    """Moved on from there, one zero gradient after the other, they are the rows of the end."""
    log = new_log(problem, np.arange(0))
    state = train(problem, log=log)[0]
    setting, _, examples = problem.naive
    end = setting.n_epochs * problem.n * setting.sides
    np.testing.assert_array_equal(state.clocks, end)
    settled = log.settled
    trainer = oracle.Trainer(setting, settled.rows, examples, settled.momenta, settled.squares)
    still = np.zeros(settled.rows.shape[1])
    for row, clock in enumerate(settled.clocks.tolist()):
        for k in range(clock, end):
            trainer.move(row, still, k)
    naive = trainer.rows, trainer.momenta, trainer.squares
    for got, expected in zip(state[:3], naive, strict=True):
        assert_near(got, expected, problem.dtype)


# ---------------------------------------------------------------- leaving out, breaking


@settings(deadline=None, max_examples=40)
@given(problems(weighted=False), st.integers(0, 99))
def test_removing_a_triple_changes_nobody_elses_candidates(problem, seed):
    left_out = np.random.default_rng(seed).random(problem.n) < 0.3
    full = new_log(problem, np.arange(problem.n))
    train(problem, log=full)
    problem.examples.weights[left_out] = 0
    less = new_log(problem, np.arange(problem.n))
    train(problem, log=less)
    steps = np.repeat(~left_out, problem.setting.sides)
    for drawn in ("n_candidates", "candidates", "counts"):
        kept = getattr(less, drawn)
        np.testing.assert_array_equal(kept[steps], getattr(full, drawn)[steps])
        assert (kept[~steps] == -7).all()
    assert not train(problem, credit=UPDATE)[1].changes[left_out].any()


@pytest.mark.parametrize("optimizer", [SGD, ADAGRAD, ADAM])
def test_triples_of_weight_0_alone_leave_everything_as_it_was(optimizer):
    problem = make_problem(optimizer=optimizer)
    problem.examples.weights[:] = 0
    assert_same_bits(train(problem)[0], problem.state)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_stops_before_the_step_whose_loss_is_not_finite(bad, loss, optimizer):
    problem = make_problem(loss=loss, optimizer=optimizer, weighted=False, loops=0)
    problem.examples.relations[:7] = 0
    problem.examples.relations[7] = 1
    problem.state.rows[problem.graph.n_entities + 1] = bad
    states, ends = [], []
    for stop in (problem.n, 7):
        states.append(structures.RowState(*(table.copy() for table in problem.state)))
        ends.append(graph_sgd.graph_epoch(states[-1], *problem[1:5], 0, 0, stop, None, 0, None))
    total = ends[0][0]
    assert ends == [(total, 14), (total, -1)]
    if optimizer == DENSE:  # the rows the step would have read were brought up to its time
        sizes = row_optimizers.step_sizes(problem.hyper, 0, 14)
        for state in states:
            table = row_optimizers.decays(problem.hyper)
            row_optimizers.settle(state, problem.hyper, 14, 0, sizes, table)
    assert_same_bits(*states)
