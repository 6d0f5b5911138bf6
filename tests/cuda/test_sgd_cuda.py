"""Training on CUDA: the bits of the CPU in float32, the numbers of the naive loop in float64."""

from __future__ import annotations

import numpy as np
import pytest
from backends import SIMULATED, Kernels
from oracles import sgd as oracle
from sgd_cases import (
    LOSSES,
    assert_like_oracle,
    assert_near,
    assert_same_bits,
    make_problem,
    train,
)

from fastinfluence import dispatch
from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import sgd as cpu
from fastinfluence.kernels.cpu.sgd import BPR, LOGISTIC, SQUARED
from fastinfluence.kernels.errors import DeviceError

CUDA, DRAWS = Kernels("cuda", "sgd"), Kernels("cuda", "negatives")
SMALL = {"n_examples": 12, "dtype": np.float32}


def assert_same_training(problem):
    """Both backends record, with and without Adagrad, and lose the same."""
    mine = train(problem, n_epochs=1, recorded=True)
    other = train(problem, n_epochs=1, recorded=True, epoch_kernel=CUDA.sgd_epoch)
    assert_same_bits([part or () for part in mine[:3]], [part or () for part in other[:3]])
    np.testing.assert_allclose(other[3], mine[3], rtol=1e-6)


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_same_bits_as_on_the_cpu(loss, adagrad):
    assert_same_training(make_problem(loss=loss, adagrad=adagrad, k=17, **SMALL))


@pytest.mark.parametrize("k", [1, 16, 31, 48, 70, 130])
def test_every_width(k):
    for loss in (SQUARED, LOGISTIC):
        problem = make_problem(k=k, loss=loss, dtype=np.float32, n_examples=5, n_groups=1)
        assert_same_training(problem)


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_trains_like_the_naive_loop(loss, adagrad):
    problem = make_problem(loss=loss, adagrad=adagrad, k=18, n_examples=12)
    assert_like_oracle(problem, n_epochs=1, epoch_kernel=CUDA.sgd_epoch)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shared", [(1, 9), (9, 1), (1, 1)])
def test_steps_that_share_a_row_come_one_after_the_other(loss, shared):
    n_users, n_items = shared
    assert_same_training(
        make_problem(
            n_users=n_users, n_items=n_items, loss=loss, n_groups=1, weighted=False, **SMALL
        )
    )


@pytest.mark.skipif(not SIMULATED, reason="kernels on a GPU keep the number they were made with")
@pytest.mark.parametrize("loss", LOSSES)
def test_keys_of_steps_begin_anew(loss, monkeypatch):
    """As behind 67 million windows of a block, here behind every third."""
    sgd = dispatch.kernels("sgd", "cuda")
    monkeypatch.setattr(sgd, "_LATEST", 3 * sgd._WIDTH - 1)
    assert_same_training(make_problem(n_users=1, loss=loss, n_groups=1, weighted=False, **SMALL))


@pytest.mark.parametrize("n_negatives", [0, 1, 20])
def test_any_number_of_negatives(n_negatives):
    problem = make_problem(
        loss=LOGISTIC, n_items=40, n_negatives=n_negatives, n_examples=4, dtype=np.float32
    )
    assert_same_training(problem)


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_logs_what_the_cpu_logs(loss, adagrad):
    problem = make_problem(loss=loss, adagrad=adagrad, k=17, **SMALL)
    if loss == SQUARED:
        problem = problem._replace(sampler=problem.sampler._replace(n_negatives=0))
    logged = np.arange(12) % 3 > 0
    logs = [room_to_log(problem, logged) for _ in range(2)]
    for kernels, log in zip((cpu, CUDA), logs, strict=True):
        n_groups = len(problem.sampler.pool_pointers) - 1
        tables = structures.Tables(*(table.copy() for table in problem.tables))
        squares = problem.squares and structures.Tables(*(s.copy() for s in problem.squares))
        kernels.sgd_epoch(
            tables, squares, *problem[2:], 3, (0, n_groups), None, log
        )  # fmt: skip
    steps = (logs[0].numbers[:, 6] > 0).reshape(-1, problem.sampler.n_negatives + 1)
    assert steps.any()
    assert_same_bits(logs[0], logs[1])


def room_to_log(problem, logged):
    dtype, k = problem.tables.user_factors.dtype, problem.tables.user_factors.shape[1]
    m, c = int(logged.sum()), problem.sampler.n_negatives + 1
    s = m if problem.squares else 0
    slots = np.full(len(logged), -1, np.int32)
    slots[logged] = np.arange(m)
    shapes = (m, k), (m * c, k), (m * c, 8), (s, k + 1), (s * c, k + 1)
    rows = (np.zeros(shape, dtype) for shape in shapes)
    return structures.Log(slots, np.zeros((m, c), np.int32), *rows)


def test_a_stratum_at_a_time_is_the_epoch():
    problem = make_problem(loss=BPR, **SMALL)
    whole = train(problem, n_epochs=1)[0]
    tables = structures.Tables(*(table.copy() for table in problem.tables))
    for stratum in range(2):
        CUDA.sgd_epoch(
            tables, None, *problem[2:], 0, (stratum, stratum + 1), None, None
        )  # fmt: skip
    assert_same_bits(tables, whole)


def test_negatives_drawn_beforehand_are_those_drawn_on_the_way():
    problem = make_problem(loss=LOGISTIC, n_items=20, **SMALL)
    expected = np.full((12, 2), -7, np.int32)
    Kernels("cpu", "negatives").draw_epoch(
        problem.examples, problem.pointers, problem.sampler, 0, 0, 4, expected
    )
    drawn = np.full((12, 2), -7, np.int32)
    DRAWS.draw_epoch(problem.examples, problem.pointers, problem.sampler, 0, 0, 4, drawn)
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn >= 0).any()
    assert (drawn < 0).any()
    known = problem._replace(sampler=problem.sampler._replace(drawn=drawn))
    mine, other = (train(p, n_epochs=1, epoch_kernel=CUDA.sgd_epoch) for p in (problem, known))
    assert_same_bits(mine[0], other[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_mean_loss(loss):
    problem = make_problem(loss=loss, n_examples=9, k=18)
    arguments = problem.tables, problem.examples, problem.sampler, problem.hyper, problem.loss
    got, expected = CUDA.mean_loss(*arguments), oracle.mean_loss(*arguments)
    assert_near(np.array(got), np.array(expected), np.float64)


def test_more_negatives_than_fit_are_refused():
    problem = make_problem(loss=LOGISTIC, n_negatives=7000, **SMALL)
    with pytest.raises(DeviceError, match=r"7000 negatives of a step do not fit.*at most 1535"):
        train(problem, n_epochs=1, epoch_kernel=CUDA.sgd_epoch)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_pairs(dtype):
    rng = np.random.default_rng(0)
    shapes = ((5, 37), (7, 37), 5, 7)
    tables = structures.Tables(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))
    users, items = rng.integers(0, 5, 20).astype("int32"), rng.integers(0, 7, 20).astype("int32")
    found = []
    for backend in ("cpu", "cuda"):
        out = np.full(20, np.nan, dtype)
        Kernels(backend, "predict").pair_scores(tables, dtype(0.5), users, items, 3, 17, out)
        found.append(out)
    if dtype is np.float32:
        np.testing.assert_array_equal(found[0].view(np.uint32), found[1].view(np.uint32))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12 if dtype is np.float64 else 0)
