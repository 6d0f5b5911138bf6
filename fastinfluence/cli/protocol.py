"""``fastinfluence evaluate --protocol``: published experiments as one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fastinfluence.cli.options import RETRAINING, check_target, json_option, report, several
from fastinfluence.evaluation import gradient_rollback_paper
from fastinfluence.evaluation.comparison import without_nan
from fastinfluence.evaluation.paper_parts import METHODS
from fastinfluence.evaluation.paper_protocol import DATASETS, MODELS, OPTIMIZERS
from fastinfluence.storage.atomic import atomic_file

__all__ = ["protocol"]


def _method(name: str) -> str:
    if name not in METHODS:
        raise ValueError
    return name


@click.command()
@click.option(
    "--protocol", "name", type=click.Choice(["gradient-rollback-paper"]), required=True,
    help="The published experiments.",
)  # fmt: skip
@click.option("--dataset", type=click.Choice([*DATASETS]), required=True)
@click.option(
    "--data",
    metavar="PATH",
    help="Where the data set is; nations is bundled. A folder or archive, as for `train`.",
)
@click.option("--model", type=click.Choice([*MODELS]), default="distmult", show_default=True)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True,
    help="Runs, each with its own start, negatives and controls.",
)  # fmt: skip
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    help="Predictions to explain.  [default: 100; all 143 of nations]",
)
@click.option(
    "--retrain-epochs",
    type=click.Choice(["both", "10", "8"]),
    default="both",
    show_default=True,
    help="How long retraining takes on nations: as in the paper, or as long as the model did.",
)
@click.option(
    "--methods",
    metavar="NAMES",
    callback=several(_method, f"some of {', '.join(METHODS)}"),
    help=f"Separated by commas: {', '.join(METHODS)}.  [default: all; replay on nations only]",
)
@click.option(
    "--optimizer",
    type=click.Choice([*OPTIMIZERS]),
    default="adam-dense",
    show_default=True,
    help="Others than the first are faster on large graphs, and not as published.",
)
@click.option("--n-threads", type=click.IntRange(min=1), help="All processors by default.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write, and to resume from.")
@click.option("--resume", is_flag=True, help="Go on with a folder, reusing its retrainings.")
@json_option
def protocol(
    name: str,
    dataset: str,
    data: str | None,
    model: str,
    seeds: int,
    queries: int | None,
    retrain_epochs: str,
    methods: tuple[str, ...],
    optimizer: str,
    n_threads: int | None,
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Repeat published experiments, beside the published figures.

    gradient-rollback-paper: train as in the paper, leave explanations out, train again, and count
    the predictions that fall (PD) and the best answers that change (TC). With --out, writes
    table.csv, table.json with all settings, and the results of all retrainings, so that an
    interrupted call can go on.
    """
    if out is not None:
        check_target(out, resume)
    elif resume:
        raise click.UsageError("--resume goes on with a folder: say which by --out")
    settings: dict[str, Any] = {
        "dataset": dataset,
        "data": data,
        "model": model,
        "n_seeds": seeds,
        "n_queries": queries,
        "retrain_epochs": retrain_epochs if retrain_epochs == "both" else int(retrain_epochs),
        "methods": methods or None,
        "optimizer": optimizer,
        "n_threads": n_threads,
    }
    found = gradient_rollback_paper(
        **settings,
        path=None if out is None else out / RETRAINING,
        tell=lambda line: click.echo(line, err=True),
    )
    summary = settings | {
        "protocol": name,
        "hyperparameters": found.hyperparameters,
        "deviations": found.deviations,
        "n_predictions": found.before.shape[1],
        "main_epoch": found.main_epoch,
        "best_epochs": found.best_epochs.tolist(),
        "test_mrr": found.test_mrr.tolist(),
        "n_retrainings": found.n_retrainings,
        "seconds": found.seconds,
        "rows": without_nan(found.rows),
    }
    written = ""
    if out is not None:
        found.to_csv(out / "table.csv")
        with atomic_file(out / "table.json") as file:
            file.write(json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n")
        written = f"; written to {out}: table.csv, table.json"
    kept = f", those found in {out} included," if resume else ""
    text = (
        f"{found}\n\n{found.n_retrainings:,} retrainings{kept} in {found.seconds:.1f} s{written}."
    )
    report(as_json, summary, text)
