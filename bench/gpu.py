"""Every CUDA kernel on the GPU of this machine: checked, timed, set against what the card can do.

    python bench/gpu.py [--data FOLDER] [--only NAME ...] [--smoke] [--json FILE]

Each case is checked against the same kernel on the CPU, then timed: compiled and run once
beforehand, the second-level cache emptied before every run, the median of the runs by events of
the GPU. Bytes and operations are counted, not measured; their rates are shares of what a copy and a
matrix product reach on this card in the same process. Beside it stand the same kernel on one
thread of the CPU, and the same work written in plain torch on the same card, where torch is
installed.

`--smoke` runs everything once on tiny data: with NUMBA_ENABLE_CUDASIM=1 on a machine without a
GPU too, where the times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_ceilings
from gpu_cases import MODULES, Case

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
    tolerance: float
    note: str = field(default="")

    def cells(self) -> list[str]:
        """The row of the table."""
        return [
            self.case,
            f"{self.seconds * 1e3:.3f}",
            f"{self.n_bytes / 1e9:.3g}",
            f"{self.n_flops / 1e9:.3g}",
            f"{self.share:.0%} of {'copy' if self.bound == 'bytes' else 'sgemm'}",
            _ratio(self.cpu_seconds, self.seconds),
            _ratio(self.torch_seconds, self.seconds),
            f"{self.error:.1e}",
        ]


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
    for case in cases(asked.smoke, asked.only):
        rows.append(measured(case, ceilings, 1 if asked.smoke else asked.rounds))
        print("| " + " | ".join(rows[-1].cells()) + " |", flush=True)
    if asked.json:
        found = {"ceilings": asdict(ceilings), "cases": [asdict(row) for row in rows]}
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    wrong = [row.case for row in rows if not row.error <= row.tolerance]
    if wrong:
        raise SystemExit(f"beyond their tolerance: {', '.join(wrong)}")


def cases(smoke: bool, only: list[str] | None) -> Iterator[Case]:
    """Cases one after the other, each made when it is its turn: they fill the memory."""
    for module in only or MODULES:
        yield from importlib.import_module(f"gpu_cases.{module}").cases(smoke)


def measured(case: Case, ceilings: gpu_ceilings.Ceilings, rounds: int) -> Row:
    """Check a case and time it."""
    case.run()
    error = case.error()
    seconds = gpu_ceilings.seconds_of(case.run, rounds)
    needed = (
        case.n_bytes / ceilings.copy if case.bound == "bytes" else case.n_flops / ceilings.sgemm
    )
    return Row(
        case.name,
        seconds,
        case.n_bytes,
        case.n_flops,
        needed / seconds,
        case.bound,
        _cpu_seconds(case.cpu, rounds),
        None if case.torch is None else gpu_ceilings.torch_seconds_of(case.torch, rounds),
        error,
        case.tolerance,
        case.note,
    )


def _cpu_seconds(function: Callable[[], Any] | None, rounds: int) -> float | None:
    if function is None:
        return None
    function()
    times = []
    for _ in range(min(rounds, 3)):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _ratio(others: float | None, ours: float) -> str:
    return "" if others is None else f"{others / ours:.1f}"


if __name__ == "__main__":
    main()
