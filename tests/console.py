"""The command line as tests call it: in this process, or in one of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

import fastinfluence as fi
from fastinfluence.cli import main

N_USERS, N_ITEMS = 40, 30
COLUMNS = ["--user", "userId", "--item", "movieId", "--value", "rating"]
SMALL = ["--n-factors", "4", "--n-epochs", "3", "--rng", "0"]


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def succeed(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def start(*arguments: object) -> subprocess.Popen[str]:
    """Run the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastinfluence", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(fi.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], when: Callable[[], Any], how: signal.Signals) -> int:
    """Send a signal once `when` is true (or the process has ended); return its exit code."""
    while process.poll() is None and not when():
        pass
    process.send_signal(how)
    process.communicate()
    return process.returncode


def write_files(folder: Path) -> None:
    """Write ratings, queries, a trained run, damaged runs, and a MovieLens set in small."""
    rng = np.random.default_rng(0)
    pairs = sorted(rng.permutation(N_USERS * N_ITEMS)[:400].tolist())
    rows = [(pair // N_ITEMS, pair % N_ITEMS, int(rng.integers(1, 6))) for pair in pairs]
    for name, sep, head in (
        ("ratings.csv", ",", "userId,movieId,rating,when\n"),
        ("r.tsv", "\t", ""),
    ):
        lines = [sep.join(map(str, (*row, 7))) + "\n" for row in rows]
        (folder / name).write_text(head + "".join(lines))
    (folder / "queries.csv").write_text("item,user\n3,0\n4,0\n29,39\n")
    (folder / "ml").mkdir()
    (folder / "ml" / "u.data").write_text((folder / "r.tsv").read_text())
    titles = "".join(f"{item}|Film {item} (1995)|\n" for item in range(N_ITEMS))
    (folder / "ml" / "u.item").write_text(titles)
    (folder / "empty.csv").write_text("item,user\n")
    (folder / "strangers.csv").write_text("item,user\n3,99\n")
    succeed("train", folder / "ratings.csv", *COLUMNS, *SMALL, "--out", folder / "run")
    for name in ("changed", "cut"):
        shutil.copytree(folder / "run", folder / name)
    values = (folder / "changed" / "data" / "values.npy").read_bytes()
    (folder / "changed" / "data" / "values.npy").write_bytes(values[:-1] + b"\1")
    shutil.rmtree(folder / "cut" / "checkpoints" / "00002")
