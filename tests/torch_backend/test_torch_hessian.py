"""The training loss at fixed parameters in torch: losses, Hessian products, gradients, blocks."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels, memory_of
from hessian_cases import LOSSES, by_training_index, cases, make_case, panel_of, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import hessian as oracle
from planted import same_bits

from fastinfluence.kernels.structures import LANES

torch = pytest.importorskip("torch")
HESSIAN, EDGE_LOSSES = Kernels("torch", "hessian"), Kernels("torch", "edge_losses")
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}

few = settings(deadline=None, max_examples=12, derandomize=True)
each_loss = pytest.mark.parametrize("loss", LOSSES)


def assert_near(got, expected, case):
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[case.dtype] * scale)


def halves(stop, start=0):
    """Two parts of a range, of which both may be empty."""
    middle = start + (stop - start) // 3
    return (start, middle), (middle, stop)


def slopes_of(case, panel):
    out = poisoned(len(case.items), LANES, case=case)
    n_users, n_rows = case.naive.n_users, len(case.rows)
    for added, bounds in enumerate((halves(n_users), halves(n_rows, n_users))):
        for part in bounds:
            HESSIAN.slopes(case.rows, case.edges, panel, *part, bool(added), out)
    return out


def product(case, panel, *, full):
    bends, out = slopes_of(case, panel), np.full_like(panel, np.nan)
    for part in halves(len(case.users)):
        HESSIAN.bend(case.naive.loss, case.edges.first, case.curvatures, *part, bends, bends)
    gradients = case.gradients if full else None
    for part in halves(len(case.rows)):
        HESSIAN.pull(
            case.rows, case.edges, bends, gradients, panel, case.l2_of_rows, *part, out
        )  # fmt: skip
    return out


def credits_of(case, panel):
    dots = poisoned(len(case.rows), LANES, case=case)
    for part in halves(len(case.rows)):
        HESSIAN.row_dots(case.parameters, panel, *part, dots)
    slopes, out = slopes_of(case, panel), poisoned(len(case.users), LANES, case=case)
    for part in halves(len(case.users)):
        HESSIAN.credit(
            case.edges, case.users, case.items, case.gradients, case.l2_of_edges, slopes, dots,
            *part, out,
        )  # fmt: skip
    return out


def numbers_of(case, name):
    out = poisoned(len(case.users), case=case)
    for part in halves(len(case.users)):
        getattr(HESSIAN, name)(
            case.parameters, case.rows, case.edges, case.users, case.items, case.gradients,
            case.l2_of_edges, *part, out,
        )  # fmt: skip
    return out


def blocks_of(case):
    n_rows, d = case.rows.shape
    out = poisoned(n_rows, d, d, case=case)
    for part in halves(n_rows):
        HESSIAN.row_blocks(
            case.naive.loss, case.rows, case.edges, case.items, case.curvatures, case.l2_of_rows,
            case.naive.n_users, *part, out,
        )  # fmt: skip
    return out


def derivatives_of(case):
    m, n = len(case.items), len(case.users)
    found = poisoned(m, case=case), poisoned(m, case=case), np.full(n, np.nan)
    for part in halves(n):
        EDGE_LOSSES.edge_losses(
            case.naive.loss, case.parameters, case.edges, case.users, case.items, case.values,
            case.weights, case.share, case.naive.mean, case.naive.regularization, *part, *found,
        )  # fmt: skip
    return found


# ---------------------------------------------------------------- the naive numbers


@few
@given(cases())
def test_losses_and_their_derivatives(case):
    gradients, curvatures, losses = derivatives_of(case)
    assert_near(losses, oracle.losses(case.naive), case)
    assert_near(gradients, case.gradients, case)  # of the CPU's kernel, which has the oracle's
    assert_near(curvatures, case.curvatures, case)


@few
@given(cases(), st.booleans(), st.integers(0, 99))
def test_product_is_that_of_the_dense_hessian(case, full, seed):
    panel = panel_of(case, seed)
    matrix = oracle.hessian(case.naive, full=full)
    expected = (matrix @ panel.reshape(-1, LANES)).reshape(panel.shape)
    assert_near(product(case, panel, full=full), expected, case)


@few
@given(cases(), st.integers(0, 99))
def test_credit_and_norms_are_those_of_the_gradients(case, seed):
    panel, gradients = panel_of(case, seed), oracle.gradients(case.naive)
    expected = -np.einsum("jrd,rdq->jq", gradients, panel)
    assert_near(credits_of(case, panel), by_training_index(case, expected), case)
    norms = np.sqrt((gradients**2).sum((1, 2)))
    assert_near(numbers_of(case, "gradient_norms"), by_training_index(case, norms), case)


@few
@given(cases())
def test_gradients_of_loss_and_score_meet(case):
    gradients = oracle.gradients(case.naive)
    scores = [oracle.jacobian(case.naive, e.user, {e.item: 1}) for e in case.naive.examples]
    expected = -(gradients * np.reshape(scores, gradients.shape)).sum((1, 2))
    assert_near(numbers_of(case, "own_credit"), by_training_index(case, expected), case)


@few
@given(cases())
def test_blocks_are_the_diagonal_of_the_dense_matrix(case):
    n_rows, d = case.rows.shape
    matrix = oracle.hessian(case.naive).reshape(n_rows, d, n_rows, d)
    rows = np.arange(n_rows)
    found = blocks_of(case)
    assert_near(found, matrix[rows, :, rows], case)
    assert same_bits(found, found.transpose(0, 2, 1).copy())


@each_loss
def test_products_in_bfloat16(loss):
    """Of tensors: numpy has none. Sums of products are rounded at their end."""
    from fastinfluence.kernels.torch import hessian as there

    case = make_case(loss, n=30, k=7, n_users=5, n_items=9)
    panel, n, n_rows = panel_of(case), len(case.users), len(case.rows)

    def narrow(array):
        return torch.tensor(array).bfloat16()

    edges = memory_of("torch").put(case.edges)
    rows, given = narrow(case.rows), narrow(panel)
    out, bends = torch.empty_like(given), narrow(np.zeros((len(case.items), LANES)))
    for bounds in ((0, case.naive.n_users), (case.naive.n_users, n_rows)):
        there.slopes(rows, edges, given, *bounds, True, bends)
    there.bend(case.naive.loss, edges.first, narrow(case.curvatures), 0, n, bends, bends)
    l2, gradients = narrow(case.l2_of_rows), narrow(case.gradients)
    there.pull(rows, edges, bends, gradients, given, l2, 0, n_rows, out)
    expected = product(case, panel, full=True)
    error = np.abs(out.double().numpy() - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03


# ---------------------------------------------------------------- parts and corners


@each_loss
def test_memory_bounds_the_batches(loss, monkeypatch):
    """One row at a time where no more fits, and the same numbers."""
    from fastinfluence.kernels.torch import batches

    case = make_case(loss, n=30, k=7, n_users=5, n_items=9)
    panel = panel_of(case)

    def numbers():
        names = ("gradient_norms", "own_credit")
        found = [numbers_of(case, name) for name in names]
        return *derivatives_of(case), product(case, panel, full=True), blocks_of(case), *found

    whole = numbers()
    monkeypatch.setattr(batches, "CHUNK", 1)
    for mine, its in zip(numbers(), whole, strict=True):
        assert_near(mine, its, case)


@each_loss
def test_the_same_bits_every_time(loss):
    case = make_case(loss, n=200, k=33, n_users=9, n_items=20, dtype=np.float32)
    panel = panel_of(case)
    assert same_bits(product(case, panel, full=True), product(case, panel, full=True))
    assert same_bits(credits_of(case, panel), credits_of(case, panel))


@each_loss
def test_a_part_is_all_that_is_written(loss):
    case = make_case(loss, n=20)
    panel, first = panel_of(case), case.edges.first
    bends = slopes_of(case, panel)
    before, out = bends.copy(), np.full_like(panel, np.nan)
    HESSIAN.bend(case.naive.loss, first, case.curvatures, 4, 9, bends, bends)
    outside = np.r_[0 : first[4], first[9] : len(bends)]
    assert same_bits(bends[outside], before[outside])
    HESSIAN.pull(
        case.rows, case.edges, bends, case.gradients, panel, case.l2_of_rows, 2, 6, out
    )  # fmt: skip
    assert np.isfinite(out[2:6]).all()
    assert np.isnan(out[:2]).all()
    assert np.isnan(out[6:]).all()


@each_loss
def test_slopes_may_be_kept(loss):
    case = make_case(loss, n=20)
    slopes = slopes_of(case, panel_of(case))
    kept, out = slopes.copy(), np.full_like(slopes, np.nan)
    HESSIAN.bend(case.naive.loss, case.edges.first, case.curvatures, 0, 20, slopes, out)
    assert same_bits(slopes, kept)
    HESSIAN.bend(case.naive.loss, case.edges.first, case.curvatures, 0, 20, slopes, slopes)
    assert same_bits(out, slopes)


@pytest.mark.parametrize("loss", ["logistic", "bpr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_far_out_have_losses_and_no_curvature(loss, dtype):
    case = make_case(loss, n=12, k=1, dtype=dtype)
    case.parameters[:] *= 200
    case.naive.parameters[:] = case.parameters
    gradients, curvatures, losses = derivatives_of(case)
    assert_near(losses, oracle.losses(case.naive), case)
    assert (np.abs(gradients) <= 10).all()
    assert ((curvatures >= 0) & (curvatures <= 3)).all()


def test_an_item_drawn_in_several_epochs():
    """Its gradients belong together: their norm is not that of two rows."""
    case = make_case("logistic", n=40, n_items=3, n_epochs=3, n_negatives=2, seed=4)
    drawn = [e.negatives for e in case.naive.examples if len(e.negatives) == 3]
    assert any(set(a) & set(b) for a, b, _ in drawn)
    norms = np.sqrt((oracle.gradients(case.naive) ** 2).sum((1, 2)))
    assert_near(numbers_of(case, "gradient_norms"), by_training_index(case, norms), case)
