"""Print, as JSON, the highest memory of this process while it explains.

    python peak_memory.py RUN top-10 THREADS
    python peak_memory.py RUN all-pairs THREADS FOLDER

RUN is a saved model. The row store is built in memory, so that all of it counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import fastinfluence as fi


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS (now) or VmHWM (highest)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Start the highest memory again from the memory held now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(run: str, what: str, threads: str, folder: str = "") -> None:
    """Explain, and print what it took."""
    model = fi.load(run)
    why = fi.GradientRollback(model, n_threads=int(threads), show_progress=False)
    items, _ = model.recommend(k=10)
    queries = np.column_stack([np.repeat(model.data_.user_ids, 10), items.ravel()])
    why.explain(queries[:100], k=10, show_progress=False)
    before = memory("VmRSS")
    forget_peak()
    if what == "top-10":
        why.explain(queries, k=10, show_progress=False)
    else:
        why.explain_to(Path(folder) / "explained", k=10, show_progress=False)
    report = {"row_store": why.rows.nbytes, "before": before, "peak": memory("VmHWM")}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
