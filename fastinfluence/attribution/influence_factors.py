"""`InfluenceFactors`: solved systems, from which the influence of any example is one product."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.solve import SolveReport
from fastinfluence.storage import read_run, write_run

__all__ = ["InfluenceFactors"]

Array = npt.NDArray[Any]

KIND = "influence-factors"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class InfluenceFactors:
    """``(H + damping I)^-1 grad phi`` for n queries of a model.

    Attributes
    ----------
    vectors : (n, n_rows, d)
        By row of the parameters: users, then items, each ``(factors, bias)``; of triples the rows
        of the table.
    report : SolveReport
        How well each was solved.
    method : str
        The method that solved.
    model : int
        `Trajectory.fingerprint` of the model they belong to.
    """

    vectors: Array
    report: SolveReport
    method: str
    model: int

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        n, n_rows, d = self.vectors.shape
        return f"InfluenceFactors({n:,} queries, {n_rows:,} rows of {d} numbers; {self.report!r})"

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write them as a directory, whole or not at all.

        Raises
        ------
        RunDirectoryError
            `path` exists and `overwrite` is false.
        """
        report = self.report
        meta = {
            "method": self.method,
            "model": self.model,
            "hessian": report.hessian,
            "damping": report.damping,
            "seconds": report.seconds,
        }
        arrays: dict[str, npt.ArrayLike] = {"vectors": self.vectors}
        arrays |= {f"report/{name}": getattr(report, name) for name in SolveReport.COLUMNS}
        write_run(path, kind=KIND, meta=meta, arrays=arrays, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InfluenceFactors:
        """Read what `save` wrote; the vectors are memory-mapped.

        Raises
        ------
        RunDirectoryError
            The directory is absent, damaged or of another kind.
        """
        run = read_run(path, kind=KIND, mmap=True)
        parts: dict[str, Any] = {name: run.meta[name] for name in SolveReport.SCALARS}
        parts |= {name: np.array(run.arrays[f"report/{name}"]) for name in SolveReport.COLUMNS}
        report = SolveReport(**parts)
        of = {name: run.meta[name] for name in ("method", "model")}
        return cls(vectors=run.arrays["vectors"], report=report, **of)
