"""Attribution of triples by rows: every objective against tables without a triple's changes."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import graph_readout as oracle
from planted import same_bits

from fastinfluence import Triples, objectives
from fastinfluence.attribution.triples.base import TripleRowAttribution
from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.kernels.structures import GraphTables
from fastinfluence.models import ComplEx, DistMult
from fastinfluence.storage import ShardWriter, open_shards

N, R, TRIPLES = 9, 3, 40
QUERIES = [("e0", "r1", "e3"), ("e2", "r0", "e2"), ("e4", "r2", "e0"), ("e0", "r1", "e5")]
SIDES = ["tail", "head", "head", "tail"]
OVER = ["e1", "e0", "e4", "e0"]


class TakenBack(TripleRowAttribution):
    """Takes back whatever changes it is given."""

    name = "taken-back"
    units = "rank"

    def __init__(self, model, *, changes=None, **options):
        super().__init__(model, **options)
        self._set_changes(made_up(model) if changes is None else changes)


def graph_data(seed=0):
    """Self loops, and triples that occur twice."""
    rng = np.random.default_rng(seed)
    heads, tails = (np.append(rng.integers(0, N, TRIPLES), [0, 0]) for _ in range(2))
    relations = np.append(rng.integers(0, R, TRIPLES), [1, 1])
    entities, names = np.array([f"e{e}" for e in range(N)]), np.array([f"r{r}" for r in range(R)])
    return Triples.from_arrays(entities[heads], names[relations], entities[tails],
                               duplicates="keep")  # fmt: skip


DATA = graph_data()


def fit(kind=ComplEx, **options):
    settings = {"n_factors": 6, "n_negatives": 3, "n_epochs": 2, "init_scale": 0.7, "rng": 0}
    return kind(**(settings | {"dtype": "float64"} | options)).fit(DATA)


def made_up(model, size=0.3):
    rng = np.random.default_rng(1)
    shape = len(DATA), 4 if model.graph_.reciprocal else 3, model.n_factors
    changes = rng.normal(0, size, shape).astype(model.dtype)
    changes[DATA.heads == DATA.tails, 1] = 0
    changes[-1] = changes[-2]  # of the same triple: a tie
    return changes


def bound(model, objective):
    return objective.answered(model).bind(DATA, model.trajectory_.recipe)


def moved_tables(why, j):
    rows = why.model.trajectory_.end.tables.rows
    triples = DATA.heads, DATA.relations, DATA.tails
    return GraphTables(oracle.without(why.model.graph_, rows, why.rows.changes, *triples, j))


def naive(why, objective):
    """Influence (n, n_train): phi as it is less phi of a copy of the tables, 0 for strangers."""
    quantity = bound(why.model, objective)
    whole = quantity.values(why.model.trajectory_.end.tables, 0.0)
    parts = [whole - quantity.values(moved_tables(why, j), 0.0) for j in range(len(DATA))]
    return np.column_stack(parts) * quantity.adjacent(DATA, np.arange(len(DATA)))


MODELS = {
    "distmult": lambda **options: fit(DistMult, **options),
    "complex": fit,
    "complex-plain": lambda **options: fit(reciprocal=False, **options),
    "tails-only": lambda **options: fit(sides="tail", reciprocal=False, **options),
}
OBJECTIVES = {
    "score": objectives.Score,
    "log-probability": objectives.LogProbability,
    "probability": objectives.Probability,
    "margin": lambda queries, predict: objectives.Margin(queries, OVER, predict=predict),
    "held-out": lambda queries, predict: objectives.HeldOutLoss(queries, predict=predict),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS)
def test_influence_is_phi_less_phi_without_the_changes(model, name):
    why = TakenBack(MODELS[model]())
    objective = OBJECTIVES[name](QUERIES, predict=SIDES)
    found = why.influence(objective)
    assert found.shape == (4, len(DATA))
    assert found.has_sorted_indices
    np.testing.assert_allclose(found.toarray(), naive(why, objective), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [1e-4, 0.3, 9.0])
def test_losses_of_a_logistic_model_are_exact_too(size):
    model = fit(loss="logistic")
    why = TakenBack(model, changes=made_up(model, size))
    objective = objectives.HeldOutLoss(QUERIES, predict=SIDES)
    expected = naive(why, objective)
    np.testing.assert_allclose(
        why.influence(objective, dense=True), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("kind", [objectives.Probability, objectives.Rank])
def test_the_influence_on_a_mean_is_the_mean_of_the_influences(kind):
    why = TakenBack(fit())
    one = kind(QUERIES, predict=SIDES)
    found = why.influence(objectives.Mean(one), dense=True)
    np.testing.assert_allclose(found, why.influence(one, dense=True).mean(0)[None], rtol=1e-12)


def sum_of_squares(parameters):
    value = sum((table**2).sum() / 2 for table in parameters)
    return value, dict(zip(parameters._fields, parameters, strict=True))


@pytest.mark.parametrize(
    "objective",
    [
        objectives.Rank(QUERIES, predict=SIDES),
        objectives.Function(sum_of_squares),
    ],
    ids=["rank", "function"],
)
def test_others_are_followed_along_their_gradient(objective):
    """As changes become small, so does what is missing, and faster."""
    model = fit()
    errors = []
    for size in (1e-3, 1e-4):
        why = TakenBack(model, changes=made_up(model, size))
        expected = naive(why, objective)
        errors.append(np.abs(why.influence(objective, dense=True) - expected).max() / size)
    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("name", ["score", "log-probability", "probability", "margin"])
def test_float32_agrees_with_float64(name):
    model = fit(dtype="float32")
    why = TakenBack(model, changes=made_up(model, 1e-3))
    objective = OBJECTIVES[name](QUERIES, predict=SIDES)
    found, expected = why.influence(objective, dense=True), naive(why, objective)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("proponents", [True, False])
@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_lists_are_the_sorted_matrix(name, k, proponents):
    why = TakenBack(fit())
    objective = OBJECTIVES[name](QUERIES, predict=SIDES)
    ex = why.explain(objective, k=k, proponents=proponents)
    matrix = why.influence(objective, dense=True)
    sign = 1 if proponents else -1
    for i, row in enumerate(matrix):
        order = np.lexsort((np.arange(len(row)), -sign * row))
        order = order[row[order] != 0][:k]  # ties by training index; strangers are none
        n = len(order)
        assert ex.train_index[i, :n].tolist() == order.tolist()
        np.testing.assert_array_equal(ex.influence[i, :n], row[order])
        assert (ex.train_index[i, n:] == -1).all()
        assert np.isnan(ex.influence[i, n:]).all()
    np.testing.assert_allclose(ex.total_influence, np.abs(matrix).sum(1), rtol=1e-12)
    quantity = bound(why.model, objective)
    np.testing.assert_array_equal(ex.prediction, quantity.values(*why._parameters))
    np.testing.assert_array_equal(ex.predict_head, np.array(SIDES) == "head")
    assert (ex.method, ex.units, ex.proponents) == ("taken-back", "rank", proponents)
    assert ex.quantity == quantity.kind


def test_equal_influence_goes_by_training_index():
    why = TakenBack(fit())
    ex = why.explain([("e0", "r1", "e0")], k=60)
    place = ex.train_index[0].tolist().index(len(DATA) - 2)
    assert ex.train_index[0, place + 1] == len(DATA) - 1
    assert ex.influence[0, place] == ex.influence[0, place + 1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batches_and_threads_change_no_bit(name):
    model = fit()
    objective = OBJECTIVES[name](QUERIES, predict=SIDES)
    whole = TakenBack(model, n_threads=1).explain(objective)
    pieces = TakenBack(model, n_threads=3).explain(objective, batch_size=1, show_progress=False)
    assert same_bits(whole.train_index, pieces.train_index)
    assert same_bits(whole.influence, pieces.influence)
    np.testing.assert_allclose(whole.total_influence, pieces.total_influence, rtol=1e-14)
    threads = TakenBack(model, n_threads=3).explain(objective)
    assert same_bits(whole.influence, threads.influence)
    assert same_bits(whole.total_influence, threads.total_influence)


def test_an_open_query_asks_for_the_models_answer():
    why = TakenBack(fit())
    ex = why.explain([("e0", "r1", None), (None, "r2", "e3")])
    scores = why.model.predict(["e0"] * N, ["r1"] * N, DATA.entity_ids)
    assert ex.tails[0] == scores.argmax()
    assert ex.predict_head.tolist() == [False, True]
    assert DATA.entity_ids[[ex.heads[0], ex.tails[1]]].tolist() == ["e0", "e3"]


@pytest.mark.parametrize("model", MODELS)
def test_self_influence(model):
    why = TakenBack(MODELS[model]())
    found = why.self_influence()
    np.testing.assert_allclose(found, np.diag(naive(why, objectives.Score(DATA))), rtol=1e-9)


# ---------------------------------------------------------------- shards


def read(path):
    return open_shards(path)[:]


def test_shards_hold_what_explain_finds(tmp_path):
    why = TakenBack(fit(), n_threads=2)
    objective = objectives.Probability(QUERIES, predict=SIDES)
    assert why.explain_to(tmp_path / "shards", objective, k=5, batch_size=3) == 4
    ex, columns = why.explain(objective, k=5), read(tmp_path / "shards")
    for name, expected in {
        "head": ex.heads,
        "relation": ex.relations,
        "tail": ex.tails,
        "predict_head": ex.predict_head,
        "prediction": ex.prediction,
        "train_index": ex.train_index,
        "influence": ex.influence,
    }.items():
        assert same_bits(columns[name], expected)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    why = TakenBack(fit(), n_threads=1)
    append, written = ShardWriter.append, []

    def stopping(self, columns):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(columns)
        append(self, columns)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "append", stopping)
        with pytest.raises(KeyboardInterrupt):
            why.explain_to(tmp_path / "shards", QUERIES, k=2, batch_size=1)
    with pytest.raises(RunDirectoryError):
        why.explain_to(tmp_path / "shards", QUERIES, k=3, batch_size=1, resume=True)
    changed = TakenBack(why.model, changes=2 * made_up(why.model))
    with pytest.raises(RunDirectoryError):
        changed.explain_to(tmp_path / "shards", QUERIES, k=2, batch_size=1, resume=True)
    assert why.explain_to(tmp_path / "shards", QUERIES, k=2, batch_size=1, resume=True) == 4
    assert same_bits(read(tmp_path / "shards")["influence"], why.explain(QUERIES, k=2).influence)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_k_counts_triples(k):
    with pytest.raises(ParameterError, match="k must be an integer"):
        TakenBack(fit()).explain(QUERIES, k=k)


@pytest.mark.parametrize("size", [0, 1.5, True])
def test_batches_have_queries(size):
    with pytest.raises(ParameterError, match="batch_size"):
        TakenBack(fit()).explain(QUERIES, batch_size=size)


def test_only_triples_have_explanations():
    why = TakenBack(fit())
    for objective in (objectives.Mean(QUERIES), objectives.Function(sum_of_squares)):
        with pytest.raises(ParameterError, match="use influence"):
            why.explain(objective)


def test_changes_belong_to_the_triples():
    model = fit()
    changes = made_up(model)
    for wrong in (changes[:-1], changes[:, :3], changes[0], changes[:, :, :4]):
        with pytest.raises(ParameterError, match="42 triples in 4 rows of 6"):
            TakenBack(model, changes=wrong)


def test_influence_keeps_to_the_memory_budget(monkeypatch):
    why = TakenBack(fit())
    monkeypatch.setattr("fastinfluence.attribution.triples.base.memory_budget", lambda: 100)
    with pytest.raises(ParameterError, match="use explain"):
        why.influence(QUERIES)
