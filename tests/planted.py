"""Small data sets with a structure planted in them, for the tests of whole models."""

from __future__ import annotations

import numpy as np

from fastinfluence import Interactions, Triples

LOSSES = ["squared", "logistic", "bpr"]
OPTIMIZERS = ["sgd", "adagrad"]


def pairs(n_users, n_items, n, rng):
    """Distinct random pairs, in random order."""
    cells = rng.choice(n_users * n_items, n, replace=False)
    return np.divmod(cells, n_items)


def ratings(n_users=12, n_items=9, n=60, seed=0, **keywords):
    """Ratings from 1 to 5: planted factors and biases, and noise."""
    rng = np.random.default_rng(seed)
    users, items = pairs(n_users, n_items, n, rng)
    p, q = rng.standard_normal((n_users, 3)), rng.standard_normal((n_items, 3))
    b, c = rng.standard_normal(n_users) / 2, rng.standard_normal(n_items) / 2
    scores = 3 + b[users] + c[items] + 0.6 * (p[users] * q[items]).sum(1)
    values = np.clip(np.rint(scores + rng.standard_normal(n) / 2), 1, 5)
    maps = {"user_ids": np.arange(n_users), "item_ids": np.arange(n_items)}
    return Interactions.from_arrays(users, items, values, **(maps | keywords))


def positives(n_users=12, n_items=20, n=60, seed=0, zeros=False):
    """Implicit feedback; with `zeros` a third of the rows are negatives."""
    rng = np.random.default_rng(seed)
    users, items = pairs(n_users, n_items, n, rng)
    values = (rng.random(n) < 2 / 3).astype(float) if zeros else None
    return Interactions.from_arrays(
        users, items, values, user_ids=np.arange(n_users), item_ids=np.arange(n_items)
    )


def graph(n_entities=10, n_relations=3, n=90, n_test=12, seed=0, **keywords):
    """A knowledge graph with planted factors: the triples of highest score, and held-out ones.

    Raw ids are ``"e0"``, ..., ``"r0"``, ...; `n` training triples, `n_test` to validate and as
    many to test. Some are self loops.
    """
    rng = np.random.default_rng(seed)
    p, q = rng.standard_normal((n_entities, 3)), rng.standard_normal((n_entities, 3))
    w = rng.standard_normal((n_relations, 3))
    scores = np.einsum("hk,rk,tk->hrt", p, w, q)
    best = rng.permutation(np.argsort(-scores, axis=None)[: n + 2 * n_test])
    heads, relations, tails = np.unravel_index(best, scores.shape)
    entities = np.array([f"e{code}" for code in range(n_entities)])
    names = np.array([f"r{code}" for code in range(n_relations)])
    rows = np.column_stack([entities[heads], names[relations], entities[tails]])
    validation, test = rows[n : n + n_test], rows[n + n_test :]
    splits = {"validation": validation, "test": test} if n_test else {}
    return Triples.from_arrays(*rows[:n].T, **(splits | keywords))


def data_for(loss, **keywords):
    """A set of the right kind; ``logistic`` gets zeros among its values."""
    if loss == "squared":
        return ratings(**keywords)
    return positives(zeros=loss == "logistic", **keywords)


def same_bits(a, b):
    """Whether two arrays are the same to the last bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_tables(mine, other):
    """Whether two sets of tables are the same to the last bit."""
    return all(same_bits(a, b) for a, b in zip(mine, other, strict=True))


def without(model, examples):
    """The model fitted anew, these examples at weight 0."""
    weights = np.ones(len(model.data_))
    weights[examples] = 0
    return type(model)(**model.get_params()).fit(model.data_, sample_weight=weights)


def rows(data):
    """The rows of the data as tuples of raw ids."""
    return set(zip(*(column.tolist() for column in data.columns().values()), strict=True))
