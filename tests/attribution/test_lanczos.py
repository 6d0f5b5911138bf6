"""The smallest eigenvalue of a Hessian, by Lanczos' method."""

from __future__ import annotations

import numpy as np
import pytest
from endpoints import Matrix, dense, endpoint_of, random_matrix
from planted import LOSSES

from fastinfluence.attribution.lanczos import smallest_eigenvalue

each_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.mark.parametrize("seed", range(3))
def test_smallest_eigenvalue(seed):
    rng = np.random.default_rng(seed)
    for eigenvalues in (
        np.r_[-0.3, rng.uniform(0, 5, 59)],
        np.r_[-2.0, -1.9, rng.uniform(-1, 50, 118)],
        rng.uniform(0.5, 9, 60),
        np.geomspace(1e-3, 10, 40),
    ):
        endpoint = Matrix(random_matrix(eigenvalues, seed), 2)
        truth, found = eigenvalues.min(), smallest_eigenvalue(endpoint)
        assert truth - 1e-10 <= found <= truth + 1e-2 * abs(truth)


@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5])
def test_smallest_eigenvalue_of_a_multiple_of_the_identity(factor):
    found = smallest_eigenvalue(Matrix(factor * np.eye(12), 3))
    assert found == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_loss
def test_smallest_eigenvalue_of_a_training_loss(loss, dtype):
    endpoint = endpoint_of(loss, dtype=dtype, regularization=0.1)
    rounding = 1e-5 if dtype == "float32" else 1e-9
    for full in (False, True):
        eigenvalues = np.linalg.eigvalsh(dense(endpoint, full=full))
        truth, found = eigenvalues[0], smallest_eigenvalue(endpoint, full=full)
        near = rounding * eigenvalues[-1]
        assert truth - near <= found <= truth + 1e-2 * abs(truth) + near
        assert (truth < -near) == full


def test_what_is_known_of_an_eigenvalue_when_products_run_out():
    eigenvalues = np.r_[-1e-3, np.linspace(0, 5, 199)]
    endpoint = Matrix(random_matrix(eigenvalues), 4)
    rough, better = (smallest_eigenvalue(endpoint, most=most) for most in (5, 60))
    assert -1e-3 <= better < rough < 1
