"""Training again without one rating at a time: what the truth about an explanation costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import peers_training
import pytest
from comparison import Rival, compare, timed

import fastinfluence as fi
from fastinfluence.evaluation.neighbours import bind
from fastinfluence.evaluation.retraining import retrain_values

SUITE = "Retraining MovieLens 100K without one rating, 20 epochs"
N_FACTORS, N_EPOCHS, N_RETRAININGS = 16, 20, 32


@pytest.fixture(scope="module")
def small_model(ml_100k: fi.Interactions) -> fi.MatrixFactorization:
    """The model that is trained again."""
    model = fi.MatrixFactorization(N_FACTORS, n_epochs=N_EPOCHS, rng=0)
    return model.fit(ml_100k, show_progress=False)


def bench_leave_one_out(
    benchmark: Any, small_model: fi.MatrixFactorization, threads: int, smoke: bool
) -> None:
    """As `fastinfluence.evaluation` does it, against the loop behind Cornac's MF."""
    data = small_model.data_
    examples = np.random.default_rng(0).permutation(len(data))[: 4 if smoke else N_RETRAININGS]
    scores = bind(small_model, [(data.user_ids[0], data.item_ids[0])])
    without = examples[:, None]

    def retrain(n_threads: int) -> None:
        retrain_values(small_model, scores, without, n_threads=n_threads, show_progress=False)

    rivals, missing = _cornac(data, examples, threads)
    if threads > 1:
        rivals["one thread"] = timed(lambda: retrain(1))
    compare(
        benchmark,
        lambda: retrain(threads),
        rivals,
        suite=SUITE,
        label=f"`evaluation.leave_out`, k={N_FACTORS}",
        work=len(examples),
        unit="retrainings",
        threads=threads,
        rounds=1 if smoke else 7,
        missing=missing,
        note=(
            "Ours trains once more to check that the model comes out again bit for bit, and "
            "reads a score. Cornac runs its compiled loop on fresh copies of the same start; on "
            "two threads its rows are updated by both without order, so that nothing comes out "
            "the same twice."
        ),
    )


def _cornac(
    data: fi.Interactions, examples: np.ndarray, threads: int
) -> tuple[dict[str, Rival], dict[str, str]]:
    name = "Cornac MF, ratings shuffled"
    order = np.random.default_rng(0).permutation(len(data))
    arguments = (N_FACTORS, N_EPOCHS, examples, threads)
    try:
        return {name: peers_training.cornac_retrainings(data.select(order), *arguments)}, {}
    except ImportError as error:
        return {}, {name: f"not installed ({error})"}
