"""Read-out: the k most influential rows for every query, never the matrix of all scores.

A block has a unit: up to 64 queries of a group, and the group's rows, 128 at a time. Coordinates
go through shared memory, eight at a time while the next eight are on their way, and every thread
keeps 8 x 8 sums in registers: 64 fused multiply-adds for four loads of four numbers, so the
arithmetic is the bound, 2 d flops a score, from some hundred rows a group on (below, the lists).

The scores never leave the registers but for the few that beat the last entry of their query's
list. These wait in shared memory, up to 32 a query; only when there is room for no more does a
warp sort them and merge them into the list. No two entries are alike (ties break by
training index), so neither the order they came in nor the cut into units shows in a list.

Long groups that few queries read are cut by rows as well: each part then fills lists of its own,
which a second kernel merges.
"""

import functools

import numpy as np

from ..structures import LANES, Top
from . import memory, rows
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .panels import decoder
from .select import LAST, WARP, into_list, sorted_entries
from .simd import fma, load4

__all__ = ["find_pairs", "read_own", "read_side", "tile_units"]

_THREADS = 32 if SIMULATED else 128
_QUERIES = _THREADS // 2  # of a unit: 16 threads beside each other have 8
_ROWS = 128  # of a tile: each of 16 threads has 8
_PANELS = _ROWS // LANES
_PART = 256 if SIMULATED else 4096  # rows of a part, at least
_MOST_UNITS = 512  # of one group because of its parts
_WAITING = WARP  # scores of a query that wait to be merged
# Numbers of a coordinate that lies in shared memory: neighbouring threads write different banks.
_A_PITCH, _B_PITCH = _QUERIES + 4, _ROWS + 16
_ALL = 0xFFFFFFFF


def tile_units(pointers, query_pointers):
    """Cut every group's queries into tiles, and long groups that few of them read into parts.

    Returns
    -------
    (n_units, 6) int64, in CPU memory
        Group, first and last + 1 query, first and last + 1 row of the group, and whether the
        tile has other parts; the most work first.
    """
    pointers, query_pointers = memory.fetch(pointers), memory.fetch(query_pointers)
    sizes, counts = np.diff(pointers), np.diff(query_pointers)
    tiles = np.where(sizes > 0, -(-counts // _QUERIES), 0)
    parts = np.minimum(-(-sizes // _PART), np.maximum(_MOST_UNITS // np.maximum(tiles, 1), 1))
    lengths = -(-sizes // np.maximum(parts * _ROWS, 1)) * _ROWS
    parts = -(-sizes // np.maximum(lengths, 1))
    n_units = tiles * parts
    groups = np.repeat(np.arange(len(sizes)), n_units)
    tile, part = np.divmod(
        np.arange(len(groups)) - np.repeat(np.cumsum(n_units) - n_units, n_units), parts[groups]
    )
    starts = query_pointers[groups] + tile * _QUERIES
    stops = np.minimum(starts + _QUERIES, query_pointers[groups + 1])
    first_rows = part * lengths[groups]
    last_rows = np.minimum(first_rows + lengths[groups], sizes[groups])
    units = np.stack([groups, starts, stops, first_rows, last_rows, parts[groups] > 1], 1)
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
    lists = _empty_lists(int(ends[-1]) if len(ends) else 0, top)
    read = _reader(dtype, np.dtype(side.rows.dtype))
    launch(
        read, len(units), _THREADS, dtype.type(sign), side, queries, exclusions,
        memory.put(units), top, lists, wait=not in_parts.any(),
    )  # fmt: skip
    parts = units[in_parts][np.argsort(units[in_parts, 1], kind="stable")]
    tiles = np.append(np.unique(parts[:, 1], return_index=True)[1], len(parts))
    launch(
        _merge_parts, len(tiles) - 1, _THREADS, memory.put(parts), memory.put(tiles),
        queries.ids, top, lists,
    )  # fmt: skip


def _empty_lists(n, top):
    """Lists of tiles in parts, with totals where the lists of the queries have them."""
    k = top.values.shape[1]
    return memory.put(
        Top(
            np.full((n, k), -np.inf, top.values.dtype),
            np.full((n, k), -1, np.int32),
            np.zeros(n if top.totals.shape[0] else 0),
        )
    )


@functools.cache
def _reader(dtype, element):
    """Make the kernel of `read_side` for vectors and packed rows of these dtypes."""
    decode = decoder(element)
    bits = 3 if dtype.itemsize == 4 else 2
    depth = 1 << bits  # coordinates in shared memory at a time
    a_room, b_room = depth * _A_PITCH, depth * _B_PITCH
    a_rooms, b_rooms = 2 * a_room, 2 * b_room
    n_a, n_b = depth * _QUERIES // _THREADS, depth * _ROWS // _THREADS
    n_waiting, n_words, n_absolutes = _QUERIES * _WAITING, _QUERIES * _ROWS // 32, 8 * _THREADS
    zero, nothing, out_of_reach = dtype.type(0), dtype.type(-np.inf), dtype.type(np.inf)

    # What does not change from one stage to the next is kept in shared memory: the compiler would
    # keep it in registers, of which the sums leave few. Loads are of some number in any case: a
    # branch around each would make them wait for one another.

    @inner_kernel(forceinline=True)
    def ask(queries, columns, sign, first, asked):
        """Take this thread's coordinates of the queries, from `first` on."""
        for i in range(n_a):
            at = cuda.threadIdx.x + i * _THREADS
            f, column = first + (at & depth - 1), columns[at >> bits]
            inside = column >= 0 and f < queries.vectors.shape[1]
            value = queries.vectors[column if inside else 0, f if inside else 0]
            asked[i] = sign * value if inside else zero

    @inner_kernel(forceinline=True)
    def take(packed, panels, widths, d, first, taken):
        """Take this thread's coordinates of the rows, from `first` on."""
        for i in range(n_b):
            at = cuda.threadIdx.x + i * _THREADS
            f, lane, panel = first + (at >> 4 & depth - 1), at & LANES - 1, at >> bits + 4
            inside = lane < widths[panel] and f < d
            element = packed[panels[panel] + f * widths[panel] + lane if inside else 0]
            taken[i] = dtype.type(decode(element)) if inside else zero

    @inner_kernel(forceinline=True)
    def share(asked, taken, a, b, half):
        """Put what was taken where all threads find it."""
        for i in range(n_a):
            at = cuda.threadIdx.x + i * _THREADS
            a[half * a_room + (at & depth - 1) * _A_PITCH + (at >> bits)] = asked[i]
        for i in range(n_b):
            at = cuda.threadIdx.x + i * _THREADS
            f, lane, panel = at >> 4 & depth - 1, at & LANES - 1, at >> bits + 4
            b[half * b_room + f * _B_PITCH + panel * LANES + lane] = taken[i]

    @inner_kernel(forceinline=True)
    def multiply(a, b, half, n, sums):
        """Add the products of n coordinates to this thread's 8 x 8 scores."""
        y, x = (cuda.threadIdx.x >> 4) * 8, (cuda.threadIdx.x & 15) * 4
        for f in range(n):
            at, to = half * a_room + f * _A_PITCH + y, half * b_room + f * _B_PITCH + x
            a0, a1, a2, a3 = load4(a, at)
            a4, a5, a6, a7 = load4(a, at + 4)
            b0, b1, b2, b3 = load4(b, to)
            b4, b5, b6, b7 = load4(b, to + _ROWS // 2)
            rows = (b0, b1, b2, b3, b4, b5, b6, b7)
            # As a loop the compiler would keep the sums in memory.
            _multiply_row(a0, rows, sums, 0)
            _multiply_row(a1, rows, sums, 8)
            _multiply_row(a2, rows, sums, 16)
            _multiply_row(a3, rows, sums, 24)
            _multiply_row(a4, rows, sums, 32)
            _multiply_row(a5, rows, sums, 40)
            _multiply_row(a6, rows, sums, 48)
            _multiply_row(a7, rows, sums, 56)

    @kernel
    def read_units(sign, side, queries, exclusions, units, top, lists):
        a = cuda.shared.array(a_rooms, dtype, alignment=16)
        b = cuda.shared.array(b_rooms, dtype, alignment=16)
        waiting = cuda.shared.array(n_waiting, dtype)
        waiting_indices = cuda.shared.array(n_waiting, np.int32)
        counts = cuda.shared.array(_QUERIES, np.int32)
        bars = cuda.shared.array(_QUERIES, dtype)
        bar_indices = cuda.shared.array(_QUERIES, np.int32)
        columns = cuda.shared.array(_QUERIES, np.int32)
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
        place = side.pointers[group]
        n, d = side.pointers[group + 1] - place, queries.vectors.shape[1]
        k, with_totals = top.values.shape[1], top.totals.shape[0] > 0
        for q in range(thread, _QUERIES, _THREADS):
            here = start + q < stop
            query = queries.ids[start + q] if here else 0
            columns[q] = queries.columns[start + q] if here else -1
            # The bar of a query that is none is never reached.
            bars[q] = top.values[query, k - 1] if here else out_of_reach
            bar_indices[q] = top.indices[query, k - 1] if here else 0
            counts[q] = 0
        for i in range(8):
            absolutes[i * _THREADS + thread] = 0
        cuda.syncthreads()

        mine = start + (thread >> 5) * 16 < stop  # a query of this warp
        for row in range(units[unit, 3], units[unit, 4], _ROWS):
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
                _leave_out(0, absent, sums, with_totals, absolutes, zero, nothing)
                _leave_out(1, absent, sums, with_totals, absolutes, zero, nothing)
                _leave_out(2, absent, sums, with_totals, absolutes, zero, nothing)
                _leave_out(3, absent, sums, with_totals, absolutes, zero, nothing)
                _leave_out(4, absent, sums, with_totals, absolutes, zero, nothing)
                _leave_out(5, absent, sums, with_totals, absolutes, zero, nothing)
                _leave_out(6, absent, sums, with_totals, absolutes, zero, nothing)
                _leave_out(7, absent, sums, with_totals, absolutes, zero, nothing)
                more = True
                while more:
                    left_0 = _select(0, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left_1 = _select(1, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left_2 = _select(2, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left_3 = _select(3, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left_4 = _select(4, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left_5 = _select(5, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left_6 = _select(6, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left_7 = _select(7, sums, side.order, place + row, waiting, waiting_indices, counts, bars, bar_indices, nothing)
                    left = left_0 or left_1 or left_2 or left_3
                    left = left or left_4 or left_5 or left_6 or left_7
                    cuda.syncwarp()
                    more = cuda.any_sync(_ALL, left)
                    if more or row + _ROWS >= units[unit, 4]:
                        room = _WAITING if more else 0
                        for q in range((thread >> 5) * 16, (thread >> 5) * 16 + 16):
                            if counts[q] > room:
                                _merge_waiting(
                                    q, start, queries.ids, list_of, top, lists, waiting,
                                    waiting_indices, counts, bars, bar_indices, nothing,
                                )  # fmt: skip
                        cuda.syncwarp()
        cuda.syncthreads()
        if with_totals:
            _add_totals(absolutes, start, stop, queries.ids, list_of, top, lists)

    return read_units


@inner_kernel(forceinline=True)
def _multiply_row(x, y, sums, at):
    for c in range(8):
        sums[at + c] = fma(x, y[c], sums[at + c])


@inner_kernel
def _mark_absent(queries, exclusions, start, stop, place, n, absent):
    """Mark rows of the tile that a query must not see, and places behind the last row."""
    for q in range(cuda.threadIdx.x, _QUERIES, _THREADS):
        for word in range(_ROWS // 32):
            left = n - word * 32
            bits = np.uint32(0)
            if left < 32:
                bits = np.uint32(0xFFFFFFFF << max(left, 0) & 0xFFFFFFFF)
            absent[q * (_ROWS // 32) + word] = bits
        if start + q < stop:
            query = queries.ids[start + q]
            for e in range(exclusions.starts[query], exclusions.stops[query]):
                row = exclusions.places[e] - place
                if 0 <= row < _ROWS:
                    word = q * (_ROWS // 32) + row // 32
                    absent[word] = np.uint32(absent[word] | np.uint32(1 << (row % 32)))


@inner_kernel(forceinline=True)
def _leave_out(i, absent, sums, with_totals, absolutes, zero, nothing):
    """Make scores of a thread's i-th query that are none -inf; add the others up."""
    thread = cuda.threadIdx.x
    word, shift = ((thread >> 4) * 8 + i) * (_ROWS // 32) + (thread >> 3 & 1), (thread & 7) * 4
    bits = np.int64(absent[word]) >> shift & 15
    bits |= (np.int64(absent[word + _ROWS // 64]) >> shift & 15) << 4
    if with_totals:
        total = zero
        for c in range(8):
            total += zero if bits >> c & 1 else abs(sums[8 * i + c])
        absolutes[i * _THREADS + thread] += np.float64(total)
    for c in range(8):
        sums[8 * i + c] = nothing if bits >> c & 1 else sums[8 * i + c]


@inner_kernel(forceinline=True)
def _select(i, sums, order, place, waiting, waiting_indices, counts, bars, bar_indices, nothing):
    """Let scores of a thread's i-th query that beat the last entry of its list wait.

    Returns whether there was no room for one.
    """
    thread = cuda.threadIdx.x
    q = (thread >> 4) * 8 + i
    bar, left_over = bars[q], False
    best = sums[8 * i]
    for c in range(1, 8):
        best = max(best, sums[8 * i + c])
    if best >= bar and best > nothing:
        for c in range(8):
            score = sums[8 * i + c]
            if score >= bar and score > nothing:
                row = c // 4 * (_ROWS // 2) + (thread & 15) * 4 + c % 4
                index = np.int32(order[place + row])
                if score > bar or index < bar_indices[q]:
                    slot = cuda.atomic.add(counts, q, 1)
                    if slot < _WAITING:
                        waiting[q * _WAITING + slot] = score
                        waiting_indices[q * _WAITING + slot] = index
                        sums[8 * i + c] = nothing
                    else:
                        left_over = True
    return left_over


@inner_kernel
def _merge_waiting(
    q, start, ids, list_of, top, lists, waiting, waiting_indices, counts, bars, bar_indices, nothing
):
    """Merge the scores of a query that wait into its list; with a warp."""
    lane = cuda.threadIdx.x % WARP
    value, index = nothing, LAST
    if lane < counts[q]:
        value, index = waiting[q * _WAITING + lane], waiting_indices[q * _WAITING + lane]
    value, index = sorted_entries(lane, value, index)
    row, values, indices = ids[start + q], top.values, top.indices
    if list_of >= 0:
        row, values, indices = list_of + q, lists.values, lists.indices
    value, index = into_list(lane, value, index, values, indices, row)
    cuda.syncwarp()  # all have read the count
    # Lists of parts begin empty: their bar is never below that of the query's own list.
    if lane == 0:
        counts[q] = 0
        if value > bars[q] or (value == bars[q] and index < bar_indices[q]):
            bars[q], bar_indices[q] = value, index
    cuda.syncwarp()


@inner_kernel
def _add_totals(absolutes, start, stop, ids, list_of, top, lists):
    for q in range(cuda.threadIdx.x, stop - start, _THREADS):
        total = 0.0
        for x in range(16):
            total += absolutes[q % 8 * _THREADS + q // 8 * 16 + x]
        if list_of < 0:
            top.totals[ids[start + q]] += total
        else:
            lists.totals[list_of + q] = total


@kernel
def _merge_parts(parts, tiles, ids, top, lists):
    """Merge the lists of a tile's parts into those of its queries: a warp has a query."""
    lane = cuda.threadIdx.x % WARP
    first, last = tiles[cuda.blockIdx.x], tiles[cuda.blockIdx.x + 1]
    start, stop = parts[first, 1], parts[first, 2]
    k, with_totals = top.values.shape[1], top.totals.shape[0] > 0
    for s in range(start + cuda.threadIdx.x // WARP, stop, _THREADS // WARP):
        query = ids[s]
        for part in range(first, last):
            row = parts[part, 5] + s - start
            for e in range(0, k, WARP):
                value, index = top.values.dtype.type(-np.inf), LAST
                if e + lane < k:
                    value, index = lists.values[row, e + lane], lists.indices[row, e + lane]
                into_list(lane, value, index, top.values, top.indices, query)
            if with_totals and lane == 0:
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
        low, end = known_pointers[users[query]], known_pointers[users[query] + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if known_items[middle] < items[query]:
                low = middle + 1
            else:
                high = middle
        starts[query] = low
        while low < end and known_items[low] == items[query]:
            low += 1
        stops[query] = low
