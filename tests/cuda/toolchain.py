"""CUDA kernels to PTX and SASS, on a machine that need have neither driver nor GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

__all__ = ["ARCHITECTURES", "Compiled", "Resources", "assemble", "ptx_of", "why_not"]

ARCHITECTURES = ((8, 0), (9, 0))

_REGISTERS = 65536  # of a multiprocessor, for both
_THREADS = 2048
_SHARED = {(8, 0): 164 * 1024, (9, 0): 228 * 1024}


class Compiled(NamedTuple):
    """A kernel as production launches it."""

    kernel: Any
    signature: tuple[Any, ...]
    threads: int  # of a block
    shared: int = 0  # bytes of dynamic shared memory
    note: str = ""  # what tells it from its sisters: "k=64"


class Resources(NamedTuple):
    """What ptxas says of a kernel."""

    registers: int
    shared: int  # bytes, static
    stack: int
    spilled: int  # bytes of stores and loads
    ptx: str

    def occupancy(self, compiled: Compiled, architecture: tuple[int, int]) -> float:
        """Share of the threads of a multiprocessor that can be there at once."""
        warps = -(-compiled.threads // 32)
        of_warp = -(-self.registers * 32 // 256) * 256
        blocks = min(_REGISTERS // (of_warp * warps), _THREADS // (32 * warps), 32)
        needed = self.shared + compiled.shared + 1024
        blocks = min(blocks, _SHARED[architecture] // needed)
        return blocks * 32 * warps / _THREADS


def find_ptxas() -> str | None:
    """ptxas of the nvidia-cuda-nvcc wheel, or the one on the path."""
    for base in map(Path, sys.path):
        for found in base.glob("nvidia/cu*/bin/ptxas"):
            return str(found)
    return shutil.which("ptxas")


@cache
def why_not() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    try:
        from fastinfluence.kernels.cuda.jit import SIMULATED
    except ImportError as error:
        return f"no numba-cuda: {error}"
    if SIMULATED:
        return "numba-cuda only simulates in this process"
    if find_ptxas() is None:
        return "no ptxas: pip install nvidia-cuda-nvcc"
    from numba.cuda.cudadrv import nvvm

    try:
        nvvm.NVVM()
    except ImportError as error:
        return f"no nvvm: {error}"
    return None


def assemble(compiled: Compiled, architecture: tuple[int, int]) -> Resources:
    """Compile a kernel as `launch` would, then assemble it; once for all sizes of its blocks."""
    return _resources(compiled.kernel, compiled.signature, architecture)


@cache
def _resources(kernel: Any, signature: Any, architecture: tuple[int, int]) -> Resources:
    ptx = ptx_of(kernel, signature, architecture)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        name = f"sm_{architecture[0]}{architecture[1]}"
        command = [find_ptxas(), f"-arch={name}", "-v", "-O3", source, "-o", f"{folder}/out"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, run.stderr)))

    return Resources(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes smem"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        ptx,
    )


@cache
def ptx_of(kernel: Any, signature: Any, architecture: tuple[int, int]) -> str:
    """What numba and NVVM make of a kernel for arguments of some types."""
    from numba.cuda import dispatcher

    from fastinfluence.kernels.cuda.jit import cuda

    options = kernel.targetoptions
    with pytest.MonkeyPatch.context() as patch:
        # A device function asks the current device, of which there is none, what it is.
        device = SimpleNamespace(compute_capability=architecture)
        patch.setattr(dispatcher, "get_current_device", lambda: device)
        ptx, _ = cuda.compile_ptx(
            kernel.py_func,
            signature,
            cc=architecture,
            fastmath=options.get("fastmath", False),
            launch_bounds=options.get("launch_bounds"),
        )
    return str(ptx)
