"""Curvature Rollback and Replay on graphs, in trainings of the same model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comparison import compare, fact, training_once

import fastinfluence as fi
from fastinfluence.models.knowledge_graph import ComplEx, KnowledgeGraphModel

SUITE = "Knowledge graphs, backwards over training: ComplEx, d=20"
N_ROWS_QUERIES, N_REPLAYED = 20, 16
TRAINING = "training once"
NOTE = (
    "Training once is all epochs of the same model, compared bit for bit with its parameters. "
    "CoDEx-S: 10 negatives, both sides, 5 epochs of SGD; Nations: all entities as candidates, "
    "30 epochs."
)


@pytest.fixture(scope="module", params=["CoDEx-S", "Nations"])
def named(request: pytest.FixtureRequest, codex_s: fi.Triples) -> tuple[str, KnowledgeGraphModel]:
    """What the graph is called, and a model of it; every kernel compiled."""
    tiny = ComplEx(20, n_epochs=1, rng=0).fit(fi.datasets.nations(), show_progress=False)
    fi.CurvatureRollback(tiny, n_threads=2, show_progress=False)
    fi.Replay(tiny, n_threads=2, show_progress=False).influence(_queries(tiny, 1))
    if request.param == "CoDEx-S":
        model = ComplEx(20, n_negatives=10, n_epochs=5, learning_rate=0.05, rng=0)
        return request.param, model.fit(codex_s, show_progress=False)
    model = ComplEx(
        20, n_negatives="all", n_epochs=30, learning_rate=0.05, regularization=0.02, rng=0
    )
    return request.param, model.fit(fi.datasets.nations(), show_progress=False)


def _queries(model: KnowledgeGraphModel, n: int) -> np.ndarray:
    """(n, 3): random test triples, raw ids."""
    test = model.data_.test
    chosen = np.random.default_rng(0).permutation(len(test))[:n]
    return np.stack([*test.columns(chosen).values()], axis=1)


def _visits(model: KnowledgeGraphModel) -> int:
    return model.n_epochs_ * len(model.data_)


def bench_all_rows(
    benchmark: Any, named: tuple[str, KnowledgeGraphModel], threads: int, smoke: bool
) -> None:
    """Every row of the model taken back over the whole training."""
    name, model = named
    timing = compare(
        benchmark,
        lambda: fi.CurvatureRollback(model, n_threads=threads, show_progress=False),
        {TRAINING: training_once(model, threads)},
        suite=SUITE,
        label=f"{name}: `CurvatureRollback`, all rows",
        work=_visits(model),
        unit="visits",
        threads=threads,
        rounds=1,
        warm_up=False,
        note=NOTE,
    )
    fact(benchmark, "in trainings", 1 / timing.ratio(TRAINING), "×")


def bench_some_rows(
    benchmark: Any, named: tuple[str, KnowledgeGraphModel], threads: int, smoke: bool
) -> None:
    """Only the rows that 20 queries are about."""
    name, model = named
    queries = _queries(model, N_ROWS_QUERIES)
    if len(model.data_.entity_ids) < 2 * N_ROWS_QUERIES:
        pytest.skip(f"{N_ROWS_QUERIES} queries are about nearly all rows of so small a graph")
    timing = compare(
        benchmark,
        lambda: fi.CurvatureRollback(model, rows=queries, n_threads=threads, show_progress=False),
        {TRAINING: training_once(model, threads)},
        suite=SUITE,
        label=f"{name}: `CurvatureRollback(rows=)` of {len(queries)} queries",
        work=len(queries),
        unit="queries",
        threads=threads,
        rounds=1 if smoke else 2,
        warm_up=False,
        note=NOTE,
    )
    fact(benchmark, "in trainings", 1 / timing.ratio(TRAINING), "×")


def bench_replay(
    benchmark: Any, named: tuple[str, KnowledgeGraphModel], threads: int, smoke: bool
) -> None:
    """The exact derivative of 16 predictions by all triples."""
    name, model = named
    queries = _queries(model, N_REPLAYED)
    why = fi.Replay(model, n_threads=threads, show_progress=False)
    timing = compare(
        benchmark,
        lambda: why.influence(queries),
        {TRAINING: training_once(model, threads)},
        suite=SUITE,
        label=f"{name}: `Replay` of {len(queries)} queries",
        work=len(queries) * len(model.data_),
        unit="scores",
        threads=threads,
        rounds=1 if smoke else 2,
        warm_up=False,
        note=NOTE,
    )
    trainings = 1 / timing.ratio(TRAINING)
    fact(benchmark, "in trainings", trainings, "×")
    fact(benchmark, "trainings a query", trainings / len(queries), "×")
