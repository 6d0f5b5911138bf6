"""The Hessian of the training loss at fixed parameters, times 16 vectors at once.

Rows with about as many edges make a batch: the rows at their other ends are gathered side by
side, and what the CPU adds up edge by edge is a batched matrix product, summed in the same order
on every call. See the twin in kernels.cpu for the formulas and the parameters.
"""

import torch

from ..structures import LANES
from .batches import alike, padded, segment_sums, stretches
from .edge_losses import BPR
from .reports import reported

__all__ = [
    "bend",
    "credit",
    "gradient_norms",
    "own_credit",
    "pull",
    "row_blocks",
    "row_dots",
    "slopes",
]


def _by_row(edges, start, stop, numbers_of_edge, size):
    """Batches of rows with edges: rows (r,), others, edge numbers and where they are (r, w)."""
    pointers = edges.pointers[start : stop + 1]
    for some, (width,) in alike(lambda w: w * (numbers_of_edge * size + 25), pointers.diff()):
        places, there = padded(pointers[some], pointers[some + 1], width)
        yield start + some, edges.others[places], edges.numbers[places], there


@reported("the slopes of scores")
def slopes(rows, edges, panel, start, stop, added, out):
    """One end's part of the slopes of all scores along a panel of vectors."""
    each = rows.shape[1] + 3 * LANES
    for some, others, numbers, there in _by_row(edges, start, stop, each, rows.itemsize):
        found = (rows[others] @ panel[some])[there]
        where = numbers[there]  # an edge has one place on either side
        out[where] = out[where] + found if added else found


@reported("the change of gradients")
def bend(loss, first, curvatures, start, stop, slopes, out):
    """Change of dL/df of every edge along the slopes of all."""
    bounds = first[start : stop + 1]
    begin, end = bounds[[0, -1]].tolist() if stop > start else (0, 0)
    some, ours = curvatures[begin:end, None], slopes[begin:end]
    if loss != BPR:
        torch.mul(ours, some, out=out[begin:end])
        return
    pointers = bounds - begin
    own = pointers[:-1]
    leads = some * (ours - ours[own].repeat_interleave(pointers.diff(), 0))  # the own one's: 0
    leads[own] = -segment_sums(leads, pointers)
    out[begin:end] = leads


@reported("the product with the Hessian")
def pull(rows, edges, bends, gradients, panel, l2, start, stop, out):
    """Bring the changes of all dL/df back to rows `start` to `stop`."""
    d = rows.shape[1]
    torch.mul(panel[start:stop], l2[start:stop, None, None], out=out[start:stop])
    each = d + 2 * LANES + (0 if gradients is None else LANES * d)
    for some, others, numbers, there in _by_row(edges, start, stop, each, rows.itemsize):
        bent = bends[numbers].masked_fill_(~there[:, :, None], 0)
        found = rows[others].mT @ bent
        if gradients is not None:
            slopes_of = gradients[numbers].masked_fill_(~there, 0)
            moved = slopes_of[:, None] @ panel[others].flatten(2)
            found[:, :-1] += moved.view(found.shape)[:, :-1]  # scores are linear in the biases
        out[some] += found


@reported("products of rows")
def row_dots(parameters, panel, start, stop, out):
    """``out[row] = parameters[row] . panel[row]``: (n_rows, LANES)."""
    out[start:stop] = (parameters[start:stop, None] @ panel[start:stop])[:, 0]


def _by_example(edges, start, stop, bytes_of_edge):
    """Runs of examples: their places, bounds of their edges from 0 on, and those edges."""
    bounds = edges.first[start : stop + 1]
    for begin, end in stretches(bounds.diff() * bytes_of_edge):
        pointers = bounds[begin : end + 1]
        first, behind = pointers[[0, -1]].tolist()
        yield slice(start + begin, start + end), pointers - first, slice(first, behind)


@reported("the credit of examples")
def credit(edges, users, items, gradients, l2, slopes, dots, start, stop, out):
    """Minus the slope of every example's own loss along the panel."""
    size = 4 * LANES * slopes.itemsize
    for some, pointers, ours in _by_example(edges, start, stop, size):
        of_edges = gradients[ours, None] * slopes[ours] + l2[ours, None] * dots[items[ours]]
        own = l2[ours][pointers[:-1], None] * dots[users[some]]
        out[edges.examples[some]] = -own - segment_sums(of_edges, pointers)


@reported("norms of gradients")
def gradient_norms(parameters, rows, edges, users, items, gradients, l2, start, stop, out):
    """Norms of the gradients of examples' own losses: ``out[training index]``."""
    first, d = edges.first[start : stop + 1], rows.shape[1]

    def bytes_of(width):
        return width * (8 * (6 * d + 12) + 10 * width)

    for some, (width,) in alike(bytes_of, first.diff()):
        places, there = padded(first[some], first[some + 1], width)
        mine, candidates = users[start + some], items[places]
        slopes_of, shrunk = (
            column[places].double().masked_fill_(~there, 0) for column in (gradients, l2)
        )
        by_user = shrunk[:, :1] * parameters[mine].double()
        by_user += (slopes_of[:, None] @ rows[candidates].double())[:, 0]
        # Drawn in several epochs, an item's gradients belong together: to where it stands first.
        same = (candidates[:, :, None] == candidates[:, None]) & there[:, None]
        earlier = same.tril(-1).any(2) | ~there
        sums = same.double() @ torch.stack([slopes_of, shrunk], 2)
        by_item = sums[:, :, :1] * rows[mine, None].double()
        by_item += sums[:, :, 1:] * parameters[candidates].double()
        squares = by_item.square().sum(2).masked_fill_(earlier, 0).sum(1)
        squares += by_user.square().sum(1)
        out[edges.examples[start + some]] = squares.sqrt().to(out.dtype)


@reported("the credit of examples")
def own_credit(parameters, rows, edges, users, items, gradients, l2, start, stop, out):
    """Minus the slope of every example's own loss along the gradient of its own score."""
    size = 4 * rows.shape[1] * rows.itemsize + 48
    for some, pointers, ours in _by_example(edges, start, stop, size):
        u, counts = users[some], pointers.diff()
        i = items[ours][pointers[:-1]]
        p, q = rows[u], rows[i]
        of_item, slopes_of = l2[ours].double(), gradients[ours].double()
        there = (rows[items[ours]] * q.repeat_interleave(counts, 0)).sum(1)
        squares, shrunk = (p * p).sum(1), (parameters[i] * p).sum(1)
        back = slopes_of * squares.repeat_interleave(counts) + of_item * (
            shrunk.repeat_interleave(counts)
        )
        of_edges = slopes_of * there
        of_edges += torch.where(items[ours] == i.repeat_interleave(counts), back, 0)
        total = of_item[pointers[:-1]] * (parameters[u] * q).sum(1)
        total += segment_sums(of_edges, pointers)
        out[edges.examples[some]] = -total.to(out.dtype)


@reported("blocks of the Hessian")
def row_blocks(loss, rows, edges, items, curvatures, l2, n_users, start, stop, out):
    """Diagonal blocks of the Gauss-Newton matrix, one a row: ``sum h x x' + l2 I``."""
    d = rows.shape[1]
    out[start:stop] = torch.diag_embed(l2[start:stop, None].expand(-1, d))
    for some, others, numbers, there in _by_row(edges, start, stop, 3 * d + 1, rows.itemsize):
        x, h = rows[others], curvatures[numbers].masked_fill(~there, 0)
        if loss == BPR:  # a user's row moves the leads over the own item, of which there is none
            owns, leads = edges.owns[numbers], (some < n_users)[:, None]
            h = h.masked_fill(leads & (numbers == owns), 0)
            x = torch.where(leads[:, :, None], x - rows[items[owns]], x)
        found = (h[:, :, None] * x).mT @ x
        out[some] += found.tril() + found.tril(-1).mT  # symmetric to the bit
