"""Arrays on a device of torch: there, back, and room for new ones.

numpy has no bfloat16: rows that are its bits in uint16 become tensors of ``torch.bfloat16`` and
come back as uint16. Nothing else here is uint16.
"""

import os
from typing import Any

import numpy as np
import torch

from ..errors import DeviceError
from .reports import reported

__all__ = ["On"]


class On:
    """The memory of one device.

    Parameters
    ----------
    device : str
        As for `torch.device`: "cpu", "cuda:1", "mps", ...
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def put(self, given: Any) -> Any:
        """Move arrays to the device; those that are there stay where they are.

        Parameters
        ----------
        given
            An array (numpy, or a tensor of this device), a (named) tuple of arrays, or what is
            none: None and numbers are handed back. On the device "cpu" tensors share the memory
            of arrays that may be written to.

        Raises
        ------
        DeviceError
            A tensor of another device, or a dtype that this one has not.
        DeviceMemoryError
            There is no room for it.
        """
        if isinstance(given, tuple):
            return _each(self.put, given)
        if isinstance(given, torch.Tensor):
            self._check(given)
        if not isinstance(given, np.ndarray):
            return given
        with reported(f"{given.nbytes:,} bytes for an array {given.shape} of {given.dtype}"):
            return self._tensor(given)

    def fetch(self, given: Any) -> Any:
        """Copy tensors back into CPU memory, as numpy arrays; those of the CPU are shared."""
        if isinstance(given, tuple):
            return _each(self.fetch, given)
        if not isinstance(given, torch.Tensor):
            return given
        with reported("copying to the CPU"):
            found = given.detach().cpu()
        if found.dtype == torch.bfloat16:
            return found.view(torch.int16).numpy().view(np.uint16)
        return found.numpy()

    def store(self, target: Any, source: Any) -> None:
        """Overwrite a tensor with another one, or with an array."""
        with reported("copying to the device"):
            target.copy_(self.put(source))

    def empty(self, shape: Any, dtype: Any) -> Any:
        """Room for an array."""
        with reported(f"an array {shape} of {np.dtype(dtype)}"):
            return torch.empty(shape, dtype=_dtype_of(dtype), device=self.device)

    def zeros(self, shape: Any, dtype: Any) -> Any:
        """An array of zeros."""
        with reported(f"an array {shape} of {np.dtype(dtype)}"):
            return torch.zeros(shape, dtype=_dtype_of(dtype), device=self.device)

    def copied(self, given: Any) -> Any:
        """Copies on the device of tensors that are there."""
        if isinstance(given, tuple):
            return _each(self.copied, given)
        if not isinstance(given, torch.Tensor):
            return given
        with reported(f"a copy of an array {tuple(given.shape)}"):
            return given.clone()

    def all_finite(self, arrays: tuple[Any, ...]) -> bool:
        """Whether no tensor holds NaN or infinity."""
        with reported("looking for NaN"):
            return all(bool(torch.isfinite(array).all()) for array in arrays)

    def free_bytes(self) -> int:
        """Memory that is left on the device; of the machine where torch does not tell."""
        tell = getattr(getattr(torch, self.device.type, None), "mem_get_info", None)
        if tell is not None and self.device.type != "cpu":
            return int(tell(self.device)[0])
        return _available_bytes()

    def _tensor(self, array: Any) -> Any:
        if array.dtype == np.uint16:
            return self._tensor(array.view(np.int16)).view(torch.bfloat16)
        # A tensor may always be written to, so what may not is copied.
        array = np.ascontiguousarray(array) if array.flags.writeable else array.copy()
        return torch.from_numpy(array).to(self.device)

    def _check(self, tensor: Any) -> None:
        """Raise DeviceError unless a tensor is on this device."""
        mine, its = self.device, tensor.device
        if its.type != mine.type or (mine.index is not None and its.index != mine.index):
            raise DeviceError(
                f"a tensor of shape {tuple(tensor.shape)} is on {its}, and the work is done on "
                f"{mine}: move it with .to('{mine}'), or give device='torch:{its}'"
            )


def _each(function: Any, parts: tuple[Any, ...]) -> Any:
    found = map(function, parts)
    return type(parts)(*found) if hasattr(parts, "_fields") else tuple(found)


def _available_bytes() -> int:
    """Memory of the machine that can be had without swapping; half of it where nobody knows."""
    try:
        with open("/proc/meminfo") as lines:
            found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
            return 1024 * int(next(found))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _dtype_of(dtype: Any) -> torch.dtype:
    dtype = np.dtype(dtype)
    if dtype == np.uint16:
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, dtype)).dtype
