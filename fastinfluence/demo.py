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
from fastinfluence.data import Interactions, datasets
from fastinfluence.errors import MissingExtraError, RunDirectoryError
from fastinfluence.models import MatrixFactorization
from fastinfluence.models.matrix_factorization import scores
from fastinfluence.storage.atomic import atomic_file
from fastinfluence.storage.tables import import_extra

if TYPE_CHECKING:
    from fastinfluence.attribution.explanation import Explanation

__all__ = ["npm"]

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
    if out is not None and (out / "run").exists():
        raise RunDirectoryError(f"{out / 'run'} exists already: choose another folder")
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
    candidates = np.flatnonzero(curved)
    ranked = candidates[np.argsort(-curved[candidates], kind="stable")]
    chosen = ranked[[0, 1, len(ranked) // 2, -1]]
    say(
        f"Is that so? Without one example, train again, and see what {one.name} becomes;\n"
        f"with all of them it is {one.prediction:.2f} (log-odds). {len(chosen)} training runs ..."
    )
    actual = _changes(model, one, chosen)
    names = ["the strongest reason", "the second", "a middling example", "the strongest against"]
    data = model.data_
    rows = [("", "left out", "", "estimated", "actual change", "(Gradient Rollback)")]
    for name, row, change in zip(names, chosen, actual, strict=True):
        example = f"{data.user_name(data.users[row])} → {data.item_name(data.items[row])}"
        figures = (f"{-curved[row]:+.2f}", f"{change:+.2f}", f"{-plain[row]:+.2f}")
        rows.append(("", name, example, *figures))
    total = np.abs(actual).sum()
    ratios = [np.abs(influence[chosen]).sum() / total for influence in (curved, plain)]
    say(
        _columns(rows) + "\n\n"
        "  Curvature Rollback follows what later training made of an example's updates: its\n"
        f"  estimates here add up to {ratios[0]:.1f} times the actual changes. Gradient Rollback\n"
        f"  does not, and comes to {ratios[1]:.1f} times: it orders examples, no more.\n"
    )


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


def _write(say: Say, out: Path, model: MatrixFactorization, explanations: Explanations) -> None:
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
