"""The ratings the benches run on: MovieLens where it is, ratings of its shape elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import fastinfluence as fi


def ml_1m(smoke: bool) -> tuple[fi.Interactions, str]:
    """MovieLens 1M and what to call it."""
    return _movielens("ml-1m", "MovieLens 1M", (6040, 3706, 1_000_000), (300, 200, 9_000), smoke)


def ml_100k(smoke: bool) -> tuple[fi.Interactions, str]:
    """MovieLens 100K and what to call it."""
    return _movielens("ml-100k", "MovieLens 100K", (943, 1682, 100_000), (150, 120, 3_000), smoke)


def _movielens(
    folder: str,
    name: str,
    shape: tuple[int, int, int],
    smoke_shape: tuple[int, int, int],
    smoke: bool,
) -> tuple[fi.Interactions, str]:
    if smoke:
        return synthetic(*smoke_shape), "tiny synthetic ratings"
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("FASTINFLUENCE_DATA", beside)) / folder
    if not path.exists():
        data = synthetic(*shape)
        return data, f"synthetic ratings of the shape of {name}, {len(data):,}"
    archive = path / f"{folder}.zip"
    data = fi.datasets.movielens(archive if archive.exists() else path)
    return data, f"{name}, {len(data):,} ratings"


def synthetic(n_users: int, n_items: int, n_ratings: int, seed: int = 0) -> fi.Interactions:
    """About `n_ratings` ratings 1 to 5 of a planted low-rank model, with Zipf-like degrees."""
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(0.0, 1.0, n_users) + 0.2
    popularity = 1.0 / (np.arange(n_items) + n_items / 20)
    weight = np.outer(activity, popularity)
    low, high = 0.0, 1.0 / weight.min()
    for _ in range(60):  # bisect the factor that gives the expected number of ratings
        middle = (low + high) / 2
        if np.minimum(1, middle * weight).sum() < n_ratings:
            low = middle
        else:
            high = middle
    users, items = np.nonzero(rng.random(weight.shape) < high * weight)
    p, q = rng.standard_normal((n_users, 8)), rng.standard_normal((n_items, 8))
    taste = np.einsum("nk,nk->n", p[users], q[items]) / np.sqrt(8)
    values = np.clip(np.rint(3.6 + 0.8 * taste + 0.6 * rng.standard_normal(len(users))), 1, 5)
    ids = {"user_ids": np.arange(n_users), "item_ids": np.arange(n_items)}
    return fi.Interactions.from_arrays(users, items, values, **ids)
