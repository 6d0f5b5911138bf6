"""Leave-one-out truth of knowledge graphs: against fitting anew, one triple at weight 0."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph, same_bits, same_tables

import fastinfluence as fi
from fastinfluence.attribution.objectives import (
    Function,
    LogProbability,
    Margin,
    Mean,
    Probability,
    Score,
)
from fastinfluence.errors import (
    DataError,
    DivergenceError,
    FastInfluenceError,
    RunDirectoryError,
    UnknownIdError,
)
from fastinfluence.evaluation import leave_one_out, leave_out, multi_seed, subset_removal
from fastinfluence.evaluation.truth import fit_again
from fastinfluence.models import ComplEx, DistMult
from fastinfluence.training import GraphProgram

DATA = graph()
TRIPLES = [("e0", "r1", "e3"), ("e2", "r0", "e2"), ("e4", "r2", "e0"), ("e0", "r1", "e5")]
SIDES = ["tail", "head", "head", "tail"]


def fit(kind=ComplEx, data=DATA, *, sample_weight=None, **keywords):
    settings = {"n_factors": 6, "n_negatives": 3, "n_epochs": 3, "rng": 0, "init_scale": 0.5}
    return kind(**(settings | keywords)).fit(data, sample_weight=sample_weight)


def without(model, examples):
    """The same model, fitted like any other, the examples at weight 0."""
    weights = np.ones(len(model.data_))
    weights[examples] = 0
    return type(model)(**model.get_params()).fit(model.data_, sample_weight=weights)


def probabilities(model, triples, sides):
    """By the model's public predictions, one triple at a time."""
    everything = model.data_.entity_ids
    found = []
    for (head, relation, tail), side in zip(triples, sides, strict=True):
        heads, tails = (everything, tail) if side == "head" else (head, everything)
        scores = model.predict(heads, relation, tails, predict=side).astype(np.float64)
        own = np.exp(scores - scores.max())[everything == (head if side == "head" else tail)]
        found.append(own[0] / np.exp(scores - scores.max()).sum())
    return np.array(found)


# ---------------------------------------------------------------- one at a time


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "adam-dense"])
@pytest.mark.parametrize("kind", [DistMult, ComplEx])
def test_against_fitting_anew(kind, optimizer):
    model = fit(kind, optimizer=optimizer)
    truth = leave_one_out(model, Probability(TRIPLES, SIDES), [3, 40, 88])
    before = probabilities(model, TRIPLES, SIDES)
    np.testing.assert_allclose(truth.value, before, rtol=1e-5)
    for place, example in enumerate([3, 40, 88]):
        after = probabilities(without(model, [example]), TRIPLES, SIDES)
        np.testing.assert_allclose(truth.change[:, place], before - after, atol=1e-6)
    assert np.abs(truth.change).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"reciprocal": False},
        {"sides": "tail", "loss": "logistic"},
        {"n_negatives": "all", "unit_norm": True, "learning_rate_decay": "constant"},
        {"fixed_negatives": True, "shuffle": False, "dtype": "float64"},
    ],
)
def test_other_recipes(options):
    model = fit(**options)
    truth = leave_one_out(model, TRIPLES)  # plain triples mean their score
    assert truth.change.shape == truth.adjacent.shape == (4, 90)
    heads, relations, tails = zip(*TRIPLES, strict=True)
    for example in (0, 57):
        again = without(model, [example]).predict(heads, relations, tails)
        np.testing.assert_allclose(truth.change[:, example], truth.value - again, atol=1e-5)
    assert (np.abs(truth.change).max(axis=1) > 1e-3).all()


def test_weights_stay_what_they_were():
    weights = np.where(np.arange(90) % 3, 1.0, 0.0)
    model = fit(sample_weight=weights)
    truth = leave_one_out(model, TRIPLES, [0, 1, 2])
    assert (truth.change[:, 0] == 0).all()  # it had no weight before
    assert (truth.change[:, 1:] != 0).any(axis=0).all()
    assert same_bits(fit_again(model).trajectory_.program.weights, weights)


def test_no_number_depends_on_threads():
    model = fit()
    one, two, five = (leave_one_out(model, TRIPLES, n_threads=n) for n in (1, 2, 5))
    assert same_bits(one.change, two.change)
    assert same_bits(one.change, five.change)


def test_margins_means_and_functions():
    def size(parameters):
        rows = parameters.entity_factors
        return (rows.astype(np.float64) ** 2).sum(), {"entity_factors": 2 * rows}

    model = fit()
    margin = leave_one_out(model, Margin(TRIPLES, "e7", SIDES), [5, 6])
    own = leave_one_out(model, Score(TRIPLES, SIDES), [5, 6])
    over = [(h, r, "e7") if s == "tail" else ("e7", r, t)
            for (h, r, t), s in zip(TRIPLES, SIDES, strict=True)]  # fmt: skip
    other = leave_one_out(model, Score(over, SIDES), [5, 6])
    np.testing.assert_allclose(margin.change, own.change - other.change, atol=1e-12)
    mean = leave_one_out(model, Mean(LogProbability(TRIPLES)), [5, 6])
    single = leave_one_out(model, LogProbability(TRIPLES), [5, 6])
    np.testing.assert_allclose(mean.change, single.change.mean(0, keepdims=True), atol=1e-12)
    function = leave_one_out(model, Function(size), [5])
    expected = [float((m.entity_factors_.astype(np.float64) ** 2).sum())
                for m in (model, without(model, [5]))]  # fmt: skip
    assert function.change[0, 0] == pytest.approx(expected[0] - expected[1])
    assert "head" not in function.to_dict()
    assert function.adjacent.all()


# ---------------------------------------------------------------- what it says of itself


def test_adjacent_is_an_entity_in_any_place_or_the_relation():
    model = fit()
    truth = leave_one_out(model, Score(TRIPLES, SIDES))
    for q, (head, relation, tail) in enumerate(TRIPLES):
        for j in range(90):
            h, r, t = (column[j] for column in DATA.columns().values())
            shares = r == relation or {h, t} & {head, tail}
            assert truth.adjacent[q, j] == bool(shares)


def test_columns():
    truth = leave_one_out(fit(), Probability(TRIPLES, SIDES), [7, 9])
    table = truth.to_pandas()
    assert [*table] == [
        "query", "head", "relation", "tail", "predicted", "value", "train_index", "train_head",
        "train_relation", "train_tail", "change", "adjacent",
    ]  # fmt: skip
    assert len(table) == 8
    row = table.iloc[3]
    assert (row["query"], row["train_index"]) == (1, 9)
    assert (row["head"], row["relation"], row["tail"], row["predicted"]) == (*TRIPLES[1], "head")
    assert (row["train_head"], row["train_relation"], row["train_tail"]) == tuple(
        column[9] for column in DATA.columns().values()
    )
    assert row["change"] == truth.change[1, 1]
    assert truth.users is None
    assert truth.items is None
    assert "4 queries, 2 examples left out" in repr(truth)


def test_lists_of_explanations():
    model = fit()
    ex = fi.GradientRollback(model).explain(TRIPLES, k=5)
    truth = leave_one_out(model, TRIPLES, ex.train_index)
    assert truth.at(ex.train_index).shape == (4, 5)
    assert truth.train_index.tolist() == np.unique(ex.train_index).tolist()


def test_the_answer_stays_that_of_the_model():
    """An open query is about the entity the model says, whatever others say."""
    model = fit()
    queries = [("e0", "r1", None), (None, "r0", "e4")]
    best = (model.predict_tails("e0", "r1", 1, exclude_known=False)[0][0, 0],
            model.predict_heads("r0", "e4", 1, exclude_known=False)[0][0, 0])  # fmt: skip
    closed = Probability([("e0", "r1", best[0]), (best[1], "r0", "e4")], ["tail", "head"])
    mine = leave_one_out(model, Probability(queries), [0, 1, 2])
    assert same_bits(mine.change, leave_one_out(model, closed, [0, 1, 2]).change)
    seeds = multi_seed(model, Probability(queries), [1, 2, 3], [0])
    for truth in seeds.truths:
        assert truth.to_dict()["tail"].tolist() == [best[0], "e4"]
        assert truth.to_dict()["head"].tolist() == ["e0", best[1]]


# ---------------------------------------------------------------- several seeds


def test_fitted_again():
    model = fit(optimizer="adam", loss="logistic", sides="tail")
    assert same_tables(fit_again(model).trajectory_.end.tables, model.trajectory_.end.tables)
    other = fit_again(model, seed=5)
    assert type(other) is ComplEx
    expected = fit(optimizer="adam", loss="logistic", sides="tail", rng=5)
    assert same_tables(other.trajectory_.end.tables, expected.trajectory_.end.tables)


def test_several_seeds(tmp_path):
    model = fit(DistMult)
    truth = multi_seed(model, TRIPLES, [4, 9], [1, 2, 3], path=tmp_path)
    for seed, of_seed in zip(truth.seeds, truth.truths, strict=True):
        expected = leave_one_out(fit(DistMult, rng=seed), TRIPLES, [1, 2, 3])
        assert same_bits(of_seed.change, expected.change)
        assert (tmp_path / f"seed-{seed}").is_dir()
    assert truth.change.shape == (2, 4, 3)
    np.testing.assert_allclose(truth.mean.change, truth.change.mean(0))
    assert truth.mean.to_dict()["head"].tolist() == [t[0] for t in TRIPLES for _ in range(3)]
    assert np.isnan(truth.noise_ceiling(adjacent=True)).all()  # fewer than 15


# ---------------------------------------------------------------- sets, files, errors


def test_sets_of_triples():
    model = fit()
    sets = [[0, 1, 2], [], [50, 89]]
    change = leave_out(model, TRIPLES, sets)
    heads, relations, tails = zip(*TRIPLES, strict=True)
    before = model.predict(heads, relations, tails)
    after = without(model, [0, 1, 2]).predict(heads, relations, tails)
    np.testing.assert_allclose(change[:, 0], before - after, atol=1e-5)
    assert (change[:, 1] == 0).all()
    removed = subset_removal(model, TRIPLES, 0.1, 4)
    assert [len(subset) for subset in removed.removals] == [9] * 4
    np.testing.assert_array_equal(removed.change, leave_out(model, TRIPLES, removed.removals))


def test_kept_results_are_of_these_queries_only(tmp_path):
    model = fit()
    first = leave_one_out(model, TRIPLES, [1, 2], path=tmp_path / "kept")
    again = leave_one_out(model, TRIPLES, [1, 2], path=tmp_path / "kept")
    assert same_bits(first.change, again.change)
    mirror = fit(DistMult, reciprocal=False)
    leave_one_out(mirror, Score(TRIPLES), [1, 2], path=tmp_path / "mirror")
    # Without reciprocal relations a triple has one score, whichever end is asked for.
    with pytest.raises(RunDirectoryError, match="differs in: queries"):
        leave_one_out(mirror, Score(TRIPLES, "head"), [1, 2], path=tmp_path / "mirror")


def test_a_retraining_that_diverges(monkeypatch):
    model, run_epoch = fit(), GraphProgram.run_epoch

    def breaks(self, *arguments, **options):
        if self.weights[4] == 0:
            raise DivergenceError("the loss of step 7 is not finite")
        return run_epoch(self, *arguments, **options)

    monkeypatch.setattr(GraphProgram, "run_epoch", breaks)
    with pytest.raises(FastInfluenceError, match=r"without removals\[1\] diverged"):
        leave_one_out(model, TRIPLES, [3, 4])


def test_bad_queries():
    model = fit()
    with pytest.raises(UnknownIdError, match="unknown entity 'e77'"):
        leave_one_out(model, [("e77", "r0", "e1")])
    with pytest.raises(DataError, match="triples"):
        leave_one_out(model, [("e1", "r0")])
    with pytest.raises(DataError, match="no queries to explain"):
        leave_one_out(model, [])
    with pytest.raises(DataError, match="train holds 90"):
        leave_one_out(model, TRIPLES, [90])
