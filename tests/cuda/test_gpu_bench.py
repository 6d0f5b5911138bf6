"""The bench of CUDA kernels runs from end to end, checks what it times, and says what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from backends import EMULATED

pytestmark = pytest.mark.skipif(EMULATED, reason="a process of its own, without the emulated GPU")

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_a_table_of_cases(tmp_path):
    numbers = tmp_path / "numbers.json"
    modules = ["sgd", "replay", "pairs", "graph"]
    run = subprocess.run(
        [sys.executable, BENCH / "gpu.py", "--smoke", "--json", numbers, "--only", *modules],
        env={**os.environ, "PYTHONPATH": str(BENCH.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    table = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ")]
    header, *rows = table
    assert header[0] == "| case"
    assert len(rows) == 11
    assert all(len(row) == len(header) for row in rows)
    cases = json.loads(numbers.read_text())["cases"]
    assert [row[0].removeprefix("| ") for row in rows] == [case["case"] for case in cases]
    for case in cases:
        assert case["error"] <= case["tolerance"]
        assert case["cpu_seconds"] > 0
        assert case["n_bytes"] > 0
        assert case["n_flops"] > 0


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("gpu")


@pytest.mark.parametrize("of_torch", [False, True])
def test_a_wrong_result_is_an_error(gpu, monkeypatch, capsys, of_torch):
    right, wrong = (np.array([2.0, 1.0 + error]) for error in (0.0, 1e-2))
    case = gpu.Case(
        "half a percent off",
        run=lambda: None,
        found=lambda: (right if of_torch else wrong,),
        expected=(right,),
        tolerance=1e-3,
        n_bytes=1.0,
        n_flops=1.0,
        bound="bytes",
        torch=(lambda: (wrong,)) if of_torch else None,
    )
    monkeypatch.setattr(gpu, "cases", lambda *_: iter([case]))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke"])
    with pytest.raises(SystemExit, match=r"beyond their tolerance.*half a percent off"):
        gpu.main()
    assert "half a percent off" in capsys.readouterr().out


def test_differences(gpu):
    expected = (np.array([1.0, -4.0]), np.array([[np.nan, -np.inf, 10.0]]))
    assert gpu.difference(expected, expected) == 0
    other = (np.array([1.0, -4.2]), np.array([[np.nan, -np.inf, 9.0]]))
    assert gpu.difference(other, expected) == pytest.approx(0.1)
    for wrong in ([[0.0, -np.inf, 10.0]], [[np.nan, 1.0, 10.0]], [[np.nan, -np.inf, np.nan]]):
        assert np.isnan(gpu.difference((expected[0], np.array(wrong)), expected))
    with pytest.raises(SystemExit, match="shape"):
        gpu.difference(expected, (expected[0], expected[0]))
