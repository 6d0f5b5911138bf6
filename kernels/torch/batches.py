"""Ragged things side by side: padded to batches of about the same size, bounded in memory."""

import torch

__all__ = ["CHUNK", "alike", "padded", "ranges", "segment_sums", "stretches"]

CHUNK = 2**28
"""Bytes of temporary tensors at a time; what is larger alone is done alone."""


def alike(bytes_of, *sizes):
    """Yield batches of things whose sizes differ by less than a factor of 2.

    Parameters
    ----------
    bytes_of : callable
        Temporary memory of one thing from its sizes.
    *sizes : (n,) int64
        Things with a size of 0 are left out.

    Yields
    ------
    some : (b,) int64
        Numbers of the things, on the device of the sizes.
    most : list of int
        The greatest of each size among them.
    """
    table = torch.stack(sizes, 1)
    device, table = table.device, table.cpu()
    there = (table > 0).all(1).nonzero()[:, 0]
    if not len(there):
        return
    table = table[there]
    classes = torch.frexp((table - 1).double())[1]  # 1, 2, 3 to 4, 5 to 8, ...
    keys = (classes.long() << 8 * torch.arange(len(sizes))).sum(1)
    keys, order = keys.sort(stable=True)
    counts = torch.unique_consecutive(keys, return_counts=True)[1]
    for bucket in order.split(counts.tolist()):
        most = table[bucket].amax(0).tolist()
        for some in there[bucket].split(max(1, CHUNK // bytes_of(*most))):
            yield some.to(device), most


def padded(starts, stops, width):
    """Places ``starts[r] + 0, 1, ...`` (r, width), 0 where there are no more; and where they are.

    Parameters
    ----------
    starts, stops : (r,) int64
    width : int
    """
    places = starts[:, None] + torch.arange(width, device=starts.device)
    valid = places < stops[:, None]
    return places.masked_fill_(~valid, 0), valid


def ranges(starts, stops):
    """Owner and place (m,) of everything in ``starts[r]:stops[r]``, one range after the other."""
    counts = stops - starts
    owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    before = starts - counts.cumsum(0) + counts
    return owners, torch.arange(len(owners), device=counts.device) + before[owners]


def stretches(bytes_each):
    """Cut things with temporary memory (n,) int64 into runs; yields their bounds."""
    costs = bytes_each.cpu()
    runs = (costs.cumsum(0) - costs) // CHUNK
    start = 0
    for count in torch.unique_consecutive(runs, return_counts=True)[1].tolist():
        yield start, start + count
        start += count


def segment_sums(values, pointers):
    """Sums (n, ...) of ``values[pointers[r] : pointers[r + 1]]``, added up in a fixed order.

    Parameters
    ----------
    values : (m, ...)
    pointers : (n + 1,) int64
    """
    sums = values.new_zeros(len(pointers) - 1, *values.shape[1:])
    each = 2 * values[:1].nbytes
    for some, (width,) in alike(lambda width: width * each, pointers.diff()):
        places, valid = padded(pointers[some], pointers[some + 1], width)
        found = values[places]
        found[~valid] = 0
        sums[some] = found.sum(1)
    return sums
