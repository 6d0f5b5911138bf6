"""Composed questions, scores of links, and the best answers among all entities."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import ranks as oracle

from fastinfluence.errors import ParameterError
from fastinfluence.kernels.cpu.bilinear import compose
from fastinfluence.kernels.structures import Exclusions, Graph, GraphTables, Links
from fastinfluence.models.link_scores import link_vectors, score_links, top_entities

N_ENTITIES, N_RELATIONS = 40, 3


def make(is_complex, dtype=np.float64, d=6, n=50):
    rng = np.random.default_rng(d)
    graph = Graph(N_ENTITIES, N_RELATIONS, False, is_complex)
    rows = rng.standard_normal((N_ENTITIES + N_RELATIONS, d)).astype(dtype)
    links = Links(
        rng.integers(0, N_ENTITIES, n).astype(np.int32),
        (N_ENTITIES + rng.integers(0, N_RELATIONS, n)).astype(np.int32),
        rng.random(n) < 0.5,
        rng.integers(0, N_ENTITIES, n).astype(np.int32),
    )
    return graph, GraphTables(rows), links


def naive_vectors(graph, tables, links):
    return [
        oracle.compose(graph.complex, flip, tables.rows[s], tables.rows[r])
        for s, r, flip, _ in zip(*links, strict=True)
    ]


@pytest.mark.parametrize("is_complex", [False, True])
def test_vectors_and_scores_are_those_of_the_oracle(is_complex):
    graph, tables, links = make(is_complex)
    before = tables.rows.copy()
    naive = naive_vectors(graph, tables, links)
    np.testing.assert_allclose(link_vectors(graph, tables, links), naive, rtol=1e-13)
    scores = [oracle.score(x, tables.rows[t]) for x, t in zip(naive, links.targets, strict=True)]
    np.testing.assert_allclose(score_links(graph, tables, links), scores, rtol=1e-10)
    np.testing.assert_array_equal(tables.rows, before)


@pytest.mark.parametrize("is_complex", [False, True])
def test_vectors_have_the_bits_that_training_sees(is_complex):
    graph, tables, links = make(is_complex, np.float32)
    out = np.empty(6, np.float32)
    for x, s, r, flip in zip(link_vectors(graph, tables, links), *links[:3], strict=True):
        compose(is_complex, flip, tables.rows[s], tables.rows[r], out)
        np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("is_complex", [False, True])
def test_a_triple_has_one_score_from_both_ends(is_complex):
    graph, tables, links = make(is_complex)
    other = Links(links.targets, links.relations, ~links.flips, links.subjects)
    np.testing.assert_allclose(
        score_links(graph, tables, links), score_links(graph, tables, other), rtol=1e-10
    )


@pytest.mark.parametrize("d", [1, 7, 64])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_best_entities_are_those_of_a_sort(d, k):
    graph, tables, links = make(False, np.float32, d)
    codes, scores = top_entities(graph, tables, links, k, n_threads=2)
    every = link_vectors(graph, tables, links).astype(np.float64) @ tables.rows[:N_ENTITIES].T
    best = np.sort(every, axis=1)[:, ::-1][:, :k]
    np.testing.assert_allclose(scores, best, atol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(every, codes, axis=1), best, atol=2e-5)
    assert codes.dtype == np.int32


def test_blocks_do_not_show(monkeypatch):
    graph, tables, links = make(True, np.float32)
    whole = [*top_entities(graph, tables, links, 4), score_links(graph, tables, links)]
    monkeypatch.setattr("fastinfluence.models.link_scores._LINKS_AT_ONCE", 7)
    cut = [*top_entities(graph, tables, links, 4), score_links(graph, tables, links)]
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_excluded_are_no_answers_and_ties_break_by_code():
    graph, tables, links = make(False, np.float32, n=2)
    tables.rows[:N_ENTITIES] = 1
    places = np.array([0, 2, 3, 39], np.int32)
    excluded = Exclusions(np.array([0, 3]), np.array([3, 4]), places)
    tables.rows[N_ENTITIES:] = 1
    codes, scores = top_entities(graph, tables, links, 3, excluded=excluded)
    assert codes.tolist() == [[1, 4, 5], [0, 1, 2]]
    assert (scores == 6).all()


def test_as_many_answers_as_are_left_and_no_more():
    graph, tables, links = make(False, np.float32, n=2)
    excluded = Exclusions(np.array([0, 0]), np.array([0, 39]), np.arange(39, dtype=np.int32))
    codes, _ = top_entities(graph, tables, links, 1, excluded=excluded)
    assert codes[1].tolist() == [39]
    with pytest.raises(ParameterError, match=r"k=2 is more than the 1 entities left .* question 1"):
        top_entities(graph, tables, links, 2, excluded=excluded)
    with pytest.raises(ParameterError, match="k must be an integer >= 1, not 0"):
        top_entities(graph, tables, links, 0)


def test_no_question_has_no_answer():
    graph, tables, links = make(False, np.float32, n=0)
    codes, scores = top_entities(graph, tables, links, 3)
    assert codes.shape == scores.shape == (0, 3)
    assert score_links(graph, tables, links).shape == (0,)
