"""Scanning rows of scores with vectors: moments, counts, compression, ranks.

Only `compress_at_least` has a variant of its own for AVX-512; the rest is lowered to whatever
the processor has.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import (
    HAS_AVX512,
    I32,
    I64,
    INDICES,
    LANES,
    Lanes,
    broadcast,
    first_lanes,
    is_vector,
    population,
    vectors,
)

__all__ = ["compress_at_least", "count_at_least", "moments", "rank_merged"]


@intrinsic
def moments(typing_context: Any, row: Any, start: Any, stop: Any) -> Any:
    """Sum, sum of squares and sum of absolute values of ``row[start:stop]``: whole vectors.

    Bounds rather than a slice, here and below: a caller that counts references would count
    one for every slice.
    """
    if not is_vector(row):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data, _ = lanes.array(signature.args[0], args[0])
        total, squares, absolute = (lanes.accumulator() for _ in range(3))
        with vectors(builder, args[2], LANES, args[1]) as (index, _):
            x = lanes.load(data, index)
            builder.store(builder.fadd(builder.load(total), x), total)
            builder.store(lanes.fma(x, x, builder.load(squares)), squares)
            builder.store(builder.fadd(builder.load(absolute), lanes.absolute(x)), absolute)
        results = [lanes.tree_sum(builder.load(a)) for a in (total, squares, absolute)]
        return context.make_tuple(builder, signature.return_type, results)

    return types.UniTuple(row.dtype, 3)(row, types.intp, types.intp), codegen


@intrinsic
def count_at_least(typing_context: Any, row: Any, start: Any, stop: Any, threshold: Any) -> Any:
    """Number of entries >= `threshold` in ``row[start:stop]``: whole vectors."""
    if not is_vector(row):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data, _ = lanes.array(signature.args[0], args[0])
        bound = broadcast(builder, args[3])
        count = cgutils.alloca_once_value(builder, I64(0))
        with vectors(builder, args[2], LANES, args[1]) as (index, _):
            mask = builder.fcmp_ordered(">=", lanes.load(data, index), bound)
            builder.store(builder.add(builder.load(count), population(builder, mask)), count)
        return builder.load(count)

    return types.intp(row, types.intp, types.intp, row.dtype), codegen


@intrinsic
def compress_at_least(
    typing_context: Any,
    row: Any,
    start: Any,
    stop: Any,
    threshold: Any,
    values: Any,
    positions: Any,
) -> Any:
    """Copy the entries >= `threshold` of ``row[start:stop]``, whole vectors, in order.

    Their int32 positions, counted from `start`, go to `positions`; returns how many there are.

    `values` and `positions` must have room for one vector beyond the survivors.
    """
    if not is_vector(row, values, positions) or positions.dtype != types.int32:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data, _ = lanes.array(signature.args[0], args[0])
        out_values, _ = lanes.array(signature.args[4], args[4])
        out_positions, _ = lanes.array(signature.args[5], args[5])
        bound = broadcast(builder, args[3])
        count = cgutils.alloca_once_value(builder, I64(0))
        emit = _compress_vector if HAS_AVX512 and lanes.align == 4 else _compress_lanes
        with vectors(builder, args[2], LANES, args[1]) as (index, _):
            x = lanes.load(data, index)
            mask = builder.fcmp_ordered(">=", x, bound)
            position = builder.sub(index, args[1])
            emit(lanes, x, mask, position, out_values, out_positions, count)
        return builder.load(count)

    signature = types.intp(row, types.intp, types.intp, row.dtype, values, positions)
    return signature, codegen


def _compress_vector(
    lanes: Lanes,
    x: ir.Value,
    mask: ir.Value,
    index: ir.Value,
    values: ir.Value,
    positions: ir.Value,
    count: ir.Value,
) -> None:
    """AVX-512: compress in registers, store a whole vector, advance by the population."""
    builder = lanes.builder
    at = builder.load(count)
    numbers = builder.add(INDICES, broadcast(builder, builder.trunc(index, I32)))
    for source, suffix, where in ((x, "f32", values), (numbers, "i32", positions)):
        function = lanes.intrinsic(
            f"llvm.x86.avx512.mask.compress.v{LANES}{suffix}",
            source.type,
            [source.type, source.type, mask.type],
        )
        packed = builder.call(function, [source, source, mask])
        address = builder.bitcast(builder.gep(where, [at]), source.type.as_pointer())
        builder.store(packed, address, align=4)
    builder.store(builder.add(at, population(builder, mask)), count)


def _compress_lanes(
    lanes: Lanes,
    x: ir.Value,
    mask: ir.Value,
    index: ir.Value,
    values: ir.Value,
    positions: ir.Value,
    count: ir.Value,
) -> None:
    """Any processor: visit the set bits of the mask, lowest first."""
    builder = lanes.builder
    bits = cgutils.alloca_once(builder, I64)
    builder.store(builder.zext(builder.bitcast(mask, ir.IntType(LANES)), I64), bits)
    trailing = lanes.intrinsic("llvm.cttz.i64", I64, [I64, ir.IntType(1)])
    spill = cgutils.alloca_once(builder, lanes.vector)
    builder.store(x, spill)
    spilled = builder.bitcast(spill, lanes.element.as_pointer())

    test = builder.append_basic_block("lanes.test")
    visit = builder.append_basic_block("lanes.visit")
    done = builder.append_basic_block("lanes.done")
    builder.branch(test)
    builder.position_at_end(test)
    builder.cbranch(builder.icmp_unsigned("!=", builder.load(bits), I64(0)), visit, done)
    builder.position_at_end(visit)
    left, at = builder.load(bits), builder.load(count)
    lane = builder.call(trailing, [left, ir.IntType(1)(1)])
    builder.store(builder.load(builder.gep(spilled, [lane])), builder.gep(values, [at]))
    position = builder.trunc(builder.add(index, lane), I32)
    builder.store(position, builder.gep(positions, [at]))
    builder.store(builder.and_(left, builder.sub(left, I64(1))), bits)
    builder.store(builder.add(at, I64(1)), count)
    builder.branch(test)
    builder.position_at_end(done)


@intrinsic
def rank_merged(
    typing_context: Any,
    values: Any,
    indices: Any,
    count: Any,
    top_values: Any,
    top_indices: Any,
    at: Any,
    k: Any,
    ranks: Any,
    top_ranks: Any,
) -> Any:
    """Ranks that entries take when they are merged into a sorted list: a sort without a branch.

    The `count` <= 16 entries are unsorted but rise in index; the list of k <= 16 is
    ``top_values[at : at + k]``, falling, with int32 ``top_indices``. The largest comes first,
    ties in order of index. All pairs are compared at once. `values` and `indices` have room for
    16, `ranks` (of the entries) and `top_ranks` (of the list) 16 int32 each.
    """
    if not is_vector(values, indices, top_values, top_indices, ranks, top_ranks):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        kinds, integers = signature.args, INDICES.type
        lanes = Lanes(context, builder, kinds[0].dtype)
        new, _ = lanes.array(kinds[0], args[0])
        numbers, _ = lanes.array(kinds[1], args[1])
        old, _ = lanes.array(kinds[3], args[3])
        old_numbers, _ = lanes.array(kinds[4], args[4])
        out, _ = lanes.array(kinds[7], args[7])
        old_out, _ = lanes.array(kinds[8], args[8])
        count, at, k = args[2], args[5], args[6]

        def whole(pointer: ir.Value) -> ir.Value:
            return builder.bitcast(pointer, integers.as_pointer())

        listed = first_lanes(builder, k)
        list_values = lanes.load_first(old, at, listed)
        load = lanes.intrinsic(
            f"llvm.masked.load.v{LANES}i32.p0",
            integers,
            [integers.as_pointer(), I32, listed.type, integers],
        )
        zeros = ir.Constant(integers, [0] * LANES)
        where = whole(builder.gep(old_numbers, [at]))
        list_numbers = builder.call(load, [where, I32(4), listed, zeros])
        new_values = lanes.load(new, I64(0))
        new_numbers = builder.load(whole(numbers), align=4)

        list_ranks = cgutils.alloca_once_value(builder, INDICES)
        new_ranks = cgutils.alloca_once_value(builder, zeros)
        ahead = cgutils.alloca_once_value(builder, zeros)  # list entries ahead of each new one
        slots = builder.bitcast(ahead, I32.as_pointer())
        with vectors(builder, count, 1) as (index, _):
            value = broadcast(builder, builder.load(builder.gep(new, [index])))
            number = broadcast(builder, builder.load(builder.gep(numbers, [index])))
            beaten = []
            for others, other_numbers in (
                (list_values, list_numbers),
                (new_values, new_numbers),
            ):
                tie = builder.fcmp_ordered("==", value, others)
                first = builder.icmp_signed("<", number, other_numbers)
                more = builder.fcmp_ordered(">", value, others)
                beaten.append(builder.or_(more, builder.and_(tie, first)))
            for held, mask in zip((list_ranks, new_ranks), beaten, strict=True):
                moved = builder.add(builder.load(held), builder.zext(mask, integers))
                builder.store(moved, held)
            behind = population(builder, builder.and_(beaten[0], listed))
            slot = builder.gep(slots, [index])
            builder.store(builder.trunc(builder.sub(k, behind), I32), slot)
        total = builder.add(builder.load(new_ranks), builder.load(ahead))
        builder.store(total, whole(out), align=4)
        builder.store(builder.load(list_ranks), whole(old_out), align=4)
        return context.get_dummy_value()

    number = types.intp
    arguments = (values, indices, number, top_values, top_indices, number, number)
    return types.void(*arguments, ranks, top_ranks), codegen
