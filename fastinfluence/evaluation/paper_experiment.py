"""What the experiments of the Gradient Rollback paper gave, beside the published figures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import plural
from fastinfluence.evaluation.display import text_table
from fastinfluence.evaluation.metrics import probability_drop, top1_change
from fastinfluence.evaluation.paper_parts import CONTROLS, METHODS
from fastinfluence.models import Model
from fastinfluence.storage import tables

__all__ = ["PaperExperiment"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

# PD and TC, in percent, of Nations by DistMult.
_PUBLISHED = {
    ("neighbourhood", "1"): (54, 18),
    ("neighbourhood", "10"): (66, 36),
    ("neighbourhood", "all"): (82, 70),
    ("gradient-rollback", "1"): (93, 38),
    ("gradient-rollback", "10"): (97, 83),
    ("gradient-rollback", "all"): (100, 97),
}
_FIGURES = ("probability_drop", "top1_change", "mean_drop")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PaperExperiment:
    """What n predictions became without their explanations, for s seeds. Shows itself as tables.

    Attributes
    ----------
    dataset, model : str
    hyperparameters : dict
        Of every run, its seed apart.
    deviations : tuple of str
        What is not as published.
    main_epoch : int
        The predictions are those of the model after so many epochs.
    retrain_epochs : tuple of l int
        How long retraining was.
    best_epochs : (s,) int64
        After how many epochs the filtered MRR of validation tails was best.
    test_mrr : (s,) float64
        Filtered MRR of the test tails at `main_epoch`.
    conditions : tuple of c (name, size)
        What was left out: ``nothing``; of size ``1``, ``10`` and ``all`` examples of the
        ``neighbourhood``, ``random`` ones and the first of each method.
    n_removed : (c, s, n) int64
    before : (s, n) float64
        Probability of each prediction.
    after : (l, c, s, n) float64
        The same after retraining.
    best_before, best_after : (s, n) and (l, c, s, n) int64
        Codes of the best answers.
    n_retrainings : int
    seconds : float
    """

    dataset: str
    model: str
    hyperparameters: dict[str, Any]
    deviations: tuple[str, ...]
    main_epoch: int
    retrain_epochs: tuple[int, ...]
    best_epochs: Codes
    test_mrr: Floats
    conditions: tuple[tuple[str, str], ...]
    n_removed: Codes
    before: Floats
    after: Floats
    best_before: Codes
    best_after: Codes
    n_retrainings: int
    seconds: float

    @property
    def n_seeds(self) -> int:
        """Number of runs, each with its own start, negatives and controls."""
        return len(self.before)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a retraining length and condition.

        ``retrain_epochs``, ``left_out``, ``size``, ``examples`` (mean number left out), then
        means over the seeds, each with its standard deviation as ``..._sd`` (NaN of one seed):
        ``probability_drop`` (PD) and ``top1_change`` (TC) in percent of the predictions,
        ``mean_drop`` of the probability; ``published_pd`` and ``published_tc``, NaN where
        nothing is known to be published.
        """
        rows = []
        for place, length in enumerate(self.retrain_epochs):
            for number, (name, size) in enumerate(self.conditions):
                row: dict[str, Any] = {"retrain_epochs": length, "left_out": name, "size": size}
                row["examples"] = float(self.n_removed[number].mean())
                figures = self._figures(place, number)
                for figure, values in zip(_FIGURES, figures, strict=True):
                    row[figure] = float(values.mean())
                    row[f"{figure}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
                pd, tc = self._published(name, size)
                rows.append(row | {"published_pd": pd, "published_tc": tc})
        return rows

    def __repr__(self) -> str:
        rows = self.rows
        blocks = [self._headline()]
        for length in self.retrain_epochs:
            lines = [_line(row) for row in rows if row["retrain_epochs"] == length]
            heads = ["left out", "triples", "falls (PD)", "changes (TC)", "mean drop", "published"]
            epochs = f"{length} {plural('epoch', length)}"
            blocks.append(f"trained again for {epochs}\n{text_table(heads, lines)}")
        return "\n\n".join(blocks)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return `rows` as columns: numpy arrays by name."""
        rows = self.rows
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def to_pandas(self) -> Any:
        """Return `rows` as a `pandas.DataFrame`."""
        return tables.to_pandas(self.to_dict())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `rows` as a CSV file, whole or not at all."""
        tables.write_csv(self.to_dict(), Path(path))

    # ---------------------------------------------------------------- inner

    def _figures(self, place: int, number: int) -> Floats:
        """PD, TC and mean drop (3, s) of one condition."""
        per_seed = [
            (
                probability_drop(self.before[seed], self.after[place, number, seed]),
                top1_change(self.best_before[seed], self.best_after[place, number, seed]),
                float((self.before[seed] - self.after[place, number, seed]).mean()),
            )
            for seed in range(self.n_seeds)
        ]
        return np.array(per_seed).T

    def _published(self, name: str, size: str) -> tuple[float, float]:
        if (self.dataset, self.model) != ("nations", "distmult"):
            return np.nan, np.nan
        return _PUBLISHED.get((name, size), (np.nan, np.nan))

    def _headline(self) -> str:
        n_seeds, n = self.before.shape
        name = Model.kinds[self.model].__name__
        runs = f"{n_seeds} {plural('seed', n_seeds)}, {n} {plural('prediction', n)} each"
        mrr = _spread(self.test_mrr.mean(), _sd(self.test_mrr), 3)
        lines = [
            f"Gradient Rollback paper on {self.dataset}: {name}, {runs}",
            f"test MRR of tails {mrr} after epoch {self.main_epoch}",
        ]
        if self.hyperparameters["n_epochs"] > 1:
            best = ", ".join(map(str, self.best_epochs.tolist()))
            lines[1] += f"; validation was best after epoch {best}"
        lines += [f"not as published: {deviation}" for deviation in self.deviations]
        return "\n".join(lines)


def _line(row: dict[str, Any]) -> list[str]:
    names = METHODS | CONTROLS
    size = "" if row["size"] == "0" else f"-{row['size']}"
    known = row["published_pd"] == row["published_pd"]
    return [
        f"{names[row['left_out']]}{size}",
        f"{row['examples']:.4g}",
        *(
            _spread(row[figure], row[f"{figure}_sd"], digits) + percent
            for figure, digits, percent in zip(_FIGURES, (0, 0, 3), ("%", "%", ""), strict=True)
        ),
        f"{row['published_pd']:.0f} / {row['published_tc']:.0f}" if known else "",
    ]


def _sd(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def _spread(mean: float, sd: float, digits: int) -> str:
    """A mean, and its standard deviation where there is one."""
    text = f"{mean:.{digits}f}"
    return text if sd != sd else f"{text} ± {sd:.{digits}f}"
