"""Every CUDA kernel compiled and assembled for two architectures: nothing leaves the registers."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toolchain import ARCHITECTURES, Compiled, assemble, why_not

MODULES = sorted(file.stem for file in (Path(__file__).parent / "compiled").glob("[a-z]*.py"))
SOURCES = Path(__file__).parents[2] / "kernels" / "cuda"

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def compiled(module: str) -> list[Compiled]:
    """The kernels of a module, as production launches them."""
    found: list[Compiled] = importlib.import_module(f"compiled.{module}").compiled()
    return found


def label(entry: Compiled) -> str:
    return f"{entry.kernel.py_func.__name__} {entry.note}".strip()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_leaves_the_registers(module: str) -> None:
    entries = compiled(module)
    assert entries
    for entry in entries:
        for architecture in ARCHITECTURES:
            resources = assemble(entry, architecture)
            about = f"{module}.{label(entry)} for sm_{architecture[0]}{architecture[1]}"
            assert resources.spilled == 0, f"{about} spills {resources.spilled} bytes"
            assert resources.stack == 0, f"{about} has a stack of {resources.stack} bytes"
            assert 0 < resources.registers <= 255, about
            assert resources.occupancy(entry, architecture) > 0, f"{about} does not fit"


def test_every_kernel_is_among_them() -> None:
    decorated = re.compile(r"^ *@kernel\b.*\n(?:^ *@.*\n)* *def (\w+)", re.MULTILINE)
    written = {
        (source.stem, name)
        for source in SOURCES.glob("*.py")
        for name in decorated.findall(source.read_text())
    }
    listed = {
        (entry.kernel.py_func.__module__.rpartition(".")[2], entry.kernel.py_func.__name__)
        for module in MODULES
        for entry in compiled(module)
    }
    assert written
    assert written <= listed


def test_the_table_is_that_of_these_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Path(__file__).parents[2] / "bench"
    monkeypatch.syspath_prepend(bench)
    registers = importlib.import_module("registers")
    table = (bench / "registers.md").read_text()
    if registers.versions() not in table:
        pytest.skip(f"bench/registers.md was made by other compilers than {registers.versions()}")
    rows = [registers.row(module, entry) for module in MODULES for entry in compiled(module)]
    assert [line for line in table.splitlines() if line.startswith("| `")] == rows


def test_the_disk_cache_knows_a_kernel_again() -> None:
    """Kernels that are cached have the same key in every process."""
    script = (
        "import importlib, sys\n"
        "from types import SimpleNamespace\n"
        "codegen = SimpleNamespace(magic_tuple=lambda: (None, (9, 0)))\n"
        f"for module in {MODULES!r}:\n"
        "    for entry in importlib.import_module(f'compiled.{module}').compiled():\n"
        "        key = getattr(entry.kernel._cache, '_index_key', lambda *_: None)\n"
        "        print(entry.kernel.py_func.__name__, key(entry.signature, codegen))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    told = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert len(told[0].splitlines()) > 50
    assert told[0] == told[1]


def test_small_grids_give_no_warning() -> None:
    from numba.cuda.core import config

    from fastinfluence.kernels.cuda import jit

    assert jit.cuda is not None
    assert config.CUDA_LOW_OCCUPANCY_WARNINGS == 0
