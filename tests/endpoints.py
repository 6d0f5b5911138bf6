"""Small trained models whose training loss is looked at where it ended, and dense matrices."""

from __future__ import annotations

import numpy as np
from planted import data_for

from fastinfluence import Interactions, MatrixFactorization
from fastinfluence.kernels.structures import LANES, Tables


def fit(data, *, sample_weight=None, **keywords):
    defaults = {
        "n_factors": 3, "n_epochs": 6, "learning_rate": 0.05, "init_scale": 0.4, "rng": 0,
        "regularization": 0.05, "dtype": "float64",
    }  # fmt: skip
    return MatrixFactorization(**(defaults | keywords)).fit(data, sample_weight=sample_weight)


def with_duplicates(loss, seed=4):
    """Data in which some pairs occur two and three times, and a user and an item never."""
    data = data_for(loss, n_users=7, n_items=9, n=24, seed=seed)
    again = np.array([*range(24), 3, 7, 3])
    return Interactions.from_arrays(
        data.users[again], data.items[again],
        data.values[again] if loss != "squared" else 1.0 + np.arange(27) % 5,
        user_ids=np.arange(8), item_ids=np.arange(10), duplicates="keep",
    )  # fmt: skip


def weights_of(n, seed=0):
    weights = np.random.default_rng(seed).choice([0, 0.5, 1, 2], n)
    weights[0] = 1
    return weights


def random_tables(program, seed=0, scale=0.5):
    rng, data, k = np.random.default_rng(seed), program.data, program.recipe.n_factors
    shapes = (data.n_users, k), (data.n_items, k), (data.n_users,), (data.n_items,)
    return Tables(*(scale * rng.standard_normal(s).astype(program.dtype) for s in shapes))


def tables_of(endpoint, rows):
    """Rows (n_rows, d) of an endpoint as tables."""
    users, items = rows[: endpoint.n_users], rows[endpoint.n_users :]
    return Tables(users[:, :-1], items[:, :-1], users[:, -1], items[:, -1])


def panel_of(endpoint, seed=0):
    shape = endpoint.n_rows, endpoint.d, LANES
    return np.random.default_rng(seed).standard_normal(shape).astype(endpoint.dtype)


def product(endpoint, panel, **keywords):
    out = np.full_like(panel, np.nan)
    endpoint.product(panel, out, **keywords)
    return out


class Matrix:
    """Any symmetric matrix in the place of the Hessian of an endpoint."""

    device = "cpu"

    def __init__(self, matrix, d, dtype=np.float64):
        self.matrix, self.d, self.dtype = matrix.astype(dtype), d, np.dtype(dtype)
        self.n_rows = len(matrix) // d

    def product(self, panel, out, *, full=False):
        out[...] = (self.matrix @ panel.reshape(-1, LANES)).reshape(panel.shape)

    def blocks(self):
        rows = np.arange(self.n_rows)
        return self.matrix.reshape(self.n_rows, self.d, self.n_rows, self.d)[rows, :, rows]


def gradients_by_differences(quantity, endpoint, mean, distance=1e-5):
    """d phi / d rows (n_queries, n_rows, d) of a bound objective, at the rows of an endpoint."""
    found = np.zeros((len(quantity), *endpoint.rows.shape))
    for place in np.ndindex(endpoint.rows.shape):
        ends = []
        for step in (distance, -distance):
            rows = endpoint.rows.astype(float)
            rows[place] += step
            ends.append(quantity.values(tables_of(endpoint, rows), mean))
        found[:, *place] = (ends[0] - ends[1]) / (2 * distance)
    return found


def endpoint_of(loss="squared", *, n_threads=1, **keywords):
    data = with_duplicates(loss)
    model = fit(data, loss=loss, sample_weight=weights_of(len(data)), **keywords)
    trajectory = model.trajectory_
    return trajectory.program.endpoint(trajectory.end.tables, n_threads=n_threads)


def dense(endpoint, damping=0.0, *, full=False):
    """The damped matrix (P, P), column by column."""
    size, columns = endpoint.n_rows * endpoint.d, []
    for start in range(0, size, LANES):
        panel = np.eye(size, LANES, -start).reshape(endpoint.n_rows, endpoint.d, LANES)
        image = product(endpoint, panel.astype(endpoint.dtype), full=full)
        columns.append(image.reshape(size, LANES).astype(float))
    return np.hstack(columns)[:, :size] + damping * np.eye(size)


def random_matrix(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
    return basis @ np.diag(eigenvalues) @ basis.T
