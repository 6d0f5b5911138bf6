"""``fastinfluence evaluate``."""

from __future__ import annotations

import json
import os
import time
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import fastinfluence
from fastinfluence.attribution import CurvatureRollback, GradientRollback, Replay
from fastinfluence.cli.methods import (
    METHODS,
    check_device,
    check_explaining,
    explaining,
    make_method,
)
from fastinfluence.cli.options import (
    RETRAINING,
    check_target,
    device_option,
    json_option,
    report,
    several,
)
from fastinfluence.cli.protocol import protocol
from fastinfluence.cli.queries import Asked, of_triples, query_options
from fastinfluence.errors import MissingExtraError
from fastinfluence.evaluation import compare, deletion_effect, sample_queries, subset_removal
from fastinfluence.evaluation.comparison import without_nan
from fastinfluence.models import Model, load
from fastinfluence.storage import tables
from fastinfluence.storage.atomic import atomic_file

if TYPE_CHECKING:
    from fastinfluence.evaluation import Comparison, DeletionEffect

__all__ = ["evaluate"]


_USUAL = (GradientRollback.name, CurvatureRollback.name, Replay.name)


def _share(text: str) -> float:
    if not 0 < (share := float(text)) < 1:
        raise ValueError
    return share


def _size(text: str) -> int:
    if (size := int(text)) < 1:
        raise ValueError
    return size


def _methods(context: click.Context, option: click.Parameter, text: str) -> tuple[Any, ...]:
    """Names of methods; none for all that explain the model, which is not known yet."""
    if text == "all":
        return ()
    read = several(lambda name: METHODS[name].name, f"'all' or some of {', '.join(METHODS)}")
    return read(context, option, text)


class _Evaluate(click.Command):
    """Hands over to `protocol` where published experiments are asked for."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        published = any(one.partition("=")[0] == "--protocol" for one in args)
        make = protocol.make_context if published else super().make_context
        return make(info_name, args, parent, **extra)


@click.command(cls=_Evaluate)
@click.argument("run")
@click.option(
    "--methods",
    metavar="NAMES",
    default=",".join(_USUAL),
    show_default=True,
    callback=_methods,
    help=f"Attribution methods, separated by commas: {', '.join(METHODS)}; or all that explain "
    "such a model.",
)
@click.option(
    "--queries",
    metavar="N|FILE",
    default="20",
    show_default=True,
    help="The best recommendations of N random users (of triples the best tails of N random test "
    "questions), or a file with users and items (heads, relations and tails).",
)
@query_options
@click.option(
    "--adjacent",
    type=click.IntRange(min=0),
    default=125,
    show_default=True,
    help="Examples of each query's user or item (triples with its relation or one of its "
    "entities) to leave out, one at a time.",
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
    callback=several(_share, "numbers between 0 and 1"),
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
    callback=several(_size, "numbers of examples"),
    help="Also leave out explanations of these sizes, such as 1,10, and count the predictions "
    "that fall and the best recommendations that change.",
)
@click.option("--rng", type=click.IntRange(min=0), default=0, show_default=True, help="Seed.")
@click.option("--n-threads", type=click.IntRange(min=1), help="All processors by default.")
@device_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--resume", is_flag=True, help="Go on with a folder, reusing its retrainings.")
@json_option
def evaluate(
    run: str,
    methods: tuple[str, ...],
    queries: str,
    adjacent: int,
    others: int,
    lds: tuple[float, ...],
    subsets: int,
    deletion: tuple[int, ...],
    rng: int,
    n_threads: int | None,
    device: str,
    out: Path,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure attribution methods against retraining without single examples.

    RUN is what `train` wrote. Writes table.csv, table.json with all settings, picture.png,
    with --deletion deletion.csv, and the results of all retrainings.

    `evaluate --protocol gradient-rollback-paper` takes no RUN and repeats the experiments of the
    Gradient Rollback paper: see `evaluate --protocol gradient-rollback-paper --help`.
    """
    start = time.perf_counter()
    check_target(out, resume)
    model, asked = load(run), Asked.of(options)
    methods = methods or tuple(explaining(model))
    check_explaining(methods, model)
    check_device(methods, model, device)
    listed = _queries(model, asked, queries, rng)
    what = asked.what(model, listed)
    settings = {
        "run": run,
        "out": os.fspath(out),
        **_facts(model),
        "queries": listed,
        **_objective(model, asked),
        "adjacent": adjacent,
        "others": others,
        "lds": lds,
        "subsets": subsets,
        "deletion_sizes": deletion,
        "rng": rng,
        "n_threads": n_threads,
        "device": device,
    }
    made = {name: _Method(name, model, what, n_threads, device) for name in methods}
    comparison, effect, n_retrainings = _measure(model, made, what, settings, out / RETRAINING)
    written, shown = _write(out, comparison, effect)
    summary = settings | {
        "n_queries": len(listed),
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
    model: Model
    queries: Any
    n_threads: int | None
    device: str

    @property
    def units(self) -> str:
        units: str = METHODS[self.name].units
        return units

    @cached_property
    def made(self) -> Any:
        return make_method(
            self.name, self.model, self.queries, n_threads=self.n_threads, device=self.device
        )

    def influence(self, objective: Any) -> Any:
        return self.made.influence(objective)


def _measure(
    model: Model, asked: dict[str, _Method], queries: Any, settings: dict[str, Any], kept: Path
) -> tuple[Comparison, DeletionEffect | None, int]:
    """Compare the methods, delete their explanations; the number of retrainings of both."""
    sizes = settings["deletion_sizes"]
    common = {name: settings[name] for name in ("rng", "n_threads")}
    removals = [
        subset_removal(
            model, queries, share, settings["subsets"], path=kept / f"subsets-{share:g}", **common
        )
        for share in settings["lds"]
    ]
    comparison = compare(
        asked,
        queries,
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
    rankings = {name: one.made.explain(queries, max(sizes)) for name, one in asked.items()}
    effect = deletion_effect(model, queries, rankings, sizes, path=kept / "deletion", **common)
    return comparison, effect, n_retrainings + effect.n_retrainings


def _queries(model: Model, asked: Asked, queries: str, rng: int) -> list[tuple[Any, ...]]:
    drawn = queries.isdecimal()
    if drawn and int(queries) == 0:
        raise click.UsageError("--queries 0 asks for nothing: give 1 or more, or a file")
    asked.check(model, from_file=not drawn)
    if drawn:
        if asked.predict == "head":
            raise click.UsageError("--predict head needs a file of queries: tails are drawn")
        return sample_queries(model, int(queries), rng)
    columns = asked.read(model, queries).values()
    return [*zip(*(np.asarray(column, object).tolist() for column in columns), strict=True)]


def _objective(model: Model, asked: Asked) -> dict[str, Any]:
    if not of_triples(model):
        return {}
    return {"objective": asked.objective or "score", "predict": asked.predict or "tail"}


def _facts(model: Model) -> dict[str, Any]:
    """What was evaluated: enough to tell another model, or other data, apart."""
    trajectory, data = model.trajectory_, model.data_
    if of_triples(model):
        columns = (data.heads, data.relations, data.tails)
        sizes = {"n_entities": data.n_entities, "n_relations": data.n_relations}
    else:
        columns = (data.users, data.items, data.values)
        sizes = {"n_users": data.n_users, "n_items": data.n_items}
    checksum = 0
    for column in (*columns, trajectory.program.weights):
        checksum = zlib.crc32(column.tobytes(), checksum)
    return {
        "fastinfluence": fastinfluence.__version__,
        "model": f"{trajectory.fingerprint():08x}",
        "data": f"{checksum:08x}",
        "n_examples": len(data),
        **sizes,
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
