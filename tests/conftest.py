"""Fixtures every test folder may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets: ``$FASTINFLUENCE_DATA``, or ``../shared/data``."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FASTINFLUENCE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set FASTINFLUENCE_DATA to its folder")
    return folder
