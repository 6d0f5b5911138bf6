"""Tests of the CUDA kernels: on a GPU, or where there is none

- in the simulator with ``NUMBA_ENABLE_CUDASIM=1``,
- as PTX on an emulated GPU with ``FASTINFLUENCE_EMULATED_CUDA=1`` (see `emulated`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from backends import EMULATED, why_no_cuda
from toolchain import why_not

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))  # its case builders

if EMULATED and why_not() is None:
    from emulated import device

    device.install(pytest.MonkeyPatch())

_WITHOUT_A_DEVICE = "test_compiled", "test_driver_cuda", "test_emulated"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.stem not in _WITHOUT_A_DEVICE:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _needs_a_device(request: pytest.FixtureRequest) -> None:
    problem = why_not() if EMULATED else why_no_cuda()
    if request.node.get_closest_marker("gpu") and problem:
        pytest.skip(problem)
