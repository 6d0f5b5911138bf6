"""Filtered ranks against loops, known figures, PyKEEN; ties, strangers, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import ranks as oracle

import fastinfluence as fi
from fastinfluence.errors import DataError, NotFittedError, ParameterError, UnknownIdError
from fastinfluence.evaluation import link_prediction
from fastinfluence.models.knowledge_graph import ComplEx, DistMult

MODELS = [
    pytest.param(DistMult, True, id="distmult-reciprocal"),
    pytest.param(DistMult, False, id="distmult"),
    pytest.param(ComplEx, True, id="complex-reciprocal"),
    pytest.param(ComplEx, False, id="complex"),
]


def random_triples(seed=0, n_entities=30, n_relations=4, sizes=(150, 20, 40)):
    """Distinct triples, every entity and relation in training: (train, validation, test)."""
    rng = np.random.default_rng(seed)
    shape = n_entities, n_relations, n_entities
    every = np.stack(np.unravel_index(rng.permutation(np.prod(shape)), shape), axis=1)
    first = np.stack([np.arange(n_entities), np.arange(n_entities) % n_relations,
                      np.roll(np.arange(n_entities), 1)], axis=1)  # fmt: skip
    others = every[~(every[:, None] == first).all(2).any(1)][: sum(sizes)]
    train, validation, test = np.split(others, np.cumsum(sizes)[:-1])
    return np.concatenate([first, train]), validation, test


def as_triples(train, validation=None, test=None):
    return fi.Triples.from_arrays(*train.T, validation=validation, test=test)


def fitted(model, data, **options):
    settings = {"n_factors": 6, "n_epochs": 2, "rng": 0, "dtype": "float64"} | options
    return model(**settings).fit(data)


def naive_score(model, predict):
    """Score of codes (h, r, t) when asked from one side, from the model's public factors."""
    is_complex, data = isinstance(model, ComplEx), model.data_
    entities, relations = model.entity_factors_, model.relation_factors_

    def score(h, r, t):
        subject, target = (h, t) if predict == "tail" else (t, h)
        reciprocal = predict == "head" and model.reciprocal
        flip = predict == "head" and not model.reciprocal
        w = relations[r + data.n_relations * reciprocal]
        return oracle.score(
            oracle.compose(is_complex, flip, entities[subject], w), entities[target]
        )

    return score


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize(("model", "reciprocal"), MODELS)
def test_ranks_are_those_of_loops(model, reciprocal, filtered):
    parts = random_triples()
    data = as_triples(*parts)
    model = fitted(model, data, reciprocal=reciprocal)
    result = link_prediction(model, filtered=filtered, show_progress=False)
    known = {tuple(t) for t in np.concatenate(parts).tolist()} if filtered else set()
    for place, side in enumerate(("tail", "head")):
        expected = oracle.filtered_ranks(
            naive_score(model, side), data.n_entities, parts[2].tolist(), known, side
        )
        np.testing.assert_array_equal(result.ranks[:, place], expected)
        one = link_prediction(model, predict=side, filtered=filtered, show_progress=False)
        np.testing.assert_array_equal(one.ranks, result.ranks[:, [place]])
        assert one.mrr == pytest.approx(np.mean(1 / np.array(expected)))
        assert result.side(side).mrr == one.mrr


def test_threads_and_batches_change_nothing():
    model = fitted(DistMult, as_triples(*random_triples(n_entities=60)), dtype="float32")
    ranks = link_prediction(model, n_threads=1, show_progress=False).ranks
    for options in ({"n_threads": 2}, {"batch_size": 7}, {"n_threads": 2, "batch_size": 1}):
        np.testing.assert_array_equal(
            link_prediction(model, **options, show_progress=False).ranks, ranks
        )


def chosen(entities, relations, train, test, **options):
    """A DistMult with the given one-dimensional rows; entities and relations are codes."""
    data = fi.Triples.from_arrays(
        *np.array(train).T,
        test=test,
        entity_ids=np.arange(len(entities)),
        relation_ids=np.arange(len(relations)),
    )
    model = DistMult(n_factors=1, n_epochs=1, reciprocal=False, rng=0, **options).fit(data)
    model.trajectory_.end.tables.rows[:, 0] = [*entities, *relations]
    return model


def test_figures_of_an_example_made_by_hand():
    # Scores of tails under relation 0 rise with the code: 5 is best.
    model = chosen(
        [1, 2, 3, 4, 5, 6], [1, -1],
        train=[(0, 0, 5), (0, 1, 1), (2, 0, 3), (4, 0, 0)],
        test=np.array([(0, 0, 4), (1, 0, 2), (3, 1, 0)]),
    )  # fmt: skip
    result = link_prediction(model, predict="tail", show_progress=False)
    assert result.ranks[:, 0].tolist() == [1, 4, 1]  # 5 is known to answer the first
    raw = link_prediction(model, predict="tail", filtered=False, show_progress=False)
    assert raw.ranks[:, 0].tolist() == [2, 4, 1]
    assert result.mrr == pytest.approx((1 + 1 / 4 + 1) / 3)
    assert raw.mrr == pytest.approx((1 / 2 + 1 / 4 + 1) / 3)
    assert [raw.hits(k) for k in (1, 3, 10)] == pytest.approx([1 / 3, 2 / 3, 1])
    table = result.per_relation().to_dict()
    assert table["relation"].tolist() == [0, 1]
    assert table["triples"].tolist() == [2, 1]
    assert table["mrr"] == pytest.approx([(1 + 1 / 4) / 2, 1])
    assert table["hits_3"] == pytest.approx([1 / 2, 1])


def test_ties_count_half():
    model = chosen(
        [1, 1, 1, 2, 0], [1],
        train=[(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 0, 4)],
        test=np.array([(1, 0, 0), (0, 0, 4)]),
    )  # fmt: skip
    result = link_prediction(model, predict="tail", show_progress=False)
    # Above 0 stands 3; 1 ties, and so would 2 were it not known.
    assert result.ranks[:, 0].tolist() == [1 + 1 + 0.5, 1 + 3]
    assert result.ties[:, 0].tolist() == [1, 0]
    assert result.optimistic[:, 0].tolist() == [2, 4]
    assert result.pessimistic[:, 0].tolist() == [3, 4]


def test_strangers_are_kept_counted_and_can_be_left_out():
    train = np.array([("a", "r", "b"), ("b", "r", "c"), ("c", "s", "a")])
    test = np.array([("a", "r", "c"), ("a", "r", "new"), ("b", "other", "a"), ("a", "s", "b")])
    model = fitted(DistMult, as_triples(train, test=test))
    result = link_prediction(model, show_progress=False)
    assert len(result.ranks) == 4
    assert result.n_unseen == 2
    assert result.unseen.tolist() == [False, True, True, False]
    assert "2 triples with an entity or relation that no training triple holds" in repr(result)
    seen = result.seen_only()
    assert seen.n_unseen == 0
    assert "no training triple" not in repr(seen)
    np.testing.assert_array_equal(seen.ranks, result.ranks[[0, 3]])
    np.testing.assert_array_equal(seen.triples.tails, result.triples.tails[[0, 3]])
    strangers = fi.Triples.from_arrays(["a"], ["other"], ["c"])
    with pytest.raises(DataError, match="every triple holds"):
        link_prediction(model, strangers, show_progress=False).seen_only()


def test_splits_and_other_triples():
    train, validation, test = random_triples()
    model = fitted(DistMult, as_triples(train, validation, test))
    assert len(link_prediction(model, "validation", show_progress=False).ranks) == len(validation)
    by_name = link_prediction(model, "test", show_progress=False)
    np.testing.assert_array_equal(by_name.ranks, link_prediction(model).ranks)
    # The same triples with codes of their own, and only some of the entities.
    own = fi.Triples.from_arrays(*test[:5].T)
    assert own.n_entities < model.data_.n_entities
    result = link_prediction(model, own, show_progress=False)
    np.testing.assert_array_equal(result.ranks, by_name.ranks[:5])
    np.testing.assert_array_equal(result.triples.heads, by_name.triples.heads[:5])
    on_itself = link_prediction(model, model.data_, show_progress=False)
    assert len(on_itself.ranks) == len(train)
    with pytest.raises(UnknownIdError, match="unknown entity 99"):
        link_prediction(model, fi.Triples.from_arrays([0], [0], [99]))


def test_the_table_and_its_columns():
    model = fitted(ComplEx, as_triples(*random_triples()))
    result = link_prediction(model, show_progress=False)
    lines = repr(result).splitlines()
    assert lines[0] == "Link prediction of 40 triples among 30 entities, filtered"
    assert lines[1].split() == ["asked", "for", "MRR", "Hits@1", "Hits@3", "Hits@10"]
    assert [line.split()[0] for line in lines[2:]] == ["both", "tail", "head"]
    assert lines[2].split()[1] == f"{result.mrr:.3f}"
    assert len(repr(result.side("head")).splitlines()) == 3
    columns = result.to_dict()
    assert list(columns) == ["head", "relation", "tail", "side", "rank"]
    assert columns["side"][:4].tolist() == ["tail", "head"] * 2
    np.testing.assert_array_equal(columns["rank"].reshape(-1, 2), result.ranks)
    test = model.data_.test
    np.testing.assert_array_equal(columns["head"][::2], model.data_.entity_ids[test.heads])
    frame = result.to_pandas()
    assert frame.shape == (80, 5)
    assert (1 / frame["rank"]).mean() == pytest.approx(result.mrr)


def test_relations_one_by_one():
    model = fitted(ComplEx, as_triples(*random_triples()))
    result = link_prediction(model, show_progress=False)
    table = result.per_relation()
    frame = table.to_pandas()
    assert list(frame.columns) == [
        "relation", "triples", "mrr", "hits_1", "hits_3", "hits_10", "mrr_tail", "mrr_head"
    ]  # fmt: skip
    assert frame["triples"].is_monotonic_decreasing
    for row in frame.itertuples():
        ranks = result.ranks[result.triples.relations == row.relation]
        assert row.triples == len(ranks)
        assert row.mrr == pytest.approx((1 / ranks).mean())
        assert row.mrr_head == pytest.approx((1 / ranks[:, 1]).mean())
        assert row.hits_10 == pytest.approx((ranks <= 10).mean())
    assert (frame["mrr"] * frame["triples"]).sum() / 40 == pytest.approx(result.mrr)
    assert len(repr(table).splitlines()) == 5


def test_a_long_table_of_relations_is_cut_and_long_names_too():
    train = [("a", f"/a/very/long/way/to/say/relation/number/{r:03}", "b") for r in range(30)]
    model = fitted(DistMult, as_triples(np.array(train), test=np.array(train)))
    text = repr(link_prediction(model, show_progress=False).per_relation())
    assert text.endswith("\n… and 10 more")
    assert f"\n…{train[0][1][-39:]}  " in text
    assert len(text.splitlines()) == 22


@pytest.mark.parametrize(("model", "reciprocal"), MODELS[1::2])
def test_pykeen_finds_the_same(model, reciprocal):
    pytest.importorskip("pykeen")
    import torch
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import ComplEx as TheirComplEx
    from pykeen.models import DistMult as TheirDistMult
    from pykeen.triples import CoreTriplesFactory

    parts = random_triples(n_entities=50, sizes=(400, 60, 90))
    model = fitted(model, as_triples(*parts), reciprocal=reciprocal, dtype="float32")
    factory, *others = (CoreTriplesFactory(torch.as_tensor(p), 50, 4) for p in parts)
    d = model.n_factors
    is_complex = isinstance(model, ComplEx)
    their_class = TheirComplEx if is_complex else TheirDistMult
    theirs = their_class(
        triples_factory=factory, embedding_dim=d // 2 if is_complex else d,
        **({} if is_complex else {"entity_constrainer": None}),
    ).eval()  # fmt: skip
    for table, rows in (
        (theirs.entity_representations[0], model.entity_factors_),
        (theirs.relation_representations[0], model.relation_factors_),
    ):
        rows = np.array(rows)
        if is_complex:
            rows = rows[:, : d // 2] + 1j * rows[:, d // 2 :]
        with torch.no_grad():
            weight = table._embeddings.weight
            packed = torch.view_as_real(torch.as_tensor(rows)) if is_complex else rows
            weight.copy_(torch.as_tensor(packed).reshape(weight.shape))
    metrics = RankBasedEvaluator(filtered=True).evaluate(
        theirs, others[1].mapped_triples, batch_size=32, use_tqdm=False, device="cpu",
        additional_filter_triples=[factory.mapped_triples, others[0].mapped_triples],
    )  # fmt: skip
    result = link_prediction(model, show_progress=False)
    for side in ("both", "tail", "head"):
        part = result if side == "both" else result.side(side)
        mrr = metrics.get_metric(f"{side}.realistic.inverse_harmonic_mean_rank")
        assert part.mrr == pytest.approx(mrr, abs=1e-6)
        for k in (1, 3, 10):
            assert part.hits(k) == pytest.approx(
                metrics.get_metric(f"{side}.realistic.hits_at_{k}")
            )


def test_data_without_a_test_split():
    model = fitted(DistMult, as_triples(random_triples()[0]))
    with pytest.raises(DataError, match=r"no test triples: give them to Triples.from_arrays"):
        link_prediction(model)
    with pytest.raises(DataError, match="no validation triples"):
        link_prediction(model, "validation")


@pytest.fixture(scope="module")
def model():
    return fitted(DistMult, as_triples(*random_triples()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"triples": "train"}, "triples='train' is not known"),
        ({"predict": "relation"}, "predict='relation' is not known: use 'both', 'tail' or 'head'"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"n_threads": 0}, "n_threads must be a positive integer"),
        ({"device": "gpu"}, "device='gpu' is not known"),
    ],
)
def test_arguments_out_of_range(model, arguments, message):
    with pytest.raises(ParameterError, match=message):
        link_prediction(model, **arguments)


def test_questions_that_were_not_asked(model):
    tails = link_prediction(model, predict="tail", show_progress=False)
    with pytest.raises(ParameterError, match="side='head' was not asked for, only 'tail'"):
        tails.side("head")
    with pytest.raises(ParameterError, match="k must be at least 1"):
        tails.hits(0)


def test_models_that_predict_no_links():
    ratings = fi.Interactions.from_arrays([0, 0, 1], [0, 1, 0], [1.0, 2.0, 3.0])
    other = fi.MatrixFactorization(n_factors=2, n_epochs=1, rng=0).fit(ratings)
    with pytest.raises(ParameterError, match="needs a DistMult or ComplEx, not MatrixFactorizatio"):
        link_prediction(other)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        link_prediction(DistMult())


def test_a_model_of_tails_says_so_when_asked_for_heads():
    model = fitted(DistMult, as_triples(*random_triples()), sides="tail")
    with pytest.raises(ParameterError, match="no rows to predict heads with"):
        link_prediction(model)
    assert link_prediction(model, predict="tail", show_progress=False).sides == ("tail",)
