"""``fastinfluence train``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, get_args

import click

from fastinfluence.cli.options import column_option, hyperparameters, json_option, report
from fastinfluence.data import Interactions, datasets, read_interactions
from fastinfluence.data.interactions import Duplicates
from fastinfluence.errors import RunDirectoryError
from fastinfluence.models import MatrixFactorization
from fastinfluence.storage.manifest import MANIFEST
from fastinfluence.training.recipe import seed_of

__all__ = ["train"]

MODELS = {"mf": MatrixFactorization}


@click.command()
@click.argument("data")
@column_option("user", "users")
@column_option("item", "items")
@column_option("value", "ratings or weights (optional)")
@click.option(
    "--header/--no-header",
    default=None,
    help="Whether the first line of a text file names its columns; found out if not told.",
)
@click.option(
    "--duplicates",
    type=click.Choice(get_args(Duplicates)),
    help="What to do with a repeated (user, item) pair.  [default: error]",
)
@click.option("--model", type=click.Choice([*MODELS]), default="mf", show_default=True)
@hyperparameters
@click.option(
    "--validation",
    type=float,
    metavar="FRACTION",
    help="Share of the rows to hold out; their loss is shown, and decides when to stop early.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Run directory to write."
)
@click.option("--overwrite", is_flag=True, help="Replace the run that is there.")
@json_option
def train(
    data: str,
    user: str | int | None,
    item: str | int | None,
    value: str | int | None,
    header: bool | None,
    duplicates: Duplicates | None,
    model: str,
    validation: float | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Train a model on DATA and write it as a run directory.

    DATA is a file of rows (.csv, .tsv or other delimited text, plain or .gz; .parquet; .npz),
    or a folder or zip of MovieLens, which needs no columns named.
    """
    start = time.perf_counter()
    if parameters["early_stopping"] is not None and validation is None:
        raise click.UsageError("--early-stopping needs --validation")
    _check_free(out, overwrite)
    columns = {"user": user, "item": item, "value": value, "header": header}
    interactions = _read(data, columns, duplicates)
    # Drawn here where it is not given: the split and the model then come from one seed.
    parameters["rng"] = seed_of(parameters["rng"])
    training, held_out = interactions, None
    if validation is not None:
        training, held_out = interactions.split(validation, rng=parameters["rng"])
    fitted = MODELS[model](**parameters).fit(training, validation=held_out)
    fitted.save(out, overwrite=overwrite)
    trajectory = fitted.trajectory_
    summary = {
        "run": os.fspath(out),
        "n_examples": len(training),
        "n_validation": 0 if held_out is None else len(held_out),
        "n_users": training.n_users,
        "n_items": training.n_items,
        "n_epochs": fitted.n_epochs_,
        "losses": trajectory.losses,
        "validation_losses": trajectory.validation_losses,
        "hyperparameters": trajectory.recipe.to_dict(),
        "seconds": time.perf_counter() - start,
    }
    report(as_json, summary, _train_text(summary))


def _train_text(summary: dict[str, Any]) -> str:
    losses = f"{summary['hyperparameters']['loss']} loss {summary['losses'][-1]:.4f}"
    if summary["validation_losses"]:
        losses += f", {summary['validation_losses'][summary['n_epochs'] - 1]:.4f} in validation"
    return (
        f"Trained on {summary['n_examples']:,} examples of {summary['n_users']:,} users and "
        f"{summary['n_items']:,} items in {summary['seconds']:.1f} s.\n"
        f"After {summary['n_epochs']} epochs: {losses} "
        f"(seed {summary['hyperparameters']['seed']}).\n"
        f"Written to {summary['run']}."
    )


def _read(data: str, columns: dict[str, Any], duplicates: Duplicates | None) -> Interactions:
    if not (Path(data).is_dir() or Path(data).suffix == ".zip"):
        return read_interactions(data, **columns, duplicates=duplicates or "error")
    if duplicates is not None or any(given is not None for given in columns.values()):
        raise click.UsageError(
            "a MovieLens folder or zip is read as it is: leave out --user, --item, --value, "
            "--header and --duplicates"
        )
    return datasets.movielens(data)


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
