"""PD and TC of knowledge graphs: by hand, against fitting anew, with their controls."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph, rows, without

import fastinfluence as fi
from fastinfluence import CurvatureRollback, GradientRollback, Triples
from fastinfluence.attribution.objectives import Margin, Mean, Probability, Score
from fastinfluence.errors import DataError, ParameterError, UnseenWarning
from fastinfluence.evaluation import (
    deletion_curve,
    deletion_effect,
    leave_out,
    sample_examples,
    sample_queries,
)
from fastinfluence.models import ComplEx, DistMult

DATA = graph()


def fit(kind=ComplEx, data=DATA, *, sample_weight=None, **keywords):
    settings = {"n_factors": 6, "n_negatives": 3, "n_epochs": 8, "rng": 0, "init_scale": 0.5}
    return kind(**(settings | keywords)).fit(data, sample_weight=sample_weight)


def best_answer(model, triple, side):
    """The best entity, by public predictions: its own, or none that training or validation has."""
    data = model.data_
    known = rows(data) | (rows(data.validation) if data.validation else set())
    head, relation, tail = triple
    best, answer = -np.inf, None
    for entity in data.entity_ids.tolist():
        asked = (entity, relation, tail) if side == "head" else (head, relation, entity)
        if asked in known and asked != triple:
            continue
        score = model.predict(*asked, predict=side)[0]
        if score > best:
            best, answer = score, entity
    return answer


@pytest.fixture(scope="module")
def model():
    return fit()


@pytest.fixture(scope="module")
def queries(model):
    return sample_queries(model, 8)


@pytest.fixture(scope="module")
def effect(model, queries):
    asked = Probability(queries)
    methods = [GradientRollback(model), CurvatureRollback(model)]
    return deletion_effect(model, queries, {m.name: m.explain(asked, 10) for m in methods})


def of(effect, method, size):
    return list(zip(effect.methods, effect.sizes, strict=True)).index((method, size))


# ---------------------------------------------------------------- PD and TC


def test_by_hand():
    """One triple alone says where ann works; those of bob say where bob does."""
    pairs = [("ann", "acme"), *(("bob", "bank") for _ in range(3)), ("cid", "cafe")]
    heads, tails = zip(*pairs, strict=True)
    data = Triples.from_arrays(heads, ["works at"] * 5, tails, duplicates="keep")
    model = DistMult(n_factors=8, n_negatives="all", n_epochs=40, learning_rate=0.2, rng=1,
                     init_scale=0.5).fit(data)  # fmt: skip
    queries = [("ann", "works at", "acme"), ("bob", "works at", "bank")]
    assert model.predict_tails(["ann", "bob"], "works at", 1, exclude_known=False)[0].tolist() == [
        ["acme"], ["bank"],
    ]  # fmt: skip
    effect = deletion_effect(model, queries, {"own": [[0], [1]], "other's": [[4], [4]]}, [1])
    own, others = effect.rows[:2]
    # Without her triple nothing speaks for ann's; bob has two more.
    assert (effect.before[0] - effect.after[0, 0]) > 0.5
    assert effect.best_before.tolist() == data.entity_index(["acme", "bank"]).tolist()
    assert effect.best_after[0, 0] != effect.best_before[0]
    assert effect.best_after[0, 1] == effect.best_before[1]
    assert own["top1_change"] == 50
    assert own["probability_drop"] == 50 * (1 + (effect.after[0, 1] < effect.before[1]))
    assert others["top1_change"] == 0
    assert effect.rows[-1]["method"] == "nothing"
    assert effect.rows[-1]["probability_drop"] == effect.rows[-1]["top1_change"] == 0


def test_against_single_retrainings(model, queries, effect):
    ex = GradientRollback(model).explain(Probability(queries), 10)
    for size in (1, 10):
        number = of(effect, "gradient-rollback", size)
        for q, triple in enumerate(queries):
            removed = ex.train_index[q, :size]
            change = leave_out(model, Probability(queries), [removed])[q, 0]
            assert effect.before[q] - effect.after[number, q] == pytest.approx(change, abs=1e-12)
            expected = best_answer(without(model, removed), triple, "tail")
            assert DATA.entity_ids[effect.best_after[number, q]] == expected
    assert len(np.unique(effect.best_after, axis=0)) > 1


def test_the_explained_tail_is_the_best_before(queries, effect):
    tails = DATA.entity_index([tail for _, _, tail in queries])
    np.testing.assert_array_equal(effect.best_before, tails)


def test_plain_triples_mean_their_probability(model, queries):
    lists = {"own": np.arange(8)[:, None]}
    plain, probability, score = (
        deletion_effect(model, asked, lists, [1])
        for asked in (queries, Probability(queries), Score(queries))
    )
    np.testing.assert_array_equal(plain.after, probability.after)
    assert ((plain.before > 0) & (plain.before < 1)).all()
    heads, relations, tails = zip(*queries, strict=True)
    np.testing.assert_allclose(score.before, model.predict(heads, relations, tails), rtol=1e-5)
    np.testing.assert_array_equal(score.best_after, plain.best_after)


def test_heads_and_tails_together(model):
    queries = [("e0", "r1", "e3"), ("e2", "r0", "e2"), ("e4", "r2", "e0"), ("e0", "r1", "e5")]
    sides = ["tail", "head", "head", "tail"]
    removed = np.arange(12).reshape(4, 3)
    effect = deletion_effect(model, Probability(queries, sides), {"these": removed}, [3])
    for q, (triple, side) in enumerate(zip(queries, sides, strict=True)):
        best = [DATA.entity_ids[c] for c in (effect.best_before[q], effect.best_after[0, q])]
        assert best[0] == best_answer(model, triple, side)
        assert best[1] == best_answer(without(model, removed[q]), triple, side)


def test_what_may_be_the_best():
    """Validation triples are known, test triples are not; the query's own is always one."""
    names = np.array(list("abcd"))
    train = [("a", "r", "b"), ("b", "r", "c"), ("c", "s", "d"), ("d", "s", "a")]
    data = Triples.from_arrays(
        *zip(*train, strict=True), validation=[("a", "r", "c")], test=[("a", "r", "d")]
    )
    model = fit(DistMult, data, n_epochs=2)
    seen = set()
    for own in names:
        effect = deletion_effect(model, [("a", "r", own)], {"x": [[2]]}, [1])
        best = data.entity_ids[effect.best_before[0]]
        assert best == best_answer(model, ("a", "r", own), "tail")
        assert best in {"a", "d", own}  # b and c are known, unless asked about
        seen.add(best)
    assert len(seen) > 1


def test_explanations_beat_the_controls(effect):
    table = {(row["method"], row["size"]): row for row in effect.rows}
    for method in ("gradient-rollback", "curvature-rollback"):
        for control in ("random", "neighbourhood"):
            explained, drawn = table[method, 10], table[control, 10]
            assert explained["mean_drop"] > 2 * abs(drawn["mean_drop"])
            assert explained["probability_drop"] > drawn["probability_drop"]
    assert table["nothing", 0]["mean_drop"] == 0
    assert table["nothing", 0]["top1_change"] == 0


def test_controls_share_an_entity_or_the_relation(monkeypatch):
    weights = np.where(np.arange(90) < 70, 1.0, 0.0)
    model = fit(sample_weight=weights)
    query = ("e0", "r1", "e3")
    kept = []
    module = __import__("fastinfluence.evaluation.deletion", fromlist=["retrain_values"])
    retrain_values = module.retrain_values

    def noted(model, readout, removals, **options):
        kept.extend(removals)
        return retrain_values(model, readout, removals, **options)

    monkeypatch.setattr(module, "retrain_values", noted)
    effect = deletion_effect(model, [query], {"a": [[1, 2, 3, 4, 5, -1]]}, [6])
    assert effect.methods == ("a", "random", "neighbourhood", "nothing")
    assert effect.n_removed[:, 0].tolist() == [5, 5, 5, 0]
    own, random, near, nothing = kept
    assert own.tolist() == [1, 2, 3, 4, 5]
    assert len(nothing) == 0
    h, r, t = DATA.columns().values()
    adjacent = (r == "r1") | np.isin(h, ["e0", "e3"]) | np.isin(t, ["e0", "e3"])
    assert adjacent[near].all()
    assert weights[near].all()
    assert weights[random].all()
    # All that are adjacent are drawn from, and only those with a weight.
    drawn = sample_examples(model, [query], adjacent=90, others=0)
    np.testing.assert_array_equal(drawn, np.flatnonzero(adjacent & (weights > 0)))


def test_curves(model, queries):
    ex = fi.Replay(model).explain(Probability(queries), 5)
    curve = deletion_curve(model, Probability(queries), {"replay": ex}, (1, 5))
    expected = leave_out(model, Probability(queries), ex.train_index).diagonal()
    np.testing.assert_allclose(curve.drop[0, 1], expected, atol=1e-12)
    assert (curve.drop > 0).mean() > 0.8


def test_seed_threads_and_files(model, queries, tmp_path):
    ex = {"gradient-rollback": GradientRollback(model).explain(queries, 10)}
    keywords = {"sizes": [1], "path": tmp_path / "kept"}
    first = deletion_effect(model, queries, ex, n_threads=1, **keywords)
    again = deletion_effect(model, queries, ex, n_threads=2, **keywords)
    np.testing.assert_array_equal(first.after, again.after)
    np.testing.assert_array_equal(first.best_after, again.best_after)
    afresh = deletion_effect(model, queries, ex, [1], n_threads=2)
    np.testing.assert_array_equal(first.after, afresh.after)


def test_no_explanation_of_means(model):
    with pytest.raises(ParameterError, match="about triples, not a mean or a function"):
        deletion_effect(model, Mean(Probability([("e0", "r1", "e3")])), {"a": [[1]]}, [1])
    with pytest.raises(DataError, match="one list for each of the 1 queries"):
        deletion_effect(model, [("e0", "r1", "e3")], {"a": [[1], [2]]}, [1])
    margin = deletion_effect(model, Margin([("e0", "r1", "e3")], "e4"), {"a": [[1]]}, [1])
    assert margin.best_before.shape == (1,)


# ---------------------------------------------------------------- sampled queries


def test_best_tails_of_test_questions(model):
    test = {(h, r) for h, r, _ in rows(DATA.test)}
    known = rows(DATA) | rows(DATA.validation)
    drawn = set()
    for rng in range(12):
        queries = sample_queries(model, 4, rng)
        assert queries == sample_queries(model, 4, np.random.default_rng(rng))
        assert len({(h, r) for h, r, _ in queries} & test) == 4
        for triple in queries:
            assert triple not in known
            assert triple[2] == best_answer(model, triple, "tail")
        drawn |= {(h, r) for h, r, _ in queries}
    assert drawn == test


def test_questions_of_training_where_there_is_no_test():
    data = graph(n_test=0)
    model = fit(data=data)
    questions = {(h, r) for h, r, _ in rows(data)}
    queries = sample_queries(model, len(questions))
    assert {(h, r) for h, r, _ in queries} == questions
    with pytest.raises(ParameterError, match=f"{len(questions)} questions .* of training triples"):
        sample_queries(model, len(questions) + 1)


def test_no_question_whose_tails_are_all_known():
    train = [("a", "r", "a"), ("a", "r", "b"), ("b", "r", "a")]
    model = fit(data=Triples.from_arrays(*zip(*train, strict=True)))
    assert sample_queries(model, 1) == [("b", "r", "b")]
    with pytest.raises(ParameterError, match="1 questions"):
        sample_queries(model, 2)


def test_no_question_about_what_training_has_not():
    train = [("a", "r", "b"), ("b", "r", "c"), ("c", "s", "a")]
    test = [("x", "r", "a"), ("a", "u", "b"), ("b", "s", "x"), ("b", "s", "a")]
    data = Triples.from_arrays(*zip(*train, strict=True), test=test)
    model = fit(data=data)
    with pytest.raises(ParameterError, match=r"1 questions .* of test triples have a tail left"):
        sample_queries(model, 2)
    assert sample_queries(model, 1)[0][:2] == ("b", "s")
    weights = np.array([1.0, 1.0, 0.0])
    with pytest.raises(ParameterError, match="0 questions"):
        sample_queries(fit(data=data, sample_weight=weights), 1)
    with pytest.warns(UnseenWarning):
        leave_out(model, [("x", "r", "a")], [[0]])
