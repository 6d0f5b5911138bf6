"""Negatives of the sampled losses, the same items as on the CPU: see `kernels.cpu.negatives`.

Drawing is a chain of look-ups that depend on one another; a thread for each visit hides them
behind those of the others, so they are drawn by a kernel of their own before the steps are made.
"""

from .bisection import first_from
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch, processors
from .random import draw, stream

__all__ = ["draw_dealt", "draw_epoch", "draw_negatives"]

MAX_ATTEMPTS = 16

_THREADS = 32 if SIMULATED else 128


@inner_kernel
def _is_known(sampler, user, item):
    start, stop = sampler.known_pointers[user], sampler.known_pointers[user + 1]
    place = first_from(sampler.known_items, start, stop, item)
    return place < stop and sampler.known_items[place] == item


@inner_kernel
def draw_negatives(sampler, epoch, example, user, item, group, found):
    """Fill ``found`` with distinct items of the pool unknown to `user`, none of them `item`.

    Slots left over behind the last hold -1.
    """
    start = sampler.pool_pointers[group]
    size = sampler.pool_pointers[group + 1] - start
    key = stream(sampler.seed, epoch, example)
    n = 0
    for slot in range(sampler.n_negatives if size > 0 else 0):
        for attempt in range(MAX_ATTEMPTS):
            drawn = sampler.pool[start + draw(key, slot * MAX_ATTEMPTS + attempt, size)]
            fresh = drawn != item and not _is_known(sampler, user, drawn)
            for earlier in range(n):
                fresh = fresh and found[earlier] != drawn
            if fresh:
                found[n] = drawn
                n += 1
                break
    for slot in range(n, sampler.n_negatives):
        found[slot] = -1


@inner_kernel
def _draw_visit(examples, sampler, epoch, group, t, found):
    if examples.values[t] > 0:
        user, item = examples.users[t], examples.items[t]
        draw_negatives(sampler, epoch, examples.ids[t], user, item, group, found)
    else:
        for slot in range(sampler.n_negatives):
            found[slot] = -1


@kernel
def draw_blocks(examples, pointers, sampler, epoch, first, before, drawn):
    """Draw for the visits of block ``first + blockIdx.x``; `before` is that of the first row."""
    n_groups = sampler.pool_pointers.shape[0] - 1
    number = first + cuda.blockIdx.x
    stratum = number // n_groups
    group = (number - stratum * n_groups + stratum) % n_groups
    start = pointers[number] + cuda.threadIdx.x
    for t in range(start, pointers[number + 1], cuda.blockDim.x):
        _draw_visit(examples, sampler, epoch, group, t, drawn[t - before])


@kernel
def draw_in_turn(examples, sampler, epoch, drawn):
    """Draw for all visits, the pools dealt to them in turn."""
    n_groups = sampler.pool_pointers.shape[0] - 1
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for t in range(start, drawn.shape[0], cuda.gridDim.x * cuda.blockDim.x):
        _draw_visit(examples, sampler, epoch, t % n_groups, t, drawn[t])


def draw_epoch(examples, pointers, sampler, epoch, start, stop, drawn, before=0, wait=True):
    """Draw the negatives of blocks `start` to `stop` of an epoch. See the twin in `kernels.cpu`.

    Parameters
    ----------
    before : int, default 0
        Visit of the first row of `drawn`.
    wait : bool, default True
        See `jit.launch`.
    """
    arguments = examples, pointers, sampler, epoch, start, before, drawn
    launch(draw_blocks, stop - start, _THREADS, *arguments, wait=wait)


def draw_dealt(examples, sampler, epoch, drawn):
    """Draw the negatives of examples outside of the schedule; waits for nothing.

    Parameters
    ----------
    examples, sampler, epoch
        As for `sgd.sgd_epoch`.
    drawn : (n, n_negatives) int32
        Changed in place.
    """
    blocks = min(-(-drawn.shape[0] // _THREADS), 16 * processors())
    launch(draw_in_turn, blocks, _THREADS, examples, sampler, epoch, drawn, wait=False)
