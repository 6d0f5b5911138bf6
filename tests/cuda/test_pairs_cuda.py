"""Pairs on CUDA: blocks of the Hessian on two rows, and read-out with a pair's own vectors."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from endpoints import fit
from influence_cases import STORES
from influence_cases import make_case as make_readout_case
from pair_cases import assert_exact_lists, assert_lists, assert_own_pairs, assert_sparse_rows
from row_blocks_cases import (
    NOT_DEFINITE,
    assert_coupled,
    assert_float32,
    assert_gradients,
    assert_indefinite_told,
    assert_linked,
    assert_solved,
    assert_strong_link_told,
    assert_unlinked,
    make_case,
)

import fastinfluence as fi
from fastinfluence.errors import DeviceError, NegativeCurvature
from fastinfluence.kernels.cpu.losses import BPR, LOGISTIC, SQUARED

BLOCKS, READOUT = Kernels("cuda", "row_blocks"), Kernels("cuda", "pair_readout")

each_loss = pytest.mark.parametrize("loss", [SQUARED, LOGISTIC, BPR])


# ---------------------------------------------------------------- blocks


@each_loss
@pytest.mark.parametrize(("n", "k"), [(12, 3), (5, 20), (0, 2)])
def test_gradients_of_single_examples(loss, n, k):
    assert_gradients(BLOCKS, make_case(loss, n=n, k=k, seed=n))


@pytest.mark.parametrize(
    ("sizes", "k"), [([0, 1, 3], 3), ([17, 0, 40], 7), ([70], 2), ([0], 4), ([5, 1], 37)]
)
def test_rows_are_solved_group_by_group(sizes, k):
    """Panels that are not full; groups of several parts; rows of several panels of columns."""
    assert_solved(BLOCKS, sizes, k, 0.5)


@pytest.mark.parametrize("block", NOT_DEFINITE)
def test_a_block_that_is_not_definite_is_told(block):
    assert_indefinite_told(BLOCKS, block)


def test_a_block_of_many_examples_is_told_once():
    """By one of the blocks of threads that its examples are cut into for."""
    blocks, pointers = np.stack([np.zeros((3, 3)), np.eye(3)]), np.array([0, 1100, 1101])
    rows, biases, definite = np.ones((1101, 2)), np.ones(1101), np.zeros(2, bool)
    BLOCKS.solve_rows(blocks, 0.0, 1e-15, pointers, rows, biases, 0, 2, definite)
    assert definite.tolist() == [False, True]
    assert biases.tolist() == [1.0] * 1100 + [-1.0]


def test_rows_too_long_for_shared_memory_are_refused():
    arrays = np.zeros((1, 385, 385)), np.array([0, 1]), np.zeros((1, 384)), np.zeros(1)
    blocks, pointers, rows, biases = arrays
    with pytest.raises(DeviceError, match=r"385 numbers.*float64.*fewer factors"):
        BLOCKS.solve_rows(blocks, 0.1, 1e-9, pointers, rows, biases, 0, 1, np.zeros(1, bool))


@each_loss
@pytest.mark.parametrize("full", [False, True])
def test_the_block_between_two_rows(loss, full):
    assert_coupled(BLOCKS, make_case(loss, n=14, k=4), loss, full)


def test_pairs_without_examples_are_not_coupled():
    case, out = make_case(n=3, k=2), np.full((1, 3, 3), np.nan)
    nothing, none = np.zeros(0, np.int64), np.zeros(1, np.int64)
    BLOCKS.couple(
        SQUARED, True, case.rows, case.edges, case.users, case.items, case.gradients,
        case.curvatures, nothing, none, none, out,
    )  # fmt: skip
    assert not out.any()


@each_loss
@pytest.mark.parametrize(("n", "k"), [(6, 1), (4, 7), (2, 16)])
def test_vectors_of_linked_rows(loss, n, k):
    """Systems of one panel of columns and of several, of more rows than a block has threads."""
    assert_linked(BLOCKS, make_case(loss, n=n, k=k), loss)


def test_without_a_link_the_vectors_are_the_rows():
    assert_unlinked(BLOCKS)


def test_a_link_stronger_than_the_blocks_is_told():
    assert_strong_link_told(BLOCKS)


def test_float32():
    assert_float32(BLOCKS, 5, n=6)


# ---------------------------------------------------------------- read-out


@pytest.mark.parametrize("store", STORES)
def test_whole_rows_of_pairs(store):
    assert_sparse_rows(
        READOUT, make_readout_case(n_users=2, n_items=2, n_train=30, n_queries=3, store=store)
    )


@pytest.mark.parametrize(("n_train", "n_queries"), [(150, 2), (4, 5), (0, 0)])
def test_whole_rows_of_many_examples_and_of_few(n_train, n_queries):
    """More than a block has threads, shared with the other side in all of its rounds."""
    case = make_readout_case(n_users=1, n_items=2, n_train=n_train, n_queries=n_queries, k=2)
    assert_sparse_rows(READOUT, case)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("sign", "totals"), [(1, True), (-1, False)])
def test_lists_of_whole_numbers(store, sign, totals):
    case = make_readout_case(
        n_users=2, n_items=2, n_train=40, n_queries=3, k=4, store=store, kind="whole"
    )
    assert_exact_lists(READOUT, case, 5, sign, totals)


@pytest.mark.parametrize(("kind", "k"), [("whole", 40), ("constant", 12), ("whole", 1)])
def test_lists_from_many_examples(kind, k):
    """Lists longer than a warp; all scores alike; far more candidates than can wait."""
    case = make_readout_case(n_users=1, n_items=2, n_train=300, n_queries=1, k=2, kind=kind)
    assert_exact_lists(READOUT, case, k, 1, True)


def test_fewer_examples_than_asked_for():
    case = make_readout_case(n_users=3, n_items=3, n_train=4, n_queries=3, kind="whole")
    assert_exact_lists(READOUT, case, 33, 1, True)


def test_lists_of_real_numbers():
    assert_lists(READOUT, make_readout_case(n_users=2, n_items=1, n_train=200, n_queries=2), 10)


@pytest.mark.parametrize("store", STORES)
def test_examples_on_their_own_pairs(store):
    assert_own_pairs(READOUT, store)


def test_dtypes_without_a_kernel():
    case = make_readout_case(n_train=5, n_queries=1)
    vectors = np.zeros((1, 6))
    asked = case.user_side, case.item_side, vectors, vectors, case.query_users, case.query_items
    with pytest.raises(DeviceError, match="not float32 with float64"):
        READOUT.sparse_pairs(*asked, np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0))


# ---------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def data():
    """Ten ratings, of one pair twice."""
    users, items = (
        np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 0]),
        np.array([0, 1, 2, 0, 3, 1, 2, 3, 0, 1]),
    )
    values = 1.0 + np.arange(10) % 4
    return fi.Interactions.from_arrays(users, items, values, duplicates="keep")


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(request, data):
    return fit(data, n_factors=3, n_epochs=2, dtype=request.param)


QUERIES = [(0, 1), (1, 1), (2, 3), (3, 3)]  # trained on twice, not at all, once, not at all


@pytest.mark.parametrize("hessian", ["gauss-newton", "full"])
def test_explains_as_on_the_cpu(model, hessian):
    here, there = (
        fi.InfluenceFunction(model, scope="pair", hessian=hessian, damping=2.0, device=device)
        for device in ("cpu", "cuda")
    )
    rounding = 1e-4 if model.dtype == "float32" else 1e-10
    for proponents in (True, False):
        mine, its = (why.explain(QUERIES, k=3, proponents=proponents) for why in (here, there))
        np.testing.assert_array_equal(its.train_index, mine.train_index)
        for part in ("influence", "prediction", "total_influence"):
            np.testing.assert_allclose(
                getattr(its, part), getattr(mine, part), rtol=rounding, atol=rounding
            )
    mine, its = (why.influence(QUERIES) for why in (here, there))
    np.testing.assert_array_equal(its.indices, mine.indices)
    np.testing.assert_allclose(its.data, mine.data, rtol=0, atol=rounding)
    assert isinstance(its.data, np.ndarray)
    mine, its = (why.self_influence() for why in (here, there))
    np.testing.assert_allclose(its, mine, rtol=0, atol=rounding)


def test_rows_and_pairs_without_an_inverse_are_named(data):
    model = fit(data, n_factors=3, n_epochs=2, regularization=0.0)
    with pytest.raises(NegativeCurvature, match=r"row of user 0.*smallest eigenvalue"):
        fi.InfluenceFunction(model, scope="pair", damping=0.0, device="cuda")
    far_off = fi.Interactions.from_arrays([0, 0, 1], [0, 1, 0], [9.0, 1.0, 1.0])
    model = fit(far_off, init_scale=0.1, n_epochs=1, learning_rate=0.01)
    told = []
    for device in ("cpu", "cuda"):
        why = fi.InfluenceFunction(model, scope="pair", hessian="full", damping=0.5, device=device)
        with pytest.raises(NegativeCurvature, match=r"on the pair \(0, 0\)") as error:
            why.influence([(0, 0)])
        told.append(str(error.value))
    assert told[0] == told[1]
