"""Turn-over dropout against a naive masked training, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import sgd as plain
from oracles import steps as walk
from oracles import turn_over as oracle
from planted import LOSSES, OPTIMIZERS, data_for, graph, ratings, same_bits, without

import fastinfluence as fi
from fastinfluence import MatrixFactorization, TurnOverDropout
from fastinfluence.errors import DataError, DivergenceError, NotFittedError, ParameterError


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 6, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def naive_models(model, n_masks, seed):
    """Rows of every masked model, trained step by step."""
    program = model.trajectory_.program
    state = program.enter(program.start())
    for number in range(n_masks):
        theta, squares = plain.rows_of(state.tables), state.squares and plain.rows_of(state.squares)
        for epoch in range(model.n_epochs_):
            oracle.epoch(
                theta, squares, program.examples, program.schedule.pointers, program.sampler,
                program.hyper(epoch), program.recipe.loss_code, epoch, seed, number,
            )  # fmt: skip
        yield theta


def said(program, theta, m, phi):
    """phi, a function of score(user, item), under a mask."""

    def score(user, item):
        places = (walk.name_of(program, *of)[1] for of in (("user", user), ("item", item)))
        return oracle.score(theta, *places, program.mean, m)

    return phi(score)


def naive_influence(model, phi, n_masks=2, seed=5):
    """Influence of every example on phi, a function of score(user, item)."""
    program = model.trajectory_.program
    found = np.zeros((n_masks, len(model.data_)))
    for number, theta in enumerate(naive_models(model, n_masks, seed)):
        for j in np.flatnonzero(program.weights).tolist():
            m = oracle.mask(seed, number, j, model.n_factors)
            kept, left = (said(program, theta, half, phi) for half in (m, 2 - m))
            found[number, j] = kept - left
    return found.mean(axis=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_like_the_naive_masked_training(loss, optimizer):
    data = data_for(loss, n_users=8, n_items=7, n=14, seed=4)
    weights = np.random.default_rng(1).choice([0.0, 0.4, 1, 2.5], 14)
    model = fit(data, loss=loss, optimizer=optimizer, sample_weight=weights)
    queries = [(0, 1), (int(data.users[3]), int(data.items[3]))]
    got = TurnOverDropout(model, n_masks=2, rng=5).influence(queries)
    expected = [naive_influence(model, lambda score, q=q: score(*q)) for q in queries]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    assert np.abs(got).max() > 1e-3
    assert (got[:, weights == 0] == 0).all()


def squared(f, y):
    return -((f - y) ** 2) / 2


def logistic(f, y):
    return -np.log1p(np.exp(-f if y else f))


def objectives():
    """Objectives, and their phi as functions of score(user, item)."""
    of = fi.objectives
    pairs, over, values = [(0, 1), (3, 2), (5, 3)], [4, 4, 0], [1.0, 0.0, 1.0]
    asked = [(*pair, other, y) for pair, other, y in zip(pairs, over, values, strict=True)]
    each = [lambda score, u=u, i=i, o=o: score(u, i) - score(u, o) for u, i, o, _ in asked]
    yield of.Margin(pairs, over=over), each
    yield of.Mean(of.Mean(of.Margin(pairs, over=over))), [mean(each)]
    for loss in (squared, logistic):
        objective = of.HeldOutLoss(pairs, values=values, loss=loss.__name__)
        each = [
            lambda score, u=u, i=i, y=y, loss=loss: loss(score(u, i), y) for u, i, _, y in asked
        ]
        yield objective, each
        yield of.Mean(objective), [mean(each)]


def mean(each):
    return lambda score: np.mean([phi(score) for phi in each])


@pytest.mark.parametrize(("objective", "naive"), list(objectives()))
def test_any_objective_of_scores(objective, naive):
    model = fit(ratings(n=20), n_epochs=2)
    got = TurnOverDropout(model, n_masks=2, rng=5).influence(objective)
    expected = [naive_influence(model, phi) for phi in naive]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- one result, however computed


@pytest.fixture(scope="module")
def grouped():
    """Trained in several groups, in float32."""
    model = fit(ratings(130, 90, 4_100), dtype="float32", n_factors=5)
    assert model.trajectory_.program.schedule.n_groups > 1
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=100), rng.integers(90, size=100)])
    return model, queries, TurnOverDropout(model, n_masks=3, n_threads=1).influence(queries)


def test_threads_and_batches_change_no_bit(grouped, monkeypatch):
    model, queries, once = grouped
    assert once.dtype == np.float32
    assert same_bits(TurnOverDropout(model, n_masks=3, n_threads=3).influence(queries), once)
    monkeypatch.setattr("fastinfluence.attribution.turn_over_dropout._CELLS", 1000)
    few = TurnOverDropout(model, n_masks=3, n_threads=2, memory_budget=2**21)
    assert len(list(few._blocks(few._bind(fi.objectives.Score(queries)), False))) == 4
    assert same_bits(few.influence(queries), once)
    assert same_bits(few.influence(queries[33:34]), once[33:34])


def test_explain_is_the_top_of_influence(grouped):
    model, queries, once = grouped
    explained = TurnOverDropout(model, n_masks=3).explain(queries, k=7)
    order = np.argsort(-once, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(explained.train_index, order)
    assert same_bits(explained.influence, np.take_along_axis(once, order, axis=1))
    assert (explained.method, explained.units) == ("turn-over-dropout", "rank")
    np.testing.assert_allclose(explained.prediction, model.predict(*queries.T), rtol=1e-6)


def test_self_influence_is_the_diagonal():
    data = ratings()
    weights = np.random.default_rng(1).choice([0.0, 1.0], len(data))
    why = TurnOverDropout(fit(data, sample_weight=weights), n_masks=2)
    own = np.diagonal(why.influence(np.column_stack([data.users, data.items])))
    assert same_bits(why.self_influence(), own)
    some = np.random.default_rng(0).permutation(len(data))[:20]
    assert same_bits(why.self_influence(some), own[some])
    assert why.self_influence([]).shape == (0,)


def test_sets_are_averaged_and_masks_are_the_seed_s():
    model, queries = fit(ratings()), [(0, 1), (3, 2)]
    once = TurnOverDropout(model).influence(queries)
    assert same_bits(TurnOverDropout(model, rng=0).influence(queries), once)
    assert np.abs(TurnOverDropout(model, rng=1).influence(queries) - once).max() > 1e-3
    assert np.abs(TurnOverDropout(model, n_masks=2).influence(queries) - once).max() > 1e-3


def test_another_model_gets_the_same_masks():
    """Where an example is left out, examples that share nothing with it train as before."""
    data = fi.Interactions.from_arrays([0, 0, 1, 1], [0, 1, 2, 3], [5, 1, 4, 2])
    model = fit(data)
    why = TurnOverDropout(model, n_masks=2, rng=None)
    other = why.on(without(model, [0]))
    assert other.seed == why.seed
    assert same_bits(other.influence([(1, 2)])[:, 2:], why.influence([(1, 2)])[:, 2:])
    assert same_bits(why.on(model).influence([(0, 0)]), why.influence([(0, 0)]))


def test_an_early_stopped_model_is_trained_for_the_epochs_it_kept():
    train, test = ratings(30, 20, 400, seed=4).split(0.3, rng=0)
    keywords = {"n_factors": 8, "learning_rate": 0.15, "regularization": 0.0}
    stopped = MatrixFactorization(n_epochs=60, early_stopping=3, rng=0, **keywords)
    stopped.fit(train, validation=test)
    assert stopped.n_epochs_ < 60
    short = MatrixFactorization(n_epochs=stopped.n_epochs_, rng=0, **keywords).fit(train)
    queries = [(0, 1), (4, 4)]
    once = TurnOverDropout(stopped).influence(queries)
    assert same_bits(once, TurnOverDropout(short).influence(queries))


# ---------------------------------------------------------------- is it true?


def test_an_example_is_its_own_proponent():
    """On the whole: the half that saw a high rating scores its pair above the half that did not."""
    data = ratings(40, 30, 500)
    model = fit(data, n_factors=32, n_epochs=20, init_scale=0.1)
    own = TurnOverDropout(model, n_masks=8).self_influence()
    raised = data.values - data.values.mean()
    assert np.corrcoef(own, raised)[0, 1] > 0.5


def test_more_masks_are_less_noise():
    """Correlation with leave-one-out retraining over adjacent examples: 0.0 once, .4 with 256."""
    model = fit(ratings(40, 30, 500), n_factors=16, n_epochs=20, init_scale=0.1)
    queries = fi.evaluation.sample_queries(model, 20)
    rows = fi.evaluation.compare(
        {str(n): TurnOverDropout(model, n_masks=n) for n in (1, 256)},
        queries,
        others=0,
        show_progress=False,
    ).rows
    once, often = (row["spearman_adjacent"] for row in rows)
    assert once < 0.15
    assert often > 0.35


# ---------------------------------------------------------------- what cannot be done


def test_wrong_models():
    with pytest.raises(NotFittedError, match="not fitted"):
        TurnOverDropout(MatrixFactorization())
    with pytest.raises(ParameterError, match="a MatrixFactorization is needed, not str"):
        TurnOverDropout("model")
    triples = fi.DistMult(n_factors=4, n_epochs=1, rng=0)
    with pytest.raises(ParameterError, match=r"not a DistMult: use GradientRollback, .* Replay"):
        TurnOverDropout(triples.fit(graph(n_test=0)))


@pytest.mark.parametrize("n_masks", [0, -1, 1.5, True, None])
def test_wrong_number_of_masks(n_masks):
    with pytest.raises(ParameterError, match="n_masks must be an integer >= 1"):
        TurnOverDropout(fit(ratings()), n_masks=n_masks)


def test_wrong_seed():
    with pytest.raises(ParameterError, match="rng must be an integer >= 0"):
        TurnOverDropout(fit(ratings()), rng=-1)


def test_functions_of_parameters_have_no_halves():
    def energy(parameters):
        return (parameters.user_factors**2).sum() / 2, {"user_factors": parameters.user_factors}

    of, why = fi.objectives, TurnOverDropout(fit(ratings()))
    for objective in (of.Function(energy), of.Mean(of.Function(energy))):
        with pytest.raises(ParameterError, match=r"not one of scores: .* use Replay"):
            why.influence(objective)


def test_wrong_queries():
    why = TurnOverDropout(fit(ratings()))
    with pytest.raises(DataError, match="no queries"):
        why.explain([])
    with pytest.raises(ParameterError, match="k must be"):
        why.explain([(0, 1)], k=0)
    with pytest.raises(ParameterError, match=r"use influence\(\)"):
        why.explain(fi.objectives.Mean([(0, 1)]))
    with pytest.raises(DataError, match="train_index holds 60"):
        why.self_influence([3, 60])


def test_a_masked_training_that_diverges():
    """Where the model's own training did not: a mask doubles the slopes of what it keeps."""
    model = fit(ratings(), n_epochs=20, learning_rate=0.35)
    with pytest.raises(DivergenceError, match=r"masks of TurnOverDropout diverged.*learning_rate"):
        TurnOverDropout(model)
