"""Tests of the torch kernels, on its CPU: they share the case builders of the CPU kernels."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))
