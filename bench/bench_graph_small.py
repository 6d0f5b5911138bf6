"""Whole trainings on small graphs: UMLS, and Nations as the Gradient Rollback paper trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import peers_graph
import pytest
from comparison import compare, figure

import fastinfluence as fi
from fastinfluence.models.knowledge_graph import ComplEx, DistMult

SUITE = "Knowledge graphs, small ones: whole trainings"
NATIONS = "Nations, DistMult as in the paper (d=10, 13 negatives, dense Adam, float64, 10 epochs)"
PUBLISHED = {"train": 47.0, "retrain": 54.0, "explain": 0.62}  # seconds


def bench_umls(benchmark: Any, umls: fi.Triples, smoke: bool) -> None:
    """ComplEx for 20 epochs, from the triples to the model."""
    model = ComplEx(20, n_negatives=10, n_epochs=20, rng=0)
    steps = 2 * model.n_epochs * len(umls)
    program = model.fit(umls, show_progress=False).trajectory_.program
    peers, missing = peers_graph.training(program, steps)
    timing = compare(
        benchmark,
        lambda: model.fit(umls, show_progress=False),
        peers,
        suite=SUITE,
        label="UMLS, ComplEx, d=20, 10 negatives, 20 epochs, both sides",
        work=steps,
        unit="steps",
        rounds=1 if smoke else 7,
        missing=missing,
        note=peers_graph.TRAINING_NOTE,
    )
    figure(
        benchmark,
        "small graphs, a training on UMLS (ComplEx, d=20, 10 negatives, 20 epochs), s",
        timing.seconds,
        target=0.2,
        at_least=False,
    )


@pytest.fixture(scope="module")
def paper() -> DistMult:
    """The paper's recipe for Nations."""
    model = DistMult(
        10,
        n_negatives=13,
        sides="tail",
        reciprocal=False,
        n_epochs=10,
        learning_rate=0.003,
        learning_rate_decay="constant",
        regularization=0.0,
        optimizer="adam-dense",
        fixed_negatives=True,
        shuffle=False,
        init="uniform",
        init_scale=0.05,
        dtype="float64",
        rng=0,
    )
    return model.fit(fi.datasets.nations(), record="rollback", show_progress=False)


def _against_published(
    benchmark: Any, what: str, ours: Callable[[], Any], seconds: float, smoke: bool, **row: Any
) -> None:
    """A row beside what the reference implementation took for the same."""
    timing = compare(
        benchmark,
        ours,
        peers_graph.published(seconds) | row.pop("rivals", {}),
        suite=SUITE,
        rounds=1 if smoke else 9,
        note=row.pop("note", "") + peers_graph.PUBLISHED_NOTE,
        **row,
    )
    figure(
        benchmark,
        f"small graphs, Nations, {what}, speed over the reference's published CPU time",
        timing.ratio(peers_graph.PUBLISHED),
        target=500,
        at_least=True,
    )


def bench_nations_training(benchmark: Any, paper: DistMult, smoke: bool) -> None:
    """Training with recording, from the triples to the model."""
    data, program = paper.data_, paper.trajectory_.program
    steps = paper.n_epochs * len(data)
    peers, missing = peers_graph.training(program, steps)
    fresh = DistMult(**paper.get_params())
    _against_published(
        benchmark,
        "training with recording",
        lambda: fresh.fit(data, record="rollback", show_progress=False),
        PUBLISHED["train"],
        smoke,
        rivals=peers,
        label=f"{NATIONS}: training with recording",
        work=steps,
        unit="steps",
        missing=missing,
        note=peers_graph.TRAINING_NOTE + " ",
    )


def bench_nations_retraining(benchmark: Any, paper: DistMult, smoke: bool) -> None:
    """Training again without one triple."""
    _against_published(
        benchmark,
        "training again without a triple",
        lambda: paper.trajectory_.retrain(without=[0]),
        PUBLISHED["retrain"],
        smoke,
        label=f"{NATIONS}: training again without a triple",
        work=paper.n_epochs * len(paper.data_),
        unit="steps",
    )


def bench_nations_explaining(benchmark: Any, paper: DistMult, smoke: bool) -> None:
    """One prediction explained by its probability, the changes of rows there."""
    why = fi.GradientRollback(paper, n_threads=1)
    test = paper.data_.test
    first = [next(iter(column)) for column in test.columns(np.arange(1)).values()]
    query = fi.objectives.Probability([tuple(first)])
    _against_published(
        benchmark,
        "explaining a prediction",
        lambda: why.explain(query, k=10, show_progress=False),
        PUBLISHED["explain"],
        smoke,
        label=f"{NATIONS}: explaining a prediction by its probability",
        work=1,
        unit="predictions",
    )
