from __future__ import annotations

import numpy as np
import pytest
from numba import config

from fastinfluence.kernels.cpu.readout import find_pairs


@pytest.mark.skipif(not config.BOUNDSCHECK, reason="only with NUMBA_BOUNDSCHECK=1")
def test_bounds_are_checked_when_asked_for():
    """Numba's cache does not tell checked from unchecked code: a run with checks needs its own."""
    users, items = np.array([7], np.int32), np.zeros(1, np.int32)
    with pytest.raises(IndexError):
        find_pairs(np.zeros(2, np.int64), items, users, items, 0, 1, *np.zeros((2, 1), np.int64))
