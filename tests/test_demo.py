"""The demonstration: its figures are true, and it leaves what it says it leaves."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence import demo
from fastinfluence.errors import RunDirectoryError


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Text and folder of a demonstration with little training."""
    folder = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "HYPERPARAMETERS", demo.HYPERPARAMETERS | QUICK)
        demo.npm(said.append, folder)
    return "\n".join(said), folder


QUICK = {"n_factors": 8, "n_epochs": 2}


def test_it_shows_hits_reasons_and_a_check(shown: tuple[str, Path]) -> None:
    text, _ = shown
    assert "169,582 dependencies of 9,723 packages on 1,417 others" in text
    assert re.search(r"Of the held-out dependencies, \d+% are among the 10", text)
    for package in demo.PACKAGES:
        assert f"  {package}: recommended " in text
    assert "the strongest reason" in text
    assert re.search(r"add up to \d+\.\d times the actual changes", text)
    assert max(map(len, text.splitlines())) <= 100


def test_estimated_and_actual_change_are_those_of_the_library(shown: tuple[str, Path]) -> None:
    text, folder = shown
    model = fi.load(folder / "run")
    user, item = re.search(r"see what (\S+) → (\S+) becomes", text).groups()  # type: ignore[union-attr]
    one = fi.CurvatureRollback(model, rows=[(user, item)]).explain([(user, item)])[0]
    plain = fi.GradientRollback(model).influence([(user, item)], dense=True)[0]
    row = one.train_index[0]
    weights = np.ones(len(model.data_))
    weights[row] = 0
    refit = fi.MatrixFactorization(**model.get_params()).fit(model.data_, sample_weight=weights)
    change = refit.predict(user, item)[0] - one.prediction
    line = next(line for line in text.splitlines() if "the strongest reason" in line)
    assert one.example_names[0] in line
    figures = (-one.influence[0], change, -plain[row])
    assert line.split()[-3:] == [f"{figure:+.2f}" for figure in figures]


def test_it_writes_the_run_the_reasons_and_a_plot(shown: tuple[str, Path]) -> None:
    text, folder = shown
    assert sorted(file.name for file in folder.iterdir()) == ["run", "why.csv", "why.png"]
    assert (folder / "why.png").read_bytes().startswith(b"\x89PNG")
    assert "why.png" in text
    assert set(demo.PACKAGES) <= set((folder / "why.csv").read_text().replace("\n", ",").split(","))


def test_it_refuses_to_replace_a_run_before_it_starts(shown: tuple[str, Path]) -> None:
    said: list[str] = []
    with pytest.raises(RunDirectoryError, match="exists already"):
        demo.npm(said.append, shown[1])
    assert said == []


def test_popularity_leaves_out_what_a_user_has() -> None:
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.geometric(0.1, (400, 2)) % 30, axis=0)
    train, test = fi.Interactions.from_arrays(*pairs.T).leave_one_out(rng=0)
    counts = np.bincount(train.items, minlength=train.n_items)
    hits = []
    for user, item in zip(test.users, test.items, strict=True):
        known = set(train.items[train.users == user].tolist())
        ranked = [i for i in np.argsort(-counts, kind="stable").tolist() if i not in known]
        hits.append(item in ranked[:10])
    assert 0 < np.mean(hits) < 1
    assert demo._popular_hits(train, test) == np.mean(hits)


def test_columns_line_up() -> None:
    rows = [("", "head", "size"), ("name", "b", "+1"), ("n", "longer", "-12")]
    assert demo._columns(rows) == (
        "          head    size\n    name  b         +1\n    n     longer   -12"
    )


# -------------------------------------------------------------------- nations


@pytest.fixture(scope="module")
def graph_shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Text and folder of the demonstration on a knowledge graph."""
    folder = tmp_path_factory.mktemp("nations")
    said: list[str] = []
    demo.nations(said.append, folder)
    return "\n".join(said), folder


def test_nations_shows_hits_reasons_and_checks(graph_shown: tuple[str, Path]) -> None:
    text, _ = graph_shown
    assert "1,592 triples of 14 nations and 55 relations; 201 others are held out" in text
    for head, relation in demo.QUESTIONS:
        assert f"  {head} — {relation} → " in text
    assert "a true triple that was held out" in text
    first, third = (int(re.search(rf"{words} (\d+)%", text).group(1))  # type: ignore[union-attr]
                    for words in ("right one first", "first three"))  # fmt: skip
    assert 45 <= first < third <= 100
    ratio = float(re.search(r"add up to (\d+\.\d) times the actual", text).group(1))  # type: ignore[union-attr]
    assert 0.5 < ratio < 2


def test_nations_tells_what_retraining_gives(graph_shown: tuple[str, Path]) -> None:
    text, folder = graph_shown
    model = fi.load(folder / "run")
    head, relation = demo.QUESTIONS[0]
    tail = model.predict_tails(head, relation, 1)[0][0, 0]
    asked = fi.objectives.Probability([(head, relation, tail)])
    one = fi.CurvatureRollback(model).explain(asked)[0]
    row = one.train_index[0]
    weights = np.ones(len(model.data_))
    weights[row] = 0
    refit = fi.ComplEx(**model.get_params()).fit(model.data_, sample_weight=weights)
    bound = asked.bind(model.data_, model.trajectory_.recipe)
    (after,) = bound.values(refit.trajectory_.end.tables, 0.0)
    line = next(line for line in text.splitlines() if "the strongest reason" in line)
    assert one.example_names[0] in line
    assert line.split()[-3:-1] == [
        f"{size:+.3f}" for size in (-one.influence[0], after - one.prediction)
    ]
    weights[one.train_index] = 0
    refit = fi.ComplEx(**model.get_params()).fit(model.data_, sample_weight=weights)
    (after,) = bound.values(refit.trajectory_.end.tables, 0.0)
    table = text.partition("best reasons of each together")[2]
    line = next(line for line in table.splitlines() if one.name in line)
    assert f"{one.prediction:.0%}" in line
    assert f"{after:.0%}" in line


def test_nations_writes_the_run_the_reasons_and_a_plot(graph_shown: tuple[str, Path]) -> None:
    _, folder = graph_shown
    assert sorted(file.name for file in folder.iterdir()) == ["run", "why.csv", "why.png"]
    with pytest.raises(RunDirectoryError, match="exists already"):
        demo.nations(print, folder)


@pytest.mark.slow
def test_the_full_demonstration_is_good_and_agrees_with_retraining() -> None:
    said: list[str] = []
    demo.npm(said.append)
    text = "\n".join(said)
    hits, popular = map(int, re.findall(r"(\d+)%", text))
    assert hits >= 45
    assert popular <= 20
    number = r"([+-]\d+\.\d+)"
    changes = re.findall(rf"{number} +{number} +{number}$", text, flags=re.MULTILINE)
    curved, actual, plain = np.array(changes, dtype=float).T
    assert len(actual) == 4
    assert (curved * actual >= 0).all()  # one of them may be rounded to 0
    assert 0.5 < np.abs(curved).sum() / np.abs(actual).sum() < 2
    assert np.abs(plain).sum() > 2 * np.abs(actual).sum()
