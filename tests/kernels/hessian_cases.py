"""Random training losses at fixed parameters: as the kernels take them, and naive."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from oracles import hessian as oracle

from fastinfluence.kernels.cpu.edge_losses import edge_losses
from fastinfluence.kernels.cpu.losses import BPR, LOGISTIC, SQUARED
from fastinfluence.kernels.structures import LANES, Edges

LOSSES = {"squared": SQUARED, "logistic": LOGISTIC, "bpr": BPR}


class Case(NamedTuple):
    """The examples stand user by user; training index `edges.examples[j]` is any permutation."""

    naive: oracle.Problem
    edges: Edges
    users: np.ndarray
    items: np.ndarray
    parameters: np.ndarray
    rows: np.ndarray  # factors and a one
    values: np.ndarray
    weights: np.ndarray
    share: float
    gradients: np.ndarray
    curvatures: np.ndarray
    losses: np.ndarray
    l2_of_edges: np.ndarray
    l2_of_rows: np.ndarray

    @property
    def dtype(self):
        return self.parameters.dtype


def make_case(
    loss="squared", *, n=15, k=3, n_users=4, n_items=6, n_epochs=2, n_negatives=2, seed=0,
    dtype=np.float64,
):  # fmt: skip
    rng = np.random.default_rng(seed)
    if loss == "squared":
        n_epochs, n_negatives = 1, 0
    examples = []
    for user in np.sort(rng.integers(0, n_users, n)).tolist():
        item, value = int(rng.integers(n_items)), float(rng.integers(0, 2))
        others = np.flatnonzero(np.arange(n_items) != item)
        drawn = [
            rng.permutation(others)[: rng.integers(n_negatives + 1)].tolist()
            for _ in range(n_epochs if loss == "bpr" or value else 0)
        ]
        value = {"squared": float(rng.normal()), "bpr": 1.0}.get(loss, value)
        weight = float(rng.choice([0, 0.5, 1, 2]))
        examples.append(oracle.Example(user, item, drawn or [[]] * n_epochs, value, weight))
    parameters = (rng.standard_normal((n_users + n_items, k + 1)) / np.sqrt(k)).astype(dtype)
    problem = oracle.Problem(
        examples, parameters.astype(float), n_users, LOSSES[loss], 0.3, 0.2
    )  # fmt: skip
    return as_arrays(problem, parameters, 1 / n_epochs, rng.permutation(n))


def as_arrays(problem, parameters, share, examples):
    n_rows = len(parameters)
    edges_of_rows = [[] for _ in range(n_rows)]
    users, items, owns, first = [], [], [], [0]
    l2_of_edges = []
    for example in problem.examples:
        shrunk = oracle.shrunk(problem, example)[1:]
        for (item, _), (_, l2) in zip(oracle.counted(example), shrunk, strict=True):
            edge, row = len(items), problem.n_users + item
            edges_of_rows[example.user].append((row, edge))
            edges_of_rows[row].append((example.user, edge))
            items.append(row)
            owns.append(first[-1])
            l2_of_edges.append(l2)
        users.append(example.user)
        first.append(len(items))
    places = [place for row in edges_of_rows for place in row]
    edges = Edges(
        np.concatenate([[0], np.cumsum([len(row) for row in edges_of_rows])]).astype(np.int64),
        np.array([other for other, _ in places], np.int32),
        np.array([edge for _, edge in places], np.int32),
        np.array(first, np.int64),
        np.array(owns, np.int32),
        examples.astype(np.int64),
    )
    edges.examples.flags.writeable = False  # as those of the data are
    l2_of_rows = np.zeros(n_rows)
    for example in problem.examples:
        for row, l2 in oracle.shrunk(problem, example):
            l2_of_rows[row] += l2
    dtype, rows = parameters.dtype, parameters.copy()
    rows[:, -1] = 1
    case = Case(
        problem,
        edges,
        np.array(users, np.int32),
        np.array(items, np.int32),
        parameters,
        rows,
        np.array([example.value for example in problem.examples], dtype),
        np.array([example.weight for example in problem.examples], dtype),
        share,
        np.full(len(items), np.nan, dtype),
        np.full(len(items), np.nan, dtype),
        np.full(len(users), np.nan),
        np.array(l2_of_edges, dtype),
        l2_of_rows.astype(dtype),
    )
    write_losses(case, 0, len(users))
    return case


def write_losses(case, start, stop):
    """Fill in derivatives and losses of some examples, by the kernel."""
    edge_losses(
        case.naive.loss, case.parameters, case.edges, case.users, case.items, case.values,
        case.weights, case.share, case.naive.mean, case.naive.regularization, start, stop,
        case.gradients, case.curvatures, case.losses,
    )  # fmt: skip


@st.composite
def cases(draw, **fixed):
    arguments = {
        "loss": draw(st.sampled_from(sorted(LOSSES))),
        "n": draw(st.integers(0, 25)),
        "k": draw(st.integers(1, 40)),
        "n_users": draw(st.integers(1, 5)),
        "n_items": draw(st.integers(2, 12)),
        "n_epochs": draw(st.integers(1, 3)),
        "n_negatives": draw(st.integers(0, 5)),
        "seed": draw(st.integers(0, 10**6)),
        "dtype": draw(st.sampled_from([np.float32, np.float64])),
    }
    return make_case(**(arguments | fixed))


def panel_of(case, seed=0):
    shape = *case.parameters.shape, LANES
    return np.random.default_rng(seed).standard_normal(shape).astype(case.dtype)


def poisoned(*shape, case):
    """Room for a result: what is not set stays NaN."""
    return np.full(shape, np.nan, case.dtype)


def by_training_index(case, numbers):
    found = np.empty_like(numbers)
    found[case.edges.examples] = numbers
    return found
