"""The training loss at fixed parameters against the naive one: Hessian, gradients, blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hessian_cases import (
    LOSSES,
    as_arrays,
    by_training_index,
    cases,
    make_case,
    panel_of,
    poisoned,
    write_losses,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import hessian as oracle
from planted import same_bits

from fastinfluence.kernels.cpu import hessian
from fastinfluence.kernels.structures import LANES

TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}

each_loss = pytest.mark.parametrize("loss", LOSSES)
many = settings(deadline=None, max_examples=40)


def assert_near(got, expected, case):
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[case.dtype] * scale)


def bounds_of(stop, cuts, start=0):
    """Consecutive parts of a range, some of them empty."""
    inner = sorted(start + cut % (stop - start + 1) for cut in cuts)
    return list(zip([start, *inner], [*inner, stop], strict=True))


def slopes_of(case, panel, cuts=()):
    out = poisoned(len(case.items), LANES, case=case)
    n_users, n_rows = case.naive.n_users, len(case.rows)
    for added, bounds in enumerate((bounds_of(n_users, cuts), bounds_of(n_rows, cuts, n_users))):
        for start, stop in bounds:
            hessian.slopes(case.rows, case.edges, panel, start, stop, bool(added), out)
    return out


def product(case, panel, *, full, cuts=()):
    bends, out = slopes_of(case, panel, cuts), np.full_like(panel, np.nan)
    for start, stop in bounds_of(len(case.users), cuts):
        hessian.bend(case.naive.loss, case.edges.first, case.curvatures, start, stop, bends, bends)
    for start, stop in bounds_of(len(case.rows), cuts):
        hessian.pull(
            case.rows, case.edges, bends, case.gradients if full else None, panel,
            case.l2_of_rows, start, stop, out,
        )  # fmt: skip
    return out


def credits_of(case, panel, cuts=()):
    dots = poisoned(len(case.rows), LANES, case=case)
    for start, stop in bounds_of(len(case.rows), cuts):
        hessian.row_dots(case.parameters, panel, start, stop, dots)
    slopes, out = slopes_of(case, panel), poisoned(len(case.users), LANES, case=case)
    for start, stop in bounds_of(len(case.users), cuts):
        hessian.credit(
            case.edges, case.users, case.items, case.gradients, case.l2_of_edges, slopes, dots,
            start, stop, out,
        )  # fmt: skip
    return out


def norms_of(case, cuts=()):
    out = poisoned(len(case.users), case=case)
    for start, stop in bounds_of(len(case.users), cuts):
        hessian.gradient_norms(
            case.parameters, case.rows, case.edges, case.users, case.items, case.gradients,
            case.l2_of_edges, start, stop, out,
        )  # fmt: skip
    return out


def blocks_of(case, cuts=()):
    n_rows, d = case.rows.shape
    out = poisoned(n_rows, d, d, case=case)
    for start, stop in bounds_of(n_rows, cuts):
        hessian.row_blocks(
            case.naive.loss, case.rows, case.edges, case.items, case.curvatures, case.l2_of_rows,
            case.naive.n_users, start, stop, out,
        )  # fmt: skip
    return out


# ---------------------------------------------------------------- the naive numbers


@many
@given(cases())
def test_losses(case):
    assert_near(case.losses, oracle.losses(case.naive), case)


@many
@given(cases())
def test_derivatives_by_scores(case):
    """Of the score of every edge; in BPR the leads all pull at the example's own score."""
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
    assert_near(case.gradients, slopes, case)
    assert_near(case.curvatures, bends, case)


@many
@given(cases(), st.integers(0, 99))
def test_slopes_of_scores(case, seed):
    panel = panel_of(case, seed)
    expected = [
        np.tensordot(oracle.jacobian(case.naive, example.user, {item: 1}), panel, 2)
        for example in case.naive.examples
        for item, _ in oracle.counted(example)
    ]
    assert_near(slopes_of(case, panel), np.reshape(expected, (-1, LANES)), case)


@many
@given(cases(), st.booleans(), st.integers(0, 99))
def test_product_is_that_of_the_dense_hessian(case, full, seed):
    panel = panel_of(case, seed)
    matrix = oracle.hessian(case.naive, full=full)
    expected = (matrix @ panel.reshape(-1, LANES)).reshape(panel.shape)
    assert_near(product(case, panel, full=full), expected, case)


@many
@given(cases(), st.integers(0, 99))
def test_credit_and_norms_are_those_of_the_gradients(case, seed):
    panel, gradients = panel_of(case, seed), oracle.gradients(case.naive)
    expected = -np.einsum("jrd,rdq->jq", gradients, panel)
    assert_near(credits_of(case, panel), by_training_index(case, expected), case)
    norms = np.sqrt((gradients**2).sum((1, 2)))
    assert_near(norms_of(case), by_training_index(case, norms), case)


@many
@given(cases())
def test_blocks_are_the_diagonal_of_the_dense_matrix(case):
    n_rows, d = case.rows.shape
    matrix = oracle.hessian(case.naive).reshape(n_rows, d, n_rows, d)
    rows = np.arange(n_rows)
    found = blocks_of(case)
    assert_near(found, matrix[rows, :, rows], case)
    assert same_bits(found, found.transpose(0, 2, 1).copy())


@each_loss
def test_the_naive_hessian_is_the_change_of_the_naive_gradient(loss):
    """And the gradient that of the loss: the oracle by differences."""
    naive = make_case(loss, k=2).naive
    move = np.random.default_rng(1).standard_normal(naive.parameters.shape)
    ends = [naive._replace(parameters=naive.parameters + s * move) for s in (1e-5, -1e-5)]
    slopes = np.tensordot(oracle.gradients(naive), move, 2)
    change = np.subtract(*map(oracle.losses, ends)) / 2e-5
    np.testing.assert_allclose(slopes, change, rtol=1e-6, atol=1e-8)
    change = np.subtract(*(oracle.gradients(end).sum(0).ravel() for end in ends)) / 2e-5
    found = oracle.hessian(naive, full=True) @ move.ravel()
    np.testing.assert_allclose(found, change, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- parts


@each_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_change_no_bit(loss, dtype):
    """However the work is cut up, empty parts among them."""
    case = make_case(loss, n=30, k=7, n_users=5, n_items=9, dtype=dtype)
    panel = panel_of(case)
    for cuts in ((3,), (1, 1, 2, 8), (0, 4, 5, 29)):
        for full in (False, True):
            whole = product(case, panel, full=full)
            assert same_bits(whole, product(case, panel, full=full, cuts=cuts))
        assert same_bits(credits_of(case, panel), credits_of(case, panel, cuts))
        assert same_bits(norms_of(case), norms_of(case, cuts))
        assert same_bits(blocks_of(case), blocks_of(case, cuts))


@each_loss
def test_slopes_may_be_kept(loss):
    """What becomes of them is written elsewhere, or in their place: the same bits."""
    case = make_case(loss, n=20)
    slopes = slopes_of(case, panel_of(case))
    kept, out, place = slopes.copy(), np.full_like(slopes, np.nan), slopes.copy()
    for target, source in ((out, slopes), (place, place)):
        hessian.bend(
            case.naive.loss, case.edges.first, case.curvatures, 0, 20, source, target
        )  # fmt: skip
    assert same_bits(slopes, kept)
    assert same_bits(out, place)


@each_loss
def test_a_part_is_all_that_is_written(loss):
    case = make_case(loss, n=20)
    panel = panel_of(case)
    whole, first = product(case, panel, full=True), case.edges.first
    bends, out = slopes_of(case, panel), np.full_like(panel, np.nan)
    before = bends.copy()
    hessian.bend(case.naive.loss, first, case.curvatures, 4, 9, bends, bends)
    outside = np.r_[0 : first[4], first[9] : len(bends)]
    assert same_bits(bends[outside], before[outside])
    hessian.bend(case.naive.loss, first, case.curvatures, 0, 4, bends, bends)
    hessian.bend(case.naive.loss, first, case.curvatures, 9, 20, bends, bends)
    hessian.pull(
        case.rows, case.edges, bends, case.gradients, panel, case.l2_of_rows, 2, 6, out
    )  # fmt: skip
    assert same_bits(out[2:6], whole[2:6])
    assert np.isnan(out[:2]).all()
    assert np.isnan(out[6:]).all()
    others = [array.copy() for array in (case.gradients, case.curvatures, case.losses)]
    for array in (case.gradients, case.curvatures, case.losses):
        array[:] = np.nan
    write_losses(case, 4, 9)
    for edge in range(len(bends)):
        assert np.isnan(case.gradients[edge]) == np.isnan(case.curvatures[edge])
        assert np.isnan(case.gradients[edge]) == (not first[4] <= edge < first[9])
    write_losses(case, 0, 4)
    write_losses(case, 9, 20)
    for before, now in zip(others, (case.gradients, case.curvatures, case.losses), strict=True):
        assert same_bits(before, now)


# ---------------------------------------------------------------- corners


@each_loss
def test_examples_of_weight_0_and_rows_without_edges(loss):
    case = make_case(loss, n=12, n_users=9, n_items=12, seed=2)
    light = case.edges.examples[case.weights == 0]
    bare = np.flatnonzero(np.diff(case.edges.pointers) == 0)
    assert len(light) > 0
    assert len(bare) > 0
    panel = panel_of(case)
    assert not credits_of(case, panel)[light].any()
    assert not norms_of(case)[light].any()
    for full in (False, True):
        assert not product(case, panel, full=full)[bare].any()
    assert not blocks_of(case)[bare].any()


def test_no_examples():
    case = make_case(n=0)
    panel = panel_of(case)
    assert not product(case, panel, full=True).any()
    assert credits_of(case, panel).shape == (0, LANES)


@each_loss
def test_two_of_a_pair_are_one_of_twice_the_weight(loss):
    case = make_case(loss, n=1, n_users=1, n_items=3, seed=5)
    (example,) = case.naive.examples
    assert example.weight > 0
    twice = case.naive._replace(examples=[example, example])
    heavy = case.naive._replace(examples=[example._replace(weight=2 * example.weight)])
    share, panel = case.share, panel_of(case)
    two, one = (
        as_arrays(problem, case.parameters, share, np.arange(len(problem.examples)))
        for problem in (twice, heavy)
    )
    for full in (False, True):
        assert_near(product(two, panel, full=full), product(one, panel, full=full), case)
    assert_near(blocks_of(two), blocks_of(one), case)
    assert same_bits(*credits_of(two, panel))


@pytest.mark.parametrize("size", [30, 200, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_far_out_have_losses_and_no_curvature(size, dtype):
    """exp would overflow: nothing becomes infinite or NaN."""
    for loss in ("logistic", "bpr"):
        case = make_case(loss, n=12, k=1, dtype=dtype)
        case.parameters[:] *= size
        case.naive.parameters[:] = case.parameters
        write_losses(case, 0, 12)
        assert np.isfinite(case.losses).all()
        assert_near(case.losses, oracle.losses(case.naive), case)
        assert (np.abs(case.gradients) <= 10).all()
        assert ((case.curvatures >= 0) & (case.curvatures <= 3)).all()
