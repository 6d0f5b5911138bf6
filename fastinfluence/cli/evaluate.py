"""``fastinfluence evaluate``."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastinfluence
from fastinfluence.cli.methods import METHODS, make_method
from fastinfluence.cli.options import column_option, json_option, read_queries, report
from fastinfluence.errors import MissingExtraError, RunDirectoryError
from fastinfluence.evaluation import compare, deletion_effect, sample_queries, subset_removal
from fastinfluence.evaluation.comparison import without_nan
from fastinfluence.models import MatrixFactorization, load
from fastinfluence.storage import tables
from fastinfluence.storage.atomic import atomic_file

if TYPE_CHECKING:
    from fastinfluence.evaluation import Comparison, DeletionEffect

__all__ = ["evaluate"]

_RETRAINING = "retraining"


def _several(
    read: Callable[[str], Any], what: str
) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    """A callback that reads an option with several entries, separated by commas."""

    def callback(
        context: click.Context, option: click.Parameter, text: str | None
    ) -> tuple[Any, ...]:
        entries = [] if text is None else text.split(",")
        try:
            found = tuple(read(entry.strip()) for entry in entries)
        except (ValueError, KeyError):
            raise click.BadParameter(f"give {what}, separated by commas, not {text!r}") from None
        if len(set(found)) < len(found):
            raise click.BadParameter(f"{text!r} names the same twice")
        return found

    return callback


def _share(text: str) -> float:
    if not 0 < (share := float(text)) < 1:
        raise ValueError
    return share


def _size(text: str) -> int:
    if (size := int(text)) < 1:
        raise ValueError
    return size


def _methods(context: click.Context, option: click.Parameter, text: str) -> tuple[Any, ...]:
    if text == "all":
        return tuple(METHODS)
    read = _several(lambda name: METHODS[name].name, f"'all' or some of {', '.join(METHODS)}")
    return read(context, option, text)


@click.command()
@click.argument("run")
@click.option(
    "--methods",
    metavar="NAMES",
    default="all",
    show_default=True,
    callback=_methods,
    help=f"Attribution methods, separated by commas: {', '.join(METHODS)}.",
)
@click.option(
    "--queries",
    metavar="N|FILE",
    default="20",
    show_default=True,
    help="The best recommendations of N random users, or a file with users and items.",
)
@column_option("user", "users in FILE (default: user)")
@column_option("item", "items in FILE (default: item)")
@click.option(
    "--adjacent",
    type=click.IntRange(min=0),
    default=125,
    show_default=True,
    help="Examples of each query's user or item to leave out, one at a time.",
)
@click.option(
    "--others",
    type=click.IntRange(min=0),
    default=300,
    show_default=True,
    help="Examples drawn from all to leave out, one at a time.",
)
@click.option(
    "--lds",
    metavar="SHARES",
    callback=_several(_share, "numbers between 0 and 1"),
    help="Add the linear datamodeling score for random subsets of these shares of the examples, "
    "such as 0.001,0.05.",
)
@click.option(
    "--subsets",
    type=click.IntRange(min=2),
    default=100,
    show_default=True,
    help="Subsets of each share.",
)
@click.option(
    "--deletion",
    metavar="SIZES",
    callback=_several(_size, "numbers of examples"),
    help="Also leave out explanations of these sizes, such as 1,10, and count the predictions "
    "that fall and the best recommendations that change.",
)
@click.option("--rng", type=click.IntRange(min=0), default=0, show_default=True, help="Seed.")
@click.option("--n-threads", type=click.IntRange(min=1), help="All processors by default.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--resume", is_flag=True, help="Go on with a folder, reusing its retrainings.")
@json_option
def evaluate(
    run: str,
    methods: tuple[str, ...],
    queries: str,
    user: str | int | None,
    item: str | int | None,
    adjacent: int,
    others: int,
    lds: tuple[float, ...],
    subsets: int,
    deletion: tuple[int, ...],
    rng: int,
    n_threads: int | None,
    out: Path,
    resume: bool,
    as_json: bool,
) -> None:
    """Measure attribution methods against retraining without single examples.

    RUN is what `train` wrote. Writes table.csv, table.json with all settings, picture.png,
    with --deletion deletion.csv, and the results of all retrainings.
    """
    start = time.perf_counter()
    _check_target(out, resume)
    model = load(run)
    pairs = _pairs(model, queries, user, item, rng)
    settings = {
        "run": run,
        "out": os.fspath(out),
        **_facts(model),
        "queries": pairs,
        "adjacent": adjacent,
        "others": others,
        "lds": lds,
        "subsets": subsets,
        "deletion_sizes": deletion,
        "rng": rng,
        "n_threads": n_threads,
    }
    asked = {name: _Method(name, model, pairs, n_threads) for name in methods}
    comparison, effect, n_retrainings = _measure(model, asked, settings, out / _RETRAINING)
    written, shown = _write(out, comparison, effect)
    summary = settings | {
        "n_queries": len(pairs),
        "n_retrainings": n_retrainings,
        "seconds": time.perf_counter() - start,
        "methods": without_nan(comparison.rows),
        "deletion": without_nan(effect.rows) if effect else [],
    }
    with atomic_file(out / "table.json") as file:
        file.write(json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n")
    found = f", those found in {out} included," if resume else ""
    text = (
        f"{shown}\n\n{n_retrainings:,} retrainings{found} in {summary['seconds']:.1f} s; "
        f"written to {out}: {', '.join([*written, 'table.json'])}."
    )
    report(as_json, summary, text)


@dataclass
class _Method:
    """A method that is made when it is first asked, so that the comparison times all its work."""

    name: str
    model: MatrixFactorization
    pairs: list[tuple[Any, Any]]
    n_threads: int | None

    @property
    def units(self) -> str:
        units: str = METHODS[self.name].units
        return units

    @cached_property
    def made(self) -> Any:
        return make_method(self.name, self.model, self.pairs, n_threads=self.n_threads)

    def influence(self, objective: Any) -> Any:
        return self.made.influence(objective)


def _measure(
    model: MatrixFactorization, asked: dict[str, _Method], settings: dict[str, Any], kept: Path
) -> tuple[Comparison, DeletionEffect | None, int]:
    """Compare the methods, delete their explanations; the number of retrainings of both."""
    pairs, sizes = settings["queries"], settings["deletion_sizes"]
    common = {name: settings[name] for name in ("rng", "n_threads")}
    removals = [
        subset_removal(
            model, pairs, share, settings["subsets"], path=kept / f"subsets-{share:g}", **common
        )
        for share in settings["lds"]
    ]
    comparison = compare(
        asked,
        pairs,
        subsets=removals,
        adjacent=settings["adjacent"],
        others=settings["others"],
        path=kept / "leave-one-out",
        **common,
    )
    n_retrainings = len(comparison.truth.train_index)
    n_retrainings += sum(len(subset.removals) for subset in removals)
    if not sizes:
        return comparison, None, n_retrainings
    rankings = {name: one.made.explain(pairs, max(sizes)) for name, one in asked.items()}
    effect = deletion_effect(model, pairs, rankings, sizes, path=kept / "deletion", **common)
    return comparison, effect, n_retrainings + effect.n_retrainings


def _check_target(out: Path, resume: bool) -> None:
    if not os.path.lexists(out):
        return
    if not resume:
        raise RunDirectoryError(
            f"{out} exists already: choose another name, or go on with it by --resume"
        )
    if not (out / _RETRAINING).is_dir():
        raise RunDirectoryError(f"{out} holds no {_RETRAINING} folder: nothing to go on with")


def _pairs(
    model: MatrixFactorization,
    queries: str,
    user: str | int | None,
    item: str | int | None,
    rng: int,
) -> list[tuple[Any, Any]]:
    if queries.isdecimal():
        if int(queries) == 0:
            raise click.UsageError("--queries 0 asks for nothing: give 1 or more, or a file")
        if user is not None or item is not None:
            raise click.UsageError("--user and --item name columns of a file of queries")
        return sample_queries(model, int(queries), rng)
    columns = read_queries(model, queries, user, item)
    return [*zip(columns["user"].tolist(), columns["item"].tolist(), strict=True)]


def _facts(model: MatrixFactorization) -> dict[str, Any]:
    """What was evaluated: enough to tell another model, or other data, apart."""
    trajectory, data = model.trajectory_, model.data_
    checksum = 0
    for column in (data.users, data.items, data.values, trajectory.program.weights):
        checksum = zlib.crc32(column.tobytes(), checksum)
    return {
        "fastinfluence": fastinfluence.__version__,
        "model": f"{trajectory.fingerprint():08x}",
        "data": f"{checksum:08x}",
        "n_examples": len(data),
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_epochs": trajectory.n_epochs,
        "hyperparameters": trajectory.recipe.to_dict(),
    }


def _write(
    out: Path, comparison: Comparison, effect: DeletionEffect | None
) -> tuple[list[str], str]:
    """Write tables and picture; their names, and what a person is shown."""
    comparison.to_csv(out / "table.csv")
    written, shown = ["table.csv"], [repr(comparison)]
    if effect is not None:
        tables.write_csv(effect.to_dict(), out / "deletion.csv")
        written.append("deletion.csv")
        shown.append(repr(effect))
    try:
        comparison.plot(out / "picture.png")
        written.append("picture.png")
    except MissingExtraError as missing:
        shown.append(f"No picture: {missing}")
    return written, "\n\n".join(shown)
