"""Influence functions on a device: those of the CPU, and what happens short of memory."""

from __future__ import annotations

import numpy as np
import pytest
from endpoints import fit
from planted import data_for

import fastinfluence as fi
from fastinfluence.attribution import solve as solving
from fastinfluence.attribution.lanczos import smallest_eigenvalue
from fastinfluence.attribution.solve import BlockJacobi, solve_queries
from fastinfluence.errors import DeviceMemoryError, NegativeCurvature, ParameterError

QUERY = [(0, 1)]


@pytest.fixture(scope="module")
def model():
    return fit(data_for("squared", n_users=2, n_items=2, n=3, seed=1), n_epochs=3, n_factors=2)


def assert_near(found, expected, tolerance=1e-8):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- the same as on the CPU


@pytest.fixture(scope="module")
def methods(model):
    return [
        fi.InfluenceFunction(model, damping=2.0, rtol=1e-2, device=device)
        for device in ("cpu", "cuda")
    ]


def test_influence_and_report(methods):
    expected, found = (method.influence(QUERY) for method in methods)
    assert isinstance(found, np.ndarray)
    assert_near(found, expected)
    reports = [method.report_ for method in methods]
    assert reports[0].iterations.tolist() == reports[1].iterations.tolist()
    assert reports[1].converged.all()
    assert reports[1].iterations.min() > 1
    assert_near(reports[1].smallest_ritz, reports[0].smallest_ritz)


def test_factors_are_saved_and_read_on_either(methods, tmp_path):
    here, there = methods
    factors = there.influence_factors(QUERY)
    assert isinstance(factors.vectors, np.ndarray)
    factors.save(tmp_path / "factors")
    loaded = fi.InfluenceFactors.load(tmp_path / "factors")
    expected = here.influence(QUERY)
    for method in methods:
        assert_near(method.influence_from_factors(loaded, [2, 0]), expected[:, [2, 0]])


def test_groups_left_out(methods):
    expected, found = (method.group_influence(QUERY, [[0]]) for method in methods)
    assert_near(found, expected)


def test_smallest_eigenvalue(model):
    trajectory = model.trajectory_
    expected, found = (
        smallest_eigenvalue(
            trajectory.program.endpoint(trajectory.end.tables, device=device), most=2
        )
        for device in ("cpu", "cuda")
    )
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_singular_block_is_told(model):
    sparse = fit(model.data_, n_epochs=1, regularization=0.0)
    method = fi.InfluenceFunction(sparse, damping=0.0, device="cuda")
    with pytest.raises(NegativeCurvature, match="rows of factors"):
        method.influence(QUERY)


def test_methods_without_kernels_are_refused(model):
    with pytest.raises(ParameterError, match="no cuda kernels"):
        fi.DropoutInfluence(model, device="cuda")


# ---------------------------------------------------------------- out of device memory


class Solved:
    """`solve` that tells what was solved, and runs out of memory where there is too much."""

    def __init__(self, room, failing_at=0):
        self.room, self.failing_at, self.calls, self.here = room, failing_at, 0, 0

    def __call__(self, endpoint, right, **options):
        self.calls += 1
        if self.calls > self.failing_at and self.room < 1:
            raise DeviceMemoryError("out of device memory: 7 bytes for an array (7,)")
        if self.calls == self.failing_at:
            self.failing_at = 0
            raise DeviceMemoryError("out of device memory: 9 bytes for an array (9,)")
        m = np.zeros(16)
        report = solving.SolveReport(
            converged=m == 0, iterations=m.astype(np.int64), residual=m, smallest_ritz=m,
            hessian="full", damping=0.0, seconds=0.0,
        )  # fmt: skip
        return right, report


class Panels:
    """What `solve_queries` asks of an endpoint."""

    device, n_rows, d, n, dtype = "cuda", 5, 4, 10, np.dtype(np.float64)

    def twin(self):
        return Panels()

    def panel(self, quantity, start):
        return start


def solved(monkeypatch, solve, n_queries):
    monkeypatch.setattr(solving, "solve", solve)
    found = solve_queries(Panels(), range(n_queries), None, at_once=8, n_threads=8)
    return [(start, x, len(report)) for start, x, report in found]


@pytest.mark.parametrize("failing_at", [0, 1, 3])
def test_short_of_memory_every_block_is_solved_once(monkeypatch, failing_at):
    solve = Solved(1, failing_at)
    assert solved(monkeypatch, solve, 70) == [
        (0, 0, 16), (16, 16, 16), (32, 32, 16), (48, 48, 16), (64, 64, 6)
    ]  # fmt: skip


def test_no_room_for_one_block_is_an_error_with_sizes(monkeypatch):
    with pytest.raises(DeviceMemoryError, match=r"16 queries take about \d+ MiB.*7 bytes"):
        solved(monkeypatch, Solved(0), 70)


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (1, 1), (2, 2), (100, 2)])
def test_blocks_at_once_are_as_many_as_fit(monkeypatch, free, expected):
    size = solving.block_bytes(Panels())
    memory = solving.dispatch.memory("cuda")
    monkeypatch.setattr(memory, "free_bytes", lambda: free * size)
    assert solving._side_by_side(Panels(), 8) == expected
    assert solving._side_by_side(Panels(), 1) == 1


def test_the_preconditioner_is_of_the_device(model):
    trajectory = model.trajectory_
    there = trajectory.program.endpoint(trajectory.end.tables, device="cuda")
    here = trajectory.program.endpoint(trajectory.end.tables)
    blocks = [BlockJacobi(endpoint, 0.5) for endpoint in (here, there)]
    memory = solving.dispatch.memory("cuda")
    assert_near(memory.fetch(blocks[1].divisors), blocks[0].divisors)
    assert_near(np.tril(memory.fetch(blocks[1].factors)), np.tril(blocks[0].factors))
