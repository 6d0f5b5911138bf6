"""Tests of the CUDA kernels: on a GPU, or in the simulator with NUMBA_ENABLE_CUDASIM=1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from backends import why_no_cuda

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))  # its case builders


if os.environ.get("FASTINFLUENCE_EMULATED_CUDA", "0") not in ("", "0"):
    from emulated import device

    device.install(pytest.MonkeyPatch())


_WITHOUT_A_DEVICE = "test_compiled", "test_driver_cuda"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.stem not in _WITHOUT_A_DEVICE:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _needs_a_device(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and why_no_cuda():
        pytest.skip(why_no_cuda())
