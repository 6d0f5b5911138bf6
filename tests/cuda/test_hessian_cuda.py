"""The training loss at fixed parameters, on the CPU and in CUDA, against the naive one."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from hessian_cases import LOSSES, by_training_index, make_case, panel_of, poisoned
from oracles import hessian as oracle
from planted import same_bits

from fastinfluence.kernels.structures import LANES

TOLERANCE = {np.dtype(np.float32): 3e-5, np.dtype(np.float64): 1e-11}

both = pytest.mark.parametrize("backend", ["cpu", "cuda"])
CASES = [
    ("logistic", {"k": 3, "n": 8}),
    ("bpr", {"k": 3, "n": 7, "seed": 3}),
    ("bpr", {"k": 16, "n": 4, "dtype": np.float32, "seed": 1}),
    ("squared", {"k": 32, "n": 5, "dtype": np.float32, "seed": 4}),
    ("logistic", {"k": 42, "n": 3, "n_users": 2, "n_items": 4, "seed": 2}),
]
each_case = pytest.mark.parametrize(
    ("loss", "options"), CASES, ids=[f"{loss} k={options['k']}" for loss, options in CASES]
)


def case_of(loss, options):
    defaults = {"n_users": 3, "n_items": 5, "n_epochs": 2, "n_negatives": 2}
    return make_case(loss, **(defaults | options))


def assert_near(got, expected, case):
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[case.dtype] * scale)


def slopes_of(hessian, case, panel):
    out, n_users = poisoned(len(case.items), LANES, case=case), case.naive.n_users
    hessian.slopes(case.rows, case.edges, panel, 0, n_users, False, out)
    hessian.slopes(case.rows, case.edges, panel, n_users, len(case.rows), True, out)
    return out


def product(hessian, case, panel, *, full):
    bends, out = slopes_of(hessian, case, panel), np.full_like(panel, np.nan)
    hessian.bend(
        case.naive.loss, case.edges.first, case.curvatures, 0, len(case.users), bends, bends
    )  # fmt: skip
    hessian.pull(
        case.rows, case.edges, bends, case.gradients if full else None, panel, case.l2_of_rows, 0,
        len(case.rows), out,
    )  # fmt: skip
    return out


def credits_of(hessian, case, panel):
    dots = poisoned(len(case.rows), LANES, case=case)
    hessian.row_dots(case.parameters, panel, 0, len(case.rows), dots)
    slopes, out = slopes_of(hessian, case, panel), poisoned(len(case.users), LANES, case=case)
    hessian.credit(
        case.edges, case.users, case.items, case.gradients, case.l2_of_edges, slopes, dots, 0,
        len(case.users), out,
    )  # fmt: skip
    return out


def of_gradients(function, case):
    out = poisoned(len(case.users), case=case)
    function(
        case.parameters, case.rows, case.edges, case.users, case.items, case.gradients,
        case.l2_of_edges, 0, len(case.users), out,
    )  # fmt: skip
    return out


@both
@each_case
def test_losses_and_their_derivatives(backend, loss, options):
    case = case_of(loss, options)
    found = [poisoned(len(case.items), case=case) for _ in range(2)] + [
        np.full(len(case.users), np.nan)
    ]
    Kernels(backend, "edge_losses").edge_losses(
        case.naive.loss, case.parameters, case.edges, case.users, case.items, case.values,
        case.weights, case.share, case.naive.mean, case.naive.regularization, 0, len(case.users),
        *found,
    )  # fmt: skip
    assert_near(found[2], oracle.losses(case.naive), case)
    slopes, bends = np.zeros(len(case.items)), np.zeros(len(case.items))
    for j, example in enumerate(case.naive.examples):
        own = case.edges.first[j]
        for n, term in enumerate(oracle.terms(case.naive, example)):
            edge = own + n + (case.naive.loss == LOSSES["bpr"])
            slopes[edge] += term.slope
            bends[edge] += term.curvature
            if len(term.signs) == 2:
                slopes[own] -= term.slope
                bends[own] += term.curvature
    assert_near(found[0], slopes, case)
    assert_near(found[1], bends, case)


@both
@each_case
def test_product_is_that_of_the_dense_hessian(backend, loss, options):
    case, hessian = case_of(loss, options), Kernels(backend, "hessian")
    panel = panel_of(case)
    for full in (False, True):
        matrix = oracle.hessian(case.naive, full=full)
        expected = (matrix @ panel.reshape(-1, LANES)).reshape(panel.shape)
        assert_near(product(hessian, case, panel, full=full), expected, case)


@both
@each_case
def test_credit_norms_and_own_credit_are_those_of_the_gradients(backend, loss, options):
    case, hessian = case_of(loss, options), Kernels(backend, "hessian")
    panel, gradients = panel_of(case), oracle.gradients(case.naive)
    expected = -np.einsum("jrd,rdq->jq", gradients, panel)
    assert_near(credits_of(hessian, case, panel), by_training_index(case, expected), case)
    norms = np.sqrt((gradients**2).sum((1, 2)))
    assert_near(of_gradients(hessian.gradient_norms, case), by_training_index(case, norms), case)
    own = [
        -(gradient * oracle.jacobian(case.naive, example.user, {example.item: 1})).sum()
        for gradient, example in zip(gradients, case.naive.examples, strict=True)
    ]
    found = of_gradients(hessian.own_credit, case)
    assert_near(found, by_training_index(case, np.array(own)), case)


@both
@each_case
def test_blocks_are_the_diagonal_of_the_dense_matrix(backend, loss, options):
    case = case_of(loss, options)
    n_rows, d = case.rows.shape
    matrix = oracle.hessian(case.naive).reshape(n_rows, d, n_rows, d)
    rows, found = np.arange(n_rows), poisoned(n_rows, d, d, case=case)
    Kernels(backend, "hessian").row_blocks(
        case.naive.loss, case.rows, case.edges, case.items, case.curvatures, case.l2_of_rows,
        case.naive.n_users, 0, n_rows, found,
    )  # fmt: skip
    assert_near(found, matrix[rows, :, rows], case)
    assert same_bits(found, found.transpose(0, 2, 1).copy())


@both
def test_a_row_of_more_edges_than_come_at_once(backend):
    case, hessian = make_case(n=75, k=2, n_users=1, n_items=3), Kernels(backend, "hessian")
    panel = panel_of(case)
    expected = (oracle.hessian(case.naive, full=True) @ panel.reshape(-1, LANES)).reshape(
        panel.shape
    )
    assert_near(product(hessian, case, panel, full=True), expected, case)
    blocks = poisoned(4, 3, 3, case=case)
    hessian.row_blocks(
        case.naive.loss, case.rows, case.edges, case.items, case.curvatures, case.l2_of_rows, 1,
        0, 4, blocks,
    )  # fmt: skip
    matrix = oracle.hessian(case.naive).reshape(4, 3, 4, 3)
    assert_near(blocks, matrix[np.arange(4), :, np.arange(4)], case)


@both
def test_rows_of_more_columns_than_a_block_takes(backend):
    case, hessian = make_case(n=3, k=130, n_users=1, n_items=2), Kernels(backend, "hessian")
    panel = panel_of(case)
    matrix = oracle.hessian(case.naive, full=True)
    expected = (matrix @ panel.reshape(-1, LANES)).reshape(panel.shape)
    assert_near(product(hessian, case, panel, full=True), expected, case)


@both
def test_a_part_is_all_that_is_written(backend):
    case, hessian = case_of("bpr", {"n": 8}), Kernels(backend, "hessian")
    panel, first = panel_of(case), case.edges.first
    bends, out = slopes_of(hessian, case, panel), np.full_like(panel, np.nan)
    kept, slopes = bends.copy(), poisoned(*bends.shape, case=case)
    hessian.slopes(case.rows, case.edges, panel, 1, 2, False, slopes)
    written = case.edges.numbers[case.edges.pointers[1] : case.edges.pointers[2]]
    assert len(written)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(slopes).all(1)), np.sort(written))
    hessian.bend(case.naive.loss, first, case.curvatures, 2, 5, bends, bends)
    outside = np.r_[0 : first[2], first[5] : len(bends)]
    assert same_bits(bends[outside], kept[outside])
    hessian.pull(case.rows, case.edges, bends, None, panel, case.l2_of_rows, 2, 5, out)
    assert np.isfinite(out[2:5]).all()
    assert np.isnan(out[:2]).all()
    assert np.isnan(out[5:]).all()


@both
def test_no_examples(backend):
    case, hessian = make_case(n=0, n_users=1, n_items=2), Kernels(backend, "hessian")
    panel = panel_of(case)
    assert not product(hessian, case, panel, full=False).any()
    assert credits_of(hessian, case, panel).shape == (0, LANES)


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_far_out_have_losses_and_no_curvature(backend, dtype):
    """exp would overflow: nothing becomes infinite or NaN."""
    for loss in ("logistic", "bpr"):
        case = make_case(loss, n=6, k=1, dtype=dtype)
        case.parameters[:] *= 200
        case.naive.parameters[:] = case.parameters
        gradients, curvatures = (poisoned(len(case.items), case=case) for _ in range(2))
        losses = np.full(6, np.nan)
        Kernels(backend, "edge_losses").edge_losses(
            case.naive.loss, case.parameters, case.edges, case.users, case.items, case.values,
            case.weights, case.share, case.naive.mean, case.naive.regularization, 0, 6, gradients,
            curvatures, losses,
        )  # fmt: skip
        assert_near(losses, oracle.losses(case.naive), case)
        assert (np.abs(gradients) <= 10).all()
        assert ((curvatures >= 0) & (curvatures <= 3)).all()
