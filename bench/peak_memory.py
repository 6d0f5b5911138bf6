"""Print, as JSON, the highest memory of this process while it explains.

    python peak_memory.py RUN top-10 THREADS
    python peak_memory.py RUN all-pairs THREADS FOLDER
    python peak_memory.py RUN curvature-rollback THREADS
    python peak_memory.py RUN replay THREADS

RUN is a saved model. The row store is built in memory, so that all of it counts: before
explaining, as a part of what is measured for curvature-rollback. Replay has none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastinfluence as fi

Action = Callable[[], int]  # what is measured; the bytes of its row store


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS (now) or VmHWM (highest)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Start the highest memory again from the memory held now."""
    Path("/proc/self/clear_refs").write_text("5")


def explaining(model: fi.MatrixFactorization, threads: int, folder: str) -> Action:
    """Explain the ten best recommendations of everybody, or every pair where there is a folder."""
    why = fi.GradientRollback(model, n_threads=threads, show_progress=False)
    items, _ = model.recommend(k=10)
    queries = np.column_stack([np.repeat(model.data_.user_ids, 10), items.ravel()])
    why.explain(queries[:100], k=10, show_progress=False)

    def explain() -> int:
        if folder:
            why.explain_to(Path(folder) / "explained", k=10, show_progress=False)
        else:
            why.explain(queries, k=10, show_progress=False)
        return why.rows.nbytes

    return explain


def curvature_rollback(model: fi.MatrixFactorization, threads: int, folder: str) -> Action:
    """Compute the row store of Curvature Rollback."""
    options = {"n_threads": threads, "show_progress": False}
    fi.CurvatureRollback(model, rows=_queries(model, 1), **options)
    return lambda: fi.CurvatureRollback(model, **options).rows.nbytes


def replay(model: fi.MatrixFactorization, threads: int, folder: str) -> Action:
    """Compute the influence of all examples on 32 predictions."""
    why = fi.Replay(model, n_threads=threads, show_progress=False)
    queries = _queries(model, 32)
    why.influence(queries[:1])

    def influence() -> int:
        why.influence(queries)
        return 0

    return influence


def _queries(model: fi.MatrixFactorization, n: int) -> np.ndarray:
    users = model.data_.user_ids[:n]
    return np.column_stack([users, model.recommend(users, k=1)[0]])


# Each gets everything ready and compiled.
PREPARATIONS = {
    "top-10": explaining,
    "all-pairs": explaining,
    "curvature-rollback": curvature_rollback,
    "replay": replay,
}


def main(run: str, what: str, threads: str, folder: str = "") -> None:
    """Do it, and print what it took."""
    action = PREPARATIONS[what](fi.load(run), int(threads), folder)
    before = memory("VmRSS")
    forget_peak()
    row_store = action()
    report = {"row_store": row_store, "before": before, "peak": memory("VmHWM")}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
