"""The arithmetic of a step on a triple along a block of directions, one a lane of 16."""

from .adjoints import add_lanes, set_lanes
from .jit import inner_kernel
from .lanes import LANES
from .link_losses import SOFTMAX

__all__ = [
    "add_row_lanes",
    "bend_lanes",
    "clear_lanes",
    "compose_lanes",
    "compose_relation_lanes",
    "pull_relation_lanes",
    "pull_subject_lanes",
]


@inner_kernel
def compose_lanes(is_complex, flip, entity, relation, out):
    """Add ``compose`` of an adjoint (d, LANES) as the entity and a row (d,) to `out`."""
    d = relation.shape[0]
    if not is_complex:
        for f in range(d):
            add_lanes(out[f], entity[f], relation[f])
        return
    half = d // 2
    for f in range(half):
        c, s = relation[f], relation[half + f]
        if flip:
            s = -s
        add_lanes(out[f], entity[f], c)
        add_lanes(out[f], entity[half + f], -s)
        add_lanes(out[half + f], entity[f], s)
        add_lanes(out[half + f], entity[half + f], c)


@inner_kernel
def compose_relation_lanes(is_complex, flip, entity, relation, out):
    """Add ``compose`` of a row (d,) as the entity and an adjoint (d, LANES) to `out`."""
    if not is_complex or not flip:
        compose_lanes(is_complex, False, relation, entity, out)  # the product commutes
        return
    half = entity.shape[0] // 2
    for f in range(half):
        a, b = entity[f], entity[half + f]
        add_lanes(out[f], relation[f], a)
        add_lanes(out[f], relation[half + f], b)
        add_lanes(out[half + f], relation[f], b)
        add_lanes(out[half + f], relation[half + f], -a)


@inner_kernel
def pull_subject_lanes(is_complex, flip, relation, pull, relation_back, pull_back, out):
    """Derivative of `pull_subject` along (relation_back, pull_back), added to `out`."""
    compose_lanes(is_complex, not flip, pull_back, relation, out)
    compose_relation_lanes(is_complex, not flip, pull, relation_back, out)


@inner_kernel
def pull_relation_lanes(is_complex, flip, entity, pull, entity_back, pull_back, out):
    """Derivative of `pull_relation` along (entity_back, pull_back), added to `out`."""
    if flip:  # e * conj(pull)
        compose_lanes(is_complex, True, entity_back, pull, out)
        compose_relation_lanes(is_complex, True, entity, pull_back, out)
    else:  # pull * conj(e)
        compose_lanes(is_complex, True, pull_back, entity, out)
        compose_relation_lanes(is_complex, True, pull, entity_back, out)


@inner_kernel
def clear_lanes(lanes):
    for f in range(lanes.shape[0]):
        for q in range(LANES):
            lanes[f, q] = 0


@inner_kernel
def add_row_lanes(target, source, factor):
    for f in range(target.shape[0]):
        add_lanes(target[f], source[f], factor)


@inner_kernel
def bend_lanes(loss, curvatures, slopes, bends, mean):
    """``bends = (d2L/dz2) slopes``, lane by lane."""
    m = curvatures.shape[0]
    if loss == SOFTMAX:
        set_lanes(mean, slopes[0], curvatures[0])
        for c in range(1, m):
            add_lanes(mean, slopes[c], curvatures[c])
    for c in range(m):
        set_lanes(bends[c], slopes[c], curvatures[c])
        if loss == SOFTMAX:
            add_lanes(bends[c], mean, -curvatures[c])
