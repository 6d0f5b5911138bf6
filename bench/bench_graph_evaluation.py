"""Filtered ranks of FB15k-237's test triples, both sides, against PyKEEN's evaluator."""

from __future__ import annotations

from typing import Any

import machine
import numpy as np
import peers_graph
import pytest
from comparison import compare, fact

import fastinfluence as fi
from fastinfluence.evaluation import link_prediction
from fastinfluence.models.knowledge_graph import ComplEx

D, SAMPLED = 100, 128
SUITE = f"Knowledge graphs, link prediction: FB15k-237's test triples, both sides, d={D}"
SGEMM = "sgemm 2048"


@pytest.fixture(scope="module")
def model(fb15k_237: fi.Triples) -> ComplEx:
    """One epoch; without reciprocal relations, as PyKEEN's model has none."""
    model = ComplEx(D, reciprocal=False, n_epochs=1, learning_rate=0.1, rng=0)
    return model.fit(fb15k_237, show_progress=False)


def bench_ranks(benchmark: Any, model: ComplEx, threads: int, smoke: bool) -> None:
    """`evaluation.link_prediction`, filtered, on the same embeddings."""
    test = model.data_.test
    sample = np.sort(np.random.default_rng(0).permutation(len(test))[:SAMPLED])
    theirs: dict[str, float] = {}
    peers, missing = peers_graph.evaluation(model, sample, threads, theirs)
    timing = compare(
        benchmark,
        lambda: link_prediction(model, n_threads=threads, show_progress=False),
        peers | {SGEMM: machine.sgemm_seconds},
        suite=SUITE,
        label="ComplEx, `link_prediction`, filtered",
        work=2 * len(test),
        unit="questions",
        threads=threads,
        rounds=1 if smoke else 2,
        missing=missing,
        note=(
            "PyKEEN's evaluator runs on as many threads as ours, the sample at a time, with the "
            "training and validation triples to filter by; both find the same MRR of the sample, "
            "which is checked in this run."
        ),
    )
    if theirs:
        ours = link_prediction(model, test.select(sample), n_threads=threads, show_progress=False)
        assert abs(ours.mrr - theirs["mrr"]) < 1e-4, "PyKEEN finds another MRR"
    flops = 2.0 * D * model.data_.n_entities * 2 * len(test)
    share = flops / machine.sgemm_flops() * timing.ratio(SGEMM) / threads
    fact(benchmark, "arithmetic", flops / 1e9, "GFLOP")
    fact(benchmark, "share of sgemm's rate a thread", 100 * share, "%")
