"""What the cases share: a model to work on, its last epoch as it was, torch where it is."""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from typing import Any

import data_sets
import numpy as np

import fastinfluence as fi
from fastinfluence.training.backward import Stage, backward

from . import Size

__all__ = ["LOG_BUDGET", "last_epoch", "model", "plain_torch"]

LOG_BUDGET = 2**31
"""Bytes of a log: an epoch of MovieLens 1M at k=64 takes a quarter of it."""


@functools.cache
def model(size: Size) -> fi.MatrixFactorization:
    """Trained on the CPU, so that it is the same wherever the cases run."""
    if size == "full":
        data = data_sets.ml_1m(smoke=False)[0]
    else:
        data = _tiny() if size == "smoke" else data_sets.synthetic(60, 50, 1_200)
    k, n_epochs = (5, 2) if size == "smoke" else (64, 20)
    untrained = fi.MatrixFactorization(k, n_epochs=n_epochs, device="cpu", rng=0)
    return untrained.fit(data, show_progress=False)


def _tiny() -> fi.Interactions:
    """14 ratings, as a simulated thread takes milliseconds; new items are left for everybody."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(4), [3, 4, 3, 4])
    items = np.concatenate([rng.permutation(6)[:n] for n in np.bincount(users)])
    return fi.Interactions.from_arrays(users, items, rng.integers(1, 6, 14).astype(float))


def last_epoch(trajectory: Any, device: str) -> Stage:
    """The log of the last epoch, all of it, on a device."""
    return next(backward(trajectory, memory_budget=LOG_BUDGET, device=device, show_progress=False))


def plain_torch(module: str = "gpu_torch") -> Any:
    """The same work in plain torch; None where torch is not installed."""
    return importlib.import_module(module) if find_spec("torch") else None
