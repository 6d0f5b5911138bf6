"""``fastinfluence explain``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from fastinfluence.attribution import GradientRollback
from fastinfluence.cli.methods import METHODS, check_explaining, make_method, streams
from fastinfluence.cli.options import device_option, json_option, report
from fastinfluence.cli.queries import Asked, of_triples, query_options
from fastinfluence.data import Interactions
from fastinfluence.errors import DataError, ParameterError, RunDirectoryError
from fastinfluence.memory import memory_budget
from fastinfluence.models import load
from fastinfluence.storage import tables

if TYPE_CHECKING:
    from fastinfluence.attribution.base_explanations import BaseExplanations

__all__ = ["explain"]

_ROW_BYTES = 120  # of one example in the table that a file is written from


@click.command()
@click.argument("run")
@click.argument("queries", required=False)
@click.option(
    "--recommend",
    type=click.IntRange(min=1),
    metavar="K",
    help="Explain the K best recommendations of every user; of triples the K best answers to "
    "every question of the test triples.",
)
@click.option("--all", "every_pair", is_flag=True, help="Explain every pair of a user and an item.")
@click.option("--test", is_flag=True, help="Explain the test triples of the run.")
@click.option(
    "--method", type=click.Choice([*METHODS]), default=GradientRollback.name, show_default=True
)
@click.option(
    "--k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Training examples for each prediction.",
)
@click.option(
    "--opponents",
    is_flag=True,
    help="Examples that lowered the prediction, not those that raised it.",
)
@click.option(
    "--out",
    required=True,
    help="File to write (.parquet, .csv, .npz), or a folder (no suffix), which takes any number "
    "of predictions.",
)
@click.option("--resume", is_flag=True, help="Continue a folder that an interrupted call left.")
@query_options
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Predictions done at a time; of a folder, those in a shard.",
)
@device_option
@json_option
def explain(
    run: str,
    queries: str | None,
    recommend: int | None,
    every_pair: bool,
    test: bool,
    method: str,
    k: int,
    opponents: bool,
    out: str,
    resume: bool,
    batch_size: int | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the training examples behind predictions of a model.

    RUN is what `train` wrote. QUERIES is a file with the users and items of the predictions, or
    their heads, relations and tails; where a head or tail is left empty, the model's own best
    one is explained. --recommend, --all and --test take its place.
    """
    start = time.perf_counter()
    if [queries is not None, recommend is not None, every_pair, test].count(True) != 1:
        raise click.UsageError(
            "say what to explain: exactly one of QUERIES, --recommend, --all and --test"
        )
    to_folder = _check_target(out, resume)
    _check_method(method, to_folder, batch_size)
    model, asked = load(run), Asked.of(options)
    check_explaining([method], model)
    asked.check(model, from_file=queries is not None)
    if queries is not None:
        wanted = asked.read(model, queries)
    elif of_triples(model):
        wanted = _triples(model, recommend, every_pair, asked.predict or "tail")
    else:
        wanted = _pairs(model, recommend, test)
    if wanted is None and not to_folder:
        wanted = _all_pairs(model.data_)
    what = None if wanted is None else asked.what(model, wanted)
    attribution = make_method(method, model, what, device=device)
    summary: dict[str, Any] = {
        "run": run,
        "out": out,
        "method": attribution.name,
        "units": attribution.units,
        "k": k,
        "proponents": not opponents,
    }
    if of_triples(model):
        summary["objective"] = asked.objective or "score"
    example = ""
    if to_folder:
        n_queries = attribution.explain_to(
            out, what, k, proponents=not opponents, batch_size=batch_size, resume=resume
        )
    else:
        n_queries = _length(wanted)
        _check_size(n_queries, k)
        in_batches = {"batch_size": batch_size} if streams(method) else {}
        found = attribution.explain(what, k, proponents=not opponents, **in_batches)
        found.save(out)
        example = _example(found)
    summary |= {"n_queries": n_queries, "seconds": time.perf_counter() - start}
    text = (
        f"Explained {n_queries:,} predictions by {method} in {summary['seconds']:.1f} s; "
        f"written to {out}.{example}"
    )
    report(as_json, summary, text)


def _check_target(out: str, resume: bool) -> bool:
    """Whether `out` is to be a folder; refuses before the work what cannot be written."""
    if out.endswith("/") or not Path(out).suffix:
        if os.path.lexists(out) and not resume:
            raise RunDirectoryError(
                f"{out} exists already: choose another name, or continue it with --resume"
            )
        return True
    suffix = tables.suffix_of(Path(out), (".parquet", ".csv", ".npz"))
    if resume:
        raise click.UsageError(
            f"--resume continues a folder of shards; {out} is a file, which is written whole or "
            "not at all: leave out --resume, or give --out a name without a suffix"
        )
    if Path(out).is_dir():
        raise ParameterError(f"{out} is a folder: choose another name for the file")
    if suffix == ".parquet":
        tables.import_extra("pyarrow", "writing Parquet", extra="arrow")
    return False


def _check_method(method: str, to_folder: bool, batch_size: int | None) -> None:
    if streams(method):
        return
    if to_folder:
        able = ", ".join(filter(streams, METHODS))
        raise click.UsageError(
            f"{method} cannot stream predictions into a folder ({able} can): give --out a file "
            "(.parquet, .csv, .npz)"
        )
    if batch_size is not None:
        raise click.UsageError(f"{method} has batches of its own: leave out --batch-size")


def _pairs(model: Any, recommend: int | None, test: bool) -> dict[str, Any] | None:
    """Columns of raw ids, or None for all pairs."""
    if test:
        raise click.UsageError("--test explains triples: this run has no test data")
    if recommend is None:
        return None
    best, _ = model.recommend(k=recommend)
    return {"user": np.repeat(model.data_.user_ids, recommend), "item": best.ravel()}


def _triples(model: Any, recommend: int | None, every_pair: bool, predict: str) -> Any:
    """Test triples, or columns of raw ids."""
    if every_pair:
        raise click.UsageError("--all is for models of pairs: use --test, or --recommend")
    data = model.data_
    if recommend is None:
        if data.test is None:
            raise DataError(
                "the run has no test triples: give a file of queries, or train with --test"
            )
        return data.test
    asked = data if data.test is None else data.test
    given = asked.heads if predict == "tail" else asked.tails
    entities, relations = np.unique(np.stack([given, asked.relations]), axis=1)
    known, relation = data.entity_ids[entities], data.relation_ids[relations]
    if predict == "tail":
        best, _ = model.predict_tails(known, relation, recommend)
    else:
        best, _ = model.predict_heads(relation, known, recommend)
    repeated, answers = np.repeat(known, recommend), best.ravel()
    heads, tails = (repeated, answers) if predict == "tail" else (answers, repeated)
    return {"head": heads, "relation": np.repeat(relation, recommend), "tail": tails}


def _length(wanted: Any) -> int:
    return len(next(iter(wanted.values()))) if isinstance(wanted, dict) else len(wanted)


def _all_pairs(data: Interactions) -> dict[str, Any]:
    _check_size(data.n_users * data.n_items, 1)
    return {
        "user": np.repeat(data.user_ids, data.n_items),
        "item": np.tile(data.item_ids, data.n_users),
    }


def _check_size(n_queries: int, k: int) -> None:
    needed, budget = n_queries * k * _ROW_BYTES, memory_budget()
    if needed > budget:
        raise ParameterError(
            f"{n_queries:,} predictions with {k} examples each would take {needed / 2**30:.1f} GiB "
            f"as one table, more than the budget of {budget / 2**30:.1f} GiB: give --out a folder "
            "(a name without a suffix)"
        )


def _example(found: BaseExplanations[Any]) -> str:
    if not len(found):
        return ""
    return f" The first of them:\n\n{found.because(0)}"
