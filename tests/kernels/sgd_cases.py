"""Random training problems: as the kernels take them, run by them and by the naive loop."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from oracles import sgd as oracle

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import sgd
from fastinfluence.kernels.cpu.sgd import BPR, LOGISTIC, SQUARED

LOSSES = [SQUARED, LOGISTIC, BPR]
DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-4, np.float64: 1e-10}  # relative to the largest entry


class Problem(NamedTuple):
    """Arguments of the kernels, and where training starts."""

    tables: structures.Tables
    squares: structures.Tables | None
    examples: structures.Examples
    pointers: np.ndarray
    sampler: structures.Sampler
    hyper: structures.Hyper
    loss: int


def grouped(groups, n_groups):
    """Pointers and members of the groups."""
    members = np.argsort(groups, kind="stable")
    return np.searchsorted(groups[members], np.arange(n_groups + 1)), members


def make_problem(
    seed=0,
    n_users=5,
    n_items=7,
    n_examples=40,
    k=4,
    dtype=np.float64,
    loss=SQUARED,
    adagrad=False,
    n_groups=2,
    n_negatives=2,
    weighted=True,
    regularization=0.05,
):
    """Random examples (pairs may repeat, users and items may have none) in stratified order."""
    rng = np.random.default_rng(seed)
    shapes = [(n_users, k), (n_items, k), (n_users,), (n_items,)]
    tables = structures.Tables(
        *((rng.standard_normal(s) / np.sqrt(k)).astype(dtype) for s in shapes)
    )
    squares = structures.Tables(*(np.full(s, 0.1, dtype) for s in shapes)) if adagrad else None

    users, items = rng.integers(0, n_users, n_examples), rng.integers(0, n_items, n_examples)
    levels = [1, 2, 3.5, 5] if loss == SQUARED else [0, 1, 1]
    values = rng.choice(levels, n_examples)
    weights = rng.choice([0, 0.3, 1, 1, 2.5] if weighted else [1.0], n_examples)
    ids = rng.permutation(10 * n_examples)[:n_examples]

    user_groups, item_groups = (rng.integers(0, n_groups, n) for n in (n_users, n_items))
    strata = (item_groups[items] - user_groups[users]) % n_groups
    pointers, visits = grouped(strata * n_groups + user_groups[users], n_groups * n_groups)
    examples = structures.Examples(
        users[visits].astype(np.int32),
        items[visits].astype(np.int32),
        values[visits].astype(dtype),
        weights[visits].astype(dtype),
        ids[visits],
    )
    pool_pointers, pool = grouped(item_groups, n_groups)
    by_pair = np.lexsort((items, users))
    known_pointers = np.searchsorted(users[by_pair], np.arange(n_users + 1))
    known_items = items[by_pair].astype(np.int32)
    sampler = structures.Sampler(
        n_negatives, seed, pool_pointers, pool.astype(np.int32), known_pointers, known_items,
        np.empty((0, n_negatives), np.int32),
    )  # fmt: skip
    mean = values.mean() if loss == SQUARED and n_examples else 0.0
    hyper = structures.Hyper(*map(dtype, (mean, 0.05, regularization, 1e-8)))
    return Problem(tables, squares, examples, pointers, sampler, hyper, loss)


def new_record(problem):
    n, k = len(problem.examples.users), problem.tables.user_factors.shape[1]
    return structures.Record(
        *(np.zeros((n, width), problem.tables[0].dtype) for width in (k, k, 2))
    )


def train(problem, *, n_epochs=2, recorded=False, epoch_kernel=sgd.sgd_epoch):
    """Tables, squares, record and the losses after a few epochs from the problem's start."""
    tables = structures.Tables(*(a.copy() for a in problem.tables))
    squares = problem.squares and structures.Tables(*(a.copy() for a in problem.squares))
    record = new_record(problem) if recorded else None
    losses = [
        epoch_kernel(
            tables,
            squares,
            problem.examples,
            problem.pointers,
            problem.sampler,
            problem.hyper,
            problem.loss,
            epoch,
            (0, len(problem.sampler.pool_pointers) - 1),
            record,
            None,
        )
        for epoch in range(n_epochs)
    ]
    return tables, squares, record, losses


def train_naively(problem, n_epochs=2):
    theta = oracle.rows_of(problem.tables)
    squares = problem.squares and oracle.rows_of(problem.squares)
    record = {}
    losses = [
        oracle.sgd_epoch(theta, squares, *problem[2:], epoch, record) for epoch in range(n_epochs)
    ]
    return theta, squares, record, losses


def joined(factors, biases):
    return np.column_stack([factors, biases]).astype(float)


def assert_near(got, expected, dtype):
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        if isinstance(a, tuple):
            assert_same_bits(a, b)
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
        else:
            assert a == b


def assert_like_oracle(problem, n_epochs=2, epoch_kernel=sgd.sgd_epoch):
    dtype = problem.tables[0].dtype.type
    tables, squares, record, losses = train(
        problem, n_epochs=n_epochs, recorded=True, epoch_kernel=epoch_kernel
    )
    theta, naive_squares, naive_record, naive_losses = train_naively(problem, n_epochs)
    for got, rows in ((tables, theta), (squares, naive_squares)):
        if got is None:
            continue
        for kind, factors, biases in (("user", got[0], got[2]), ("item", got[1], got[3])):
            expected = np.array([rows[kind, number] for number in range(len(biases))])
            assert_near(joined(factors, biases), expected, dtype)
    width = tables.user_factors.shape[1] + 1
    for column, (kind, changes) in enumerate(
        (("user", record.user_rows), ("item", record.item_rows))
    ):
        credits = [naive_record.get((t, kind), np.zeros(width)) for t in range(len(changes))]
        expected = np.array(credits).reshape(-1, width)
        assert_near(joined(changes, record.biases[:, column]), expected, dtype)
    assert_near(np.array(losses), np.array(naive_losses), dtype)


@st.composite
def problems(draw, **fixed):
    arguments = {
        "seed": draw(st.integers(0, 10**6)),
        "n_users": draw(st.integers(1, 8)),
        "n_items": draw(st.integers(1, 8)),
        "n_examples": draw(st.integers(0, 50)),
        "k": draw(st.sampled_from([1, 2, 3, 8, 17])),
        "dtype": draw(st.sampled_from(DTYPES)),
        "loss": draw(st.sampled_from(LOSSES)),
        "adagrad": draw(st.booleans()),
        "n_groups": draw(st.integers(1, 3)),
        "n_negatives": draw(st.integers(0, 4)),
        "weighted": draw(st.booleans()),
        "regularization": draw(st.sampled_from([0.0, 0.05])),
    }
    return make_problem(**{**arguments, **fixed})
