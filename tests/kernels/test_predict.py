from __future__ import annotations

import numpy as np
import pytest

from fastinfluence.kernels.cpu.predict import pair_scores
from fastinfluence.kernels.structures import Tables


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 15, 16, 64, 100])
def test_scores_of_a_stretch_of_pairs(dtype, k):
    rng = np.random.default_rng(k)
    shapes = ((5, k), (7, k), 5, 7)
    tables = Tables(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))
    users, items = rng.integers(0, 5, 20).astype("int32"), rng.integers(0, 7, 20).astype("int32")
    out = np.full(20, np.nan, dtype)
    pair_scores(tables, dtype(0.5), users, items, 3, 17, out)
    p, q, b, c = (table.astype(np.float64) for table in tables)
    truth = 0.5 + b[users] + c[items] + (p[users] * q[items]).sum(1)
    np.testing.assert_allclose(out[3:17], truth[3:17], atol=60 * np.finfo(dtype).eps)
    assert np.isnan(out[:3]).all()
    assert np.isnan(out[17:]).all()
