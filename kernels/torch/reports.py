"""torch's errors as those of this library."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import DeviceError, DeviceMemoryError

__all__ = ["reported"]


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Raise errors of a device as DeviceError, of its memory as DeviceMemoryError.

    Parameters
    ----------
    what : str
        What is done, for the message. Also a decorator of functions.
    """
    try:
        yield
    except (DeviceError, MemoryError):
        raise
    except (RuntimeError, NotImplementedError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        # The CPU's allocator has no class of error of its own.
        if isinstance(error, torch.OutOfMemoryError) or "you tried to allocate" in first_line:
            raise DeviceMemoryError(f"out of device memory in {what}: {first_line}") from error
        raise DeviceError(f"torch cannot do {what}: {first_line}") from error
