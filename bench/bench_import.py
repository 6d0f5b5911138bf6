"""How long `import fastinfluence` takes in a fresh process."""

from __future__ import annotations

from statistics import median
from typing import Any

from comparison import compare, fact, figure, timed

IMPORT = (
    "import time; start = time.perf_counter(); import fastinfluence; "
    "print(time.perf_counter() - start)"
)


def bench_import(benchmark: Any, run_script: Any, smoke: bool) -> None:
    """Import alone, measured inside the process; the benchmark's own time adds the start."""
    seconds: list[float] = []
    rounds = 1 if smoke else 11
    compare(
        benchmark,
        lambda: seconds.append(float(run_script("-c", IMPORT))),
        {"python without the import": timed(lambda: run_script("-c", "pass"))},
        suite="Import",
        label="python -c 'import fastinfluence'",
        work=1,
        unit="imports",
        rounds=rounds,
    )
    once = median(seconds[-rounds:])
    fact(benchmark, "inside the process", once, "s")
    figure(benchmark, "import fastinfluence, seconds", once, target=0.5, at_least=False)
