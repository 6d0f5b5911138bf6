"""Random graphs to train on: arguments of the kernels, and the same for the oracle."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from oracles import graph_sgd as oracle
from oracles.graph_sgd import ADAGRAD, ADAM, DENSE, GRADIENT, SGD, UPDATE, Setting

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import graph_sgd

LOSSES = [oracle.SOFTMAX, oracle.LOGISTIC]  # the position is the kernels' code
OPTIMIZERS = [SGD, ADAGRAD, ADAM, DENSE]
CREDITS = [UPDATE, GRADIENT]
DTYPES = [np.float32, np.float64]


class Problem(NamedTuple):
    """Arguments of the kernel, where training starts, and the same for the oracle."""

    state: structures.RowState
    graph: structures.Graph
    examples: structures.TripleExamples
    sampler: structures.GraphSampler
    hyper: structures.GraphHyper
    setting: Setting

    @property
    def n(self):
        return len(self.examples.heads)

    @property
    def dtype(self):
        return self.state.rows.dtype.type

    @property
    def naive(self):
        """Arguments of the oracle."""
        codes = [column.tolist() for column in self.examples]
        return self.setting, self.state.rows, list(zip(*codes, strict=True))


def make_problem(
    seed=0,
    n_entities=5,
    n_relations=3,
    n_examples=12,
    half=2,
    dtype=np.float64,
    weighted=True,
    loops=0.2,
    **keywords,
):
    """Random triples (they may repeat; some are self loops) and random rows."""
    rng = np.random.default_rng(seed)
    defaults = {"regularization": 0.05, "epsilon": 1e-3, "learning_rate": 0.05}
    setting = Setting(n_entities, n_relations, seed=seed, **defaults | keywords)
    n_rows = n_entities + n_relations * (2 if setting.reciprocal else 1)
    heads, tails = rng.integers(0, n_entities, (2, n_examples), dtype=np.int32)
    is_loop = rng.random(n_examples) < loops
    tails[is_loop] = heads[is_loop]
    examples = structures.TripleExamples(
        heads,
        rng.integers(0, n_relations, n_examples, dtype=np.int32),
        tails,
        rng.choice([0, 0.3, 1, 1, 2.5] if weighted else [1.0], n_examples).astype(dtype),
        rng.permutation(10 * n_examples)[:n_examples],
    )
    shape = n_rows, 2 * half
    dense, moments = setting.optimizer == DENSE, setting.optimizer in (ADAM, DENSE)
    state = structures.RowState(
        rng.normal(size=shape).astype(dtype) / 2,
        np.zeros(shape if moments else (0, 2 * half), dtype),
        np.zeros(shape if setting.optimizer != SGD else (0, 2 * half), dtype),
        np.zeros(n_rows if dense else 0, np.int64),
    )
    everything = setting.n_negatives == "all"
    steps = setting.n_epochs * n_examples * setting.sides
    return Problem(
        state,
        structures.Graph(n_entities, n_relations, setting.reciprocal, setting.complex),
        examples,
        structures.GraphSampler(-1 if everything else setting.n_negatives, seed, setting.fixed),
        structures.GraphHyper(
            setting.sides,
            LOSSES.index(setting.loss),
            OPTIMIZERS.index(setting.optimizer),
            setting.learning_rate,
            setting.learning_rate / steps if setting.linear else 0.0,
            setting.regularization,
            setting.epsilon,
            setting.beta1,
            setting.beta2,
            setting.unit_norm,
        ),
        setting,
    )


@st.composite
def problems(draw, **fixed):
    arguments = {
        "seed": draw(st.integers(0, 10**6)),
        "n_entities": draw(st.integers(2, 7)),
        "n_relations": draw(st.integers(1, 3)),
        "n_examples": draw(st.integers(1, 15)),
        "half": draw(st.sampled_from([1, 2, 9, 17])),
        "dtype": draw(st.sampled_from(DTYPES)),
        "weighted": draw(st.booleans()),
        "complex": draw(st.booleans()),
        "reciprocal": draw(st.booleans()),
        "sides": draw(st.sampled_from([1, 2])),
        "loss": draw(st.sampled_from(LOSSES)),
        "n_negatives": draw(st.sampled_from(["all", 1, 3, 12])),
        "fixed": draw(st.booleans()),
        "optimizer": draw(st.sampled_from(OPTIMIZERS)),
        "linear": draw(st.booleans()),
        "regularization": draw(st.sampled_from([0.0, 0.05])),
        "unit_norm": draw(st.booleans()),
        "n_epochs": draw(st.integers(1, 3)),
    }
    return make_problem(**{**arguments, **fixed})


def new_record(problem):
    shape = problem.n, problem.setting.n_slots, problem.state.rows.shape[1]
    return structures.TripleRecord(np.zeros(shape, problem.dtype))


def new_log(problem, visits):
    """Room for the steps of `visits`; what is never written is -7."""
    setting = problem.setting
    everything = setting.n_negatives == "all"
    width = setting.n_entities if everything else setting.n_negatives + 1
    m = len(visits) * setting.sides
    slots = np.full(problem.n, -1, np.int32)
    slots[visits] = np.arange(len(visits))

    def room(kept, *shape, dtype=problem.dtype):
        return np.full((m if kept else 0, *shape), -7, dtype)

    d, dense = problem.state.rows.shape[1], setting.optimizer == DENSE
    settled = (
        problem.state if dense else (np.zeros((0, d), problem.dtype),) * 3 + (np.zeros(0, int),)
    )
    return structures.GraphLog(
        slots,
        room(True, dtype=np.int32),
        room(True, width, dtype=np.int32),
        room(True, width),
        room(True, width + 2, d),
        room(setting.optimizer in (ADAM, DENSE), width + 2, d),
        room(setting.optimizer != SGD, width + 2, d),
        room(dense, width + 2, dtype=np.int64),
        structures.RowState(*(table.copy() for table in settled)),
    )


def train(problem, *, credit=None, log=None, cuts=(), n_epochs=None):
    """State, record and losses after training; `log` is of the last epoch."""
    state = structures.RowState(*(table.copy() for table in problem.state))
    record = None if credit is None else new_record(problem)
    n_epochs = problem.setting.n_epochs if n_epochs is None else n_epochs
    bounds, losses = [0, *sorted(cuts), problem.n], []
    for epoch in range(n_epochs):
        total = 0.0
        for start, stop in itertools.pairwise(bounds):
            part, broken = graph_sgd.graph_epoch(
                state, *problem[1:5], epoch, start, stop,
                record, CREDITS.index(credit) if credit else 0,
                log if epoch == n_epochs - 1 else None,
            )  # fmt: skip
            assert broken == -1
            total += part
        losses.append(total)
    return state, record, losses


def backward(problem, cuts=()):
    """Every step of a run in pieces, the last first, as (epoch, start, stop, log)."""
    pieces = list(itertools.pairwise([0, *sorted(cuts), problem.n]))
    for epoch in reversed(range(problem.setting.n_epochs)):
        for start, stop in reversed(pieces):
            state = train(problem, n_epochs=epoch)[0]
            log = new_log(problem, np.arange(start, stop))
            for part in ((0, start, None), (start, stop, log)):
                graph_sgd.graph_epoch(state, *problem[1:5], epoch, *part[:2], None, 0, part[2])
            yield epoch, start, stop, log
