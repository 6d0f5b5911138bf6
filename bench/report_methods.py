"""Make docs/methods.md from what bench/methods.py measured.

    python bench/report_methods.py

Every measurement comes from the JSON; what is written here are assumptions, costs and advice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
SOURCE, TARGET = HERE / "methods.json", HERE.parent / "docs" / "methods.md"

STUDIES = {"ml-100k": "MovieLens 100K", "npm": "npm", "nations": "Nations"}


class Facts(NamedTuple):
    """What is known of a method without measuring: a call, its assumption, its costs."""

    call: str
    assumes: str
    time: str
    memory: str


_WALK = "all steps back once for 16 queries: O(T k) a query"
_LANES = "16 queries at a time: O(R k + n)"

FACTS = {
    "replay": Facts(
        "Replay(model)",
        "leaving one example out is a small change; nothing else",
        _WALK,
        _LANES,
    ),
    "curvature-rollback": Facts(
        "CurvatureRollback(model)",
        "an example's effect stays in the rows of the prediction, and shrinks there by their "
        "curvature",
        "O(T k²) once, or of the rows of some queries only; then O(D k) a query",
        "row store: O(n k)",
    ),
    "gradient-rollback": Facts(
        "GradientRollback(model)",
        "without an example, all others would have trained as they did",
        "nothing if recorded, else one training; then O(D k) a query",
        "row store: O(n k)",
    ),
    "influence-function": Facts(
        "InfluenceFunction(model)",
        "training ended at a minimum of a damped quadratic; the path to it does not matter",
        "about ten products with the Hessian, O(S k) each, for 16 queries",
        "16 queries at a time: O(R k + n), and O(R k²) to precondition",
    ),
    "influence-function-pair": Facts(
        'InfluenceFunction(model, scope="pair")',
        "as the influence function, and only the rows of the prediction would move",
        "O(n k² + R k³) once; then O(D k) a query, O(k³) more for a pair that was trained on",
        "row store: O(n k), and O(R k²)",
    ),
    "hydra": Facts(
        "Hydra(model)",
        "as Gradient Rollback, but that what training added also decayed, by regularization",
        "a training with a log for all queries; then O(D k) an epoch and query",
        _LANES,
    ),
    "tracin": Facts(
        "TracIn(model)",
        "an example did what its own steps did to the prediction at that moment",
        "a training with a log for all queries; then O(D k) an epoch and query",
        "influence of the queries asked at a time: O(n) each",
    ),
    "tracin-checkpoints": Facts(
        'TracIn(model, mode="checkpoints")',
        "as TracIn, with the gradients of the ends of epochs",
        "a pass over the examples for every epoch and 16 queries: O(T k) a query",
        _LANES,
    ),
    "gradient-similarity": Facts(
        "GradientSimilarity(model)",
        "examples whose gradient at the end is like that of the prediction made it",
        "one pass over the examples for 16 queries: O(S k)",
        _LANES,
    ),
    "gradient-similarity-cosine": Facts(
        'GradientSimilarity(model, measure="cosine")',
        "as gradient similarity, whatever the size of the gradients",
        "one pass over the examples for 16 queries: O(S k)",
        _LANES,
    ),
    "forward-influence": Facts(
        "ForwardInfluence(model)",
        "who loses less when the model is taught the prediction had taught it",
        "a step on the query and a pass over the examples: O(S k)",
        "O(R k + n)",
    ),
    "turn-over-dropout": Facts(
        "TurnOverDropout(model)",
        "a model trained with half of its factors masked, at random for each example, stands for "
        "this one",
        "a training for every set of masks; then O(n k) a query",
        "another model for every set of masks: O(R k)",
    ),
    "dropout-influence": Facts(
        "DropoutInfluence(model)",
        "as the influence function, with a random part of the numbers in each gradient",
        "as the influence function",
        "as the influence function",
    ),
}

HEAD = """\
# Methods

One interface, many answers to the question which training examples made a prediction. What each
takes for granted, what it costs, and how true it was when every answer was checked by leaving
examples out and training again. This page is made of `bench/methods.json` by
`bench/report_methods.py`; do not edit it.

## Which one?

- **Some predictions, and the truth matters**: `Replay`. It goes back through training once for
  every sixteen predictions, and is the only one that is right about examples that
  share nothing with the prediction.
- **Very many predictions**: `CurvatureRollback`. One preparation, then a look-up each.
- **What would the optimum do**, rather than this run: `InfluenceFunction`, for all examples, or
  with `scope="pair"`, quickly, for those that share a row with the prediction. It needs no path.
- **To compare with published work**: the others. They order examples, more or less; none of them
  claims a size (`rank` below).
- **Another kind of data or training than below**: measure. A few predictions and some minutes of
  retraining tell which methods are true enough; of those take the cheapest:

```python
import numpy as np
import fastinfluence as fi

rng = np.random.default_rng(0)
users, items = np.divmod(rng.choice(60 * 40, 900, replace=False), 40)
taste = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 40))
ratings = fi.Interactions.from_arrays(users, items, 3 + taste[users, items])
model = fi.MatrixFactorization(n_factors=8, n_epochs=30, rng=0).fit(ratings)

queries = fi.evaluation.sample_queries(model, 5)
kinds = (fi.TracIn, fi.InfluenceFunction, fi.CurvatureRollback, fi.Replay)
methods = {kind.name: kind(model) for kind in kinds}
measured = fi.evaluation.compare(methods, queries, adjacent=20, others=20)
print(measured)
true_enough = [row for row in measured.rows if row["spearman_adjacent_low"] > 0.8]
chosen = min(true_enough, key=lambda row: row["seconds"])["method"]
print(methods[chosen].explain(queries, k=3).because(0))
```

From the command line: `fastinfluence evaluate RUN --methods all`
([guide](command-line.md#evaluate)).

## All of them

Costs: n training examples, T steps (n times the epochs), S steps of an epoch with the negatives
drawn, k numbers a row, R rows, D examples that share a row with the prediction. Units: *effect*, an
estimate of the change in the explained quantity; *rank*, an order only. Measured: rank
correlation with retraining over adjacent examples, those that share a row with the prediction /
over all that were left out / scale, the factor from estimates to the truth (1 is right) / change by
the example ranked first, as a share of the largest; then seconds for each of @QUERIES@ queries
asked at once, and in brackets until the first query asked alone is answered, preparation included.
Best first, by the first number.

"""

TAIL = """\

Measured with `python bench/methods.py --truths DIR`, as @CORES@; the load average
when a method began was @LOADS@: seconds are those of a shared machine.
What the columns mean in full: [the command line](command-line.md#evaluate). More about `Replay` and
the two rollbacks: [faithfulness](faithfulness.md),
[knowledge graphs](knowledge-graphs.md#what-to-believe).
"""


def main(source: Path = SOURCE, target: Path = TARGET) -> None:
    """Read `source`, write `target`."""
    target.write_text(document(json.loads(source.read_text())), encoding="utf-8")


def document(found: dict[str, Any]) -> str:
    """The whole page."""
    studies = {name: found[name] for name in STUDIES if name in found}
    names = sorted(
        {name for study in studies.values() for name in study["methods"]},
        key=lambda name: [-_order(study, name) for study in studies.values()],
    )
    queries = sorted({study["n_queries"] for study in studies.values()})
    head = HEAD.replace("@QUERIES@", " or ".join(map(str, queries)))
    return head + _table(studies, names) + _notes(studies) + _tail(studies)


def _order(study: dict[str, Any], name: str) -> float:
    """The mean rank correlation over adjacent examples; those without one come last."""
    value = study["methods"].get(name, {}).get("spearman_adjacent")
    return -2.0 if value is None else value


def _table(studies: dict[str, Any], names: list[str]) -> str:
    heads = ["method", "assumes", "time", "memory", "units", *(STUDIES[name] for name in studies)]
    lines = [heads, ["---"] * len(heads)]
    for name in names:
        facts = FACTS[name]
        cells = [_cell(study["methods"].get(name)) for study in studies.values()]
        known = [f"`{facts.call}`", facts.assumes, facts.time, facts.memory]
        lines.append([*known, _units(studies, name), *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _units(studies: dict[str, Any], name: str) -> str:
    rows = [study["methods"].get(name, {}) for study in studies.values()]
    return next((row["units"] for row in rows if "units" in row), "")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "left_out" in row:
        return "–"
    order = f"{_number(row['spearman_adjacent'])} / {_number(row['spearman_all'])}"
    figures = f"{order} / {_scale(row['scale'])} / {_number(row['top1_ratio'])}"
    return f"{figures}; {_seconds(row['each_seconds'])} ({_seconds(row['first_seconds'])})"


def _notes(studies: dict[str, Any]) -> str:
    """The models, what could not be asked of them, and what they were warned of."""
    lines = []
    for name, study in studies.items():
        lines.append(
            f"- **{STUDIES[name]}**: {study['title']}; `{study['model']}`; explained: "
            f"`{study['objective']}` of {study['n_queries']} predictions; "
            f"{study['n_retrainings']:,} retrainings."
        )
        for method, row in study["methods"].items():
            said = [row["left_out"]] if "left_out" in row else row["warnings"]
            lines += [f"  - `{method}`: {text}" for text in said]
    return "\n" + "\n".join(lines) + "\n"


def _tail(studies: dict[str, Any]) -> str:
    rows = [row for study in studies.values() for row in study["methods"].values()]
    rows = [row for row in rows if "load" in row]
    loads, cores = [row["load"] for row in rows], sorted({row["cores"] for row in rows})
    spread = f"{min(loads):.1f} to {max(loads):.1f}"
    many = f"on {' or '.join(map(str, cores))} cores"
    return TAIL.replace("as @CORES@", many).replace("@LOADS@", spread)


def _number(value: float | None) -> str:
    """Two places; a dash where it is not defined."""
    if value is None:
        return "–"
    text = f"{value:.2f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _scale(value: float | None) -> str:
    """Two digits at least, however far from 1."""
    return f"{value:.2g}" if value is not None and abs(value) < 0.1 else _number(value)


def _seconds(value: float) -> str:
    steps = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))
    size, unit = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / size:.2g} {unit}" if value / size < 100 else f"{value / size:.0f} {unit}"


if __name__ == "__main__":
    main()
