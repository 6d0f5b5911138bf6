"""Where the arrays of a call lie: its kernels run there, and its results belong there."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastinfluence import dispatch
from fastinfluence.errors import DeviceError

__all__ = ["Home", "check_in_place", "home_of", "is_tensor", "taken_over"]

_IN_CPU_MEMORY = (1, 3)  # device types of DLPack: CPU, pinned for CUDA


def is_tensor(array: Any) -> bool:
    """Whether something is a tensor of torch, which is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def taken_over(array: Any) -> Any:
    """Hand an array back; as a tensor if it lies on a device and knows DLPack only.

    Of a tensor that gradients are wanted of the same memory without them: no other library may
    have it as it is.

    Raises
    ------
    DeviceError
        torch is not installed.
    """
    if is_tensor(array):
        return array.detach() if array.requires_grad else array
    if not hasattr(array, "__dlpack_device__"):
        return array
    if hasattr(array, "__cuda_array_interface__") or array.__dlpack_device__()[0] in _IN_CPU_MEMORY:
        return array
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            f"{type(array).__name__} lies on a device (DLPack type {array.__dlpack_device__()[0]}) "
            "and can be taken over by torch only: pip install 'fastinfluence[torch]'"
        ) from error
    return torch.from_dlpack(array)


class Home:
    """A kind of array on a device: numpy's, torch's, or any other of an NVIDIA GPU.

    Attributes
    ----------
    backend : str
        Of the kernels that take such arrays; see `dispatch.choose`.
    """

    backend = "cpu"

    def give(self, found: Any) -> Any:
        """Results (numpy, None, or tuples of them) as arrays of this kind."""
        return found

    def _each(self, found: tuple[Any, ...]) -> Any:
        parts = map(self.give, found)
        return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)


class _Torch(Home):
    def __init__(self, device: Any) -> None:
        self.device = device
        if device.type == "cpu":
            self.backend = "cpu"
        elif device.type == "cuda" and not device.index and dispatch.cuda_problem() is None:
            self.backend = "cuda"  # whose kernels run on the first GPU
        else:
            self.backend = f"torch:{device}"

    def give(self, found: Any) -> Any:
        import torch

        if isinstance(found, tuple):
            return self._each(found)
        if hasattr(found, "copy_to_host"):  # on the GPU already
            return torch.as_tensor(found, device=self.device)
        if not isinstance(found, np.ndarray):
            return found
        return torch.from_numpy(found).to(self.device)


class _Cuda(Home):
    backend = "cuda"

    def __init__(self, module: str) -> None:
        self.module = module  # that of the arrays' type

    def give(self, found: Any) -> Any:
        if isinstance(found, tuple):
            return self._each(found)
        if not isinstance(found, np.ndarray) and not hasattr(found, "copy_to_host"):
            return found
        if self.module == "cupy":
            import cupy

            return cupy.asarray(found)
        return dispatch.memory("cuda").put(found)


def home_of(**given: Any) -> Home:
    """Return where some arguments of a call lie; lists and numpy arrays lie anywhere.

    Raises
    ------
    DeviceError
        Two lie on different devices; they lie on a GPU that kernels cannot run on.
    """
    found: dict[str, tuple[str, Home]] = {}
    for name, array in given.items():
        array = taken_over(array)
        module = type(array).__module__.partition(".")[0]
        if is_tensor(array):
            found[name] = str(array.device), _Torch(array.device)
        elif hasattr(array, "__cuda_array_interface__") or hasattr(array, "copy_to_host"):
            if dispatch.cuda_problem() is not None:
                raise DeviceError(f"{name} lies on a GPU: {dispatch.cuda_problem()}")
            found[name] = "cuda", _Cuda(module)
    if not found:
        return Home()
    first, (place, home) = next(iter(found.items()))
    for name, (other, _) in found.items():
        if other != place and not {other, place} <= {"cuda", "cuda:0"}:
            raise DeviceError(
                f"{name} lies on {other}, {first} on {place}: move them to one device"
            )
    return home


def check_in_place(backend: str, **given: Any) -> None:
    """Check that what kernels change lies where they run: of a copy nobody would see the change.

    Raises
    ------
    DeviceError
        An array lies elsewhere.
    """
    for name, array in given.items():
        if home_of(**{name: array}).backend != backend:
            here, there = ("CPU memory", "a GPU") if backend == "cpu" else ("a GPU", "CPU memory")
            raise DeviceError(
                f"{name} is changed in place: it must lie in {here} with the tables, not {there}"
            )
