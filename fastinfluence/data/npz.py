"""Writing NPZ files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import ParameterError

__all__ = ["write_npz"]


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays to one ``.npz`` file; a failure leaves what was there before."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ParameterError(f"{path.name} must end in .npz")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **cast("dict[str, Any]", arrays))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
