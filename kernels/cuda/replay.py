"""Replay: the exact derivative of a training run, from its last step to its first.

A block of the grid is a tile of the schedule: tiles of a stratum share no row. Its steps go back
several at a time: of the next few, a warp for each, those before the first that shares a row
with one before it are taken side by side. The steps of any row keep their order, so
where a window ends changes no bit.

A step reads and writes ``candidates + 1`` rows of adjoints, ``64 (k + 1)`` bytes each in float32
(16.6 kB in all at k=64 with one candidate; in Adagrad twice as many) for six multiplications a
number. Where there are tiles for all multiprocessors, of several blocks of quantities on streams of
their own, the bandwidth of device memory bounds it; where there are few, the latency of a window:
three loads that depend on each other, then two sweeps over the rows.
"""

import functools
from typing import Any

import numpy as np

from ..cpu.jit import kernel as host_kernel
from ..errors import DeviceError
from ..structures import GRADIENT, LANES, Adjoint
from .adjoints import RANKS, adjoint_dots, move_adjoints, set_factors
from .fours import add4, put4, same4, times4
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .losses import BPR
from .memory import fetch, put
from .simd import load4

__all__ = ["LANES", "replay_steps", "walk_order"]

_TEAM = 32
"""Threads of a step: a warp."""

_ROWS = 1024
"""Rows of users, and of items, that are told apart: a tile rarely has more, and they stand in a
row. Those that are not merely wait for each other."""

_CLAIMS = 2 * _ROWS

_BATCH = 8
"""Candidates whose inner products are summed at once: the room for the parts is for so many."""

_PARTS = 32 * 4
"""Numbers that the threads of a warp have of a sum: four lanes each."""

_SHARED = 48 * 1024 - 4 * _CLAIMS - 64
"""Bytes of shared memory that teams may fill."""


def walk_order(examples, pointers, n_users, n_items):
    """Order of the visits that goes back as theirs does, steps that share no row in runs.

    A step comes as early as the longest chain of steps, each sharing a row with the next, lets it;
    the CPU's order, which meets rows again at once, would leave nothing to do side by side.
    """
    visits = fetch((examples.users, examples.items, pointers))
    levels = _levels(*visits, n_users, n_items)
    return put(np.argsort(-levels, kind="stable").astype(np.int32))


@host_kernel
def _levels(users, items, pointers, n_users, n_items):
    """Length of the chain of steps that must have gone back before each, the last block first."""
    levels = np.empty(users.shape[0], np.int64)
    of_users, of_items = np.zeros(n_users, np.int64), np.zeros(n_items, np.int64)
    behind = 0
    for block in range(pointers.shape[0] - 2, -1, -1):
        least = behind
        for t in range(pointers[block + 1] - 1, pointers[block] - 1, -1):
            level = max(least, of_users[users[t]], of_items[items[t]]) + 1
            levels[t] = of_users[users[t]] = of_items[items[t]] = level
            behind = max(behind, level)
    return levels


def replay_steps(
    adjoint, squares, examples, log, hyper, loss, allowed_users, allowed_items, order, bounds,
    start, stop, out, wait=True,
):  # fmt: skip
    """Take the adjoints of a block of quantities back over logged steps, the last first.

    See the twin in `kernels.cpu`. The tiles `start` to `stop` go back side by side: they must not
    share a row.

    Parameters
    ----------
    wait : bool, default True
        See `jit.launch`.
    """
    adagrad = squares is not None
    width, d = log.items.shape[1], log.user_rows.shape[1] + 1
    teams, room = room_of_teams(width, d, adagrad, log.user_rows.dtype)
    rows = _flat(adjoint)
    launch(
        replay_tiles(adagrad, out.dtype.itemsize), stop - start, teams * _TEAM, rows,
        _flat(squares) if adagrad else rows, examples, log, hyper, loss, allowed_users,
        allowed_items, order, bounds, start, out, shared=teams * room * out.dtype.itemsize,
        wait=wait,
    )  # fmt: skip


def _flat(adjoint):
    """Rows without a dimension for the lanes, as four of them are read at once."""
    return Adjoint(*(rows.reshape(rows.shape[0], rows.shape[1] * LANES) for rows in adjoint))


def _most_teams(adagrad, itemsize):
    """Steps side by side: some 14 of a tile of MovieLens 1M share no row, in the order given.

    Half as many where registers do not suffice.
    """
    if SIMULATED:
        return 3
    return 8 if adagrad or itemsize == 8 else 16


def room_of_teams(width, d, adagrad, dtype):
    """Steps side by side, and the shared numbers of each.

    They are the parts of sums, of a batch of candidates and of ``v . rows``; these sums; and the
    pull factors of all rows.
    """
    room = (min(width, _BATCH) + 1) * _PARTS + (width + 1) * LANES
    room += -(-3 * (width + 1) * d // 4) * 4 * adagrad
    size = np.dtype(dtype).itemsize
    teams = min(_most_teams(adagrad, size), _SHARED // (room * size))
    if teams == 0:
        raise DeviceError(
            f"a step of {width:,} candidates with {d - 1:,} factors in {dtype} does not fit the "
            "shared memory of a GPU: use fewer negatives, dtype='float32', or device='cpu'"
        )
    return teams, room


@inner_kernel
def _candidates(log, slot, allowed_items):
    """Number of candidates of a step, and the lanes that live on any of them."""
    items = log.items[np.uintp(slot)]
    count, lanes = 0, 0
    while count < items.shape[0] and items[np.uintp(count)] >= 0:
        lanes |= allowed_items[np.uintp(items[np.uintp(count)])]
        count += 1
    return count, lanes


@inner_kernel
def _place(u, log, slot, count, n):
    """Where row number `n` of a step is claimed: its user's, then its candidates'; -1: no row."""
    if n > count:
        return -1
    if n == 0:
        return u & (_ROWS - 1)
    return _ROWS + (log.items[np.uintp(slot), np.uintp(n - 1)] & (_ROWS - 1))


@inner_kernel
def _claim(claims, place, u, log, slot, count, stamp, member):
    """Put a step's stamp on its rows, unless they bear that of an earlier one, a greater stamp.

    `place` is that of the thread's first row, which few steps have more of.
    """
    n = member
    while place >= 0:
        cuda.atomic.max(claims, np.uintp(place), stamp)
        n += _TEAM
        place = _place(u, log, slot, count, n)


@inner_kernel
def _is_held_up(claims, place, u, log, slot, count, stamp, member):
    """Whether a row that this thread looks at belongs to an earlier step."""
    n, held_up = member, False
    while place >= 0:
        held_up = held_up or claims[np.uintp(place)] > stamp
        n += _TEAM
        place = _place(u, log, slot, count, n)
    return held_up


@inner_kernel
def _set_totals(
    adagrad, adjoint, sums, u, log, slot, count, loss, shared, parts, totals, factors, member
):
    """Slopes of the scores of all candidates, and behind them ``v . rows``, to `totals`."""
    number, width = type(log.numbers[0, 0]), log.items.shape[1]
    size = 3 * (log.user_rows.shape[1] + 1)
    share, one = number(loss != BPR), number(1)
    rank, lanes = member // 4, member % 4 * 4
    norms = same4(number(0))
    user, user_sums = adjoint.users[np.uintp(u)], sums.users[np.uintp(u)]
    for begin in range(0, count, _BATCH):
        end = min(begin + _BATCH, count)
        for c in range(begin, end):
            i = np.uintp(log.items[np.uintp(slot), np.uintp(c)])
            score, of_user, of_item = adjoint_dots(
                adagrad, user, adjoint.items[i], user_sums, sums.items[i], shared,
                factors + size * width, factors + size * c, log, slot, slot * width + c, share,
                rank, lanes,
            )  # fmt: skip
            put4(shared, parts + (c - begin) * _PARTS + member * 4, score)
            norms = add4(norms, one, of_item)
            if c == 0:
                norms = add4(norms, one, of_user)
        put4(shared, parts + (end - begin) * _PARTS + member * 4, norms)
        cuda.syncwarp()
        n = rank
        while n <= end - begin:
            total = _sum(shared, parts + n * _PARTS + lanes)
            to = begin + n if n < end - begin else width
            put4(shared, totals + to * LANES + lanes, total)
            n += RANKS
        cuda.syncwarp()


@inner_kernel
def _sum(shared, first):
    """Sum over the ranks of a warp, always in the same order."""
    total = load4(shared, first)
    for n in range(1, RANKS):
        total = add4(total, type(total[0])(1), load4(shared, first + n * LANES))
    return total


@functools.cache
def replay_tiles(adagrad: bool, itemsize: int) -> Any:
    """Make the kernel of plain SGD, or of Adagrad, for numbers of so many bytes."""

    # Told that one block at a time is enough ptxas takes registers rather than spills.
    @kernel(launch_bounds=(_TEAM * _most_teams(adagrad, itemsize), 1))
    def replay_tile(
        adjoint, sums, examples, log, hyper, loss, allowed_users, allowed_items, order, bounds,
        first_tile, out,
    ):  # fmt: skip
        teams, team = cuda.blockDim.x // _TEAM, cuda.threadIdx.x // _TEAM
        member = cuda.threadIdx.x % _TEAM
        rank, lanes = member // 4, member % 4 * 4
        width = log.items.shape[1]
        claims = cuda.shared.array(_CLAIMS, np.int32)
        held_up = cuda.shared.array(1, np.int32)
        shared = cuda.shared.array(0, log.user_rows.dtype, alignment=16)
        parts = shared.shape[0] // teams * team
        totals = parts + (min(width, _BATCH) + 1) * _PARTS
        factors = totals + (width + 1) * LANES
        for n in range(cuda.threadIdx.x, _CLAIMS, cuda.blockDim.x):
            claims[n] = 0
        if cuda.threadIdx.x == 0:
            held_up[0] = 0
        cuda.syncthreads()
        tile = first_tile + cuda.blockIdx.x
        first, behind = bounds[np.uintp(tile)], bounds[np.uintp(tile + 1)]
        before = 0  # stamps of the rounds so far; a round's are greater, the first step's most
        while behind > first:
            before += teams
            stamp = before + teams - 1 - team
            at, t, u, slot, count = behind - 1 - team, 0, 0, -1, -1
            if at >= first:
                t = order[np.uintp(at)]
                slot = log.slots[np.uintp(t)]
            if slot >= 0:
                u = examples.users[np.uintp(t)]
                count, living = _candidates(log, slot, allowed_items)
                if (living | allowed_users[np.uintp(u)]) == 0:
                    slot = count = -1
            place = _place(u, log, slot, count, member)
            _claim(claims, place, u, log, slot, count, stamp, member)
            cuda.syncthreads()
            if _is_held_up(claims, place, u, log, slot, count, stamp, member):
                cuda.atomic.max(held_up, 0, stamp)
            cuda.syncthreads()
            n_steps = teams
            if held_up[0] >= before:
                n_steps = before + teams - 1 - held_up[0]
            behind -= n_steps
            if slot < 0 or team >= n_steps:
                continue
            weight = examples.weights[np.uintp(t)]
            l2, one = hyper.regularization, type(weight)(1)
            rate, keep = -weight, weight * l2
            if adagrad:
                set_factors(log, slot, count, loss, hyper, weight, shared, factors, member)
                cuda.syncwarp()
            else:  # v = -learning_rate u is u itself up to a factor
                rate = hyper.learning_rate * weight
                keep = one - rate * l2
            _set_totals(
                adagrad, adjoint, sums, u, log, slot, count, loss, shared, parts, totals, factors,
                member,
            )  # fmt: skip
            if rank == 0:
                credit = times4(l2, load4(shared, totals + width * LANES + lanes))
                for c in range(count):
                    slopes = load4(shared, totals + c * LANES + lanes)
                    gradient = log.numbers[np.uintp(slot * width + c), GRADIENT]
                    credit = add4(credit, gradient, slopes)
                credits = out[np.uintp(t)]
                put4(credits, lanes, add4(load4(credits, lanes), -rate, credit))
            move_adjoints(
                adagrad, adjoint, sums, u, log, slot, count, loss, rate, keep, shared, totals,
                factors, allowed_users, allowed_items, rank, lanes,
            )  # fmt: skip
            cuda.syncwarp()

    return replay_tile
