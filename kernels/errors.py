"""The errors of kernels on a device, and the base class of every error of this library.

They stand below everything else, because a kernel may raise them.
"""

__all__ = ["DeviceError", "DeviceMemoryError", "FastInfluenceError"]


class FastInfluenceError(Exception):
    """Base class of every error raised on purpose by this library."""


class DeviceError(FastInfluenceError, RuntimeError):
    """A device that is absent or unusable, an array on the wrong one, a kernel that failed."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A device has not memory enough, even for the smallest pieces work can be cut into."""
