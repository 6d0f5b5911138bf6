"""Models of triples explained and ranked on CUDA, as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from fastinfluence import CurvatureRollback, GradientRollback, Triples, evaluation, objectives
from fastinfluence.models import ComplEx, DistMult

QUERIES = [("e0", "r1", "e3"), ("e2", "r0", "e2"), ("e4", "r1", "e0")]
SIDES = ["tail", "head", "tail"]


def triples(n, rng):
    columns = rng.integers(0, 6, n), rng.integers(0, 2, n), rng.integers(0, 6, n)
    ids = zip("ere", columns, strict=True)
    return tuple(np.char.add(kind, codes.astype(str)) for kind, codes in ids)


@pytest.fixture(scope="module", params=[DistMult, ComplEx])
def model(request):
    rng = np.random.default_rng(0)
    data = Triples.from_arrays(*triples(30, rng), test=triples(5, rng), duplicates="keep")
    options = {"n_factors": 6, "n_negatives": 3, "n_epochs": 2, "init_scale": 0.7, "rng": 0}
    return request.param(**options, reciprocal=request.param is ComplEx).fit(data)


@pytest.mark.parametrize("objective", [objectives.Score, objectives.Probability])
def test_explanations_are_those_of_the_cpu(model, objective):
    asked = objective(QUERIES, predict=SIDES)
    found = GradientRollback(model, device="cuda").explain(asked, k=5)
    expected = GradientRollback(model, device="cpu").explain(asked, k=5)
    np.testing.assert_allclose(found.influence, expected.influence, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.total_influence, expected.total_influence, rtol=1e-4)
    np.testing.assert_array_equal(found.train_index, expected.train_index)


def test_curvature_rollback_is_read_there_too(model):
    asked = objectives.LogProbability(QUERIES[:1])
    found, expected = (
        CurvatureRollback(model, device=device).influence(asked, dense=True)
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_self_influence_is_that_of_the_cpu(model):
    found, expected = (
        GradientRollback(model, device=device).self_influence() for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_ranks_are_those_of_the_cpu(model):
    found, expected = (
        evaluation.link_prediction(model, device=device, show_progress=False)
        for device in ("cuda", "cpu")
    )
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    assert found.mrr == expected.mrr


def test_best_answers_are_those_of_the_cpu(model):
    questions = ["e0", "e3"], ["r1", "r0"]
    found, expected = (model.predict_tails(*questions, k=3, device=d) for d in ("cuda", "cpu"))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
