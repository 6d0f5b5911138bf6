"""DistMult and ComplEx: a number of the vector that answers are scored by.

See the twin in kernels.cpu: there a vector is written, here every thread makes one number of it.
"""

from .jit import inner_kernel

__all__ = ["composed"]


@inner_kernel
def composed(is_complex, flip, entity, relation, f):
    """Number f of ``x = e * w``, products of complex numbers if `is_complex`."""
    if not is_complex:
        return entity[f] * relation[f]
    half = entity.shape[0] // 2
    if f < half:
        shift = entity[half + f] * relation[half + f]
        return entity[f] * relation[f] + (shift if flip else -shift)
    shift = entity[f - half] * relation[f]
    return entity[f] * relation[f - half] + (-shift if flip else shift)
