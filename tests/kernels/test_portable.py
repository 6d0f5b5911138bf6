"""The kernels compiled for a processor without AVX-512 must pass the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

from fastinfluence.kernels.cpu import lanes

PORTABLE = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2,+popcnt"}
FILES = ["test_simd.py", "test_panels.py", "test_select.py", "test_rows.py", "test_readout.py"]


@pytest.mark.slow  # compiles them all once more
@pytest.mark.skipif(not lanes.HAS_AVX512, reason="this process already takes the portable path")
@pytest.mark.skipif(bool(os.environ.get("NUMBA_BOUNDSCHECK")), reason="nothing vectors would check")
def test_kernels_without_avx512():
    here = Path(__file__).parent
    script = (
        "import sys, pytest; from fastinfluence.kernels.cpu import lanes; "
        "assert not lanes.HAS_AVX512; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *(str(here / name) for name in FILES)],
        cwd=here.parents[1],
        env={**os.environ, **PORTABLE},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("haswell", None, False),
        ("haswell", "+avx2,-avx512f", False),
        (None, "-avx512f", False),
        ("generic", "", False),
        ("haswell", "+avx512f,+avx512vl", True),
        ("icelake-server", None, True),
    ],
)
def test_the_compilation_target_decides(name, features, expected, monkeypatch):
    monkeypatch.setattr(config, "CPU_NAME", name)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    assert lanes._has_avx512() is expected
