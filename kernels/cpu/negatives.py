"""Negatives of the sampled losses: items a user has no interaction with, drawn by counter.

A draw depends on (seed, epoch, example, slot, attempt) and on the pool, never on weights or on
the order of visits, so the negatives of an epoch can be drawn when a step needs them or
beforehand, for all the runs that will visit the same examples.
"""

import numpy as np

from .jit import inner_kernel, kernel
from .random import draw, stream

__all__ = ["draw_epoch", "draw_negatives", "take_negatives"]

MAX_ATTEMPTS = 16
"""Draws for one negative before its slot is left empty (the pool is nearly all known)."""


@inner_kernel
def is_known(sampler, user, item):
    low, high = sampler.known_pointers[user], sampler.known_pointers[user + 1]
    while low < high:
        middle = (low + high) >> 1
        if sampler.known_items[middle] < item:
            low = middle + 1
        else:
            high = middle
    return low < sampler.known_pointers[user + 1] and sampler.known_items[low] == item


@inner_kernel
def draw_negatives(sampler, epoch, example, user, group, candidates):
    """Fill ``candidates[1:]`` with distinct items of the pool unknown to `user`; their number.

    None of them is the example's own item, ``candidates[0]``, known or not.

    Draws are tested against all known pairs, also those left out of this run by weight 0, so
    that leaving an example out changes nobody's negatives.
    """
    start = sampler.pool_pointers[group]
    size = sampler.pool_pointers[group + 1] - start
    if size == 0:
        return 0
    key = stream(sampler.seed, epoch, example)
    found = 0
    for slot in range(sampler.n_negatives):
        for attempt in range(MAX_ATTEMPTS):
            item = sampler.pool[start + draw(key, slot * MAX_ATTEMPTS + attempt, size)]
            fresh = not is_known(sampler, user, item)
            for earlier in range(found + 1):
                fresh = fresh and candidates[earlier] != item
            if fresh:
                found += 1
                candidates[found] = item
                break
    return found


@inner_kernel
def take_negatives(sampler, epoch, t, example, user, group, candidates):
    """Fill ``candidates[1:]`` for visit `t`: with what was drawn beforehand, or draw now."""
    if sampler.drawn.shape[0] == 0:
        return draw_negatives(sampler, epoch, example, user, group, candidates)
    found = 0
    while found < sampler.n_negatives and sampler.drawn[t, found] >= 0:
        candidates[found + 1] = sampler.drawn[t, found]
        found += 1
    return found


@kernel
def draw_epoch(examples, pointers, sampler, epoch, start, stop, drawn):
    """Draw the negatives of blocks `start` to `stop` of an epoch.

    Parameters
    ----------
    examples, pointers, sampler, epoch
        As for `sgd.sgd_epoch`.
    start, stop : int
        Numbers of blocks.
    drawn : (n, n_negatives) int32
        Negatives of every visit, changed in place; -1 behind the last. An example that has none
        (value 0) gets -1.
    """
    n_groups = sampler.pool_pointers.shape[0] - 1
    candidates = np.empty(sampler.n_negatives + 1, np.int64)
    for number in range(start, stop):
        stratum, user_group = divmod(number, n_groups)
        group = (user_group + stratum) % n_groups
        for t in range(pointers[number], pointers[number + 1]):
            found = 0
            if examples.values[t] > 0:
                candidates[0] = examples.items[t]
                found = draw_negatives(
                    sampler, epoch, examples.ids[t], examples.users[t], group, candidates
                )
            for slot in range(sampler.n_negatives):
                drawn[t, slot] = candidates[slot + 1] if slot < found else -1
