"""The demonstration: train on real data, say why, take a reason away and see what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution import CurvatureRollback, Explanations, GradientRollback
from fastinfluence.attribution.base_explanations import BaseExplanations
from fastinfluence.attribution.objectives import Probability
from fastinfluence.data import Interactions, Triples, datasets
from fastinfluence.errors import MissingExtraError, RunDirectoryError
from fastinfluence.evaluation import deletion_effect, leave_out, link_prediction
from fastinfluence.models import ComplEx, MatrixFactorization, Model
from fastinfluence.models.matrix_factorization import scores
from fastinfluence.storage.atomic import atomic_file
from fastinfluence.storage.tables import import_extra

if TYPE_CHECKING:
    from fastinfluence.attribution.explanation import Explanation
    from fastinfluence.attribution.triple_explanations import TripleExplanations

__all__ = ["nations", "npm"]

Say = Callable[[str], None]

HYPERPARAMETERS: dict[str, Any] = {
    "loss": "logistic",
    "n_epochs": 20,
    "learning_rate": 0.05,
    "regularization": 0.005,
    "rng": 0,
}
PACKAGES = ("lerna", "eslint", "yo", "karma", "ghost")
AT = 10  # of the hit rate

# Full softmax, a modest rate that declines, regularization: a run whose explanations are true.
GRAPH_HYPERPARAMETERS: dict[str, Any] = {
    "n_factors": 20,
    "n_negatives": "all",
    "n_epochs": 60,
    "learning_rate": 0.05,
    "regularization": 0.02,
    "rng": 0,
}
QUESTIONS = (
    ("brazil", "exports3"),
    ("india", "students"),
    ("burma", "dependent"),
    ("poland", "commonbloc2"),
)
TOGETHER = 10  # reasons left out at once


def npm(say: Say, out: Path | None = None) -> None:
    """Explain recommended dependencies of well-known npm packages, and check by retraining.

    Parameters
    ----------
    say : callable
        Takes the text, a paragraph at a time.
    out : Path, optional
        Folder that gets the run directory ``run``, ``why.csv`` and, where matplotlib is
        installed, ``why.png``.

    Raises
    ------
    RunDirectoryError
        `out` holds a run already.
    """
    _check_free(out)
    train, test = _data(say)
    model = _training(say, train, test)
    items, _ = model.recommend(PACKAGES, k=1)
    pairs = [*zip(PACKAGES, items[:, 0], strict=True)]
    why = CurvatureRollback(model, rows=pairs)
    explanations = why.explain(pairs)
    _reasons(say, explanations, test)
    _check(say, why, explanations[0])
    if out is not None:
        _write(say, out, model, explanations)


def nations(say: Say, out: Path | None = None) -> None:
    """Explain what a knowledge graph predicts of nations, and check by retraining.

    Parameters
    ----------
    say, out
        As for `npm`.

    Raises
    ------
    RunDirectoryError
        `out` holds a run already.
    """
    _check_free(out)
    data = datasets.nations()
    model = _training_on_triples(say, data)
    heads, relations = zip(*QUESTIONS, strict=True)
    tails, _ = model.predict_tails(heads, relations, k=1)
    asked = Probability([(*q, tail) for q, tail in zip(QUESTIONS, tails[:, 0], strict=True)])
    why: Any = CurvatureRollback(model)  # type: ignore[arg-type]  # the variant for triples
    explanations = why.explain(asked, k=TOGETHER)
    _reasons_of_triples(say, explanations, data)
    _check_of_triples(say, why, asked, explanations)
    if out is not None:
        _write(say, out, model, explanations)


def _check_free(out: Path | None) -> None:
    if out is not None and (out / "run").exists():
        raise RunDirectoryError(f"{out / 'run'} exists already: choose another folder")


# -------------------------------------------------------------------- packages


def _data(say: Say) -> tuple[Interactions, Interactions]:
    data = datasets.npm()
    train, test = data.leave_one_out(rng=0)
    say(
        "The data: which packages of the npm registry depend on which others, in December 2016.\n"
        f"  {len(data):,} dependencies of {data.n_users:,} packages on {data.n_items:,} others; "
        "one of every package is held out.\n"
    )
    return train, test


def _training(say: Say, train: Interactions, test: Interactions) -> MatrixFactorization:
    model = MatrixFactorization(**HYPERPARAMETERS)
    say(
        f"Training a matrix factorization: {model.n_factors} factors, {model.n_epochs} epochs.\n"
        "  (The first run on a machine compiles the kernels too, which takes half a minute once.)"
    )
    start = time.perf_counter()
    model.fit(train, record="rollback")
    seconds = time.perf_counter() - start
    items, _ = model.recommend(test.user_ids[test.users], k=AT)
    hits = (items == test.item_ids[test.items][:, None]).any(axis=1).mean()
    say(
        f"  Trained in {seconds:.1f} s. Of the held-out dependencies, {hits:.0%} are among the "
        f"{AT} it recommends;\n"
        f"  recommending by popularity finds {_popular_hits(train, test):.0%}.\n"
    )
    return model


def _popular_hits(train: Interactions, test: Interactions) -> float:
    """Share of held-out pairs among the most popular items their user does not have yet."""
    place = np.empty(train.n_items, np.int64)
    place[np.argsort(-np.bincount(train.items, minlength=train.n_items), kind="stable")] = (
        np.arange(train.n_items)
    )
    target = np.zeros(train.n_users, np.int64)
    target[test.users] = place[test.items]
    known_before = np.bincount(
        train.users, place[train.items] < target[train.users], minlength=train.n_users
    )
    return float((target[test.users] - known_before[test.users] < AT).mean())


def _reasons(say: Say, explanations: Explanations, test: Interactions) -> None:
    say("Why does it recommend what it recommends? Curvature Rollback, on well-known packages:\n")
    held_out = dict(zip(test.user_ids[test.users], test.item_ids[test.items], strict=True))
    for one in explanations:
        found = held_out.get(one.user) == one.item
        say(
            f"  {one.user}: recommended {one.item}"
            + (", a true dependency that was held out" if found else "")
            + ", because of\n"
            + _columns(
                [(f"{float(size):+.2f}", name, common) for size, name, common in one.reasons(3)]
            )
            + "\n"
        )


def _check(say: Say, why: CurvatureRollback, one: Explanation) -> None:
    """Leave out the two best reasons, a middling example and the worst, one after another."""
    model, pair = why.model, [(one.user, one.item)]
    curved, plain = (
        np.asarray(method.influence(pair, dense=True))[0]
        for method in (why, GradientRollback(model))
    )
    chosen = _four(curved)
    say(
        f"Is that so? Without one example, train again, and see what {one.name} becomes;\n"
        f"with all of them it is {one.prediction:.2f} (log-odds). {len(chosen)} training runs ..."
    )
    actual = _changes(model, one, chosen)
    data = model.data_
    examples = [
        f"{data.user_name(data.users[row])} → {data.item_name(data.items[row])}" for row in chosen
    ]
    _say_figures(say, examples, curved[chosen], actual, plain[chosen], digits=2)


def _changes(
    model: MatrixFactorization, one: Explanation, rows: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """What leaving out each training row makes of a prediction, by training again."""
    user, item = model.data_.user_index(one.user), model.data_.item_index(one.item)

    def without(row: int) -> float:
        tables = model.trajectory_.retrain(without=[row])
        return float(scores(tables, model.global_mean_, user, item)[0])

    with ThreadPoolExecutor(min(len(rows), dispatch.thread_count(None))) as pool:
        after = np.array([*pool.map(without, rows.tolist())])
    return after - one.prediction


# -------------------------------------------------------------------- nations


def _training_on_triples(say: Say, data: Triples) -> ComplEx:
    assert data.test is not None
    model = ComplEx(**GRAPH_HYPERPARAMETERS)
    say(
        "The data: what nations do to each other, in the years of the Cold War.\n"
        f"  {len(data):,} triples of {data.n_entities} nations and {data.n_relations} relations; "
        f"{len(data.test)} others are held out.\n\n"
        f"Training ComplEx: {model.n_factors} numbers for a nation, {model.n_epochs} epochs.\n"
        "  (The first run on a machine compiles the kernels too, which takes half a minute once.)"
    )
    start = time.perf_counter()
    model.fit(data)
    seconds = time.perf_counter() - start
    found = link_prediction(model)
    say(
        f"  Trained in {seconds:.1f} s. Asked for the missing nation of a held-out triple, it\n"
        f"  names the right one first {found.hits(1):.0%} of the time, and among the first three "
        f"{found.hits(3):.0%} (MRR {found.mrr:.2f}).\n"
    )
    return model


def _reasons_of_triples(say: Say, explanations: TripleExplanations, data: Triples) -> None:
    assert data.test is not None
    say("Why does it predict what it predicts? Curvature Rollback, on the probability:\n")
    held_out = set(zip(*(column.tolist() for column in data.test.columns().values()), strict=True))
    for one in explanations:
        found = (one.head, one.relation, one.tail) in held_out
        reasons = [(f"{float(size):+.3f}", name, shared) for size, name, shared in one.reasons(3)]
        say(
            f"  {one.name} ({one.prediction:.0%})"
            + (", a true triple that was held out" if found else "")
            + f", because of\n{_columns(reasons)}\n"
        )


def _check_of_triples(
    say: Say, why: CurvatureRollback, asked: Probability, explanations: TripleExplanations
) -> None:
    """Leave out single triples of the first prediction; then all reasons of each together."""
    model, one = why.model, explanations[0]
    first = Probability([(one.head, one.relation, one.tail)])
    curved, plain = (
        np.asarray(method.influence(first, dense=True))[0]
        for method in (why, GradientRollback(model))
    )
    chosen = _four(curved)
    say(
        f"Is that so? Without one triple, train again, and see what {one.name} becomes;\n"
        f"with all of them its probability is {one.prediction:.3f}. {len(chosen)} training runs ..."
    )
    actual = -leave_out(model, first, [[row] for row in chosen], show_progress=False)[0]
    examples = [model.data_.triple_name(row) for row in chosen.tolist()]
    _say_figures(say, examples, curved[chosen], actual, plain[chosen], digits=3)
    effect = deletion_effect(
        model, asked, {"reasons": explanations}, (TOGETHER,), show_progress=False
    )
    say(f"And without the {TOGETHER} best reasons of each together?")
    rows: list[Sequence[str]] = [
        ("", "prediction", "with them", "without", f"without {TOGETHER} neighbours", "then")
    ]
    for number, one in enumerate(explanations):
        then = model.data_.entity_name(int(effect.best_after[0, number]))
        same = effect.best_after[0, number] == effect.best_before[number]
        after = (effect.after[row, number] for row in (0, effect.methods.index("neighbourhood")))
        figures = [f"{p:.0%}" for p in (effect.before[number], *after)]
        rows.append(("", one.name, *figures, "the same" if same else then))
    say(_columns(rows) + "\n")


# -------------------------------------------------------------------- both


def _four(influence: npt.NDArray[Any]) -> npt.NDArray[np.integer]:
    """The two strongest reasons of those with influence, a middling one and the last."""
    candidates = np.flatnonzero(influence)
    ranked = candidates[np.argsort(-influence[candidates], kind="stable")]
    return ranked[[0, 1, len(ranked) // 2, -1]]


def _say_figures(
    say: Say,
    examples: Sequence[str],
    curved: npt.NDArray[Any],
    actual: npt.NDArray[np.float64],
    plain: npt.NDArray[Any],
    digits: int,
) -> None:
    """What was estimated, and what really happened without each of `_four` examples."""
    names = ["the strongest reason", "the second", "a middling example", "the strongest against"]
    rows: list[Sequence[str]] = [
        ("", "left out", "", "estimated", "actual change", "(Gradient Rollback)")
    ]
    for name, example, *sizes in zip(names, examples, -curved, actual, -plain, strict=True):
        rows.append(("", name, example, *(f"{size:+.{digits}f}" for size in sizes)))
    total = np.abs(actual).sum()
    ratios = [np.abs(influence).sum() / total for influence in (curved, plain)]
    say(
        _columns(rows) + "\n\n"
        "  Curvature Rollback follows what later training made of an example's updates: its\n"
        f"  estimates here add up to {ratios[0]:.1f} times the actual changes. Gradient Rollback\n"
        f"  does not, and comes to {ratios[1]:.1f} times: it orders examples, no more.\n"
    )


def _write(say: Say, out: Path, model: Model, explanations: BaseExplanations[Any]) -> None:
    model.save(out / "run")
    explanations.save(out / "why.csv")
    written = ["run (the model: explain more of it with `fastinfluence explain`)", "why.csv"]
    try:
        figure = import_extra("matplotlib.figure", "a plot", extra="plot").Figure(
            figsize=(8, 4), layout="constrained"
        )
        explanations.plot(0, ax=figure.subplots())
        with atomic_file(out / "why.png") as file:
            figure.savefig(file, format="png")
        written.append("why.png")
    except MissingExtraError:
        written.append("no why.png: that needs pip install 'fastinfluence[plot]'")
    say(f"Written to {out}:\n" + "\n".join(f"  {line}" for line in written))


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned cells, numbers (cells that begin with a sign) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1] in ("+", "-") else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append(("    " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
