"""TracIn's steps back through a log against the naive way forwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import steps as walk
from oracles import tracin as oracle
from oracles.sgd import rows_of
from planted import LOSSES, OPTIMIZERS, data_for
from test_replay_kernel import program_of, trajectory_of

from fastinfluence.kernels.cpu import tracin
from fastinfluence.kernels.cpu.grouping import count_sort
from fastinfluence.kernels.structures import ScoreTerms
from fastinfluence.training.backward import backward

N_QUERIES = 4
KINDS = {None: tracin.PLAIN, "squared": tracin.SQUARED, "logistic": 1}
TOLERANCE = {"float64": 1e-11, "float32": 3e-5}  # relative to the largest entry


def random_terms(program, seed, m=9):
    """Terms (query, user, item, weight, target) by working place; some share a user or an item."""
    rng = np.random.default_rng(seed)
    data = program.data
    return (
        np.sort(rng.integers(0, N_QUERIES, m)),
        rng.integers(0, data.n_users, m).astype(np.int32),
        rng.integers(0, data.n_items, m).astype(np.int32),
        rng.standard_normal(m).astype(program.dtype),
        rng.integers(0, 2, m).astype(program.dtype),
    )


def followed(trajectory, terms):
    """The terms as the kernel takes them, the rows of everybody among theirs."""
    program, data = trajectory.program, trajectory.data
    queries, users, items, weights, targets = terms
    return ScoreTerms(
        queries,
        users,
        items,
        weights,
        targets,
        program.enter(trajectory.end).tables,
        np.arange(data.n_users, dtype=np.int32),
        np.arange(data.n_items, dtype=np.int32),
        *count_sort(users, data.n_users),
        *count_sort(items, data.n_items),
    )


def walk_back(trajectory, step, *, memory_budget=2**30):
    """Call ``step(log, hyper, start, stop)`` for every stage."""
    program = trajectory.program
    for stage in backward(trajectory, memory_budget=memory_budget, show_progress=False):
        step(stage.log, program.hyper(stage.epoch), stage.start, stage.stop)


def influence(trajectory, terms, kind, **options):
    program = trajectory.program
    terms = followed(trajectory, terms)
    out = np.zeros((len(program.data), N_QUERIES), program.dtype)

    def step(log, hyper, start, stop):
        fixed = log, hyper, program.recipe.loss_code, start, stop, out
        tracin.tracin_steps(terms, KINDS[kind], program.examples, *fixed)

    walk_back(trajectory, step, **options)
    return out.T, terms.rows


def naive_influence(trajectory, terms, kind):
    program = trajectory.program
    theta = rows_of(program.enter(trajectory.checkpoints[0]).tables)
    steps = walk.run(program, trajectory.checkpoints[0], trajectory.n_epochs).steps
    columns = list(zip(*(column.tolist() for column in terms), strict=True))
    found = []
    for query in range(N_QUERIES):
        own = [term[1:] for term in columns if term[0] == query]
        by_step = oracle.ideal(
            theta, steps, lambda rows, own=own: oracle.gradient(rows, own, program.mean, kind)
        )
        found.append(walk.in_training_order(program, by_step))
    return np.array(found)


def assert_like_oracle(program, kind, seed=0):
    trajectory, terms = trajectory_of(program), random_terms(program, seed)
    got, expected = influence(trajectory, terms, kind)[0], naive_influence(trajectory, terms, kind)
    scale = np.abs(expected).max()
    assert scale > 1e-3  # there is something to compare
    tolerance = TOLERANCE[program.recipe.dtype] * scale
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_like_the_naive_sum_over_steps(dtype, loss, optimizer, kind):
    data = data_for(loss, n_users=6, n_items=9, n=28)
    assert_like_oracle(program_of(data, loss=loss, optimizer=optimizer, dtype=dtype), kind)


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(LOSSES),
    st.sampled_from(OPTIMIZERS),
    st.sampled_from(list(KINDS)),
    st.sampled_from([1, 2, 5, 19]),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.05]),
    st.integers(0, 10**6),
)
def test_at_random(loss, optimizer, kind, k, n_negatives, n_groups, l2, seed):
    data = data_for(loss, n_users=5, n_items=8, n=20, seed=seed)
    program = program_of(
        data, loss=loss, optimizer=optimizer, n_factors=k, n_negatives=n_negatives,
        n_groups=n_groups, regularization=l2, seed=seed,
    )  # fmt: skip
    assert_like_oracle(program, kind, seed)


def test_the_logistic_slope_of_extreme_scores():
    """Neither cancels nor overflows where the score is far beyond what is certain."""
    data = data_for("squared", n_users=6, n_items=9, n=28)
    program = program_of(data, dtype="float32")
    program.mean += 120
    program.examples = program.examples._replace(values=program.examples.values + 120)
    trajectory = trajectory_of(program)
    queries, users, items, weights, _ = random_terms(program, 0)
    for target, size in ((1, 0.0), (0, 1.0)):  # certain and right: nothing; wrong: slope 1
        targets = np.full(len(users), target, np.float32)
        terms = queries, users, items, weights, targets
        got = influence(trajectory, terms, "logistic")[0]
        plain = influence(trajectory, (*terms[:3], -size * weights, targets), None)[0]
        assert np.abs(influence(trajectory, terms, None)[0]).max() > 1e-3
        np.testing.assert_allclose(got, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_are_put_back_to_where_training_began(loss, optimizer):
    """To the last bit, over thinned checkpoints and logs of a part of an epoch."""
    data = data_for(loss, n_users=40, n_items=30, n=300)
    weights = np.ones(300)
    program = program_of(
        data, loss=loss, optimizer=optimizer, n_groups=4, n_epochs=3, dtype="float32",
        weights=weights,
    )  # fmt: skip
    terms = random_terms(program, 1)
    once, rows = influence(trajectory_of(program, kept=range(4)), terms, "squared")
    for mine, start in zip(rows, program.enter(program.start()).tables, strict=True):
        np.testing.assert_array_equal(mine, start)
    thinned = trajectory_of(program, kept=(0, 3))
    budget = 90 * program.log_bytes
    pieces, rows = influence(thinned, terms, "squared", memory_budget=budget)
    np.testing.assert_array_equal(pieces, once)
    for mine, start in zip(rows, program.enter(program.start()).tables, strict=True):
        np.testing.assert_array_equal(mine, start)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_own_steps_are_the_diagonal(loss, optimizer):
    data = data_for(loss, n_users=6, n_items=9, n=28)
    program = program_of(data, loss=loss, optimizer=optimizer, n_groups=2)
    trajectory, examples = trajectory_of(program), program.examples
    own = np.zeros(len(data))

    def step(log, hyper, start, stop):
        tracin.own_steps(examples, log, hyper, program.recipe.loss_code, start, stop, own)

    walk_back(trajectory, step)
    theta = rows_of(program.enter(trajectory.checkpoints[0]).tables)
    steps = walk.run(program, trajectory.checkpoints[0], trajectory.n_epochs).steps
    for t in range(0, len(data), 5):
        terms = [(int(examples.users[t]), int(examples.items[t]), 1.0, 0.0)]
        naive = oracle.ideal(
            theta, steps, lambda rows, terms=terms: oracle.gradient(rows, terms, program.mean)
        )
        assert own[examples.ids[t]] == pytest.approx(naive.get(t, 0.0), rel=1e-11)
    assert np.count_nonzero(own) == np.count_nonzero(examples.weights)


def test_weight_zero_gives_nothing():
    data = data_for("squared", n_users=6, n_items=9, n=28)
    program = program_of(data)
    got = influence(trajectory_of(program), random_terms(program, 0, m=40), None)[0]
    left_out = program.weights == 0
    assert left_out.any()
    assert not got[:, left_out].any()
    assert got[:, ~left_out].any(axis=0).all()
