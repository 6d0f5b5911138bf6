"""Counterfactuals of triples: true by models that are fitted and asked anew."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph, rows, without

from fastinfluence import CurvatureRollback, GradientRollback, Replay, Triples
from fastinfluence.attribution import Counterfactual, TripleCounterfactual
from fastinfluence.attribution.objectives import Probability, Score
from fastinfluence.errors import DataError, ParameterError, UnknownIdError
from fastinfluence.evaluation import sample_queries
from fastinfluence.models import ComplEx, DistMult

DATA = graph()
METHODS = [GradientRollback, CurvatureRollback, Replay]


def fit(kind=ComplEx, data=DATA, *, sample_weight=None, **keywords):
    settings = {"n_factors": 6, "n_negatives": "all", "n_epochs": 10, "learning_rate": 0.05,
                "rng": 0, "init_scale": 0.5}  # fmt: skip
    return kind(**(settings | keywords)).fit(data, sample_weight=sample_weight)


@pytest.fixture(scope="module")
def model():
    return fit()


def ranking(model, triple, side):
    """Entities by score, the best first: the triple's own and those not known in its place."""
    data = model.data_
    known = rows(data) | (rows(data.validation) if data.validation else set())
    head, relation, tail = triple
    found = []
    for entity in data.entity_ids.tolist():
        asked = (entity, relation, tail) if side == "head" else (head, relation, entity)
        if asked == triple or asked not in known:
            found.append((-model.predict(*asked, predict=side)[0], entity))
    return [entity for _, entity in sorted(found)]


def lead(model, found):
    place = {"head": 0, "tail": 2}[found.predicted]
    other = [found.head, found.relation, found.tail]
    other[place] = found.replacement
    own = model.predict(found.head, found.relation, found.tail, predict=found.predicted)
    return own[0] - model.predict(*other, predict=found.predicted)[0]


def assert_true(found, model, target=None):
    triple = (found.head, found.relation, found.tail)
    own = found.head if found.predicted == "head" else found.tail
    after = without(model, found.train_index)
    assert found.lead_before == pytest.approx(lead(model, found), abs=1e-5)
    assert found.lead_after == pytest.approx(lead(after, found), abs=1e-5)
    assert len(np.unique(found.train_index)) == len(found)
    if target is None:
        order = ranking(after, triple, found.predicted)
        assert found.found == (order[0] != own)
        assert found.replacement == order[0 if found.found else 1]
    else:
        assert found.replacement == target
        assert found.found == (lead(after, found) < 0)


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("kind", METHODS)
def test_best_tails(model, kind):
    sizes = []
    for query in sample_queries(model, 5):
        found = kind(model).counterfactual(query)
        assert isinstance(found, TripleCounterfactual)
        assert (found.head, found.relation, found.tail, found.predicted) == (*query, "tail")
        assert_true(found, model)
        sizes.append(len(found))
    assert any(sizes)


@pytest.mark.parametrize("kind", [DistMult, ComplEx])
def test_heads(kind):
    model = fit(kind)
    best = model.predict_heads("r0", "e4", 1, exclude_known=False)[0][0, 0]
    found = Replay(model).counterfactual((None, "r0", "e4"))
    assert (found.head, found.relation, found.tail, found.predicted) == (best, "r0", "e4", "head")
    assert_true(found, model)
    again = Replay(model).counterfactual(Score([(best, "r0", "e4")], "head"))
    assert again.train_index.tolist() == found.train_index.tolist()
    assert repr(found).startswith(f"{best} — r0 → e4 ({best} as head)")


def test_what_is_known_may_be_asked_about_but_no_other(model):
    """A triple of the training data: without it, or others, the model says something else."""
    for head in ("e0", "e3", "e6"):
        found = CurvatureRollback(model).counterfactual((head, "r1", None))
        best = model.predict_tails(head, "r1", 1, exclude_known=False)[0][0, 0]
        assert found.tail == best
        assert_true(found, model)
        assert (head, "r1", found.replacement) not in rows(DATA) | rows(DATA.validation)


def test_over_a_target(model):
    query = sample_queries(model, 3)[1]
    for target in ranking(model, query, "tail")[1:4]:
        found = Replay(model).counterfactual(query, target)
        assert_true(found, model, target)


def test_small_enough(model):
    """None of the examples could be kept."""
    found = Replay(model).counterfactual(sample_queries(model, 5)[2])
    assert found.found
    own = found.tail
    for example in found.train_index:
        others = found.train_index[found.train_index != example]
        if len(others):
            after = without(model, others)
            assert ranking(after, (found.head, found.relation, own), "tail")[0] == own


def test_none_within_so_many(model):
    query = sample_queries(model, 5)[0]
    target = ranking(model, query, "tail")[-1]
    found = GradientRollback(model).counterfactual(query, target, at_most=2, chunk=1)
    assert not found.found
    assert_true(found, model, target)
    assert "stays: no set of at most 2 examples was found" in repr(found)


# ---------------------------------------------------------------- queries, and bad ones


def test_bad_input(model):
    why, query = Replay(model), sample_queries(model, 3)[0]
    head, relation, tail = query
    order = ranking(model, query, "tail")
    known = next(t for h, r, t in sorted(rows(DATA)) if (h, r) == (head, relation))
    name = f"{head} — {relation} → "
    for arguments, message in (
        ((query, tail), f"the target, {tail}, is the query's own entity"),
        ((query, known), f"the target, {known}, cannot be predicted: {name}{known} is in the tr"),
        ((query, order[1:3]), "target is one entity, not 2"),
        (((*query[:2], order[1]), tail), f"the target, {tail}, is ahead of {name}{order[1]} al"),
        (((*query[:2], order[1]),), f"{name}{order[1]} is not what is predicted: that is {name}"),
        (([query, query],), "of one query, not of 2"),
    ):
        with pytest.raises(ParameterError, match=message):
            why.counterfactual(*arguments)
    with pytest.raises(UnknownIdError, match="unknown entity 'e99'"):
        why.counterfactual(query, "e99")
    with pytest.raises(DataError, match="queries are a sequence of"):
        why.counterfactual(Probability([query]))


def test_nothing_else_to_predict():
    data = Triples.from_arrays(["a", "b"], ["r", "r"], ["b", "b"], validation=[("a", "r", "a")])
    model = fit(data=data)
    with pytest.raises(ParameterError, match="a — r → b is all that is left to predict"):
        Replay(model).counterfactual(("a", "r", "b"))


def test_as_text(model):
    found = Replay(model).counterfactual(sample_queries(model, 5)[2])
    assert not isinstance(found, Counterfactual)
    first, *lines = repr(found).split("\n")
    these = "this example" if len(found) == 1 else f"these {len(found)} examples"
    assert first == (
        f"{found.head} — {found.relation} → {found.tail}, but {found.replacement} is ahead when "
        f"trained without {these} (lead {found.lead_before:.3g} before, {found.lead_after:.3g} "
        "then)"
    )
    assert len(lines) == len(found)
    for line, example in zip(lines, found.train_index, strict=True):
        holds = found.replacement in (DATA.columns(example)["head"], DATA.columns(example)["tail"])
        assert DATA.triple_name(example) in line
        assert line.endswith("(of the entity ahead)") == holds
