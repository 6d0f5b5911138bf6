"""Explanation sets of triples: against the loop written out, as text and as a table."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph

from fastinfluence import CurvatureRollback, GradientRollback, Replay, Triples
from fastinfluence.attribution.objectives import LogProbability, Margin, Mean, Probability, Score
from fastinfluence.errors import DataError, ParameterError, UnknownIdError
from fastinfluence.evaluation import leave_out
from fastinfluence.models import ComplEx, DistMult

DATA = graph()
TRIPLE = ("e0", "r1", "e3")
METHODS = [GradientRollback, CurvatureRollback, Replay]


def fit(kind=ComplEx, data=DATA, *, sample_weight=None, **keywords):
    settings = {"n_factors": 6, "n_negatives": "all", "n_epochs": 8, "learning_rate": 0.05,
                "rng": 0, "init_scale": 0.5}  # fmt: skip
    return kind(**(settings | keywords)).fit(data, sample_weight=sample_weight)


@pytest.fixture(scope="module")
def model():
    return fit()


def written_out(kind, model, objective, size, chunk):
    """The greedy loop on models that are fitted like any other."""
    weights, current, taken, estimates = np.ones(90), model, [], []
    while len(taken) < size:
        influence = kind(current).influence(objective, dense=True)[0]
        order = np.argsort(-influence, kind="stable")[: min(chunk, size - len(taken))]
        order = order[influence[order] > 0]
        taken.extend(order.tolist())
        estimates.extend(influence[order].tolist())
        weights[order] = 0
        current = type(model)(**model.get_params()).fit(DATA, sample_weight=weights)
    return taken, estimates


OBJECTIVES = {
    "score": Score([TRIPLE]),
    "head": Score([TRIPLE], "head"),
    "probability": Probability([TRIPLE]),
    "margin": Margin([TRIPLE], "e7", "head"),
    "mean": Mean(LogProbability([TRIPLE, ("e1", "r0", "e2")])),
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loop_written_out(model, name, kind):
    objective = OBJECTIVES[name]
    if name == "mean" and kind is not Replay:
        return
    found = kind(model).explain_set(objective, 6, chunk=4)
    taken, estimates = written_out(kind, model, objective, 6, 4)
    assert found.train_index.tolist() == taken
    np.testing.assert_allclose(found.influence, estimates, rtol=1e-6)
    sets = [found.train_index[:size] for size in found.sizes[1:]]
    np.testing.assert_allclose(found.drop[1:], leave_out(model, objective, sets)[0], atol=1e-7)
    assert found.values[-1] < found.values[0]
    assert found.method == kind.name
    assert found.units == kind.units


def test_sets_beat_what_is_taken_at_once(model):
    greedy, at_once = [], []
    for tail in ("e3", "e5", "e7", "e9"):
        asked, why = LogProbability([("e0", "r1", tail)]), Replay(model)
        listed = why.explain(asked, 12).train_index
        at_once.append(leave_out(model, asked, listed)[0, 0])
        greedy.append(why.explain_set(asked, 12, chunk=2).drop[-1])
    assert np.mean(greedy) > 1.05 * np.mean(at_once)


def test_ways_to_ask(model):
    why = CurvatureRollback(model)
    expected = why.explain_set(Score([TRIPLE]), 3).train_index.tolist()
    columns = dict(zip(("head", "relation", "tail"), ([part] for part in TRIPLE), strict=True))
    for query in (TRIPLE, [*TRIPLE], [TRIPLE], np.array(TRIPLE), columns):
        assert why.explain_set(query, 3).train_index.tolist() == expected
    best = model.predict_tails("e0", "r1", 1, exclude_known=False)[0][0, 0]
    open_query = why.explain_set(("e0", "r1", None), 3)
    assert open_query.explained == f"e0 — r1 → {best}"
    assert (
        open_query.train_index.tolist()
        == why.explain_set(("e0", "r1", best), 3).train_index.tolist()
    )


def test_the_question_stays_the_same_on_the_way():
    """What is left out may make another entity the best one: it is not asked about then."""
    model = fit(DistMult, n_epochs=15, learning_rate=0.1)
    found = Replay(model).explain_set(("e4", "r0", None), 20, chunk=5)
    tail = found.explained.split(" → ")[1]
    left = np.ones(90)
    left[found.train_index] = 0
    after = fit(DistMult, n_epochs=15, learning_rate=0.1, sample_weight=left)
    assert after.predict_tails("e4", "r0", 1, exclude_known=False)[0][0, 0] != tail
    assert found.values[-1] == pytest.approx(after.predict("e4", "r0", tail)[0], rel=1e-5)


def test_as_text():
    data = graph(entity_labels={"e0": "New York: City", "e3": "Rome"})
    model = fit(data=data)
    found = CurvatureRollback(model).explain_set(TRIPLE, 2)
    lines = repr(found).split("\n")
    assert lines[0] == (
        f"New York: City — r1 → Rome: {found.values[0]:.4g}, but {found.values[1]:.4g} when "
        "trained without these 2 examples"
    )
    for line, example in zip(lines[1:3], found.train_index, strict=True):
        assert data.triple_name(example) in line
        assert line.endswith(")")
    assert lines[3].startswith(f"  (together {found.drop[1]:+.3g} by retraining, ")
    names = {
        "e0 — r1 → e3 (e0 as head) over e7": Margin([TRIPLE], "e7", "head"),
        "Probability of e0 — r1 → e3": Probability([TRIPLE]),
        "Mean": Mean([TRIPLE]),
    }
    for name, objective in names.items():
        assert Replay(fit()).explain_set(objective, 1).explained == name


def test_as_a_table(model):
    found = Replay(model).explain_set(TRIPLE, 5, chunk=2)
    table = found.to_pandas()
    columns = DATA.columns(found.train_index)
    for name in ("head", "relation", "tail"):
        assert table[f"train_{name}"].tolist() == columns[name].tolist()
    assert table["side"].tolist() == found.side.tolist()
    one = Replay(model).explain([TRIPLE], 2)
    assert found.side[:2].tolist() == one.side[0].tolist()
    assert table["without"].tolist() == [2, 2, 4, 4, 5]
    assert found.pair is None
    labelled = fit(data=graph(relation_labels={"r1": "exports"}))
    table = Replay(labelled).explain_set(TRIPLE, 5).to_dict()
    assert set(table["train_relation_label"]) <= {"exports", ""}
    assert "train_head_label" not in table
    mean = Replay(model).explain_set(Mean([TRIPLE]), 2)
    assert mean.side.tolist() == ["", ""]
    assert mean.to_dict()["train_head"].tolist() == DATA.columns(mean.train_index)["head"].tolist()


def test_the_same_method_on_the_way(model):
    """Only the rows needed, where they are all the objective depends on."""
    few = CurvatureRollback(model, rows=[TRIPLE])
    whole = CurvatureRollback(model)
    for objective in (Score([TRIPLE]), Margin([TRIPLE], "e5")):
        found = few.explain_set(objective, 6, chunk=3)
        assert found.train_index.tolist() == whole.explain_set(
            objective, 6, chunk=3
        ).train_index.tolist()  # fmt: skip


def test_bad_input(model):
    why = Replay(model)
    with pytest.raises(ParameterError, match="one query, not 2"):
        why.explain_set([TRIPLE, TRIPLE], 3)
    with pytest.raises(ParameterError, match="size=90, but no more than 89"):
        why.explain_set(TRIPLE, 90)
    with pytest.raises(UnknownIdError, match="unknown relation 'r9'"):
        why.explain_set(("e0", "r9", "e1"), 3)
    with pytest.raises(DataError, match="triples"):
        why.explain_set(("e0", "e1"), 3)
    with pytest.raises(DataError, match="neither head nor tail"):
        why.explain_set((None, "r1", None), 3)


def test_nothing_raised_it():
    data = Triples.from_arrays(
        ["a", "b"], ["r", "r"], ["b", "a"], test=[("c", "s", "d")], duplicates="keep"
    )
    with pytest.warns(Warning, match="no training triple"):
        found = CurvatureRollback(fit(data=data)).explain_set(("c", "s", "d"), 1)
    assert len(found) == 0
    assert "; no training example raised it." in found.because()
