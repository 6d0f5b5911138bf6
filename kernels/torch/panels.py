"""The packed rows of the read-out: see the twin in kernels.cpu for how they are laid out."""

import torch

from ..structures import LANES
from .batches import CHUNK
from .reports import reported

__all__ = ["pack_rows", "unpack_rows"]


def _elements(pointers, groups, places, d):
    """Where the d numbers of rows stand: (..., d) int64 for places of any shape."""
    start, stop = pointers[groups], pointers[groups + 1]
    panel = start + (places - start) // LANES * LANES
    width = (stop - panel).clamp(max=LANES)
    first = panel * d + (places - panel)
    return first[..., None] + torch.arange(d, device=places.device) * width[..., None]


@reported("the packing of rows")
def pack_rows(factors, biases, sources, pointers, first_group, last_group, out):
    """Pack rows group by group: place s takes ``factors[sources[s]], biases[sources[s]]``."""
    d = factors.shape[1] + 1
    first, last = pointers[[first_group, last_group]].tolist()
    places = torch.arange(first, last, device=pointers.device)
    for some in places.split(max(1, CHUNK // (24 * d))):
        groups = torch.searchsorted(pointers, some, right=True) - 1
        rows = torch.cat([factors[sources[some]], biases[sources[some], None]], 1)
        out[_elements(pointers, groups, some, d)] = rows.to(out.dtype)


def unpack_rows(side, groups, places, d, dtype):
    """Rows (..., d) of a Side at `places` of `groups`, any shape; bfloat16 becomes `dtype`."""
    return side.rows[_elements(side.pointers, groups, places, d)].to(dtype)
