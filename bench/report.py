"""Make bench/README.md from the JSON of a bench run.

    python bench/report.py [bench/bench.json [bench/README.md]]

Every number comes from the JSON; the sentences here explain and never state a measurement.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent

YARDSTICKS = ("sgemm 2048", "copy 256 MB")  # timed in the same rounds for their rates

SUITES = (
    "Training",
    "Gradient Rollback",
    "Curvature Rollback",
    "Replay",
    "Influence functions: solving",
    "Influence functions: the influence",
    "Influence functions: `scope",
    "Retraining",
    "Read-out",
    "Every user-item",
    "Attribution",
    "Knowledge graphs, training",
    "Knowledge graphs, small",
    "Knowledge graphs, explaining",
    "Knowledge graphs, backwards",
    "Knowledge graphs, link",
    "Import",
)

HEAD = """\
# Benchmarks

Made by `bench/report.py`; do not edit. To repeat it, with the extra `bench` and
whatever peers you want (cornac, scikit-surprise, captum, dattri, pydvl, pykeen) installed (pyDVL
asks for numpy < 2, but its influence functions run beside numpy 2: `pip install --no-deps pydvl`,
then what it misses):

```
pytest bench --all-pairs --benchmark-json=bench/bench.json && python bench/report.py
```

Data are read from `$FASTINFLUENCE_DATA` (or `../shared/data`): MovieLens in the folders `ml-1m` and
`ml-100k`, FB15k-237 as `fb15k-237/FB15k-237.tar.gz`, CoDEx-S as `codex/codex-s.zip`; UMLS comes
with PyKEEN. Without them, data of the same shape are made up. `--smoke` runs everything once on
tiny data; without `--all-pairs` that suite, a minute or two, is left out. The knowledge graphs
alone: `pytest bench/bench_graph_*.py`.

What is compared runs in turn, A B A B ..., in one process. A ratio is the median over the rounds
of the other's seconds divided by ours in the same round (in brackets the lowest and highest): above
1 we are faster. Times are medians. Everything has been compiled and run once beforehand.

The CUDA kernels are measured by a script of their own, `python bench/gpu.py`, on a machine with a
GPU; their registers and occupancy, which need none, are in [registers.md](registers.md), and counts
of their instructions and memory accesses, on an emulated GPU, in [traffic.md](traffic.md).
"""

# What a missed figure may hang on, by the beginning of its name.
REASONS = {
    "plain training": "Rows are fetched from the caches at random, so the ratio depends on the "
    "processor's caches as much as on the code, and on the order in which the peer reads.",
    "two threads": "The threads meet at a barrier after every stratum: a second core that is "
    "shared with anything else shows at once (see the load average).",
    "Curvature Rollback, in trainings": "Beside the arithmetic (see the kernel's share of the "
    "time) every epoch is run again with a log, and every row's matrix is read and written once.",
    "Curvature Rollback, row kernel": "The kernel reads its vectors from a log larger than the "
    "caches; sgemm reads a block over and over.",
    "Curvature Rollback, two": "A second core that is shared with anything else shows at once "
    "(see the load average).",
    "Replay": "Every step reads and writes the adjoints of 16 queries, sixteen times the bytes of "
    "the rows that the step trained.",
    "influence functions, iterations": "The preconditioner knows a row's own block, not how rows "
    "hang together: what is left takes more iterations the less the damping is.",
    "influence functions, 32": "One right-hand side takes a pass over the data for 16, as 16 do.",
    "influence functions, a query": "The row of conjugate gradients in plain torch shows "
    "what the same iterations cost without a library.",
    "influence functions, pairs": "End to end includes looking up raw ids and selecting; pairs "
    "trained on have a system of their own each, and there is nothing to share.",
    "extra memory": "The log of an epoch, the matrices or adjoints of all rows, and the result.",
    "cost of recording": "Recording reads and writes two more rows for every rating and hangs on "
    "the copy bandwidth above.",
    "graph training, µs": "A step reads and writes the rows of some 500 entities at random. Dense "
    "Adam moves every row at every step, put off until a row is needed: catching up, a quotient "
    "for every number and step, is nearly all its arithmetic.",
    "graph training, cost": "Recording adds to three rows a step that no cache holds.",
    "small graphs": "The whole call is timed, checking the data and drawing the start included.",
    "explaining on FB15k-237 by score": "End to end includes looking up raw ids and finding the "
    "best; a single call is so short that waking a second thread shows.",
    "explaining on FB15k-237 by probability": "Every triple that moves the relation or the given "
    "entity moves the scores of all entities: see the share of sgemm's rate.",
    "explaining": "End to end includes looking up raw ids, finding queries that were trained on "
    "and the total influence; the row `kernels alone` shows what is left without them.",
    "all user-item pairs": "The row without writing and the rate of the disk tell whether the "
    "disk or the arithmetic is the limit.",
    "peak memory": "The whole process is counted: interpreter, compiler, model and data too.",
    "import": "Measured in a fresh process with warm file caches.",
}


def main(source: Path = HERE / "bench.json", target: Path = HERE / "README.md") -> None:
    """Read `source`, write `target`."""
    target.write_text(document(json.loads(source.read_text())))


def document(run: dict[str, Any]) -> str:
    """The whole page."""
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for bench in sorted(run["benchmarks"], key=_rank):
        by_suite.setdefault(bench["extra_info"]["suite"], []).append(bench)
    parts = [HEAD, machine_table(run), figures_table(run["benchmarks"])]
    parts += [suite_section(name, benches) for name, benches in by_suite.items()]
    return "\n".join(parts)


def _rank(bench: dict[str, Any]) -> tuple[int, int]:
    info = bench["extra_info"]
    found = (n for n, begin in enumerate(SUITES) if info["suite"].startswith(begin))
    return next(found, len(SUITES)), info["threads"]


# -------------------------------------------------------------------------- machine


def machine_table(run: dict[str, Any]) -> str:
    """What the figures were measured on and beside."""
    info, ours = run["machine_info"], run["machine_info"]["fastinfluence"]
    commit = run["commit_info"]
    names = ("ml_1m", "ml_100k", "fb15k_237", "codex_s", "umls")
    data = "; ".join(ours[name] for name in names if name in ours)
    unset = f" ({', '.join(ours['unset'])} had been set)" if ours["unset"] else ""
    rows = [
        ("date", run["datetime"][:16].replace("T", " ") + " UTC"),
        ("commit", f"{commit['id'][:12]}{' with local changes' if commit['dirty'] else ''}"),
        ("processor", f"{info['cpu'].get('brand_raw', info['machine'])}, {ours['cores']} cores"),
        ("load average at the start", ", ".join(f"{x:.2f}" for x in ours["load_average_at_start"])),
        ("BLAS", "; ".join(ours["blas"])),
        ("BLAS environment", f"`OPENBLAS_CORETYPE`, `OPENBLAS_L2_SIZE` unset{unset}; one thread"),
        ("sgemm 2048³, one thread, start / end", _pair(ours["sgemm_gflops"], "GFLOP/s")),
        ("copy, read + write, start / end", _pair(ours["copy_gb_per_s"], "GB/s")),
        ("Python", info["python_version"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in ours["versions"].items())),
        ("data", data),
    ]
    warning = "**Smoke run on tiny data: the numbers mean nothing.**\n\n" if ours["smoke"] else ""
    return f"## Machine\n\n{warning}" + _table(("", ""), rows)


def _pair(values: list[float], unit: str) -> str:
    return " / ".join(f"{value:.0f}" for value in values) + f" {unit}"


# -------------------------------------------------------------------------- figures


def figures_table(benches: list[dict[str, Any]]) -> str:
    """Every figure beside its target, and a reason for those that were missed."""
    rows, reasons = [], {}
    for bench in sorted(benches, key=_rank):
        for figure in bench["extra_info"]["figures"]:
            value, target = figure["value"], figure["target"]
            reached = value >= target if figure["at_least"] else value <= target
            sign = "≥" if figure["at_least"] else "≤"
            answer = "yes" if reached else "**no**"
            rows.append((figure["name"], f"{sign} {_number(target)}", _number(value), answer))
            if not reached:
                reasons[figure["name"]] = _reason(figure["name"])
    table = _table(("figure", "to reach", "measured", "reached"), rows)
    missed = "".join(f"\n- *{name}*: missed. {reason}" for name, reason in reasons.items())
    return f"## Figures to reach\n\n{table}{missed}\n"


def _reason(name: str) -> str:
    return next((why for begin, why in REASONS.items() if name.startswith(begin)), "")


# -------------------------------------------------------------------------- suites


def suite_section(name: str, benches: list[dict[str, Any]]) -> str:
    """One suite: a table, further measurements, missing peers and notes."""
    header = ("what", "threads", "time", "rate", "compared with", "its time", "ratio")
    rows: list[tuple[str, ...]] = []
    lines: list[str] = []
    for bench in benches:
        info = bench["extra_info"]
        seconds = median(info["seconds"])
        own = (
            info["label"],
            str(info["threads"]),
            _seconds(seconds),
            f"{_rate(info['work'] / seconds)} {info['unit']}/s",
        )
        rivals = [item for item in info["rivals"].items() if item[0] not in YARDSTICKS]
        for number, (rival, timing) in enumerate(rivals or [("", None)]):
            first = own if number == 0 else ("", "", "", "")
            rows.append(first + ((rival, *_compared(timing)) if timing else ("", "", "")))
        if info["facts"]:
            facts = "; ".join(f"{k} {_number(v)} {unit}" for k, (v, unit) in info["facts"].items())
            lines.append(f"- {_named(info)}: {facts}")
        lines += [f"- {peer} left out: {why}" for peer, why in info["missing"].items()]
        lines += [f"- {info['note']}"] if info["note"] else []
    unique = list(dict.fromkeys(lines))
    below = "\n" + "\n".join(unique) + "\n" if unique else ""
    return f"## {name}\n\n{_table(header, rows)}{below}"


def _named(info: dict[str, Any]) -> str:
    return f"{info['label']}, {info['threads']} thread{'s' if info['threads'] > 1 else ''}"


def _compared(timing: dict[str, list[float]]) -> tuple[str, str]:
    ratios = timing["ratios"]
    spread = f" ({_number(min(ratios))} to {_number(max(ratios))})" if len(ratios) > 1 else ""
    return _seconds(median(timing["seconds"])), f"{_number(median(ratios))}×{spread}"


# -------------------------------------------------------------------------- numbers as text


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(value: float) -> str:
    """Three significant digits, no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    size, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{_number(value / size)}{name}"


def _seconds(value: float) -> str:
    return _scaled(value, ((1.0, " s"), (1e-3, " ms"), (1e-6, " µs")))


def _rate(value: float) -> str:
    return _scaled(value, ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, "")))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
