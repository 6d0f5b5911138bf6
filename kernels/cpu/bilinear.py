"""DistMult and ComplEx: how an entity and a relation make the vector that answers are scored by.

A row of ComplEx holds the real parts of its d/2 numbers, then the imaginary parts, so both models
are real inner products of rows of d numbers: ``score = <x, e_target>``, ``x = compose(e, w)``.
Where `flip` is set the relation is conjugated: then x answers for heads what it else answers for
tails. For DistMult it changes nothing.
"""

from .jit import inner_kernel

__all__ = ["compose", "pull_relation", "pull_subject"]


@inner_kernel
def compose(is_complex, flip, entity, relation, out):
    """Write ``x = e * w`` to `out` (d,), products of complex numbers if `is_complex`."""
    if not is_complex:
        for f in range(out.shape[0]):
            out[f] = entity[f] * relation[f]
        return
    half = out.shape[0] // 2
    sign = entity.dtype.type(-1) if flip else entity.dtype.type(1)
    for f in range(half):
        a, b = entity[f], entity[half + f]
        c, s = relation[f], sign * relation[half + f]
        out[f] = a * c - b * s
        out[half + f] = a * s + b * c


@inner_kernel
def pull_subject(is_complex, flip, relation, v, out):
    """Write the derivative of ``<x, v>`` by the entity's row to `out` (d,)."""
    compose(is_complex, not flip, v, relation, out)


@inner_kernel
def pull_relation(is_complex, flip, entity, v, out):
    """Write the derivative of ``<x, v>`` by the relation's row to `out` (d,)."""
    if flip:
        compose(is_complex, True, entity, v, out)
    else:
        compose(is_complex, True, v, entity, out)
