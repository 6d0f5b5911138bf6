"""Every CUDA kernel on the GPU of this machine: checked, timed, set against what the card can do.

    python bench/gpu.py [--data FOLDER] [--only NAME ...] [--smoke] [--json FILE]

Each case is checked against the same kernel on the CPU, then timed: compiled and run once
beforehand, the second-level cache emptied before every run, the median of the runs from the call
until the card is idle. Bytes and operations are counted, not measured; their rates are shares of
what a copy and a matrix product reach on this card in the same process. Beside it stand the same
kernel on one thread of the CPU, and the same work written in plain torch on the same card, where
torch is installed; its result is checked, too.

`--smoke` runs everything once on tiny data: with NUMBA_ENABLE_CUDASIM=1 on a machine without a
GPU too, where the times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_ceilings
import numpy as np
from gpu_cases import MODULES, Case, Results, Size

from fastinfluence import dispatch
from fastinfluence.kernels.cuda.jit import SIMULATED

COLUMNS = ("case", "ms", "GB", "GFLOP", "of the ceiling", "CPU / GPU", "torch / GPU", "error")


@dataclass
class Row:
    """What was measured of a case."""

    case: str
    seconds: float
    n_bytes: float
    n_flops: float
    share: float  # of the copy's or the matrix product's rate
    bound: str
    cpu_seconds: float | None
    torch_seconds: float | None
    error: float
    torch_error: float | None
    tolerance: float
    torch_tolerance: float
    note: str = field(default="")

    @property
    def right(self) -> bool:
        """Whether our result, and torch's, are the CPU's."""
        of_torch = self.torch_error is None or self.torch_error <= self.torch_tolerance
        return self.error <= self.tolerance and of_torch

    def cells(self) -> list[str]:
        """The row of the table."""
        return [
            self.case,
            f"{self.seconds * 1e3:.3f}",
            f"{self.n_bytes / 1e9:.3g}",
            f"{self.n_flops / 1e9:.3g}",
            self._share_of_ceiling(),
            _ratio(self.cpu_seconds, self.seconds),
            _ratio(self.torch_seconds, self.seconds),
            f"{self.error:.1e}",
        ]

    def _share_of_ceiling(self) -> str:
        if math.isnan(self.share):  # there was no torch to multiply matrices with
            return ""
        return f"{self.share:.0%} of {'copy' if self.bound == 'bytes' else 'sgemm'}"


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="Folder of real data; made up without.")
    parser.add_argument("--only", nargs="*", choices=MODULES, help="Some of the cases.")
    parser.add_argument("--smoke", action="store_true", help="Once, on tiny data.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="File to write the numbers to.")
    asked = parser.parse_args()
    if asked.data:
        os.environ["FASTINFLUENCE_DATA"] = asked.data
    problem = dispatch.cuda_problem()
    if problem:
        raise SystemExit(f"no GPU can be used: {problem}")
    if SIMULATED and not asked.smoke:
        raise SystemExit("CUDA is simulated in this process: only --smoke makes sense")
    ceilings = gpu_ceilings.measure(asked.smoke)
    print(gpu_ceilings.as_text(ceilings), flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    rows = []
    for case in cases("smoke" if asked.smoke else "full", asked.only):
        rows.append(measured(case, ceilings, 1 if asked.smoke else asked.rounds))
        print("| " + " | ".join(rows[-1].cells()) + " |", flush=True)
    print("".join(f"\n{row.case}: {row.note}." for row in rows if row.note))
    if asked.json:
        found = {"ceilings": asdict(ceilings), "cases": [asdict(row) for row in rows]}
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    wrong = [row.case for row in rows if not row.right]
    if wrong:
        raise SystemExit(f"beyond their tolerance, ours or torch's: {', '.join(wrong)}")


def cases(size: Size, only: list[str] | None) -> Iterator[Case]:
    """Cases one after the other, each made when it is its turn: they fill the memory."""
    for module in only or MODULES:
        yield from importlib.import_module(f"gpu_cases.{module}").cases(size)
        gc.collect()


def measured(case: Case, ceilings: gpu_ceilings.Ceilings, rounds: int) -> Row:
    """Check a case and time it."""
    case.before()
    case.run()
    error = difference(case.found(), case.expected)
    seconds = gpu_ceilings.seconds_of(case.run, rounds, case.before)
    torch_seconds, torch_error = None, None
    if case.torch is not None:
        torch_error = difference(case.torch(), case.expected)
        torch_seconds = gpu_ceilings.seconds_of(case.torch, rounds)
    needed = (
        case.n_bytes / ceilings.copy if case.bound == "bytes" else case.n_flops / ceilings.sgemm
    )
    return Row(
        case=case.name,
        seconds=seconds,
        n_bytes=case.n_bytes,
        n_flops=case.n_flops,
        share=needed / seconds,
        bound=case.bound,
        cpu_seconds=_cpu_seconds(case),
        torch_seconds=torch_seconds,
        error=error,
        torch_error=torch_error,
        tolerance=case.tolerance,
        torch_tolerance=case.torch_tolerance,
        note=case.note,
    )


def difference(found: Results, expected: Results) -> float:
    """Greatest difference, relative to the largest number of its array; NaN if one is no number."""
    worst = [0.0]
    for mine, right in zip(found, expected, strict=True):
        mine = mine.cpu().numpy() if hasattr(mine, "cpu") else np.asarray(mine)
        if mine.shape != right.shape:
            raise SystemExit(f"a result of shape {mine.shape} where {right.shape} was expected")
        finite = np.isfinite(right)  # empty places of lists are not
        if not np.array_equal(mine[~finite], right[~finite], equal_nan=True):
            return float("nan")
        largest = np.abs(right[finite]).max(initial=0) or 1
        worst.append(np.abs(mine[finite] - right[finite]).max(initial=0) / largest)
    return float(np.max(worst))


def _cpu_seconds(case: Case) -> float | None:
    """Seconds of the CPU: once, as it was compiled for what is expected."""
    if case.cpu is None:
        return None
    start = time.perf_counter()
    case.cpu()
    return (time.perf_counter() - start) / case.cpu_share


def _ratio(others: float | None, ours: float) -> str:
    return "" if others is None else f"{others / ours:.1f}"


if __name__ == "__main__":
    main()
