"""Methods on knowledge graphs side by side, noise in them, and what is not for triples."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph, ratings, same_bits

import fastinfluence as fi
from fastinfluence import CurvatureRollback, GradientRollback, MatrixFactorization, Replay, Triples
from fastinfluence.attribution.objectives import LogProbability, Probability, Score
from fastinfluence.errors import DataError, NotFittedError, ParameterError
from fastinfluence.evaluation import (
    compare,
    corrupt,
    leave_one_out,
    multi_seed,
    noisy_example_auc,
    spearman,
    subset_removal,
    tail_patch,
    unlearning_distance,
)
from fastinfluence.models import ComplEx, DistMult

DATA = graph()
TRIPLES = [("e0", "r1", "e3"), ("e2", "r0", "e2"), ("e4", "r2", "e0"), ("e0", "r1", "e5")]


def fit(kind=ComplEx, data=DATA, **keywords):
    settings = {"n_factors": 6, "n_negatives": "all", "n_epochs": 6, "learning_rate": 0.05,
                "rng": 0, "init_scale": 0.5}  # fmt: skip
    return kind(**(settings | keywords)).fit(data)


@pytest.fixture(scope="module")
def model():
    return fit()


@pytest.fixture(scope="module")
def truth(model):
    return leave_one_out(model, LogProbability(TRIPLES))


class Known:
    """A method that knows the truth, or makes it up."""

    units = "effect"

    def __init__(self, model, influence, name):
        self.model, self._influence, self.name = model, influence, name

    def influence(self, objective):
        assert isinstance(objective, LogProbability)
        return self._influence


# ---------------------------------------------------------------- side by side


def test_figures_of_what_is_known(model, truth):
    random = np.random.default_rng(0).standard_normal((4, 90))
    methods = [Known(model, truth.change, "truth"), Known(model, random, "random")]
    comparison = compare(methods, LogProbability(TRIPLES), truth=truth)
    right, wrong = comparison.rows
    for name in ("spearman_adjacent", "spearman_all", "scale", "top1_ratio"):
        assert right[name] == pytest.approx(1)
    assert right["relative_error"] == pytest.approx(0)
    assert right["n_queries"] == 4
    assert abs(wrong["spearman_adjacent"]) < 0.4
    own = [spearman(random[q][truth.adjacent[q]], truth.change[q][truth.adjacent[q]])
           for q in range(4)]  # fmt: skip
    assert wrong["spearman_adjacent"] == pytest.approx(np.mean(own))


def test_the_methods_of_triples(model, truth):
    kinds = (GradientRollback, CurvatureRollback, Replay)
    comparison = compare([kind(model) for kind in kinds], LogProbability(TRIPLES), truth=truth)
    crude, near, exact = comparison.rows
    assert [row["method"] for row in comparison.rows] == [kind.name for kind in kinds]
    assert exact["spearman_adjacent"] > 0.9
    assert near["spearman_adjacent"] > crude["spearman_adjacent"]
    assert exact["scale"] == pytest.approx(1, abs=0.3)
    assert comparison.estimates["replay"].shape == (4, 90)
    assert "4 queries against 90 retrainings" in repr(comparison)


def test_its_own_examples_and_subsets(model, tmp_path):
    subsets = [subset_removal(model, LogProbability(TRIPLES), 0.1, 12)]
    keywords = {"adjacent": 5, "others": 6, "subsets": subsets, "path": tmp_path / "loo"}
    comparison = compare([Replay(model)], LogProbability(TRIPLES), **keywords)
    assert comparison.rows[0]["lds_0.1"] > 0.8
    assert 6 <= len(comparison.truth.train_index) <= 26
    again = compare([Replay(model)], LogProbability(TRIPLES), **keywords)
    assert same_bits(again.truth.change, comparison.truth.change)
    comparison.to_csv(tmp_path / "table.csv")
    comparison.to_json(tmp_path / "table.json")
    assert comparison.plot(tmp_path / "picture.png") is not None


def test_open_queries(model):
    asked = [("e0", "r1", None), (None, "r2", "e4")]

    class Closed(Known):
        """Is asked about the entities that the model answers with."""

        def influence(self, objective):
            assert all(None not in triple for triple in objective.queries)
            return np.zeros((2, 90))

    methods = [GradientRollback(model), Closed(model, None, "closed")]
    comparison = compare(methods, Probability(asked), adjacent=3, others=4)
    heads = comparison.truth.quantity.columns(DATA)
    assert heads["predicted"].tolist() == ["tail", "head"]
    seeds = multi_seed(model, Probability(asked), [1, 2], comparison.truth.train_index)
    against = compare([GradientRollback(model)], Probability(asked), truth=seeds.mean)
    assert against.truth.change.shape == comparison.truth.change.shape


@pytest.mark.parametrize(
    "other",
    [
        LogProbability(TRIPLES, "head"),
        LogProbability([*TRIPLES[:3], ("e0", "r1", "e6")]),
        LogProbability([*TRIPLES[:3], ("e0", "r2", "e5")]),
        LogProbability(TRIPLES[:3]),
    ],
)
def test_the_truth_about_other_queries(model, truth, other):
    with pytest.raises(DataError, match="other queries"):
        compare([GradientRollback(model)], other, truth=truth)


def test_models_of_two_kinds(model):
    pairs = MatrixFactorization(n_factors=2, n_epochs=2, rng=0).fit(ratings())
    with pytest.raises(ParameterError, match="explain different models"):
        compare({"a": GradientRollback(model), "b": GradientRollback(pairs)}, TRIPLES)
    with pytest.raises(ParameterError, match="explain different models"):
        compare({"a": GradientRollback(model), "b": GradientRollback(fit(DistMult))}, TRIPLES)


# ---------------------------------------------------------------- noise


def test_corrupted_tails_are_known_nowhere():
    noisy, which = corrupt(DATA, 0.3)
    assert 20 < which.sum() <= 27  # fewer where a question has hardly an entity left
    assert isinstance(noisy, Triples)
    for name in ("heads", "relations"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(DATA, name))
    np.testing.assert_array_equal(noisy.tails[~which], DATA.tails[~which])
    assert noisy.validation is DATA.validation
    known = set()
    for part in (DATA, DATA.validation, DATA.test):
        known |= set(zip(part.heads.tolist(), part.relations.tolist(), part.tails.tolist(),
                         strict=True))  # fmt: skip
    made = list(zip(noisy.heads[which].tolist(), noisy.relations[which].tolist(),
                    noisy.tails[which].tolist(), strict=True))  # fmt: skip
    assert not known & set(made)
    assert len(set(made)) == which.sum()
    assert not corrupt(DATA, 0.3, among=np.arange(40))[1][40:].any()
    again, same = corrupt(DATA, 0.3)
    np.testing.assert_array_equal(again.tails, noisy.tails)
    np.testing.assert_array_equal(same, which)


def test_every_other_tail_alike():
    data = Triples.from_arrays(["a", "b", "c"], ["r"] * 3, ["b", "c", "a"])
    drawn = np.array([corrupt(data, 0.9, rng=seed)[0].tails for seed in range(200)])
    for place, own in enumerate(data.tails.tolist()):
        became = np.bincount(drawn[:, place], minlength=3)
        assert became[own] == 0
        assert became.sum() == 200
        assert became[became > 0].min() > 60


def test_no_tail_that_training_does_not_hold():
    data = Triples.from_arrays(list("abc"), ["r"] * 3, list("bca"), test=[("a", "r", "new")])
    for seed in range(20):
        assert data.entity_index("new")[0] not in corrupt(data, 0.9, rng=seed)[0].tails


def test_nothing_to_corrupt():
    everything = Triples.from_arrays(["a", "a", "b", "b"], ["r"] * 4, ["a", "b", "a", "b"])
    with pytest.raises(DataError, match="every entity is a known tail"):
        corrupt(everything, 0.5)
    with pytest.raises(ParameterError, match="fraction must lie between"):
        corrupt(DATA, 1.5)


def test_self_influence_finds_noise():
    data = graph(n_entities=40, n=300)
    model = fit(data=data, n_factors=8, n_epochs=20, learning_rate=0.1, init_scale=0.3)
    assert noisy_example_auc(model, CurvatureRollback) > 0.75
    assert noisy_example_auc(model) > 0.6


# ---------------------------------------------------------------- not for triples


def test_what_only_pairs_have(model):
    with pytest.raises(ParameterError, match="not of a ComplEx: see deletion_effect"):
        tail_patch(model, TRIPLES, [[1]] * 4)
    with pytest.raises(ParameterError, match=r"a ComplEx has no unlearn\(\): train it again"):
        unlearning_distance(model, [1, 2])
    for call in (tail_patch, leave_one_out):
        with pytest.raises(NotFittedError, match="call fit before"):
            call(ComplEx(), TRIPLES, [[1]] * 4)


def test_a_trajectory_without_its_start():
    model = fit()
    del model.trajectory_.checkpoints[0]
    with pytest.raises(ParameterError, match="does not hold where training started"):
        leave_one_out(model, TRIPLES)


def test_a_saved_model(model, truth, tmp_path):
    model.save(tmp_path / "run")
    again = leave_one_out(fi.load(tmp_path / "run"), LogProbability(TRIPLES), [3, 8])
    assert same_bits(again.change, truth.change[:, [3, 8]])
    assert isinstance(Score(TRIPLES).answered(model), Score)
