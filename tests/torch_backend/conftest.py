"""Tests of the torch kernels, on its CPU: they share the case builders of the CPU kernels."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

if find_spec("torch"):
    import torch

    torch.set_num_threads(1)  # tensors are tiny: threads would only wait for one another
