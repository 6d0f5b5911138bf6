"""What the benches run on: the real data where they are, data of their shape elsewhere."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import fastinfluence as fi


def ml_1m(smoke: bool) -> tuple[fi.Interactions, str]:
    """MovieLens 1M and what to call it."""
    return _movielens("ml-1m", "MovieLens 1M", (6040, 3706, 1_000_000), (300, 200, 9_000), smoke)


def ml_100k(smoke: bool) -> tuple[fi.Interactions, str]:
    """MovieLens 100K and what to call it."""
    return _movielens("ml-100k", "MovieLens 100K", (943, 1682, 100_000), (150, 120, 3_000), smoke)


def fb15k_237(smoke: bool) -> tuple[fi.Triples, str]:
    """FB15k-237 and what to call it."""
    path = _data() / "fb15k-237" / "FB15k-237.tar.gz"
    return _graph(path, "FB15k-237", (14541, 237, 310_116), smoke)


def codex_s(smoke: bool) -> tuple[fi.Triples, str]:
    """CoDEx-S and what to call it."""
    return _graph(_data() / "codex" / "codex-s.zip", "CoDEx-S", (2034, 42, 36_543), smoke)


def umls(smoke: bool) -> tuple[fi.Triples, str]:
    """UMLS as it comes with PyKEEN, and what to call it."""
    found = find_spec("pykeen")  # which does not import it
    folder = Path(found.origin).parent / "datasets" / "umls" if found and found.origin else None
    return _graph(folder, "UMLS", (135, 46, 6_529), smoke)


def _data() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("FASTINFLUENCE_DATA", beside))


def _graph(
    path: Path | None, name: str, shape: tuple[int, int, int], smoke: bool
) -> tuple[fi.Triples, str]:
    if smoke:
        return synthetic_graph(80, 5, 1_000), "a tiny synthetic graph"
    if path is None or not path.exists():
        data = synthetic_graph(*shape)
        return data, f"a synthetic graph of the shape of {name}, {len(data):,} triples"
    data = fi.datasets.knowledge_graph(path)
    return data, f"{name}, {len(data):,} triples"


def _movielens(
    folder: str,
    name: str,
    shape: tuple[int, int, int],
    smoke_shape: tuple[int, int, int],
    smoke: bool,
) -> tuple[fi.Interactions, str]:
    if smoke:
        return synthetic(*smoke_shape), "tiny synthetic ratings"
    path = _data() / folder
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


def synthetic_graph(n_entities: int, n_relations: int, n_triples: int, seed: int = 0) -> fi.Triples:
    """About `n_triples` distinct triples with Zipf-like degrees, a tenth of them for testing."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / (np.arange(n_entities) + n_entities / 20)
    frequency = 1.0 / (np.arange(n_relations) + n_relations / 20)
    ends = rng.choice(n_entities, (2, 2 * n_triples), p=popularity / popularity.sum())
    relations = rng.choice(n_relations, 2 * n_triples, p=frequency / frequency.sum())
    triples = np.unique(np.stack([ends[0], relations, ends[1]], axis=1), axis=0)
    triples = rng.permutation(triples)[:n_triples]
    test, train = np.split(triples, [len(triples) // 10])
    return fi.Triples.from_arrays(*train.T, test=test)
