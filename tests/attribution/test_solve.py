"""Solving with a damped Hessian: dense systems, honest reports, bits."""

from __future__ import annotations

import numpy as np
import pytest
from endpoints import Matrix, dense, endpoint_of, fit, panel_of, random_matrix
from planted import LOSSES, data_for, same_bits

from fastinfluence.attribution.solve import BlockJacobi, SolveReport, solve
from fastinfluence.attribution.systems import ReducedSystem
from fastinfluence.errors import NegativeCurvature
from fastinfluence.kernels.structures import LANES

each_loss = pytest.mark.parametrize("loss", LOSSES)
preconditioned = pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "blocks"])


def flat(panel):
    return panel.reshape(-1, panel.shape[-1]).astype(float)


def residuals(matrix, x, right):
    """Relative, lane by lane."""
    left = np.linalg.norm(flat(right) - matrix @ flat(x), axis=0)
    return left / np.linalg.norm(flat(right), axis=0)


def run(endpoint, right, damping=0.3, *, blocks=True, **keywords):
    preconditioner = BlockJacobi(endpoint, damping) if blocks else None
    return solve(endpoint, right, damping=damping, preconditioner=preconditioner, **keywords)


# ---------------------------------------------------------------- users eliminated


@each_loss
@pytest.mark.parametrize("full", [False, True])
def test_the_reduced_product_is_that_of_the_schur_complement(loss, full):
    endpoint, damping = endpoint_of(loss), 0.3
    matrix = dense(endpoint, full=full)
    blocks, first = BlockJacobi(endpoint, damping), endpoint.n_users * endpoint.d
    users, items = slice(first), slice(first, None)
    inverse = np.linalg.inv(matrix[users, users] + damping * np.eye(first))
    reduced = matrix[items, items] - matrix[items, users] @ inverse @ matrix[users, items]
    panel, out = panel_of(endpoint), np.full_like(panel_of(endpoint), np.nan)
    of_items = flat(panel)[items]
    system = ReducedSystem(endpoint, damping, full, blocks, 1)
    endpoint.reduced_product(system._solve_users, panel, out, full=full)
    np.testing.assert_allclose(flat(out)[items], reduced @ of_items, atol=1e-12)
    np.testing.assert_allclose(
        flat(panel)[users], -inverse @ matrix[users, items] @ of_items, atol=1e-12
    )
    panel = panel_of(endpoint)
    panel[endpoint.n_users :] = 0
    endpoint.coupling(panel, out, full=full)
    np.testing.assert_allclose(flat(out)[items], matrix[items, users] @ flat(panel)[users])


@each_loss
def test_eliminating_users_saves_iterations(loss):
    """As many as half of them, where nothing joins two items either."""
    endpoint, damping = endpoint_of(loss, n_factors=6), 0.3
    right, blocks = panel_of(endpoint), BlockJacobi(endpoint, damping)
    options = {"damping": damping, "rtol": 1e-9, "preconditioner": blocks}
    x, reduced = solve(endpoint, right, **options)
    blocks.identity = None, damping  # of some other Hessian, as far as solve can see
    y, whole = solve(endpoint, right, **options)
    assert reduced.iterations.max() < (0.6 if loss != "bpr" else 0.95) * whole.iterations.max()
    np.testing.assert_allclose(x, y, atol=1e-7)


def test_blocks_of_another_hessian_do_not_eliminate():
    endpoint = endpoint_of()
    blocks = BlockJacobi(endpoint, 0.3)
    assert blocks.solves_users_of(endpoint.twin(), 0.3)
    assert not blocks.solves_users_of(endpoint, 0.4)
    assert not blocks.solves_users_of(endpoint.reweighted(np.ones(endpoint.n)), 0.3)
    assert not blocks.solves_users_of(Matrix(np.eye(12), 3), 0.3)
    right = panel_of(endpoint)  # they still precondition
    x, report = solve(endpoint, right, damping=0.4, rtol=1e-10, preconditioner=blocks)
    assert residuals(dense(endpoint, 0.4), x, right).max() < 1e-9
    assert report.converged.all()


# ---------------------------------------------------------------- solutions


@preconditioned
@each_loss
def test_is_the_dense_solution(loss, preconditioned):
    endpoint = endpoint_of(loss)
    right = panel_of(endpoint)
    for full, damping in ((False, 0.3), (True, 10.0)):
        x, report = run(
            endpoint, right, damping, blocks=preconditioned, full=full, rtol=1e-12,
            max_iterations=2000,
        )  # fmt: skip
        expected = np.linalg.solve(dense(endpoint, damping, full=full), flat(right))
        np.testing.assert_allclose(flat(x), expected, rtol=0, atol=1e-8 * np.abs(expected).max())
        assert report.converged.all()
        assert (report.residual <= 1e-12).all()
        assert report.hessian == ("full" if full else "gauss-newton")
        assert report.damping == damping
        assert report.seconds > 0


def test_blocks_save_iterations():
    data = data_for("squared", n_users=60, n_items=30, n=700)
    trajectory = fit(data, n_factors=8).trajectory_
    endpoint = trajectory.program.endpoint(trajectory.end.tables)
    right = panel_of(endpoint)
    (_, plain), (_, by_blocks) = (run(endpoint, right, blocks=blocks) for blocks in (False, True))
    assert plain.converged.all()
    assert by_blocks.converged.all()
    assert by_blocks.iterations.max() <= 20
    assert by_blocks.iterations.max() < plain.iterations.min() / 1.5


@preconditioned
def test_a_right_hand_side_of_zeros(preconditioned):
    endpoint = endpoint_of()
    right = panel_of(endpoint)
    right[:, :, [0, 7, 15]] = 0
    for rtol, atol in ((1e-10, 0.0), (0.0, 1e-8)):
        x, report = run(
            endpoint, right, blocks=preconditioned, rtol=rtol, atol=atol, max_iterations=2000
        )
        assert report.converged.all()
        assert not x[:, :, [0, 7, 15]].any()
        assert not report.residual[[0, 7, 15]].any()
        assert not report.iterations[[0, 7, 15]].any()
        assert np.isnan(report.smallest_ritz[[0, 7, 15]]).all()
        others = np.delete(np.arange(LANES), [0, 7, 15])
        assert np.isfinite(x).all()
        assert np.isfinite(report.smallest_ritz[others]).all()
        assert (report.iterations[others] > 0).all()
    x, report = run(endpoint, np.zeros_like(right), blocks=preconditioned)
    assert not x.any()
    assert report.converged.all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@preconditioned
def test_lanes_are_solved_as_if_alone(dtype, preconditioned):
    """Some end early, beside others: not a bit of them changes."""
    endpoint = endpoint_of("bpr", dtype=dtype)
    right, matrix = panel_of(endpoint), dense(endpoint, 0.3)
    vectors = np.linalg.eigh(matrix)[1]  # one iteration without blocks
    right[:, :, 4] = vectors[:, -1].reshape(right.shape[:2])
    right[3:, :, 6] = 0
    together, report = run(endpoint, right, blocks=preconditioned, rtol=1e-6)
    assert len(set(report.iterations.tolist())) > 1
    for lane in (4, 6, int(report.iterations.argmax()), int(report.iterations.argmin())):
        single = np.zeros_like(right)
        single[:, :, lane] = right[:, :, lane]
        alone, its = run(endpoint, single, blocks=preconditioned, rtol=1e-6)
        assert same_bits(together[:, :, lane].copy(), alone[:, :, lane].copy())
        for name in SolveReport.COLUMNS:
            assert getattr(report, name)[lane] == getattr(its, name)[lane]


@preconditioned
def test_more_right_hand_sides_than_parameters(preconditioned):
    endpoint = Matrix(random_matrix([0.5, 1, 2, 7]), 2)
    right = panel_of(endpoint)
    x, report = run(endpoint, right, 0.1, blocks=preconditioned, rtol=1e-12)
    expected = np.linalg.solve(endpoint.matrix + 0.1 * np.eye(4), flat(right))
    np.testing.assert_allclose(flat(x), expected, rtol=1e-8)
    assert (np.abs(flat(x)).max(axis=0) > 1e-2).all()
    assert report.converged.all()
    assert (report.iterations <= 6).all()


# ---------------------------------------------------------------- when it ends


@preconditioned
@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-7])
def test_relative_tolerance_is_of_the_right_hand_side(rtol, preconditioned):
    endpoint = endpoint_of("logistic")
    right = panel_of(endpoint) * np.logspace(-6, 6, LANES)
    x, report = run(endpoint, right, blocks=preconditioned, rtol=rtol, max_iterations=2000)
    true = residuals(dense(endpoint, 0.3), x, right)
    np.testing.assert_allclose(report.residual, true, rtol=1e-6, atol=1e-14)
    assert report.converged.all()
    assert (true <= rtol).all()
    fewer = int(report.iterations.min()) - 1  # and it did not go on for nothing
    _, before = run(endpoint, right, blocks=preconditioned, rtol=rtol, max_iterations=fewer)
    assert not before.converged.any()
    assert (before.residual > rtol).all()


def test_absolute_tolerance_is_of_the_residual():
    endpoint = endpoint_of()
    right = panel_of(endpoint) * np.logspace(-3, 1, LANES)
    sizes = np.linalg.norm(flat(right), axis=0)
    x, report = run(endpoint, right, rtol=0.0, atol=0.5)
    true = residuals(dense(endpoint, 0.3), x, right) * sizes
    np.testing.assert_allclose(report.residual * sizes, true, rtol=1e-6)
    assert (true <= 0.5).all()
    assert report.converged.all()
    small = sizes <= 0.5  # nothing to do: x = 0 is as near
    assert 0 < small.sum() < LANES
    assert not x[:, :, small].any()
    assert (report.iterations[small] == 0).all()
    assert (report.residual[small] == 1).all()
    _, either = run(endpoint, right, rtol=1e-2, atol=0.5)  # the looser of the two
    _, relative = run(endpoint, right, rtol=1e-2)
    expected = np.minimum(report.iterations, relative.iterations)
    np.testing.assert_array_equal(either.iterations, expected)


@pytest.mark.parametrize("most", [1, 3])
def test_iterations_may_run_out(most):
    endpoint = endpoint_of()
    right = panel_of(endpoint)
    right[:, :, 5] = 0
    x, report = run(endpoint, right, 0.01, rtol=1e-9, max_iterations=most)
    assert not np.delete(report.converged, 5).any()
    assert report.converged[5]
    assert np.delete(report.iterations, 5).tolist() == [most] * 15
    some = np.arange(LANES) != 5
    true = residuals(dense(endpoint, 0.01), x[:, :, some], right[:, :, some])
    np.testing.assert_allclose(report.residual[some], true, rtol=1e-9)
    assert "15 not converged" in repr(report)


def test_from_another_start():
    endpoint = endpoint_of()
    right, rtol = panel_of(endpoint), 1e-10
    x, report = run(endpoint, right, rtol=rtol)
    again, found = run(endpoint, right, rtol=rtol, start=x)
    assert same_bits(again, x)
    assert not found.iterations.any()
    assert found.converged.all()
    np.testing.assert_array_equal(found.residual, report.residual)
    near = x * 1.01
    kept = near.copy()
    other, found = run(endpoint, right, rtol=rtol, start=near)
    np.testing.assert_allclose(other, x, rtol=0, atol=1e-8 * np.abs(x).max())
    assert same_bits(near, kept)
    assert found.iterations.sum() < report.iterations.sum()


def test_float32_says_what_rounding_leaves():
    data = data_for("squared", n_users=60, n_items=30, n=700)
    trajectory = fit(data, n_factors=8, dtype="float32").trajectory_
    endpoint = trajectory.program.endpoint(trajectory.end.tables)
    right = panel_of(endpoint)
    x, report = run(endpoint, right, rtol=1e-12, max_iterations=1000)
    assert not report.converged.any()
    assert (report.iterations < 500).all()  # it has seen that more would not help
    true = residuals(dense(endpoint, 0.3), x, right)
    np.testing.assert_allclose(report.residual, true, rtol=0, atol=2e-6)
    assert (report.residual > 1e-12).all()
    assert (true < 1e-5).all()
    x, report = run(endpoint, right, rtol=1e-5)  # within reach: and true, not as the steps add up
    assert report.converged.all()
    assert (residuals(dense(endpoint, 0.3), x, right) < 1.2e-5).all()


# ---------------------------------------------------------------- spectra


@preconditioned
def test_smallest_ritz_is_the_smallest_eigenvalue(preconditioned):
    """Of the preconditioned matrix, from above; near it once the system is solved."""
    endpoint = Matrix(random_matrix(np.geomspace(0.05, 5, 24), seed=1), 3)
    right, matrix = panel_of(endpoint), endpoint.matrix + 0.1 * np.eye(24)
    blocks = BlockJacobi(endpoint, 0.1)
    if preconditioned:
        lower = np.zeros((24, 24))
        for row, factor in enumerate(blocks.factors):
            lower[3 * row : 3 * row + 3, 3 * row : 3 * row + 3] = np.tril(factor)
        inverse = np.linalg.inv(lower)
        matrix = inverse @ matrix @ inverse.T
    smallest = np.linalg.eigvalsh(matrix)[0]
    _, early = run(endpoint, right, 0.1, blocks=preconditioned, rtol=1e-1)
    _, late = run(endpoint, right, 0.1, blocks=preconditioned, rtol=1e-11)
    assert (early.smallest_ritz >= smallest * (1 - 1e-9)).all()
    assert (early.smallest_ritz >= late.smallest_ritz * (1 - 1e-9)).all()
    np.testing.assert_allclose(late.smallest_ritz, smallest, rtol=1e-4)


def test_an_indefinite_matrix_is_told():
    eigenvalues = np.r_[-0.5, np.linspace(0.2, 4, 11)]
    endpoint = Matrix(random_matrix(eigenvalues), 3)
    right = panel_of(endpoint)
    with pytest.raises(NegativeCurvature, match=r"has an eigenvalue of -0\.\d+ or less") as info:
        run(endpoint, right, 0.1, blocks=False, rtol=1e-12, full=True)
    assert "give damping > 0." in str(info.value)
    x, report = run(endpoint, right, 0.6, blocks=False, rtol=1e-12, full=True)
    assert report.converged.all()
    assert residuals(endpoint.matrix + 0.6 * np.eye(12), x, right).max() < 1e-11


@each_loss
def test_a_full_hessian_without_damping_is_told(loss):
    endpoint = endpoint_of(loss, n_epochs=1, regularization=0.001)
    assert np.linalg.eigvalsh(dense(endpoint, full=True))[0] < -0.1
    for blocks in (False, True):
        with pytest.raises(NegativeCurvature, match="the Hessian is not positive definite"):
            run(endpoint, panel_of(endpoint), 0.01, blocks=blocks, full=True, rtol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_singular_block_is_told(dtype):
    """Neither damping nor regularization, and fewer examples than factors."""
    endpoint = endpoint_of(n_factors=6, regularization=0.0, dtype=dtype)
    with pytest.raises(NegativeCurvature, match=r"is singular: [\d,]+ rows .*Give damping > 0"):
        BlockJacobi(endpoint, 0.0)
    blocks = BlockJacobi(endpoint, 0.5)
    assert np.isfinite(blocks.factors).all()
    assert (blocks.divisors > 0).all()


def test_which_row_is_singular():
    matrix = np.diag([1.0, 2, 3, 4, 1, 0, 5, 6])
    with pytest.raises(NegativeCurvature, match=r"singular: 1 rows .*\(the first is row 2\)"):
        BlockJacobi(Matrix(matrix, 2), 0.0)


# ---------------------------------------------------------------- promises


@each_loss
def test_threads_change_no_bit(loss):
    found = []
    for n_threads in (1, 2):
        endpoint = endpoint_of(loss, n_threads=n_threads, dtype="float32")
        blocks = BlockJacobi(endpoint, 0.3, n_threads=n_threads)
        x, report = solve(
            endpoint, panel_of(endpoint), damping=0.3, preconditioner=blocks, n_threads=n_threads
        )
        columns = [getattr(report, name) for name in SolveReport.COLUMNS]
        found.append([x, blocks.factors, blocks.divisors, *columns])
    for one, two in zip(*found, strict=True):
        assert same_bits(one, two)


def test_reports_are_cut_and_joined():
    endpoint = endpoint_of()
    _, one = run(endpoint, panel_of(endpoint))
    _, two = run(endpoint, panel_of(endpoint, 1))
    both = SolveReport.joined([one.first(5), two])
    assert (len(one), len(one.first(5)), len(both)) == (16, 5, 21)
    for name in SolveReport.COLUMNS:
        joined = np.concatenate([getattr(one, name)[:5], getattr(two, name)])
        np.testing.assert_array_equal(getattr(both, name), joined)
    assert both.seconds == one.seconds + two.seconds
    assert repr(both).startswith("SolveReport(21 systems, all converged, at most ")
    assert "gauss-newton Hessian, damping 0.3" in repr(both)
