"""The simulator's detector of races: what it finds, what it leaves alone, what it says."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest
from backends import SIMULATED

jit = pytest.importorskip("fastinfluence.kernels.cuda.jit", exc_type=ImportError)
memory = pytest.importorskip("fastinfluence.kernels.cuda.memory", exc_type=ImportError)
simd = pytest.importorskip("fastinfluence.kernels.cuda.simd", exc_type=ImportError)
cuda = jit.cuda

pytestmark = pytest.mark.skipif(not SIMULATED, reason="the simulator's own check")

WHOLE, LOW, HIGH = 0xFFFFFFFF, 0xFFFF, 0xFFFF0000


def is_race(kernel, blocks, threads, *arguments, shared=0):
    """Whether a launch is found to have a race; other errors are passed on."""
    from fastinfluence.kernels.cuda.simulated_memory import Race

    try:
        jit.launch(kernel, blocks, threads, *arguments, shared=shared)
    except Race:
        return True
    return False


def nothing(*arguments):
    return 1


def shuffled(mask=WHOLE):
    return cuda.shfl_xor_sync(mask, 1, 1)


def counted(mask=WHOLE):
    return cuda.ballot_sync(mask, True)


# ---------------------------------------------------------------- within a block


def turned_round(order):
    @jit.kernel
    def turned_round(out):
        room = cuda.shared.array(64, np.float32)
        t = cuda.threadIdx.x
        room[t] = t
        order()
        out[t] = room[cuda.blockDim.x - 1 - t]

    return turned_round


@pytest.mark.parametrize("threads", [1, 20, 32, 64])
def test_what_a_barrier_orders(threads):
    out = memory.zeros(threads, np.float32)
    assert not is_race(turned_round(cuda.syncthreads), 1, threads, out)
    assert memory.fetch(out).tolist() == list(range(threads))[::-1]


@pytest.mark.parametrize("order", [nothing, shuffled, counted])
def test_shuffles_and_votes_order_no_memory(order):
    assert is_race(turned_round(order), 1, 32, memory.zeros(32, np.float32))


def test_lanes_of_a_warp_are_ordered_by_their_own_barrier():
    assert not is_race(turned_round(cuda.syncwarp), 1, 32, memory.zeros(32, np.float32))
    assert is_race(turned_round(cuda.syncwarp), 1, 64, memory.zeros(64, np.float32))


@pytest.mark.parametrize("behind", [nothing, shuffled, cuda.syncwarp, cuda.syncthreads])
def test_what_the_next_turn_of_a_loop_writes_has_been_read(behind):
    @jit.kernel
    def passed_on(out):
        room = cuda.shared.array(32, np.float32)
        t = cuda.threadIdx.x
        for turn in range(3):
            room[t] = turn
            cuda.syncthreads()
            out[t] += room[31 - t]
            behind()

    raced = behind in (nothing, shuffled)
    assert is_race(passed_on, 1, 32, memory.zeros(32, np.float32)) == raced


@pytest.mark.parametrize(
    ("masks", "reader", "raced"),
    [
        ([LOW], 7, False),
        ([LOW], 20, True),  # of the other half
        ([HIGH], 7, True),
        ([LOW, 0x00FFFF00], 20, False),  # by way of lanes 8 to 15
        ([0x00FFFF00, LOW], 20, True),  # in the wrong order
        ([LOW, HIGH, 0x00FF_00FF], 20, False),
        ([LOW, HIGH, 0xFF00_FF00], 20, True),
    ],
)  # fmt: skip
def test_parts_of_a_warp_pass_on_what_they_know(masks, reader, raced):
    @jit.kernel
    def told(cell, out):
        t = cuda.threadIdx.x
        if t == 0:
            cell[0] = 1
        for mask in masks:
            if mask >> t & 1:
                cuda.syncwarp(mask)
        if t == reader:
            out[0] = cell[0]

    assert is_race(told, 1, 32, *(memory.zeros(1, np.int32) for _ in range(2))) == raced


def test_threads_that_write_the_same_value_race():
    @jit.kernel
    def cleared(out):
        out[0] = 0

    assert is_race(cleared, 1, 2, memory.zeros(1, np.int32))
    assert not is_race(cleared, 1, 1, memory.zeros(1, np.int32))


def test_threads_that_have_ended_are_behind_the_next_barrier():
    @jit.kernel
    def ended(out, order):
        t = cuda.threadIdx.x
        if t == 1:
            out[0] = 1
            return
        if order:
            cuda.syncthreads()
        if t == 0:
            out[0] += 1

    assert not is_race(ended, 1, 3, memory.zeros(1, np.int32), True)
    assert is_race(ended, 1, 3, memory.zeros(1, np.int32), False)


# ---------------------------------------------------------------- between blocks


@jit.kernel
def through_one_cell(out, writer, reader):
    if cuda.blockIdx.x == writer:
        out[2] = 1
    cuda.syncthreads()
    if cuda.blockIdx.x == reader:
        out[cuda.blockIdx.x] = out[2]


def test_nothing_orders_blocks_but_the_end_of_a_launch():
    out = memory.zeros(3, np.int32)
    assert not is_race(through_one_cell, 2, 1, out, 0, 0)
    assert is_race(through_one_cell, 2, 1, out, 0, 1)
    assert is_race(through_one_cell, 2, 1, out, 1, 0)
    memory.store(out, np.zeros(3, np.int32))
    for writer, reader in ((0, 2), (2, 1), (0, 2)):
        assert not is_race(through_one_cell, 2, 1, out, writer, reader)
    assert memory.fetch(out).tolist() == [0, 1, 1]


def test_two_blocks_write_one_cell():
    @jit.kernel
    def both(out, n):
        if cuda.threadIdx.x == 0:
            out[cuda.blockIdx.x // n] = 3

    assert is_race(both, 2, 32, memory.zeros(2, np.int32), 2)
    assert not is_race(both, 2, 32, memory.zeros(2, np.int32), 1)


def test_one_array_as_two_arguments():
    @jit.kernel
    def moved(source, target):
        target[cuda.threadIdx.x] = source[cuda.threadIdx.x + 1]

    x = memory.put(np.arange(9))
    assert is_race(moved, 1, 8, x, x)
    assert not is_race(moved, 1, 8, x, memory.copied(x))


# ---------------------------------------------------------------- atomic operations


@pytest.mark.parametrize(
    ("order", "first", "then", "blocks", "raced"),
    [
        (nothing, "atomic", "atomic", 2, False),
        (cuda.syncthreads, "atomic", "read", 1, False),
        (cuda.syncthreads, "atomic", "read", 2, True),
        (cuda.syncwarp, "atomic", "read", 1, False),
        (shuffled, "atomic", "read", 1, True),
        (shuffled, "read", "atomic", 1, True),
        (cuda.syncwarp, "read", "atomic", 1, False),
        (cuda.syncthreads, "one writes", "atomic", 1, False),
        (cuda.syncthreads, "one writes", "atomic", 2, True),
        (nothing, "one writes", "atomic", 1, True),
        (nothing, "atomic", "one writes", 1, True),
    ],
)
def test_atomic_operations_race_with_others_only(order, first, then, blocks, raced):
    def do(what, cell, out):
        t = cuda.threadIdx.x
        if what == "atomic":
            cuda.atomic.max(cell, 0, t)
        elif what == "read":
            out[cuda.grid(1)] = cell[0]
        elif t == 5:
            cell[0] = 7

    @jit.kernel
    def twice(cell, out):
        do(first, cell, out)
        order()
        do(then, cell, out)

    cell, out = memory.zeros(1, np.int32), memory.zeros(32 * blocks, np.int32)
    assert is_race(twice, blocks, 32, cell, out) == raced
    assert memory.fetch(cell)[0] >= 7


# ---------------------------------------------------------------- views


@pytest.mark.parametrize(("gap", "raced"), [(0, True), (3, True), (4, False)])
def test_views_of_dynamic_shared_memory_overlap_in_bytes(gap, raced):
    """Four numbers of eight bytes, then ones of four from ``2 * gap`` on."""

    @jit.kernel
    def beside(out):
        floats = cuda.shared.array(0, np.float64)
        places = cuda.shared.array(0, np.int32)
        places = places[2 * gap :]
        t = cuda.threadIdx.x
        if t < 4:
            floats[t] = t
        else:
            places[t - 4] = t

    assert is_race(beside, 1, 8, memory.zeros(1, np.int32), shared=64) == raced


@pytest.mark.parametrize("distance", [3, 4])
def test_loads_and_stores_of_four(distance):
    @jit.kernel
    def four(x, out):
        if cuda.threadIdx.x == 0:
            simd.store4(x, 0, *simd.load4(x, 4))
        else:
            out[0] = x[distance]

    x, out = memory.put(np.arange(8.0)), memory.zeros(1, np.float64)
    assert is_race(four, 1, 2, x, out) == (distance < 4)
    assert memory.fetch(x).tolist() == [4, 5, 6, 7, 4, 5, 6, 7]


class Pair(NamedTuple):
    rows: object
    number: int


@jit.kernel
def through_a_row(pair, t_of_last):
    row = pair.rows[1]
    t = cuda.threadIdx.x
    cells = row[2:]
    if t in (0, t_of_last):
        cells[0] = pair.number


def test_views_of_views_are_the_same_memory_and_the_error_says_which():
    from fastinfluence.kernels.cuda.simulated_memory import Race

    pair = Pair(memory.zeros((2, 4), np.float64), 3)
    jit.launch(through_a_row, 1, 8, pair, 0)
    with pytest.raises(Race) as caught:
        jit.launch(through_a_row, 1, 8, pair, 5)
    line = through_a_row.py_func.__code__.co_firstlineno + 6
    by = r"thread \({}, 0, 0\) of block \(0, 0, 0\) writes pair\.rows\[1, 2\] "
    by += rf"\(test_simulated_memory_cuda\.py:{line}\)"
    ways = ["{}, and {}: nothing orders these".format(*map(by.format, p)) for p in ((0, 5), (5, 0))]
    assert re.fullmatch(f"through_a_row: (?:{'|'.join(ways)})", str(caught.value))
    assert memory.fetch(pair.rows)[1].tolist() == [0, 0, 3, 0]


def test_the_error_names_shared_memory_and_all_lines_from_the_access_to_the_kernel():
    from fastinfluence.kernels.cuda.simulated_memory import Race

    out = memory.zeros(1, np.float64)

    def put(room):
        simd.store4(room, 4, 1, 2, 3, 4)

    @jit.kernel
    def outer(out):
        room = cuda.shared.array(8, np.float64)
        put(room)
        shuffled()
        if out[0] == 0:
            raise ValueError("beside")

    with pytest.raises(Race, match=r"outer: thread .* writes shared memory of ") as caught:
        jit.launch(outer, 1, 2, out)
    first = outer.py_func.__code__.co_firstlineno
    where = rf"test_simulated_memory_cuda\.py:{first + 2}\[4\] "
    where += rf"\(test_simulated_memory_cuda\.py:{first - 2}, called in [^)]*:{first + 3}\)"
    assert len(re.findall(where, str(caught.value))) == 2
    assert isinstance(caught.value.__cause__, ValueError)


# ---------------------------------------------------------------- the naive version

BARRIER, SYNCWARP, OF_HALVES, SHUFFLE, ACCESS = range(5)
READ, WRITE, ATOMIC = range(3)


@jit.kernel
def interpret(steps, cells, kinds, out):
    """At each step threads wait for others, or access a cell of four bytes or two of eight."""
    fours, eights = cuda.shared.array(0, np.int32), cuda.shared.array(0, np.int64)
    for n in range(len(steps)):
        t = cuda.threadIdx.x
        if steps[n] == BARRIER:
            cuda.syncthreads()
        elif steps[n] == SYNCWARP:
            cuda.syncwarp()
        elif steps[n] == OF_HALVES:
            cuda.syncwarp(LOW if t % 32 < 16 else HIGH)
        elif steps[n] == SHUFFLE:
            cuda.shfl_xor_sync(WHOLE, t, 1)
        elif cells[n, t] >= 0:
            room = out if cells[n, t] < 2 else fours if cells[n, t] < 6 else eights
            cell = cells[n, t] - 2 if room is fours else cells[n, t] % 2
            if kinds[n, t] == READ:
                room[cell]
            elif kinds[n, t] == WRITE:
                room[cell] = 1
            else:
                cuda.atomic.add(room, cell, 1)


def naive(steps, cells, kinds):
    """Whether the threads of a block race: each knows of the accesses it is ordered behind."""
    n_threads = cells.shape[1]
    known = [set() for _ in range(n_threads)]
    before = []  # accesses of all
    for n, step in enumerate(steps):
        if step == ACCESS:
            for t in np.flatnonzero(cells[n] >= 0):
                c = cells[n, t]
                bytes_ = {c} if c < 6 else {2 * (c - 6) + 2, 2 * (c - 6) + 3}
                for i, (who, its_bytes, kind) in enumerate(before):
                    conflict = {kind, kinds[n, t]} not in ({READ}, {ATOMIC})
                    if conflict and bytes_ & its_bytes and who != t and i not in known[t]:
                        return True
                known[t].add(len(before))
                before.append((t, bytes_, kinds[n, t]))
        elif step != SHUFFLE:
            size = {BARRIER: n_threads, SYNCWARP: 32, OF_HALVES: 16}[step]
            for begin in range(0, n_threads, size):
                some = known[begin : begin + size]
                known[begin : begin + size] = [set.union(*some) for _ in some]
    return False


def test_programs_of_chance_against_the_naive_version():
    rng, found = np.random.default_rng(0), []
    for _ in range(80):
        steps = rng.choice(5, 12, p=[0.1, 0.25, 0.2, 0.05, 0.4])
        cells, kinds = np.full((12, 64), -1), np.zeros((12, 64), np.int64)
        for n in range(12):
            some = rng.choice(64, rng.integers(1, 3), replace=False)
            some = some % 32 if rng.random() < 0.95 else some
            cells[n, some] = rng.integers(0, 8, len(some))
            kinds[n, some] = rng.choice(3, p=[0.4, 0.2, 0.4])
        given = [memory.put(x) for x in (steps, cells, kinds, np.zeros(2, np.int64))]
        found.append(is_race(interpret, 1, 64, *given, shared=16))
        assert found[-1] == naive(steps, cells, kinds)
    assert 20 < sum(found) < 60


# ---------------------------------------------------------------- the order of the threads


@jit.kernel
def in_turn(place, out):
    out[cuda.grid(1)] = cuda.atomic.add(place, 0, 1)


def turns(monkeypatch, seed):
    monkeypatch.setenv("FASTINFLUENCE_CUDASIM_SEED", str(seed))
    out = memory.zeros(24, np.int32)
    jit.launch(in_turn, 3, 8, memory.zeros(1, np.int32), out)
    return memory.fetch(out).tolist()


def test_blocks_and_threads_come_in_an_order_of_chance_that_a_seed_gives_again(monkeypatch):
    first = turns(monkeypatch, 1)
    assert sorted(first) == list(range(24))
    assert first == turns(monkeypatch, 1)
    assert first not in (turns(monkeypatch, 2), list(range(24)))
    assert {min(first[n : n + 8]) % 8 for n in (0, 8, 16)} == {0}  # block after block


def test_an_error_says_the_seed(monkeypatch):
    @jit.kernel
    def failing(out):
        out[9] = 0

    monkeypatch.setenv("FASTINFLUENCE_CUDASIM_SEED", "7")
    with pytest.raises(IndexError) as caught:
        jit.launch(failing, 1, 1, memory.zeros(1, np.int32))
    assert caught.value.__notes__[-1] == "in the order of FASTINFLUENCE_CUDASIM_SEED=7"
