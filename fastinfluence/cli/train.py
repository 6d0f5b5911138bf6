"""``fastinfluence train``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click

from fastinfluence.cli.hyperparameters import (
    MODELS,
    OF_PAIRS,
    OF_TRIPLES,
    chosen,
    hyperparameters,
    refuse_foreign,
)
from fastinfluence.cli.options import column_option, json_option, report
from fastinfluence.data import Interactions, Triples, datasets, read_interactions, read_triples
from fastinfluence.data.interactions import Duplicates
from fastinfluence.data.triples import TripleDuplicates
from fastinfluence.errors import RunDirectoryError
from fastinfluence.evaluation import LinkPrediction, link_prediction
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.storage.manifest import MANIFEST
from fastinfluence.training.recipe import seed_of

__all__ = ["train"]

_PAIRS = ("user", "item", "value")
_TRIPLES = ("head", "relation", "tail")
_POLICIES = dict.fromkeys(OF_PAIRS, get_args(Duplicates)) | dict.fromkeys(
    OF_TRIPLES, get_args(TripleDuplicates)
)
_ALL_POLICIES = [*dict.fromkeys(policy for policies in _POLICIES.values() for policy in policies)]
_NATIONS = "nations"


@click.command()
@click.argument("data")
@click.option("--model", type=click.Choice([*MODELS]), default="mf", show_default=True)
@column_option("user", "users (mf)")
@column_option("item", "items (mf)")
@column_option("value", "ratings or weights (mf; optional)")
@column_option("head", "heads (distmult, complex)")
@column_option("relation", "relations (distmult, complex)")
@column_option("tail", "tails (distmult, complex)")
@click.option(
    "--header/--no-header",
    default=None,
    help="Whether the first line of a text file names its columns; found out if not told.",
)
@click.option(
    "--duplicates",
    type=click.Choice(_ALL_POLICIES),
    help="What to do with a repeated pair or triple.  [default: error]",
)
@hyperparameters
@click.option(
    "--validation",
    metavar="FRACTION|FILE",
    help="(mf) Share of the rows to hold out; their loss is shown, and decides when to stop early. "
    "(distmult, complex) File of triples to hold out.",
)
@click.option("--test", metavar="FILE", help="(distmult, complex) File of triples to test with.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Run directory to write."
)
@click.option("--overwrite", is_flag=True, help="Replace the run that is there.")
@json_option
def train(
    data: str,
    model: str,
    header: bool | None,
    duplicates: str | None,
    validation: str | None,
    test: str | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on DATA and write it as a run directory.

    For mf, DATA is a file of rows (.csv, .tsv or other delimited text, plain or .gz; .parquet;
    .npz), or a folder or zip of MovieLens, which needs no columns named.

    For distmult and complex, DATA is a file of triples in the same formats, or a folder, zip
    or tar with train, valid and test files, or the word nations, which is bundled.
    """
    start = time.perf_counter()
    columns = {name: options.pop(name) for name in (*_PAIRS, *_TRIPLES)}
    parameters = chosen(model, options)
    for name, value in (*columns.items(), ("test", test)):
        if value is not None:
            refuse_foreign(model, f"--{name}", OF_PAIRS if name in _PAIRS else OF_TRIPLES)
    if duplicates not in (None, *_POLICIES[model]):
        owners = [other for other, policies in _POLICIES.items() if duplicates in policies]
        refuse_foreign(model, f"--duplicates {duplicates}", owners)
    # Drawn here where it is not given: the split and the model then come from one seed.
    parameters["rng"] = seed_of(parameters.get("rng"))
    reading = columns | {"header": header, "duplicates": duplicates}
    share = None
    if model in OF_TRIPLES:
        reading |= {"validation": validation, "test": test}
    else:
        share = _share(validation, parameters)
    reading = {name: given for name, given in reading.items() if given is not None}
    _check_free(out, overwrite)
    if model in OF_TRIPLES:
        trained = _train_triples(MODELS[model](**parameters), _read_triples(data, reading))
    else:
        trained = _train_pairs(MODELS[model](**parameters), _read_pairs(data, reading), share)
    trained.model.save(out, overwrite=overwrite)
    trajectory = trained.model.trajectory_
    summary = {
        "run": os.fspath(out),
        **trained.facts,
        "n_epochs": trained.model.n_epochs_,
        "losses": trajectory.losses,
        "hyperparameters": trajectory.recipe.to_dict(),
        "seconds": time.perf_counter() - start,
    }
    losses = f"{trajectory.recipe.loss} loss {trajectory.losses[-1]:.4f}{trained.held_out}"
    text = [
        f"Trained on {trained.on} in {summary['seconds']:.1f} s.",
        f"After {summary['n_epochs']} epochs: {losses} (seed {trajectory.recipe.seed}).",
        *trained.tested,
        f"Written to {summary['run']}.",
    ]
    report(as_json, summary, "\n".join(text))


class _Trained(NamedTuple):
    """A fitted model, and what there is to tell of it."""

    model: Any
    facts: dict[str, Any]
    on: str
    held_out: str = ""  # losses
    tested: tuple[str, ...] = ()


# -------------------------------------------------------------------- pairs


def _share(validation: str | None, parameters: dict[str, Any]) -> float | None:
    if validation is None:
        if "early_stopping" in parameters:
            raise click.UsageError("--early-stopping needs --validation")
        return None
    try:
        return float(validation)
    except ValueError:
        raise click.BadParameter(
            f"{validation!r} is no share of the rows, as 0.1 is", param_hint="'--validation'"
        ) from None


def _train_pairs(model: Any, data: Interactions, share: float | None) -> _Trained:
    training, held_out = data, None
    if share is not None:
        training, held_out = data.split(share, rng=model.rng)
    model.fit(training, validation=held_out)
    losses = model.trajectory_.validation_losses
    facts = {
        "n_examples": len(training),
        "n_validation": 0 if held_out is None else len(held_out),
        "n_users": training.n_users,
        "n_items": training.n_items,
        "validation_losses": losses,
    }
    on = f"{len(training):,} examples of {data.n_users:,} users and {data.n_items:,} items"
    in_validation = f", {losses[model.n_epochs_ - 1]:.4f} in validation" if losses else ""
    return _Trained(model, facts, on, in_validation)


def _read_pairs(data: str, reading: dict[str, Any]) -> Interactions:
    if data == _NATIONS and not Path(data).exists():
        raise click.UsageError(f"{data} is a knowledge graph: choose {_models(OF_TRIPLES)}")
    if not (Path(data).is_dir() or Path(data).suffix == ".zip"):
        return read_interactions(data, **reading)
    if reading:
        raise click.UsageError(
            "a MovieLens folder or zip is read as it is: leave out --user, --item, --value, "
            "--header and --duplicates"
        )
    return datasets.movielens(data)


# -------------------------------------------------------------------- triples


def _train_triples(model: Any, data: Triples) -> _Trained:
    model.fit(data)
    tested = {split: _link_prediction(model, split) for split in data.splits}
    facts = {
        "n_examples": len(data),
        **{f"n_{split}": len(held_out) for split, held_out in data.splits.items()},
        "n_entities": data.n_entities,
        "n_relations": data.n_relations,
        "n_unseen_entities": len(data.unseen_entities),
        "link_prediction": {split: _figures(found) for split, found in tested.items()},
    }
    on = f"{len(data):,} triples of {data.n_entities:,} entities and {data.n_relations:,} relations"
    return _Trained(model, facts, on, tested=tuple(repr(t) for t in tested.values())[-1:])


def _read_triples(data: str, reading: dict[str, Any]) -> Triples:
    path = Path(data)
    if data == _NATIONS and not path.exists():
        if reading:
            raise click.UsageError(f"{data} is bundled: leave out {_options(reading)}")
        return datasets.nations()
    if not (path.is_dir() or {".zip", ".tar", ".tgz"} & {path.suffix, *path.suffixes[-2:-1]}):
        return read_triples(data, **reading)
    foreign = {name: given for name, given in reading.items() if name != "duplicates"}
    if foreign:
        raise click.UsageError(
            "a folder or archive with train, valid and test files is read as it is: leave out "
            f"{_options(foreign)}"
        )
    return datasets.knowledge_graph(data, **reading)


def _link_prediction(model: KnowledgeGraphModel, split: str) -> LinkPrediction:
    """Filtered ranks of what the model was trained to predict."""
    predict = "both" if model.trajectory_.recipe.sides == "both" else "tail"
    return link_prediction(model, split, predict=predict)


def _figures(found: LinkPrediction) -> dict[str, Any]:
    hits = {f"hits_{k}": found.hits(k) for k in (1, 3, 10)}
    return {"sides": found.sides, "mrr": found.mrr, **hits, "n_unseen": found.n_unseen}


# -------------------------------------------------------------------- both


def _models(names: tuple[str, ...]) -> str:
    return " or ".join(f"--model {name}" for name in names)


def _options(names: Any) -> str:
    return ", ".join(f"--{name}" for name in names)


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse before the work what could not be written after it."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise RunDirectoryError(
            f"{out} exists already: choose another name, or replace it with --overwrite"
        )
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise RunDirectoryError(f"{out} is not a run directory: it is not overwritten")
