"""Training on the CPU: the numbers of the naive loop, the same bits however it is run."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import sgd as oracle
from sgd_cases import (
    DTYPES,
    LOSSES,
    assert_like_oracle,
    assert_near,
    assert_same_bits,
    joined,
    make_problem,
    problems,
    train,
)

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import negatives, sgd
from fastinfluence.kernels.cpu.sgd import BPR, LOGISTIC, SQUARED


def test_same_constants():
    assert (SQUARED, LOGISTIC, BPR) == (oracle.SQUARED, oracle.LOGISTIC, oracle.BPR)
    assert negatives.MAX_ATTEMPTS == oracle.MAX_ATTEMPTS


@settings(deadline=None, max_examples=60)
@given(problems())
def test_trains_like_the_naive_loop(problem):
    assert_like_oracle(problem)


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("k", [1, 15, 16, 31, 32, 33, 64, 100, 200])
def test_every_width(k, loss, adagrad):
    for dtype in DTYPES:
        problem = make_problem(k=k, loss=loss, adagrad=adagrad, dtype=dtype, n_examples=12)
        assert_like_oracle(problem)


@pytest.mark.parametrize("loss", LOSSES)
def test_adagrad_from_zero_squares(loss):
    problem = make_problem(loss=loss, adagrad=True)
    for squares in problem.squares:
        squares[:] = 0
    assert_like_oracle(problem)


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_descends_the_documented_loss(loss, value, weight):
    problem = make_problem(n_examples=1, loss=loss, n_groups=1, n_items=9, n_negatives=3)
    problem.examples.values[:] = value
    problem.examples.weights[:] = weight
    problem = problem._replace(hyper=problem.hyper._replace(learning_rate=1.0))
    user, item = int(problem.examples.users[0]), int(problem.examples.items[0])
    candidates = [item]
    if loss != SQUARED and value > 0:
        candidates += oracle.negatives(problem.sampler, 0, problem.examples.ids[0], user, item, 0)
        assert len(set(candidates)) == 4
    theta = oracle.rows_of(problem.tables)

    def loss_moved_by(name, f, distance):
        moved = {**theta, name: theta[name].copy()}
        moved[name][f] += distance
        return oracle.example_loss(moved, user, candidates, value, problem.hyper, loss)

    after = oracle.rows_of(train(problem, n_epochs=1)[0])
    for name, row in theta.items():
        for f in range(len(row)):
            slope = (loss_moved_by(name, f, 1e-5) - loss_moved_by(name, f, -1e-5)) / 2e-5
            assert after[name][f] - row[f] == pytest.approx(-weight * slope, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_recording_changes_no_bit(problem):
    tables, squares, _, losses = train(problem)
    recorded = train(problem, recorded=True)
    assert_same_bits(tables, recorded[0])
    assert_same_bits(squares or (), recorded[1] or ())
    assert losses == recorded[3]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only")
@pytest.mark.parametrize("recorded_adagrad", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_threads_change_no_bit(loss, recorded_adagrad):
    threads = numba.get_num_threads()
    numba.set_num_threads(2)
    try:
        for n_groups in (1, 2, 3, 5):
            problem = make_problem(
                n_users=20,
                n_items=25,
                n_examples=300,
                loss=loss,
                n_groups=n_groups,
                dtype=np.float32,
                adagrad=recorded_adagrad,
            )
            got, expected = (
                train(problem, recorded=recorded_adagrad, epoch_kernel=epoch_kernel)
                for epoch_kernel in (sgd.sgd_epoch_parallel, sgd.sgd_epoch)
            )
            assert_same_bits([a or () for a in got[:3]], [a or () for a in expected[:3]])
            assert got[3] == expected[3]
    finally:
        numba.set_num_threads(threads)


def without(problem, left_out):
    """The problem on fewer examples: same ids, groups and known pairs."""
    keep = ~left_out
    counts = np.concatenate([[0], np.cumsum(keep)])
    return problem._replace(
        examples=structures.Examples(*(a[keep] for a in problem.examples)),
        pointers=counts[problem.pointers],
    )


@settings(deadline=None, max_examples=40)
@given(problems(weighted=False), st.integers(0, 99))
def test_weight_zero_is_absence(problem, seed):
    left_out = np.random.default_rng(seed).random(len(problem.examples.users)) < 0.3
    problem.examples.weights[left_out] = 0
    tables, squares, record, losses = train(problem, recorded=True)
    smaller = train(without(problem, left_out), recorded=True)
    assert_same_bits(tables, smaller[0])
    assert_same_bits(squares or (), smaller[1] or ())
    assert_same_bits([rows[~left_out] for rows in record], smaller[2])
    assert losses == smaller[3]
    assert not any(rows[left_out].any() for rows in record)


@settings(deadline=None, max_examples=40)
@given(problems(dtype=np.float64))
def test_recorded_rows_add_up_to_the_change(problem):
    tables, _, record, _ = train(problem, n_epochs=3, recorded=True)
    sides = [(problem.examples.users, record.user_rows, 0, 2)]
    if problem.loss == SQUARED:  # items also move as negatives, which nobody records
        sides.append((problem.examples.items, record.item_rows, 1, 3))
    for numbers, changes, factors, biases in sides:
        start = joined(problem.tables[factors], problem.tables[biases])
        np.add.at(start, numbers, joined(changes, record.biases[:, factors]))
        assert_near(joined(tables[factors], tables[biases]), start, np.float64)


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bpr_leaves_user_biases_alone(dtype, adagrad):
    """They cancel in every comparison; Adagrad would magnify what rounding leaves of them."""
    problem = make_problem(loss=BPR, dtype=dtype, adagrad=adagrad, n_negatives=4, regularization=0)
    if adagrad:
        problem.squares.user_biases[:] = 0
    tables = train(problem, n_epochs=5)[0]
    np.testing.assert_array_equal(tables.user_biases, problem.tables.user_biases)


@settings(deadline=None, max_examples=40)
@given(problems(weighted=True), st.booleans())
def test_mean_loss(problem, known):
    if not problem.examples.weights.any():
        return
    if not known:  # pairs of a validation set: their own item must not become a negative
        pointers = np.zeros_like(problem.sampler.known_pointers)
        problem = problem._replace(sampler=problem.sampler._replace(known_pointers=pointers))
    arguments = problem.tables, problem.examples, problem.sampler, problem.hyper, problem.loss
    got, expected = sgd.mean_loss(*arguments), oracle.mean_loss(*arguments)
    assert_near(np.array(got), np.array(expected), problem.tables[0].dtype.type)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [LOGISTIC, BPR])
@pytest.mark.parametrize("score", [-60.0, -25.0, -9.0, 9.0, 25.0, 60.0])
def test_loss_of_confident_scores(score, loss, dtype):
    """Where a sigmoid rounds to 0 or 1 the loss is |score| or nearly 0, not a clipped log."""
    problem = make_problem(
        n_users=1, n_items=4, n_examples=1, n_groups=1, loss=loss, dtype=dtype, weighted=False
    )
    problem.examples.values[:] = 1
    for table in problem.tables:
        table[:] = 0
    problem.tables.item_biases[problem.examples.items[0]] = score
    others = np.arange(4) != problem.examples.items[0]
    problem.tables.item_biases[others] = -score
    arguments = problem.tables, problem.examples, problem.sampler, problem.hyper, problem.loss
    got, expected = sgd.mean_loss(*arguments), oracle.mean_loss(*arguments)
    assert got == pytest.approx(expected, rel=1e-6, abs=4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("loss", LOSSES)
def test_diverged_parameters_show_in_the_loss(loss):
    problem = make_problem(loss=loss, weighted=False)
    problem.tables.user_factors[:] = np.nan
    assert np.isnan(train(problem, n_epochs=1)[3][0])


def test_reads_read_only_examples():
    problem = make_problem(dtype=np.float32)
    for array in (*problem.examples, problem.pointers, *problem.sampler[2:]):
        array.flags.writeable = False
    frozen = train(problem)[0]
    writable = make_problem(dtype=np.float32)
    assert_same_bits(frozen, train(writable)[0])
