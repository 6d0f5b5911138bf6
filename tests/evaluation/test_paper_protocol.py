"""The Gradient Rollback paper's experiments: what is asked, left out, trained again and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence.errors import DataError, ParameterError, RunDirectoryError
from fastinfluence.evaluation import PaperExperiment, gradient_rollback_paper
from fastinfluence.evaluation.paper_parts import (
    Predictions,
    Questions,
    SkippingTrajectory,
    prefix,
    removals,
)

SMALL: dict[str, Any] = {
    "n_factors": 4, "n_negatives": 5, "sides": "tail", "n_epochs": 3, "learning_rate": 0.05,
    "learning_rate_decay": "constant", "regularization": 0.0, "optimizer": "adam-dense",
    "fixed_negatives": True, "shuffle": False, "init": "uniform", "dtype": "float64", "rng": 1,
}  # fmt: skip


def random_graph(rng: np.random.Generator, n: int, n_entities: int, n_relations: int) -> np.ndarray:
    """Distinct triples (n, 3)."""
    codes = rng.permutation(n_entities * n_relations * n_entities)[:n]
    return np.column_stack(np.unravel_index(codes, (n_entities, n_relations, n_entities)))


@pytest.fixture(scope="module")
def data() -> fi.Triples:
    rows = random_graph(np.random.default_rng(0), 130, 9, 3)
    return fi.Triples.from_arrays(*rows[:90].T, validation=rows[90:110], test=rows[110:])


@pytest.fixture(scope="module")
def ratings() -> fi.Triples:
    """Heads are users, relations are movies, tails are one of three ratings."""
    rng = np.random.default_rng(2)
    pairs = np.stack(np.unravel_index(rng.permutation(12 * 6)[:70], (12, 6)))
    rows = [(f"user {u}", f"film {m}", f"rating {rng.integers(3)}") for u, m in pairs.T]
    train = list(zip(*rows[:50], strict=True))
    return fi.Triples.from_arrays(*train, validation=rows[50:60], test=rows[60:])


def fitted(data: fi.Triples, kind: Any = None, **changed: Any) -> Any:
    return (kind or fi.DistMult)(**SMALL | changed).fit(data)


# -------------------------------------------------------------------- the parts


@pytest.mark.parametrize("optimizer", ["adam-dense", "adam", "sgd"])
def test_what_is_left_out_was_never_there(data: fi.Triples, optimizer: str) -> None:
    model = fitted(data, optimizer=optimizer)
    n = len(data)
    run = prefix(model, 3).trajectory_
    assert isinstance(run.predrawn(memory_budget=0), SkippingTrajectory)
    # The others' negatives are drawn by training index: without the last ones they stay.
    fewer = fitted(data.select(np.arange(n - 4)), optimizer=optimizer)
    without = run.retrain(without=range(n - 4, n)).rows
    assert np.array_equal(without, fewer.trajectory_.end.tables.rows)
    # Dense Adam with a weight of 0 takes a step all the same.
    zero = model.trajectory_.retrain(without=range(n - 4, n)).rows
    assert np.array_equal(zero, without) == (optimizer == "sgd")
    middle = run.retrain(without=[5, 40]).rows
    assert not np.array_equal(middle, run.end.tables.rows)
    assert np.array_equal(run.retrain().rows, run.end.tables.rows)


def test_a_prefix_is_the_model_trained_for_fewer_epochs(data: fi.Triples) -> None:
    model = fitted(data)
    shorter = prefix(model, 2)
    assert shorter.trajectory_.end.same_bits(fitted(data, n_epochs=2).trajectory_.end)
    longer = shorter.trajectory_.retrain(n_epochs=3).rows
    assert np.array_equal(longer, model.trajectory_.end.tables.rows)


def test_questions_are_the_distinct_ones_of_the_test(data: fi.Triples) -> None:
    found = Questions.of_test(data, None, among_tails=False)
    test = data.test
    distinct = sorted(set(zip(test.heads.tolist(), test.relations.tolist(), strict=True)))
    assert [*zip(found.heads.tolist(), found.relations.tolist(), strict=True)] == distinct
    for row, (head, relation) in enumerate(distinct):
        known = {
            int(part.tails[i])
            for part in (data, data.validation)
            for i in range(len(part))
            if (part.heads[i], part.relations[i]) == (head, relation)
        }
        assert set(np.flatnonzero(found.known[row]).tolist()) == known
    some = Questions.of_test(data, 4, among_tails=False)
    again = Questions.of_test(data, 4, among_tails=False)
    assert len(some) == 4
    assert np.array_equal(some.heads, again.heads)
    with pytest.raises(ParameterError, match="cannot be drawn"):
        Questions.of_test(data, 1000, among_tails=False)


def test_questions_without_an_answer_left_or_of_strangers_are_not_asked() -> None:
    data = fi.Triples.from_arrays(
        ["a", "a", "b"], ["r", "r", "r"], ["a", "b", "a"],
        test=[("a", "r", "a"), ("b", "r", "b"), ("c", "r", "a"), ("b", "s", "a")],
    )  # fmt: skip
    found = Questions.of_test(data, None, among_tails=True)
    assert data.entity_ids[found.heads].tolist() == ["b"]
    assert data.entity_ids[found.answers].tolist() == ["a", "b"]


def test_predictions_are_the_best_of_what_is_not_known(data: fi.Triples) -> None:
    model = fitted(data)
    questions = Questions.of_test(data, None, among_tails=False)
    made = Predictions(model, questions)
    n = len(questions)
    assert len(made) == 2 * n
    for row, (head, relation) in enumerate(zip(questions.heads, questions.relations, strict=True)):
        scores = model.predict(data.entity_ids[head], data.relation_ids[relation], data.entity_ids)
        scores[questions.known[row]] = -np.inf
        assert made.targets[row] == scores.argmax()
    values = made.values(model.trajectory_.end.tables, 0.0)
    bound = made.objective.bind(data, model.trajectory_.recipe)
    expected = bound.values(model.trajectory_.end.tables, 0.0)
    np.testing.assert_allclose(values[:n], expected, rtol=1e-12)
    assert np.array_equal(values[n:], made.targets)


@pytest.mark.parametrize("method", ["gradient-rollback", "curvature-rollback", "replay"])
def test_explanations_are_all_candidates_that_did_no_harm(data: fi.Triples, method: str) -> None:
    model = fitted(data)
    made = Predictions(model, Questions.of_test(data, 5, among_tails=False))
    kinds: dict[str, Any] = {
        kind.name: kind for kind in (fi.GradientRollback, fi.CurvatureRollback, fi.Replay)
    }
    influence = kinds[method](model).influence(made.objective, dense=True)
    for row, found in enumerate(made.explanations(method, 1)):
        own = influence[row][found]
        assert (own >= 0).all()
        assert (np.diff(own) <= 0).all()
        of = made.questions
        ends = (of.heads[row], made.targets[row])
        shares = np.isin(data.heads, ends) | np.isin(data.tails, ends)
        shares |= data.relations == of.relations[row]
        assert sorted(found.tolist()) == np.flatnonzero(shares & (influence[row] >= 0)).tolist()


def test_own_gradient_credit_is_another_explanation(data: fi.Triples) -> None:
    made = Predictions(fitted(data), Questions.of_test(data, 5, among_tails=False))
    expected = fi.GradientRollback(made.model, credit="gradient").influence(made.objective)
    found = made.explanations("gradient-rollback-own", 1)
    assert [len(own) for own in found] != [
        len(own) for own in made.explanations("gradient-rollback", 1)
    ]
    for row, own in enumerate(found):
        assert own[0] == expected[[row]].toarray()[0].argmax()


@pytest.mark.parametrize("kind", [fi.DistMult, fi.ComplEx])
def test_influence_among_few_answers_takes_changes_back(ratings: fi.Triples, kind: Any) -> None:
    model = fitted(ratings, kind, loss="logistic")
    questions = Questions.of_test(ratings, 3, among_tails=True)
    made = Predictions(model, questions)
    assert len(questions.answers) == 3
    changes = fi.GradientRollback(model).rows.changes
    graph, rows = model.graph_, model.trajectory_.end.tables.rows

    def probability(of: np.ndarray, row: int) -> float:
        tables = type(model.trajectory_.end.tables)(of)
        return float(made.values(tables, 0.0)[row])

    for row in range(3):
        influence = made._among_answers(changes, row)
        for triple in range(len(ratings)):
            without = rows.copy()
            without[ratings.heads[triple]] -= changes[triple, 0]
            without[ratings.tails[triple]] -= changes[triple, 1]
            without[graph.n_entities + ratings.relations[triple]] -= changes[triple, 2]
            expected = probability(rows, row) - probability(without, row)
            if triple in made.candidates[row]:
                np.testing.assert_allclose(influence[triple], expected, rtol=1e-9, atol=1e-14)
            else:
                assert influence[triple] == 0
    found = made.explanations("gradient-rollback", 1)
    assert found[0][0] == made._among_answers(changes, 0).argmax()
    with pytest.raises(ParameterError, match="among all entities"):
        made.explanations("replay", 1)


def test_controls_are_as_large_and_of_their_own_pools(data: fi.Triples) -> None:
    made = Predictions(fitted(data), Questions.of_test(data, 4, among_tails=False))
    lists = {"gradient-rollback": made.explanations("gradient-rollback", 1)}
    found = {(of.name, of.size): of.removed for of in removals(made, lists, 0)}
    assert next(iter(found)) == ("nothing", "0")
    assert len(found) == 1 + 3 * 3
    for size in ("1", "10", "all"):
        sizes = [len(own) for own in found["gradient-rollback", size]]
        for control in ("neighbourhood", "random"):
            assert [len(set(own.tolist())) for own in found[control, size]] == sizes
        for row, own in enumerate(found["neighbourhood", size]):
            assert set(own.tolist()) <= set(made.candidates[row].tolist())
    firsts = [ranked[0] for ranked in lists["gradient-rollback"]]
    assert np.concatenate(found["gradient-rollback", "1"]).tolist() == firsts
    again = {(of.name, of.size): of.removed for of in removals(made, lists, 0)}
    other = {(of.name, of.size): of.removed for of in removals(made, lists, 1)}
    for row in range(4):
        assert np.array_equal(found["random", "10"][row], again["random", "10"][row])
    assert any(
        not np.array_equal(mine, its)
        for mine, its in zip(found["random", "10"], other["random", "10"], strict=True)
    )


# -------------------------------------------------------------------- the whole


QUICK: dict[str, Any] = {
    "n_seeds": 2, "n_queries": 3, "methods": ["gradient-rollback"], "show_progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> PaperExperiment:
    return gradient_rollback_paper("nations", **QUICK)


def test_nations_is_as_published(found: PaperExperiment) -> None:
    assert (found.main_epoch, found.retrain_epochs) == (8, (10, 8))
    recipe = found.hyperparameters
    assert (recipe["n_epochs"], recipe["n_factors"], recipe["n_negatives"]) == (10, 10, 13)
    assert (recipe["optimizer"], recipe["learning_rate"], recipe["epsilon"]) == (
        "adam-dense", 3e-3, 1e-7,
    )  # fmt: skip
    assert found.deviations == ("3 predictions",)
    assert ((found.test_mrr > 0.65) & (found.test_mrr < 0.85)).all()
    assert found.n_seeds == 2
    assert len(Questions.of_test(fi.datasets.nations(), None, among_tails=False)) == 143


def test_figures_are_those_of_training_again(found: PaperExperiment) -> None:
    data = fi.datasets.nations()
    model = fi.DistMult(**found.hyperparameters, rng=1).fit(data)
    main = Predictions(prefix(model, 8), Questions.of_test(data, 3, among_tails=False))
    assert np.array_equal(found.best_before[1], main.targets)
    np.testing.assert_allclose(
        found.before[1], main.values(main.model.trajectory_.end.tables, 0.0)[:3], rtol=1e-12
    )
    # Nothing left out: the longer run goes on behind the model, the other is the model.
    longer = main.values(model.trajectory_.end.tables, 0.0)
    np.testing.assert_allclose(found.after[0, 0, 1], longer[:3], rtol=1e-12)
    assert np.array_equal(found.after[1, 0], found.before)
    assert np.array_equal(found.best_after[1, 0], found.best_before)
    first = main.explanations("gradient-rollback", None)[2][:10]
    number = found.conditions.index(("gradient-rollback", "10"))
    for place, length in enumerate((10, 8)):
        tables = main.model.trajectory_.retrain(without=np.sort(first), n_epochs=length)
        values = main.values(tables, 0.0)
        np.testing.assert_allclose(found.after[place, number, 1, 2], values[2], rtol=1e-12)
        assert found.best_after[place, number, 1, 2] == values[3 + 2]


def test_rows_are_means_over_the_seeds(found: PaperExperiment) -> None:
    rows = found.rows
    assert len(rows) == 2 * len(found.conditions)
    by_name = {(row["retrain_epochs"], row["left_out"], row["size"]): row for row in rows}
    number = found.conditions.index(("gradient-rollback", "all"))
    row = by_name[8, "gradient-rollback", "all"]
    falls = 100 * (found.after[1, number] < found.before).mean(axis=1)
    changes = 100 * (found.best_after[1, number] != found.best_before).mean(axis=1)
    drop = (found.before - found.after[1, number]).mean(axis=1)
    for name, values in (
        ("probability_drop", falls), ("top1_change", changes), ("mean_drop", drop),
    ):  # fmt: skip
        assert row[name] == pytest.approx(values.mean())
        assert row[f"{name}_sd"] == pytest.approx(values.std(ddof=1))
    assert row["examples"] == found.n_removed[number].mean() > 100
    assert (row["published_pd"], row["published_tc"]) == (100, 97)
    assert np.isnan(by_name[10, "random", "1"]["published_pd"])
    assert by_name[8, "nothing", "0"]["probability_drop"] == 0
    assert by_name[8, "gradient-rollback", "10"]["probability_drop"] >= 60
    assert found.to_dict()["examples"].tolist() == [row["examples"] for row in rows]
    assert found.to_pandas().shape == (len(rows), len(rows[0]))


def test_it_shows_itself_beside_the_published_figures(
    found: PaperExperiment,
) -> None:
    text = repr(found)
    assert text.startswith("Gradient Rollback paper on nations: DistMult, 2 seeds, 3 predictions")
    assert "trained again for 10 epochs" in text
    assert "trained again for 8 epochs" in text
    assert "not as published: 3 predictions" in text
    lines = [line for line in text.splitlines() if line.startswith("GR-1 ")]
    assert len(lines) == 2
    assert lines[0].endswith("93 / 38")
    assert "±" in lines[0]
    assert max(map(len, text.splitlines())) <= 100


def test_one_seed_has_no_spread() -> None:
    told: list[str] = []
    one = gradient_rollback_paper(
        "nations", **QUICK | {"n_seeds": 1, "n_queries": 2}, retrain_epochs=8, optimizer="sgd",
        model="complex", tell=told.append,
    )  # fmt: skip
    assert one.retrain_epochs == (8,)
    assert np.isnan(one.rows[-1]["mean_drop_sd"])
    assert np.isnan(one.rows[-1]["published_pd"])
    assert one.hyperparameters["n_factors"] == 20
    assert "optimizer=sgd, learning_rate=0.2, init_scale=0.5" in repr(one)
    assert "±" not in repr(one)
    (line,) = told
    assert line.startswith(f"{one.n_retrainings} retrainings of 1,592 triples")
    assert "about" in line


def test_threads_change_nothing_and_a_folder_keeps_the_retrainings(
    found: PaperExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = gradient_rollback_paper("nations", **QUICK, n_threads=1, path=tmp_path)
    assert np.array_equal(kept.after, found.after)
    assert np.array_equal(kept.best_after, found.best_after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]

    def never(self: object, **options: object) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(SkippingTrajectory, "retrain", never)
    again = gradient_rollback_paper("nations", **QUICK, path=tmp_path)
    assert np.array_equal(again.after, found.after)
    with pytest.raises(RunDirectoryError, match="another kind"):
        gradient_rollback_paper("nations", **QUICK | {"n_queries": 2}, path=tmp_path)


def test_graphs_of_a_folder(data: fi.Triples, tmp_path: Path) -> None:
    write_graph(tmp_path, data)
    found = gradient_rollback_paper(
        "fb15k-237", data=tmp_path, n_seeds=1, n_queries=2, show_progress=False
    )
    assert (found.main_epoch, found.retrain_epochs) == (1, (1,))
    assert found.conditions[-1] == ("curvature-rollback", "all")
    assert found.after.shape == (1, 1 + 5 * 3, 1, 2)
    assert found.rows[0]["probability_drop"] == 0
    assert "trained again for 1 epoch\n" in repr(found)
    assert found.hyperparameters["loss"] == "softmax"


def test_movielens_as_a_graph(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = np.stack(np.unravel_index(rng.permutation(15 * 10)[:120], (15, 10))).T
    rows = [f"{user}\t{film}\t{rng.integers(1, 6)}\t7\n" for user, film in pairs]
    (tmp_path / "u.data").write_text("".join(rows))
    found = gradient_rollback_paper(
        "movielens-kg", data=tmp_path, n_seeds=1, n_queries=2, methods=["gradient-rollback"],
        show_progress=False,
    )  # fmt: skip
    graph = fi.datasets.movielens_graph(tmp_path)
    names = [graph.entity_ids[code] for code in found.best_after.ravel().tolist()]
    assert all(name.startswith("rating ") for name in names)
    assert found.before.min() > 0.1  # among five
    assert found.hyperparameters["loss"] == "logistic"


def write_graph(folder: Path, data: fi.Triples) -> None:
    parts = {"train": data, "valid": data.validation, "test": data.test}
    for name, part in parts.items():
        rows = zip(*(column.tolist() for column in part.columns().values()), strict=True)
        lines = ["\t".join(f"x{cell}" for cell in row) + "\n" for row in rows]
        (folder / f"{name}.txt").write_text("".join(lines))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataset": "iris"}, ParameterError, "nations, fb15k-237, movielens-kg"),
        ({"model": "mf"}, ParameterError, "distmult, complex"),
        ({"optimizer": "adagrad"}, ParameterError, "adam-dense, adam, sgd"),
        ({"methods": ["tarot"]}, ParameterError, "gradient-rollback-own"),
        ({"methods": []}, ParameterError, "each once"),
        ({"methods": ["replay", "replay"]}, ParameterError, "each once"),
        ({"n_seeds": 0}, ParameterError, "n_seeds"),
        ({"n_queries": 0}, ParameterError, "n_queries"),
        ({"n_queries": 144}, ParameterError, "143 questions"),
        ({"retrain_epochs": 9}, ParameterError, "10 or 8 epochs"),
        ({"data": "somewhere"}, DataError, "is bundled"),
        ({"dataset": "fb15k-237"}, DataError, "say where it is"),
        ({"dataset": "fb15k-237", "data": "nowhere"}, DataError, "no such folder"),
        ({"dataset": "fb15k-237", "retrain_epochs": 8}, ParameterError, "for 1 epoch$"),
        ({"dataset": "movielens-kg", "methods": ["replay"]}, ParameterError, "among ratings"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gradient_rollback_paper(**options)


def test_a_graph_without_test_triples(data: fi.Triples, tmp_path: Path) -> None:
    write_graph(tmp_path, data)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match="holds no test triples"):
        gradient_rollback_paper("fb15k-237", data=tmp_path)
