"""Explaining predictions on FB15k-237 by Gradient Rollback, the changes of rows there."""

from __future__ import annotations

import itertools
from typing import Any

import machine
import numpy as np
import peers_graph
import pytest
from comparison import Rival, compare, fact, figure

import fastinfluence as fi
from fastinfluence.models.knowledge_graph import DistMult

SUITE = "Knowledge graphs, explaining: Gradient Rollback on FB15k-237, DistMult, d=100"
D, MEAN, BATCH = 100, 5_400, 100
SGEMM = "sgemm 2048"
PUBLISHED = 77.0  # seconds a prediction, by its probability


@pytest.fixture(scope="module")
def recorded(fb15k_237: fi.Triples) -> DistMult:
    """A model trained with recording; few negatives, as explaining costs the same with many."""
    model = DistMult(D, n_negatives=10, sides="tail", reciprocal=False, n_epochs=1, rng=0)
    return model.fit(fb15k_237, record="rollback", show_progress=False)


@pytest.fixture(scope="module")
def why(recorded: DistMult, threads: int) -> fi.GradientRollback:
    """The method, everything that is not about a query done."""
    return fi.GradientRollback(recorded, n_threads=threads, show_progress=False)


class Queries:
    """Test triples, what is asked of them being the tail, and how much work they are."""

    def __init__(self, data: fi.Triples, chosen: np.ndarray) -> None:
        test, self.chosen = data.test, chosen
        self.triples = np.stack([*test.columns(chosen).values()], axis=1)
        self.sizes = np.zeros(len(chosen), np.int64)  # triples with influence
        self.moving = np.zeros(len(chosen), np.int64)  # those that move all scores
        columns = (test.heads[chosen], test.relations[chosen], test.tails[chosen])
        for n, (head, relation, tail) in enumerate(zip(*columns, strict=True)):
            moving = (data.heads == head) | (data.tails == head) | (data.relations == relation)
            self.moving[n] = moving.sum()
            self.sizes[n] = (moving | (data.heads == tail) | (data.tails == tail)).sum()


@pytest.fixture(scope="module")
def batch(recorded: DistMult) -> Queries:
    """Random test triples that ask different questions."""
    data = recorded.data_
    questions = np.stack([data.test.heads, data.test.relations], axis=1)
    distinct = np.unique(questions, axis=0, return_index=True)[1]
    return Queries(data, np.random.default_rng(0).permutation(distinct)[:BATCH])


@pytest.mark.parametrize("quantity", ["score", "probability"])
def bench_one(
    benchmark: Any,
    why: fi.GradientRollback,
    batch: Queries,
    quantity: str,
    threads: int,
    smoke: bool,
) -> None:
    """One prediction with about the mean number of candidates."""
    average = np.argsort(np.abs(batch.sizes - MEAN))[:10]
    queries = Queries(why.data, batch.chosen[average])
    # Another one at every call, so that its data are not in cache.
    parts = np.split(queries.triples, len(average))
    rounds = 1 if smoke else {"score": 51, "probability": 10}[quantity]
    _explain(benchmark, why, queries, parts, quantity, threads, rounds)


@pytest.mark.parametrize("quantity", ["score", "probability"])
def bench_batch(
    benchmark: Any,
    why: fi.GradientRollback,
    batch: Queries,
    quantity: str,
    threads: int,
    smoke: bool,
) -> None:
    """All at once."""
    by_score = quantity == "score"
    if not by_score and threads < min(2, machine.cores()):
        pytest.skip("a batch of probabilities is measured on two threads alone")
    rounds = 11 if by_score and not smoke else 1
    _explain(benchmark, why, batch, [batch.triples], quantity, threads, rounds)


def _explain(
    benchmark: Any,
    why: fi.GradientRollback,
    queries: Queries,
    parts: list[np.ndarray],
    quantity: str,
    threads: int,
    rounds: int,
) -> None:
    """`GradientRollback.explain` of the parts in turn, from raw ids to Explanations."""
    n, by_score = len(parts[0]), quantity == "score"
    objective = fi.objectives.Score if by_score else fi.objectives.Probability
    asked = itertools.cycle([objective(part) for part in parts])
    rivals: dict[str, Rival] = {}
    if not by_score:
        rivals = {SGEMM: machine.sgemm_seconds} | peers_graph.published(PUBLISHED * n)
    timing = compare(
        benchmark,
        lambda: why.explain(next(asked), k=10, show_progress=False),
        rivals,
        suite=SUITE,
        label=f"{'a prediction' if n == 1 else f'{n} predictions'} by {quantity}",
        work=n,
        unit="predictions",
        threads=threads,
        rounds=rounds,
        warm_up=rounds > 1,
        note=(
            "Alone, a prediction is another one of ten at every call. Of a probability, triples "
            "that hold the relation or the entity that is given move the scores of all entities: "
            "the arithmetic counted here. " + peers_graph.PUBLISHED_NOTE
        ),
    )
    fact(benchmark, "triples with influence, on average", float(queries.sizes.mean()), "")
    if not by_score:
        flops = 2.0 * D * why.data.n_entities * n * float(queries.moving.mean())
        share = flops / machine.sgemm_flops() * timing.ratio(SGEMM) / threads
        fact(benchmark, "arithmetic", flops / 1e9, "GFLOP")
        fact(benchmark, "share of sgemm's rate a thread", 100 * share, "%")
    if threads == min(2, machine.cores()):
        scale, unit, target = (1e3, "ms", 2.0) if by_score else (1.0, "s", 0.5)
        figure(
            benchmark,
            f"explaining on FB15k-237 by {quantity}, "
            f"{'one prediction' if n == 1 else f'each of {n} predictions'}, {unit}, "
            f"{threads} thread{'s' if threads > 1 else ''}",
            scale * timing.seconds / n,
            target=target,
            at_least=False,
        )
