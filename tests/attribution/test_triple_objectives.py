"""What is explained of triples: values, gradients, binding, neighbours."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import same_bits

from fastinfluence import Interactions, Triples, objectives
from fastinfluence.attribution import triple_quantities, triple_scores
from fastinfluence.attribution.objectives import (
    Function,
    HeldOutLoss,
    LogProbability,
    Margin,
    Mean,
    Probability,
    Rank,
    RowVectors,
    Score,
    TripleParameters,
    TripleQuantity,
)
from fastinfluence.errors import DataError, ParameterError, UnknownIdError, UnseenWarning
from fastinfluence.kernels.structures import GraphTables
from fastinfluence.models.knowledge_graph import ComplEx, DistMult
from fastinfluence.training import Recipe

N, R, D = 5, 2, 4
DATA = Triples.from_arrays(
    [0, 1, 2, 3, 4, 3], [0, 1, 0, 1, 0, 0], [1, 2, 2, 4, 0, 0],
    entity_ids=np.arange(N), relation_ids=np.arange(R),
)  # fmt: skip
TRIPLES = [(0, 1, 3), (2, 0, 2), (4, 1, 0), (0, 1, 3), (1, 0, 2)]  # a self loop, and one twice
OVER = [1, 0, 4, 2, 1]
SIDES = ["tail", "head", "head", "head", "tail"]
TEMPERATURE = 0.7


def recipe(model="complex", reciprocal=True, loss="softmax", sides="both"):
    """The recipe that a model of these hyper-parameters makes of them."""
    kind = {"complex": ComplEx, "distmult": DistMult}[model]
    return kind(n_factors=D, loss=loss, sides=sides, reciprocal=reciprocal, rng=0)._recipe()


MODELS = [
    recipe(model, reciprocal)
    for model, reciprocal in itertools.product(["distmult", "complex"], [True, False])
]


def tables(made, seed=0, dtype=np.float64, scale=1.0):
    n_rows = N + R * (2 if made.has_reciprocals else 1)
    rows = scale * np.random.default_rng(seed).standard_normal((n_rows, D))
    return GraphTables(rows.astype(dtype))


# ---------------------------------------------------------------- by definition, one at a time


def score(rows, made, triple, head_asked):
    """Score of a triple, written out from the definition of the models."""
    h, r, t = triple
    w = rows[N + R + r] if head_asked and made.reciprocal else rows[N + r]
    if made.model == "distmult":
        return (rows[h] * w * rows[t]).sum()
    eh, w, et = (row[: D // 2] + 1j * row[D // 2 :] for row in (rows[h], w, rows[t]))
    if head_asked and made.reciprocal:  # asked like a tail, from the tail
        return (et * w * eh.conj()).sum().real
    return (eh * w * et.conj()).sum().real


def all_scores(rows, made, triple, head_asked):
    h, r, t = triple
    return np.array(
        [score(rows, made, (c, r, t) if head_asked else (h, r, c), head_asked) for c in range(N)]
    )


def each(phi):
    """Values of a function of (all scores, target, over) on every query."""

    def values(rows, made, sides):
        found = []
        for triple, over, side in zip(TRIPLES, OVER, sides, strict=True):
            z = all_scores(rows, made, triple, side == "head")
            found.append(phi(z, triple[0] if side == "head" else triple[2], over))
        return np.array(found)

    return values


def probabilities(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def rank(z, t, temperature=TEMPERATURE):
    others = np.delete(z, t)
    return -(1 + (1 / (1 + np.exp((z[t] - others) / temperature))).sum())


def curved(parameters):
    """A function of few rows, and its gradient."""
    e, w = parameters
    inner = e[1] @ w[0] + e[3] @ e[1]
    gradient = {"entity_factors": np.zeros_like(e), "relation_factors": np.zeros_like(w)}
    gradient["entity_factors"][1] = w[0] + e[3]
    gradient["entity_factors"][3] = e[1]
    gradient["relation_factors"][0] = e[1]
    slope = np.cos(inner)
    return np.sin(inner), {name: slope * array for name, array in gradient.items()}


def log_p(z, t, _):
    return np.log(probabilities(z)[t])


# Made by (predict), of (loss of the model), and the values by definition.
KINDS = {
    "score": (lambda p: Score(TRIPLES, p), each(lambda z, t, _: z[t])),
    "margin": (lambda p: Margin(TRIPLES, OVER, p), each(lambda z, t, over: z[t] - z[over])),
    "log-probability": (lambda p: LogProbability(TRIPLES, p), each(log_p)),
    "probability": (
        lambda p: Probability(TRIPLES, p), each(lambda z, t, _: probabilities(z)[t]),
    ),
    "rank": (
        lambda p: Rank(TRIPLES, p, temperature=TEMPERATURE), each(lambda z, t, _: rank(z, t)),
    ),
    "softmax loss": (lambda p: HeldOutLoss(TRIPLES, predict=p), each(log_p)),
    "log-sigmoid": (
        lambda p: HeldOutLoss(TRIPLES, loss="logistic", predict=p),
        each(lambda z, t, _: -np.log1p(np.exp(-z[t]))),
    ),
    "mean probability": (
        lambda p: Mean(Probability(TRIPLES, p)),
        lambda *given: [each(lambda z, t, _: probabilities(z)[t])(*given).mean()],
    ),
    "mean margin": (
        lambda p: Mean(Margin(TRIPLES, 2, p)),
        lambda *given: [each(lambda z, t, _: z[t] - z[2])(*given).mean()],
    ),
    "value": (
        lambda _: Function(curved),
        lambda rows, *_: [np.sin(rows[1] @ rows[N] + rows[3] @ rows[1])],
    ),
    "mean value": (
        lambda _: Mean(Function(curved)),
        lambda rows, *_: [np.sin(rows[1] @ rows[N] + rows[3] @ rows[1])],
    ),
}  # fmt: skip

NAMES = st.sampled_from(sorted(KINDS))
SEEDS = st.integers(0, 2**32 - 1)
MADE = st.sampled_from(MODELS)
PREDICTED = st.sampled_from([["tail"] * 5, ["head"] * 5, SIDES])


def added_up(found, n, n_rows):
    dense = np.zeros((n, n_rows, D))
    np.add.at(dense, (found.queries, found.rows), found.vectors)
    return dense


@given(name=NAMES, made=MADE, predict=PREDICTED, seed=SEEDS)
def test_values_by_definition(name, made, predict, seed):
    objective, values = KINDS[name]
    theta = tables(made, seed)
    found = objective(predict).bind(DATA, made).values(theta, 0.0)
    np.testing.assert_allclose(found, values(theta.rows, made, predict), rtol=0, atol=1e-11)


@given(name=NAMES, made=MADE, predict=PREDICTED, seed=SEEDS)
def test_gradients_against_finite_differences(name, made, predict, seed):
    quantity, theta, step = KINDS[name][0](predict).bind(DATA, made), tables(made, seed), 1e-5
    found = added_up(quantity.gradients(theta, 0.0), len(quantity), len(theta.rows))
    expected = np.zeros_like(found)
    for place in np.ndindex(theta.rows.shape):
        values = []
        for sign in (1, -1):
            moved = theta.rows.copy()
            moved[place] += sign * step
            values.append(quantity.values(GraphTables(moved), 0.0))
        expected[:, *place] = (values[0] - values[1]) / (2 * step)
    size = 1 + np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * size)


@given(name=NAMES, made=MADE, predict=PREDICTED, bounds=st.tuples(*[st.integers(0, 5)] * 2))
def test_the_same_gradients_in_other_shapes(name, made, predict, bounds):
    quantity, theta = KINDS[name][0](predict).bind(DATA, made), tables(made)
    n, n_rows = len(quantity), len(theta.rows)
    found = quantity.gradients(theta, 0.0)
    whole = added_up(found, n, n_rows)
    start, stop = sorted(bounds) if n == 5 else (0, 1)
    part = quantity.dense_gradient(start, stop, theta, 0.0)
    assert part.shape == (n_rows, D, stop - start)
    assert part.flags.c_contiguous
    expected = whole[start:stop].transpose(1, 2, 0)
    np.testing.assert_allclose(part, expected, rtol=0, atol=1e-12)
    total = quantity.total_gradient(theta, 0.0)
    np.testing.assert_allclose(total, whole.sum(0), rtol=0, atol=1e-11)
    assert (np.diff(found.queries) >= 0).all()


@pytest.mark.parametrize("name", KINDS)
def test_blocks_make_no_difference(name, monkeypatch):
    made = recipe()
    quantity, theta = KINDS[name][0](SIDES).bind(DATA, made), tables(made)

    def ask():
        found = quantity.gradients(theta, 0.0)
        return quantity.values(theta, 0.0), *found, quantity.total_gradient(theta, 0.0)

    expected = ask()
    monkeypatch.setattr(triple_quantities, "_NUMBERS_AT_ONCE", 2 * (N + D))
    monkeypatch.setattr(triple_scores, "_ENTITIES_AT_ONCE", 2)
    for mine, theirs in zip(ask(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(name, dtype):
    made = recipe()
    quantity, theta = KINDS[name][0](SIDES).bind(DATA, made), tables(made, dtype=dtype)
    values, found = quantity.values(theta, 0.0), quantity.gradients(theta, 0.0)
    assert isinstance(found, RowVectors)
    assert [a.dtype for a in (values, *found)] == [np.float64, np.int64, np.int32, dtype]
    assert found.vectors.shape == (len(found.rows), D) == (len(found.queries), D)
    assert quantity.dense_gradient(0, 1, theta, 0.0).dtype == dtype
    exact = theta._replace(rows=theta.rows.astype(np.float64))
    tolerance = 1e-4 if "value" in name else 1e-11  # a function computes in what it is given
    np.testing.assert_allclose(values, quantity.values(exact, 0.0), rtol=0, atol=tolerance)


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize("predict", ["tail", "head"])
def test_probabilities_of_all_answers_add_up_to_one(made, predict):
    triples = [(c, 1, 3) if predict == "head" else (3, 1, c) for c in range(N)]
    theta = tables(made, scale=2.0)
    p = Probability(triples, predict).bind(DATA, made).values(theta, 0.0)
    log = LogProbability(triples, predict).bind(DATA, made).values(theta, 0.0)
    assert p.sum() == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(np.exp(log), p, rtol=1e-12)


def test_scores_of_thousands_do_not_overflow():
    made = recipe("distmult")
    rows = np.zeros_like(tables(made).rows)
    rows[:, 0] = 1
    rows[:N, 0] = [1, 1000, -1000, 0, 1]
    theta = GraphTables(rows)
    triples = [(0, 0, 1), (0, 0, 2)]  # scores 1000 and -1000
    expected = {
        LogProbability(triples): ([0, -2000], [0, 1]),
        Probability(triples): ([1, 0], [0, 0]),
        Rank(triples): ([-1, -5], [0, 0]),
        HeldOutLoss(triples, loss="logistic"): ([0, -1000], [0, 1]),
    }
    for objective, (values, slopes) in expected.items():
        quantity = objective.bind(DATA, made)
        np.testing.assert_allclose(quantity.values(theta, 0.0), values, atol=1e-300)
        dense = added_up(quantity.gradients(theta, 0.0), 2, len(rows))
        found = dense[[0, 1], [1, 2], 0]  # by the answers' own rows
        np.testing.assert_allclose(found, slopes, atol=1e-300)


def test_the_slope_of_a_certain_answer_is_not_rounded_away():
    made = recipe("distmult")
    rows = np.zeros_like(tables(made).rows)
    rows[:, 0] = 1
    rows[:N, 0] = [1, 50, 0, 0, 0]
    quantity = LogProbability([(0, 0, 1)]).bind(DATA, made)
    dense = quantity.dense_gradient(0, 1, GraphTables(rows), 0.0)[:, 0, 0]
    assert dense[1] == pytest.approx((3 + np.e) * np.exp(-50), rel=1e-12)


def test_a_cold_rank_is_the_rank():
    made, theta = recipe(), tables(recipe())
    quantity = Rank(TRIPLES, SIDES, temperature=1e-6).bind(DATA, made)
    for phi, triple, side in zip(quantity.values(theta, 0.0), TRIPLES, SIDES, strict=True):
        z = all_scores(theta.rows, made, triple, side == "head")
        place = 1 + (z > z[triple[0] if side == "head" else triple[2]]).sum()
        assert phi == pytest.approx(-place, abs=1e-6)


# ---------------------------------------------------------------- binding


def test_what_a_bound_quantity_tells():
    quantity = Margin(TRIPLES, OVER, SIDES).bind(DATA, recipe())
    assert isinstance(quantity, TripleQuantity)
    assert len(quantity) == quantity.n == 5
    columns = quantity.heads, quantity.relations, quantity.tails
    assert [column.tolist() for column in columns] == [list(c) for c in zip(*TRIPLES, strict=True)]
    assert {column.dtype for column in columns} == {np.dtype(np.int32)}
    assert quantity.predict_head.tolist() == [side == "head" for side in SIDES]
    links = quantity.links
    assert links.subjects.tolist() == [0, 2, 0, 3, 1]
    assert links.targets.tolist() == [3, 2, 4, 0, 2]
    assert links.relations.tolist() == [N + 1, N + R, N + R + 1, N + R + 1, N]
    assert not links.flips.any()
    assert quantity.over.targets.tolist() == OVER
    assert all(same_bits(a, b) for a, b in zip(quantity.over[:3], links[:3], strict=True))
    flipped = Score(TRIPLES, SIDES).bind(DATA, recipe(reciprocal=False)).links
    assert flipped.relations.tolist() == [N + 1, N, N + 1, N + 1, N]
    assert flipped.flips.tolist() == [side == "head" for side in SIDES]
    for name, (make, _) in KINDS.items():
        quantity = make("tail").bind(DATA, recipe())
        assert quantity.kind == name.replace("softmax loss", "log-probability")
        assert (quantity.users, quantity.items, quantity.pairs(None, 0.0)) == (None, None, None)
        assert (quantity.links is None) == (quantity.heads is None) == (len(quantity) == 1)


def test_the_loss_is_the_models_own():
    assert HeldOutLoss(TRIPLES).bind(DATA, recipe()).kind == "log-probability"
    assert HeldOutLoss(TRIPLES).bind(DATA, recipe(loss="logistic")).kind == "log-sigmoid"
    asked = HeldOutLoss(TRIPLES, loss="softmax").bind(DATA, recipe(loss="logistic"))
    assert asked.kind == "log-probability"


def test_heads_need_rows_that_were_trained():
    with pytest.raises(ParameterError, match="sides='tail' and has no rows to predict heads"):
        Score(TRIPLES, "head").bind(DATA, recipe(sides="tail"))
    found = Score(TRIPLES, "head").bind(DATA, recipe(sides="tail", reciprocal=False))
    assert found.links.flips.all()


PAIRS = Interactions.from_arrays([0, 1], [0, 1])
PAIR_RECIPE = Recipe(
    n_factors=2, loss="squared", optimizer="sgd", n_epochs=1, learning_rate=0.1,
    learning_rate_decay=1.0, regularization=0.0, n_negatives=None, init_scale=0.1,
    dtype="float32", seed=0,
)  # fmt: skip


@pytest.mark.parametrize("kind", [LogProbability, Probability, Rank])
def test_what_pairs_do_not_have(kind):
    for objective in (kind([(0, 0)]), Mean(kind([(0, 0)]))):
        with pytest.raises(ParameterError, match=f"{kind.__name__} is of triples.*Score"):
            objective.bind(PAIRS, PAIR_RECIPE)


WRONG_FOR_PAIRS = {
    "a side": (Score([(0, 0)], "head"), "predict='head' is a side of triples"),
    "sides": (HeldOutLoss([(0, 0)], 1, predict=["tail"]), "is a side of triples"),
    "softmax": (HeldOutLoss([(0, 0)], loss="softmax"), "loss='softmax' is of triples"),
}


@pytest.mark.parametrize("case", WRONG_FOR_PAIRS)
def test_what_pairs_cannot_be_asked(case):
    objective, message = WRONG_FOR_PAIRS[case]
    with pytest.raises(ParameterError, match=message):
        objective.bind(PAIRS, PAIR_RECIPE)


WRONG = {
    "unknown entity": (Score([(0, 1, 9)]), UnknownIdError, "unknown entity 9; nearest known: 4"),
    "unknown relation": (Mean(Rank([(0, 7, 1)])), UnknownIdError, "unknown relation 7"),
    "unknown other": (Margin(TRIPLES, 8), UnknownIdError, "unknown entity 8"),
    "too few others": (Margin(TRIPLES, [0, 1]), DataError, "over has 2 entities for 5 queries"),
    "values": (HeldOutLoss(TRIPLES, 1), ParameterError, "triples have no values"),
    "squared": (HeldOutLoss(TRIPLES, loss="squared"), ParameterError, "loss='squared' is of pairs"),
    "pairs": (Score([(0, 1)]), DataError, r"sequence of \(head, relation, tail\) triples"),
    "nothing": (Probability([]), DataError, "no queries to explain"),
    "an open end": (Score([(0, 1, 2), (0, 1, None)]), DataError, "query 1 leaves its answer to a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_bound(case):
    objective, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        objective.bind(DATA, recipe())


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf, "cold", True, None])
def test_temperatures(temperature):
    with pytest.raises(ParameterError, match="temperature must be a finite number > 0"):
        Rank(TRIPLES, temperature=temperature)


def test_an_objective_may_be_bound_often():
    for objective in (
        Score(iter(TRIPLES), iter(SIDES)),
        Margin(iter(TRIPLES), iter(OVER)),
        Rank(zip(*np.transpose(TRIPLES), strict=True)),
    ):
        for _ in range(2):
            assert len(objective.bind(DATA, recipe())) == 5


def test_one_public_set():
    assert set(objectives.__all__) >= {"LogProbability", "Probability", "Rank", "TripleParameters"}


# ---------------------------------------------------------------- open answers


def fitted(made, theta, data=DATA):
    """As much of a model as answering takes."""
    end = SimpleNamespace(tables=theta)
    return SimpleNamespace(data_=data, trajectory_=SimpleNamespace(end=end, recipe=made))


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize("kind", [Score, LogProbability, Rank])
def test_open_ends_are_the_models_best(made, kind):
    theta = tables(made, 3)
    asked = [(0, 1, None), (2, 0, 2), (None, 1, 0), (3, 1, None)]
    objective = kind(asked, ["head", "head", "tail", "tail"])
    found = objective.answered(fitted(made, theta))
    assert type(found) is kind
    assert objective.queries == asked  # the objective itself stays open
    assert found.predict == ["tail", "head", "head", "tail"]
    expected = [
        (0, 1, all_scores(theta.rows, made, (0, 1, 0), False).argmax()),
        (2, 0, 2),
        (all_scores(theta.rows, made, (0, 1, 0), True).argmax(), 1, 0),
        (3, 1, all_scores(theta.rows, made, (3, 1, 0), False).argmax()),
    ]
    assert found.queries == expected
    assert len(found.bind(DATA, made)) == 4


def test_answers_are_raw_ids_of_the_same_objective():
    data = Triples.from_arrays(["b", "c"], ["to", "to"], ["c", "a"])
    model = DistMult(n_factors=D, n_epochs=1, rng=0).fit(data)
    found = Mean(Margin([("b", "to", None)], over="a")).answered(model)
    margin = found.objective
    assert margin.over == "a"
    scores = Score([("b", "to", c) for c in "abc"]).bind(data, model.trajectory_.recipe)
    best = scores.values(model.trajectory_.end.tables, 0.0).argmax()
    assert margin.queries == [("b", "to", "abc"[best])]
    assert isinstance(margin.queries[0][2], str)


def test_where_nothing_is_open_an_objective_answers_itself():
    model = fitted(recipe(), tables(recipe()))
    for objective in (Score(TRIPLES), Probability(DATA), Function(curved)):
        assert objective.answered(model) is objective
    pairs = SimpleNamespace(data_=PAIRS)
    assert (objective := Score([(0, 0)])).answered(pairs) is objective


# ---------------------------------------------------------------- strangers, neighbours


def test_a_warning_of_what_no_triple_holds():
    data = Triples.from_arrays(
        ["a", "b"], ["r", "r"], ["b", "a"], test=[["c", "s", "d"], ["a", "r", "b"]]
    )
    with pytest.warns(UnseenWarning) as caught:
        quantity = LogProbability(data.test).bind(data, recipe())
    messages = sorted(str(one.message) for one in caught)
    assert len(messages) == 2
    assert "holds the entity 'c' or 1 other entity of the queries" in messages[0]
    assert "holds the relation 's': training" in messages[1]
    assert len(quantity) == 2
    Score([("a", "r", "b")]).bind(data, recipe())  # warns of nothing


@pytest.mark.parametrize("made", MODELS)
def test_neighbours_share_an_entity_or_the_relation(made):
    index = np.array([5, 0, 2, 3])
    triples = list(zip(DATA.heads, DATA.relations, DATA.tails, strict=True))

    def near(entities, relation):
        def shares(h, r, t):
            return r == relation or h in entities or t in entities

        return [shares(*triples[j]) for j in index]

    expected = [near({h, t}, r) for h, r, t in TRIPLES]
    for kind in (Score, Probability):
        found = kind(TRIPLES, SIDES).bind(DATA, made).adjacent(DATA, index)
        assert found.dtype == bool
        assert found.tolist() == expected
    mean = Mean(Score([(1, 0, 1)])).bind(DATA, made)
    assert mean.adjacent(DATA, index).tolist() == [near({1}, 0)]
    margins = Margin(TRIPLES, OVER).bind(DATA, made).adjacent(DATA, index)
    wider = [near({h, t, o}, r) for (h, r, t), o in zip(TRIPLES, OVER, strict=True)]
    assert margins.tolist() == wider
    assert Function(curved).bind(DATA, made).adjacent(DATA, index).tolist() == [[True] * 4]


# ---------------------------------------------------------------- functions


def test_functions_read_the_rows_and_cannot_write_them():
    made, seen = recipe(), []
    theta = tables(made)

    def writing(parameters):
        seen.append(parameters)
        parameters.relation_factors[0] = 1
        return 0.0, {}

    with pytest.raises(ValueError, match="read-only"):
        Function(writing).bind(DATA, made).values(theta, 0.0)
    assert isinstance(seen[0], TripleParameters)
    assert same_bits(np.concatenate(seen[0]), theta.rows)
    assert theta.rows.flags.writeable


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, r"must return \(value, gradient\), not float"),
        ((np.nan, {}), "value must be one finite number, not nan"),
        ((1.0, {"user_factors": 0}), "has the key 'user_factors': only entity_factors, relation_f"),
        ((1.0, {"relation_factors": np.ones((R, D))}), r"has shape \(2, 4\), not \(4, 4\)"),
        ((1.0, {"entity_factors": np.full((N, D), np.nan)}), "has 20 entries that are not finite"),
    ],
)
def test_what_functions_may_not_return(returned, message):
    quantity = Function(lambda _: returned).bind(DATA, recipe())
    for ask in (quantity.values, quantity.gradients):
        with pytest.raises(DataError, match=message):
            ask(tables(recipe()), 0.0)


def test_names_left_out_have_no_gradient():
    quantity = Function(lambda _: (1, {})).bind(DATA, recipe())
    found = quantity.gradients(tables(recipe()), 0.0)
    assert found.vectors.shape == (0, D)
    assert not quantity.dense_gradient(0, 1, tables(recipe()), 0.0).any()
