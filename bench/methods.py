"""Every attribution method against retraining, on three data sets: measures bench/methods.json.

    python bench/methods.py --truths DIR [--data ml-100k,npm,nations] [--methods NAMES]

A model is trained on each data set, examples are left out one at a time, and each method is asked
about the same 24 predictions. The retrainings, all the same whatever is measured, are kept in DIR:
an interrupted call goes on. The figures go into the JSON method by method; those it has already
are measured anew only if --methods names them. Then docs/methods.md is made of it
(bench/report_methods.py).

MovieLens is looked for as by the benches: see bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data_sets
import machine
import report_methods

import fastinfluence as fi
from fastinfluence.attribution.objectives import LogProbability
from fastinfluence.cli.methods import METHODS, explaining, make_method
from fastinfluence.errors import ParameterError
from fastinfluence.evaluation import Truth, compare, leave_one_out, sample_examples, sample_queries
from fastinfluence.models import Model
from fastinfluence.storage.atomic import atomic_file

N_QUERIES, ADJACENT, OTHERS = 24, 60, 300

# What a method can be asked to be, where its default is not the same for all models or not all.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tracin": ("tracin", {"mode": "ideal"}),
    "tracin-checkpoints": ("tracin", {"mode": "checkpoints"}),
    "gradient-similarity-cosine": ("gradient-similarity", {"measure": "cosine"}),
}


@dataclass(frozen=True)
class Study:
    """A data set and a recipe; a small set of the same kind to load compiled code with."""

    data: Callable[[], tuple[Any, str]]  # and what to call it
    small: Callable[[], Any]
    model: Model
    objective: type[Any] = list  # made of the queries; pairs as they are mean their scores

    def fit(self, data: Any, **changed: Any) -> Any:
        return type(self.model)(**(self.model.get_params() | changed)).fit(data)


def _ml_100k() -> tuple[fi.Interactions, str]:
    data, title = data_sets.ml_100k(False)
    return data.split(0.1, rng=0)[0], f"{title}, nine tenths of them"


def _npm() -> tuple[fi.Interactions, str]:
    data = fi.datasets.npm()
    return data, f"npm, {len(data):,} dependencies"


def _nations() -> tuple[fi.Triples, str]:
    data = fi.datasets.nations()
    return data, f"Nations, {len(data):,} triples"


def _small_positives() -> fi.Interactions:
    data = data_sets.synthetic(150, 120, 3_000)
    return fi.Interactions.from_arrays(data.users, data.items)


STUDIES = {
    "ml-100k": Study(
        _ml_100k,
        lambda: data_sets.synthetic(150, 120, 3_000),
        fi.MatrixFactorization(n_factors=16, rng=0),
    ),
    "npm": Study(
        _npm,
        _small_positives,
        fi.MatrixFactorization(
            n_factors=16,
            loss="logistic",
            n_negatives=4,
            n_epochs=15,
            learning_rate=0.02,
            regularization=0.01,
            rng=0,
        ),
    ),
    "nations": Study(_nations, fi.datasets.nations, fi.DistMult(rng=0), LogProbability),
}


@dataclass(frozen=True)
class _Known:
    """A method that has been asked already."""

    name: str
    units: str
    model: Model
    found: Any

    def influence(self, objective: Any) -> Any:
        return self.found


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for and not yet known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--truths", type=Path, required=True, help="folder of the retrainings")
    parser.add_argument("--data", type=_names(STUDIES), default=[*STUDIES])
    parser.add_argument("--methods", type=_names([*METHODS, *VARIANTS]), default=[])
    parser.add_argument("--json", type=Path, default=report_methods.SOURCE)
    asked = parser.parse_args(arguments)
    for name in asked.data:
        run(name, asked.methods, asked.truths, asked.json)
    if asked.json == report_methods.SOURCE:
        report_methods.main()


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names).difference(known):
            raise argparse.ArgumentTypeError(f"{unknown}: known are {', '.join(known)}")
        return names

    return read


def run(name: str, methods: list[str], truths: Path, path: Path) -> None:
    """One study: its model, the truth, and the methods that are asked for or missing."""
    study = STUDIES[name]
    data, title = study.data()
    model = study.fit(data)
    queries = sample_queries(model, N_QUERIES)
    objective = study.objective(queries)
    fingerprint = f"{model.trajectory_.fingerprint():08x}"
    train = sample_examples(model, objective, ADJACENT, OTHERS)
    truth = leave_one_out(model, objective, train, path=truths / f"{name}-{fingerprint}")
    facts = {
        "title": title,
        "model": repr(study.model),
        "fingerprint": fingerprint,
        "objective": "score" if study.objective is list else study.objective.__name__,
        "n_queries": len(queries),
        "n_retrainings": len(train),
    }
    able = explaining(model)
    able += [label for label, (of, _) in VARIANTS.items() if of in able and label not in able]
    small = study.fit(study.small(), n_epochs=2)
    for method in able:
        known = _read(path).get(name, {})
        if known.get("fingerprint") != fingerprint:
            known = {"methods": {}}  # figures of another model
        if method in methods or (not methods and method not in known["methods"]):
            figures = measure(method, model, small, study.objective, queries, truth)
            known = facts | {"methods": known["methods"] | {method: figures}}
            _write(path, _read(path) | {name: known})
            print(name, method, figures.get("spearman_adjacent", figures), flush=True)


def measure(
    label: str, model: Model, small: Model, kind: type[Any], queries: list[Any], truth: Truth
) -> dict[str, Any]:
    """The figures of one method, or why it has none."""
    name, options = VARIANTS.get(label, (label, {}))

    def made(of: Model, asked: list[Any]) -> Any:
        return METHODS[name](of, **options) if options else make_method(name, of, kind(asked))

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            few = sample_queries(small, 2)
            made(small, few).influence(kind(few))
            caught.clear()
            load, start = os.getloadavg()[0], time.perf_counter()
            method = made(model, queries)
            method.influence(kind(queries[:1]))
            first = time.perf_counter() - start
            start = time.perf_counter()
            found = method.influence(kind(queries))
            each = (time.perf_counter() - start) / len(queries)
    except ParameterError as error:
        return {"left_out": str(error)}
    known = _Known(label, method.units, model, found)
    (row,) = compare([known], kind(queries), truth=truth).rows
    del row["seconds"]  # it was known
    figures = {name: None if value != value else value for name, value in row.items()}
    return figures | {
        "first_seconds": first,
        "each_seconds": each,
        "cores": machine.cores(),
        "load": load,
        "warnings": list(dict.fromkeys(str(warning.message) for warning in caught)),
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


if __name__ == "__main__":
    main()
