"""The Hessian of the training loss on one embedding row, or on the two rows of a pair.

Cholesky factors of batches of small matrices, in float64 whatever the parameters are; see the
twin in kernels.cpu for the formulas and the parameters.
"""

import torch

from .batches import alike, padded, ranges, segment_sums, stretches
from .edge_losses import BPR
from .reports import reported

__all__ = ["couple", "link_pairs", "own_gradients", "solve_rows"]


@reported("gradients of examples")
def own_gradients(
    rows, parameters, edges, users, items, gradients, l2, places, start, stop,
    user_rows, user_biases, item_rows, item_biases,
):  # fmt: skip
    """Gradient of every example's own loss by the rows of its user and of its item."""
    first, d = edges.first[start : stop + 1], rows.shape[1]
    for some, (width,) in alike(lambda w: (2 * w + 6) * d * rows.itemsize + 32 * w, first.diff()):
        at, there = padded(first[some], first[some + 1], width)
        own, u = at[:, 0], users[start + some]
        i = items[own]
        slopes = gradients[at].masked_fill_(~there, 0)
        by_user = l2[own, None] * parameters[u] + (slopes[:, None] @ rows[items[at]])[:, 0]
        by_item = l2[own, None] * parameters[i] + gradients[own, None] * rows[u]
        examples = edges.examples[start + some]
        for place, found, factors, biases in (
            (places[0][examples], by_user, user_rows, user_biases),
            (places[1][examples], by_item, item_rows, item_biases),
        ):
            factors[place] = found[:, :-1].to(factors.dtype)
            biases[place] = found[:, -1].to(biases.dtype)


def _factored(matrices, tolerance):
    """Cholesky factors of matrices (n, d, d) from their lower triangles, and which have one.

    A pivot that is all but rounding, as small as `tolerance` times the diagonal, counts as zero.
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    pivots = factors.diagonal(dim1=1, dim2=2).square()
    least = (tolerance * matrices.diagonal(dim1=1, dim2=2)).clamp(min=0)
    return factors, (failed == 0) & (pivots > least).all(1)


@reported("solving of rows")
def solve_rows(blocks, damping, tolerance, pointers, rows, biases, start, stop, definite):
    """Multiply the gradients of every group of examples with ``-(block + damping)^-1``."""
    d, bounds = blocks.shape[1], pointers[start : stop + 1]
    definite[start:stop] = True
    for some, (width,) in alike(lambda w: 8 * d * (4 * d + 5 * w), bounds.diff()):
        groups = start + some
        matrices = blocks[groups].double()
        matrices.diagonal(dim1=1, dim2=2).add_(damping)
        factors, solvable = _factored(matrices, tolerance)
        definite[groups] = solvable
        places, there = padded(bounds[some], bounds[some + 1], width)
        given = torch.cat([rows[places], biases[places, None]], 2).double()
        factors[~solvable] = torch.eye(d, dtype=factors.dtype, device=factors.device)
        solved = -torch.cholesky_solve(given.mT, factors).mT
        done = there & solvable[:, None]
        where = places[done]
        rows[where] = solved[done][:, :-1].to(rows.dtype)
        biases[where] = solved[done][:, -1].to(biases.dtype)


@reported("blocks between rows")
def couple(loss, full, rows, edges, users, items, gradients, curvatures, owns, starts, stops, out):
    """The block between the two rows of pairs that were trained on."""
    d = rows.shape[1]
    out[:] = 0
    for some, (width,) in alike(lambda w: 8 * d * (3 * d + 8 * w), stops - starts):
        at, there = padded(starts[some], stops[some], width)
        examples = owns[at[there]]
        own = edges.first[examples]
        pulls = out.new_zeros(*at.shape, d)
        pulls[there] = _pulls(loss, rows, edges, items, curvatures, examples)
        ends = rows[users[owns[at]]].double()
        found = pulls.mT @ ends
        if full:
            slopes = gradients.new_zeros(at.shape).double()
            slopes[there] = gradients[own].double()
            found.diagonal(dim1=1, dim2=2)[:, :-1] += slopes.sum(1)[:, None]
        out[some] = found


def _pulls(loss, rows, edges, items, curvatures, examples):
    """Curvature times the derivative by the user's row (e, d) float64, of the own score."""
    own = edges.first[examples]
    other = rows[items[own]].double()
    if loss != BPR:
        return curvatures[own, None].double() * other
    found = torch.empty_like(other)
    behind = edges.first[examples + 1]
    for start, stop in stretches((behind - own) * rows.shape[1] * 40):
        owners, at = ranges(own[start:stop], behind[start:stop])
        leads = other[start:stop][owners] - rows[items[at]].double()  # 0 over itself
        counts = behind[start:stop] - own[start:stop]
        pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        found[start:stop] = segment_sums(curvatures[at, None].double() * leads, pointers)
    return found


@reported("solving of pairs")
def link_pairs(
    blocks, damping, tolerance, rows, couplings, users, items, by_user, by_item, definite
):
    """What the changes of a pair's rows are multiplied with, the rows being linked."""
    d = rows.shape[1]
    for some in stretches(users.new_full(users.shape, 8 * 16 * d * d, dtype=torch.int64)):
        pairs = slice(*some)
        u, i, coupling = users[pairs], items[pairs], couplings[pairs].double()
        matrices = coupling.new_zeros(len(u), 2 * d, 2 * d)
        matrices[:, :d, :d], matrices[:, d:, d:] = blocks[u].double(), blocks[i].double()
        matrices[:, d:, :d] = coupling.mT
        matrices.diagonal(dim1=1, dim2=2).add_(damping)
        factors, solvable = _factored(matrices, tolerance)
        definite[pairs] = solvable
        factors[~solvable] = torch.eye(2 * d, dtype=factors.dtype, device=factors.device)
        q, p = rows[i].double(), rows[u].double()
        v = torch.cholesky_solve(torch.cat([q, p], 1)[:, :, None], factors)
        mine = q - (coupling @ v[:, d:])[:, :, 0]
        its = p - (coupling.mT @ v[:, :d])[:, :, 0]
        where = solvable.nonzero()[:, 0]
        by_user[pairs][where] = mine[where].to(by_user.dtype)
        by_item[pairs][where] = its[where].to(by_item.dtype)
