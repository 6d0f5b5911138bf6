"""Read-out: the k most influential rows for every query, never the matrix of all scores.

A block has a unit: up to 64 queries of a group, and the group's rows, 128 at a time. Coordinates
go through shared memory, eight at a time while the next eight are on their way, and every thread
keeps 8 x 8 sums in registers (see `row_tiles`): the arithmetic is the bound, 2 d flops a score,
from some hundred rows a group on (below that, the lists).

The scores never leave the registers but for the few that beat the last entry of their query's
list. These wait in shared memory, up to 32 a query; only when there is no more room does a warp
sort them and merge them into the list (see `select`). No two entries are alike (ties break by
training index), so neither the order they came in nor the cut into units shows in a list.

Long groups that few queries read are cut by rows as well: each part then fills lists of its own,
which a second kernel merges.
"""

import functools

import numpy as np

from ..structures import LANES, Top
from . import memory, rows
from .bisection import first_from
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .row_tiles import QUERIES, ROWS, THREADS, stage_sizes, stages
from .select import LAST, WAITING, WARP, into_list, leave_out, let_wait, merge_waiting
from .simd import WHOLE

__all__ = ["find_pairs", "read_own", "read_side", "tile_units"]

_PANELS = ROWS // LANES
_WARPS = THREADS // WARP
_PART = 256 if SIMULATED else 4096  # rows of a part, at least
_MOST_UNITS = 512  # of one group because of its parts


def tile_units(pointers, query_pointers):
    """Cut every group's queries into tiles, and long groups that few of them read into parts.

    Returns
    -------
    (n_units, 6) int64, in CPU memory
        Group, first and last + 1 query, first and last + 1 row of the group, and whether the
        tile has other parts; the most work first.
    """
    pointers, query_pointers = memory.fetch(pointers), memory.fetch(query_pointers)
    # Of a million users few may be asked for: all others are left out at once.
    asked = np.flatnonzero(
        (query_pointers[1:] > query_pointers[:-1]) & (pointers[1:] > pointers[:-1])
    )
    sizes = pointers[asked + 1] - pointers[asked]
    tiles = -(-(query_pointers[asked + 1] - query_pointers[asked]) // QUERIES)
    parts = np.minimum(-(-sizes // _PART), np.maximum(_MOST_UNITS // tiles, 1))
    lengths = -(-sizes // (parts * ROWS)) * ROWS
    parts = -(-sizes // lengths)
    n_units = tiles * parts
    number = np.repeat(np.arange(len(asked)), n_units)
    tile, part = np.divmod(
        np.arange(len(number)) - np.repeat(np.cumsum(n_units) - n_units, n_units), parts[number]
    )
    groups = asked[number]
    starts = query_pointers[groups] + tile * QUERIES
    stops = np.minimum(starts + QUERIES, query_pointers[groups + 1])
    first_rows = part * lengths[number]
    last_rows = np.minimum(first_rows + lengths[number], sizes[number])
    units = np.stack([groups, starts, stops, first_rows, last_rows, parts[number] > 1], 1)
    return units[np.argsort(first_rows - last_rows, kind="stable")].astype(np.int64)


def read_side(sign, side, queries, exclusions, units, first_unit, last_unit, top):
    """Merge the scores of one side into the lists of the best k. See the twin in kernels.cpu.

    Parameters
    ----------
    sign, side, queries, exclusions, top
    units : (n_units, 6) int64
        From `tile_units`, on either side; units ``first_unit:last_unit`` are done.

    Raises
    ------
    DeviceError
        Rows or vectors of a dtype there is no kernel for.
    """
    dtype = np.dtype(queries.vectors.dtype)
    rows.check_dtypes(queries.vectors, side)
    units = np.array(memory.fetch(units)[first_unit:last_unit])
    in_parts = units[:, 5] > 0
    ends = np.cumsum(np.where(in_parts, units[:, 2] - units[:, 1], 0))
    units[:, 5] = np.where(in_parts, ends - (units[:, 2] - units[:, 1]), -1)
    lists = _room_for_lists(int(ends[-1]) if len(ends) else 0, top)
    read = _reader(dtype, np.dtype(side.rows.dtype))
    launch(
        read, len(units), THREADS, dtype.type(sign), side, queries, exclusions,
        memory.put(units), top, lists, wait=not in_parts.any(),
    )  # fmt: skip
    parts = units[in_parts][np.argsort(units[in_parts, 1], kind="stable")]
    tiles = np.append(np.unique(parts[:, 1], return_index=True)[1], len(parts))
    launch(
        _merge_parts, (len(tiles) - 1, QUERIES // _WARPS), THREADS, memory.put(parts),
        memory.put(tiles), queries.ids, top, lists,
    )  # fmt: skip


def _room_for_lists(n, top):
    """Room for n lists of tiles in parts, and for totals where the lists of the queries have them.

    Whoever fills the lists begins with empty ones.
    """
    k = top.values.shape[1]
    return Top(
        memory.empty((n, k), top.values.dtype),
        memory.empty((n, k), np.int32),
        memory.empty(n if top.totals.shape[0] else 0, np.float64),
    )


@functools.cache
def _reader(dtype, element):
    """Make the kernel of `read_side` for vectors and packed rows of these dtypes."""
    ask, take, share, multiply = stages(dtype, element)
    depth, a_room, b_room, n_a, n_b = stage_sizes(dtype)
    zero, nothing, out_of_reach = dtype.type(0), dtype.type(-np.inf), dtype.type(np.inf)
    n_waiting, n_words, n_absolutes = QUERIES * WAITING, QUERIES * ROWS // 32, 8 * THREADS

    @kernel
    def read_units(sign, side, queries, exclusions, units, top, lists):
        a = cuda.shared.array(a_room, dtype, alignment=16)
        b = cuda.shared.array(b_room, dtype, alignment=16)
        scores = cuda.shared.array(n_waiting, dtype)
        of_scores = cuda.shared.array(n_waiting, np.int32)
        counts = cuda.shared.array(QUERIES, np.int32)
        bars = cuda.shared.array(QUERIES, dtype)
        bar_indices = cuda.shared.array(QUERIES, np.int32)
        columns = cuda.shared.array(QUERIES, np.int32)
        panels = cuda.shared.array(_PANELS, np.int64)
        widths = cuda.shared.array(_PANELS, np.int32)
        absent = cuda.shared.array(n_words, np.uint32)
        absolutes = cuda.shared.array(n_absolutes, np.float64)
        sums = cuda.local.array(64, dtype)
        asked = cuda.local.array(n_a, dtype)
        taken = cuda.local.array(n_b, dtype)

        thread, unit = cuda.threadIdx.x, cuda.blockIdx.x
        group, start, stop = units[unit, 0], units[unit, 1], units[unit, 2]
        list_of = units[unit, 5]
        in_part = list_of >= 0
        values, indices = top.values, top.indices
        if in_part:
            values, indices = lists.values, lists.indices
        waiting = (scores, of_scores, counts, bars, bar_indices)
        place = side.pointers[group]
        n, d = side.pointers[group + 1] - place, queries.vectors.shape[1]
        k, with_totals = top.values.shape[1], top.totals.shape[0] > 0
        for q in range(thread, QUERIES, THREADS):
            here = start + q < stop
            query = queries.ids[start + q] if here else 0
            columns[q] = queries.columns[start + q] if here else -1
            # The bar of a query that is none is never reached.
            bars[q] = top.values[query, k - 1] if here else out_of_reach
            bar_indices[q] = top.indices[query, k - 1] if here else 0
            counts[q] = 0
        for i in range(8):
            absolutes[i * THREADS + thread] = 0
        if in_part:
            for q in range(stop - start):
                for e in range(thread, k, THREADS):
                    values[list_of + q, e], indices[list_of + q, e] = nothing, -1
        cuda.syncthreads()

        mine = start + (thread >> 5) * 16 < stop  # a query of this warp
        for row in range(units[unit, 3], units[unit, 4], ROWS):
            for i in range(64):
                sums[i] = zero
            if thread < _PANELS:
                panels[thread] = (place + row + thread * LANES) * d
                widths[thread] = min(LANES, n - row - thread * LANES)
            cuda.syncthreads()
            ask(queries, columns, sign, 0, asked)
            take(side.rows, panels, widths, d, 0, taken)
            share(asked, taken, a, b, 0)
            cuda.syncthreads()
            _mark_absent(queries, exclusions, start, stop, place + row, n - row, absent)
            half = 0
            for f in range(0, d, depth):
                if f + depth < d:
                    ask(queries, columns, sign, f + depth, asked)
                    take(side.rows, panels, widths, d, f + depth, taken)
                if mine:
                    multiply(a, b, half, min(depth, d - f), sums)
                half = 1 - half
                if f + depth < d:
                    share(asked, taken, a, b, half)
                cuda.syncthreads()
            if mine:
                # Loops over i would keep the sums in memory.
                leave_out(0, absent, sums, with_totals, absolutes, zero, nothing)
                leave_out(1, absent, sums, with_totals, absolutes, zero, nothing)
                leave_out(2, absent, sums, with_totals, absolutes, zero, nothing)
                leave_out(3, absent, sums, with_totals, absolutes, zero, nothing)
                leave_out(4, absent, sums, with_totals, absolutes, zero, nothing)
                leave_out(5, absent, sums, with_totals, absolutes, zero, nothing)
                leave_out(6, absent, sums, with_totals, absolutes, zero, nothing)
                leave_out(7, absent, sums, with_totals, absolutes, zero, nothing)
                more = True
                while more:
                    left_0 = let_wait(0, sums, side.order, place + row, waiting, nothing)
                    left_1 = let_wait(1, sums, side.order, place + row, waiting, nothing)
                    left_2 = let_wait(2, sums, side.order, place + row, waiting, nothing)
                    left_3 = let_wait(3, sums, side.order, place + row, waiting, nothing)
                    left_4 = let_wait(4, sums, side.order, place + row, waiting, nothing)
                    left_5 = let_wait(5, sums, side.order, place + row, waiting, nothing)
                    left_6 = let_wait(6, sums, side.order, place + row, waiting, nothing)
                    left_7 = let_wait(7, sums, side.order, place + row, waiting, nothing)
                    left = left_0 or left_1 or left_2 or left_3
                    left = left or left_4 or left_5 or left_6 or left_7
                    cuda.syncwarp()
                    more = cuda.any_sync(WHOLE, left)
                    if more or row + ROWS >= units[unit, 4]:
                        room = WAITING if more else 0
                        for q in range((thread >> 5) * 16, (thread >> 5) * 16 + 16):
                            if counts[q] > room:
                                of_query = list_of + q if in_part else queries.ids[start + q]
                                merge_waiting(q, waiting, values, indices, of_query, nothing)
                        cuda.syncwarp()
        cuda.syncthreads()
        if with_totals:
            _add_totals(absolutes, start, stop, queries.ids, list_of, top, lists)

    return read_units


@inner_kernel
def _mark_absent(queries, exclusions, start, stop, place, n, absent):
    """Mark rows of the tile that a query must not see, and places behind the last row."""
    for q in range(cuda.threadIdx.x, QUERIES, THREADS):
        for word in range(ROWS // 32):
            left = n - word * 32
            bits = np.uint32(0)
            if left < 32:
                bits = np.uint32(0xFFFFFFFF << max(left, 0) & 0xFFFFFFFF)
            absent[q * (ROWS // 32) + word] = bits
        if start + q < stop:
            query = queries.ids[start + q]
            for e in range(exclusions.starts[query], exclusions.stops[query]):
                row = exclusions.places[e] - place
                if 0 <= row < ROWS:
                    word = q * (ROWS // 32) + row // 32
                    absent[word] = np.uint32(absent[word] | np.uint32(1 << (row % 32)))


@inner_kernel
def _add_totals(absolutes, start, stop, ids, list_of, top, lists):
    for q in range(cuda.threadIdx.x, stop - start, THREADS):
        total = 0.0
        for x in range(16):
            total += absolutes[q % 8 * THREADS + q // 8 * 16 + x]
        if list_of < 0:
            top.totals[ids[start + q]] += total
        else:
            lists.totals[list_of + q] = total


@kernel
def _merge_parts(parts, tiles, ids, top, lists):
    """Merge the lists of a tile's parts into those of its queries: a warp has a query."""
    lane = cuda.threadIdx.x % WARP
    first, last = tiles[cuda.blockIdx.x], tiles[cuda.blockIdx.x + 1]
    q = cuda.blockIdx.y * _WARPS + cuda.threadIdx.x // WARP
    if parts[first, 1] + q >= parts[first, 2]:
        return
    query, k = ids[parts[first, 1] + q], top.values.shape[1]
    for part in range(first, last):
        row = parts[part, 5] + q
        for e in range(0, k, WARP):
            value, index = top.values.dtype.type(-np.inf), LAST
            if e + lane < k:
                value, index = lists.values[row, e + lane], lists.indices[row, e + lane]
            into_list(lane, value, index, top.values, top.indices, query)
        if top.totals.shape[0] > 0 and lane == 0:
            top.totals[query] += lists.totals[row]


def read_own(sign, user_side, item_side, own, item_places, vectors, users, items, top):
    """Put the examples that are the query's own pair into its list. See the twin in kernels.cpu."""
    rows.check_dtypes(vectors[0], user_side, item_side)
    read = _own_reader(np.dtype(user_side.rows.dtype))
    sign = np.dtype(vectors[0].dtype).type(sign)
    launch(
        read, -(-users.shape[0] // rows.THREADS), rows.THREADS, sign, user_side, item_side, own,
        item_places, *vectors, users, items, top,
    )  # fmt: skip


@functools.cache
def _own_reader(element):
    own_influence = rows.own_influence(element)

    @kernel
    def read_own_pairs(
        sign, user_side, item_side, own, item_places, item_vectors, user_vectors, users, items, top
    ):
        query, k = cuda.grid(1), top.values.shape[1]
        if query < users.shape[0]:
            for e in range(own.starts[query], own.stops[query]):
                place = own.places[e]
                value = sign * own_influence(
                    user_side, item_side, users[query], items[query], place, item_places[e],
                    item_vectors, user_vectors,
                )  # fmt: skip
                index = user_side.order[place]
                if top.totals.shape[0] > 0:
                    top.totals[query] += abs(value)
                at = k
                while at > 0 and (
                    top.values[query, at - 1] < value
                    or (top.values[query, at - 1] == value and top.indices[query, at - 1] > index)
                ):
                    at -= 1
                    if at + 1 < k:
                        top.values[query, at + 1] = top.values[query, at]
                        top.indices[query, at + 1] = top.indices[query, at]
                if at < k:
                    top.values[query, at], top.indices[query, at] = value, index

    return read_own_pairs


def find_pairs(known_pointers, known_items, users, items, start, stop, starts, stops):
    """Bounds of each query's own pair among the training pairs, for queries ``start:stop``.

    See the twin in kernels.cpu.
    """
    launch(
        _find_pairs, -(-(stop - start) // rows.THREADS), rows.THREADS, known_pointers, known_items,
        users, items, start, stop, starts, stops,
    )  # fmt: skip


@kernel
def _find_pairs(known_pointers, known_items, users, items, start, stop, starts, stops):
    query = start + cuda.grid(1)
    if query < stop:
        first, end = known_pointers[users[query]], known_pointers[users[query] + 1]
        place = first_from(known_items, first, end, items[query])
        starts[query] = place
        while place < end and known_items[place] == items[query]:
            place += 1
        stops[query] = place
