"""Vector arithmetic the compiler will not find by itself, written as LLVM vectors.

Numba keeps strict IEEE order, which forbids it to vectorise a reduction. Here the order is
part of the definition (16 lanes, two accumulators, a fixed tree), so a sum has the same bits
wherever and however the caller was compiled. LLVM lowers the 16-lane vectors to whatever the
processor has.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import (
    I64,
    LANES,
    Lanes,
    broadcast,
    emit_prefetch,
    first_lanes,
    is_matrix,
    is_vector,
    vectors,
)

__all__ = [
    "add_combination",
    "add_outer_products",
    "add_scaled",
    "bits_to_float",
    "dot",
    "float_to_bits",
    "move_pair",
    "move_pair_recorded",
    "prefetch",
    "pull_and_move",
    "pull_row",
]


@intrinsic
def dot(typing_context: Any, x: Any, y: Any) -> Any:
    """Inner product of two contiguous vectors of one dtype, in a fixed order of summation."""
    if not is_vector(x, y) or x.dtype != y.dtype:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        left, length = lanes.array(signature.args[0], args[0])
        right, _ = lanes.array(signature.args[1], args[1])
        sums = [lanes.accumulator(), lanes.accumulator()]

        def add(accumulator: ir.Value, index: ir.Value) -> None:
            product = (lanes.load(left, index), lanes.load(right, index))
            builder.store(lanes.fma(*product, builder.load(accumulator)), accumulator)

        pairs = builder.and_(length, I64(-2 * LANES))
        with vectors(builder, pairs, 2 * LANES) as (index, _):
            add(sums[0], index)
            add(sums[1], builder.add(index, I64(LANES)))
        whole = builder.and_(length, I64(-LANES))
        with builder.if_then(builder.icmp_signed(">", whole, pairs)):
            add(sums[0], pairs)
        with builder.if_then(builder.icmp_signed(">", length, whole)):
            mask = first_lanes(builder, builder.sub(length, whole))
            product = (lanes.load_first(left, whole, mask), lanes.load_first(right, whole, mask))
            builder.store(lanes.fma(*product, builder.load(sums[1])), sums[1])
        return lanes.tree_sum(builder.fadd(builder.load(sums[0]), builder.load(sums[1])))

    return x.dtype(x, y), codegen


def _each_vector(
    builder: ir.IRBuilder, lanes: Lanes, length: ir.Value, body: Callable[..., None]
) -> None:
    """Emit ``body(at, load, store)`` for every vector of rows of some length, the last masked."""
    whole = builder.and_(length, I64(-LANES))
    with vectors(builder, whole, LANES) as (index, _):
        body(index, lambda p: lanes.load(p, index), lambda v, p: lanes.store(v, p, index))
    with builder.if_then(builder.icmp_signed(">", length, whole)):
        mask = first_lanes(builder, builder.sub(length, whole))
        body(
            whole,
            lambda p: lanes.load_first(p, whole, mask),
            lambda v, p: lanes.store_first(v, p, whole, mask),
        )


def _pair_codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
    lanes = Lanes(context, builder, signature.args[0].dtype)
    rows = [lanes.array(t, a) for t, a in zip(signature.args[:-2], args[:-2], strict=True)]
    pointers, length = [pointer for pointer, _ in rows], rows[0][1]
    keep = broadcast(builder, args[-2])
    back = builder.fneg(broadcast(builder, args[-1]))

    def body(_: ir.Value, load: Callable[..., ir.Value], store: Callable[..., None]) -> None:
        old = [load(pointer) for pointer in pointers[:2]]
        for row in (0, 1):
            new = lanes.fma(back, old[1 - row], builder.fmul(keep, old[row]))
            store(new, pointers[row])
            if len(pointers) == 4:
                change = builder.fsub(new, old[row])
                store(builder.fadd(load(pointers[2 + row]), change), pointers[2 + row])

    _each_vector(builder, lanes, length, body)
    return context.get_dummy_value()


@intrinsic
def move_pair(typing_context: Any, p: Any, q: Any, keep: Any, step: Any) -> Any:
    """``p, q = keep * p - step * q, keep * q - step * p``, both from the old rows.

    As a Numba loop the aliasing checks of every call cost a third of the training step
    (43 against 29 ns at k=64).
    """
    if not is_vector(p, q) or p.dtype != q.dtype:
        return None
    return types.void(p, q, p.dtype, p.dtype), _pair_codegen


@intrinsic
def move_pair_recorded(
    typing_context: Any, p: Any, q: Any, p_change: Any, q_change: Any, keep: Any, step: Any
) -> Any:
    """`move_pair`, adding the row changes to ``p_change`` and ``q_change``."""
    if not is_vector(p, q, p_change, q_change) or len({a.dtype for a in (p, q, p_change)}) > 1:
        return None
    return types.void(p, q, p_change, q_change, p.dtype, p.dtype), _pair_codegen


@intrinsic
def add_scaled(typing_context: Any, target: Any, source: Any, factor: Any) -> Any:
    """``target += factor * source``."""
    if not is_vector(target, source) or target.dtype != source.dtype:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        target, length = lanes.array(signature.args[0], args[0])
        source, _ = lanes.array(signature.args[1], args[1])
        factor = broadcast(builder, args[2])

        def body(_: ir.Value, load: Callable[..., ir.Value], store: Callable[..., None]) -> None:
            store(lanes.fma(factor, load(source), load(target)), target)

        _each_vector(builder, lanes, length, body)
        return context.get_dummy_value()

    return types.void(target, source, target.dtype), codegen


def _pull_codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
    lanes = Lanes(context, builder, signature.args[0].dtype)
    moves = len(args) == 5
    pull, row = (lanes.array(signature.args[n], args[n])[0] for n in range(2))
    length = lanes.array(signature.args[1], args[1])[1]
    slope = broadcast(builder, args[3 if moves else 2])

    def body(at: ir.Value, load: Callable[..., ir.Value], store: Callable[..., None]) -> None:
        old = load(row)
        lanes.store(lanes.fma(slope, old, lanes.load(pull, at)), pull, at)
        if moves:
            x = lanes.array(signature.args[2], args[2])[0]
            back = builder.fneg(broadcast(builder, args[4]))
            store(lanes.fma(back, load(x), old), row)

    _each_vector(builder, lanes, length, body)
    return context.get_dummy_value()


@intrinsic
def pull_row(typing_context: Any, pull: Any, row: Any, slope: Any) -> Any:
    """``pull += slope * row``; `pull` has room for whole vectors of 16.

    What is stored under a mask cannot be handed on to the next load: with the row's own length a
    sum over fourteen rows of 20 numbers waited longer than it added.
    """
    if not is_vector(pull, row) or pull.dtype != row.dtype:
        return None
    return types.void(pull, row, pull.dtype), _pull_codegen


@intrinsic
def pull_and_move(typing_context: Any, pull: Any, row: Any, x: Any, slope: Any, step: Any) -> Any:
    """`pull_row` and then ``row -= step * x``, in one pass over the row."""
    if not is_vector(pull, row, x) or len({a.dtype for a in (pull, row, x)}) > 1:
        return None
    return types.void(pull, row, x, pull.dtype, pull.dtype), _pull_codegen


@intrinsic
def add_combination(typing_context: Any, target: Any, coefficients: Any, rows: Any) -> Any:
    """``target += coefficients @ rows``: (d,), (m,) and (m, d); the sums stay in registers."""
    if not is_vector(target, coefficients) or not is_matrix(rows):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        target, length = lanes.array(signature.args[0], args[0])
        coefficients, m = lanes.array(signature.args[1], args[1])
        rows, _ = lanes.array(signature.args[2], args[2])
        cell = lanes.accumulator()

        def body(at: ir.Value, load: Callable[..., ir.Value], store: Callable[..., None]) -> None:
            builder.store(load(target), cell)
            with vectors(builder, m, 1) as (number, _):
                factor = broadcast(builder, builder.load(builder.gep(coefficients, [number])))
                row = load(builder.gep(rows, [builder.mul(number, length)]))
                builder.store(lanes.fma(factor, row, builder.load(cell)), cell)
            store(builder.load(cell), target)

        _each_vector(builder, lanes, length, body)
        return context.get_dummy_value()

    return types.void(target, coefficients, rows), codegen


@intrinsic
def add_outer_products(typing_context: Any, target: Any, left: Any, right: Any) -> Any:
    """``target += left' @ right`` below the diagonal: (r, c), (m, r) and (m, c).

    r is a multiple of 4 and c of 32, as these lie beyond what is wanted: tiles of 4 by 32 stay in
    registers while all m rows pass. Tiles right of the diagonal are left alone.
    """
    if not is_matrix(target, left, right):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data, shapes = [], []
        for array_type, value in zip(signature.args, args, strict=True):
            struct = context.make_array(array_type)(context, builder, value)
            data.append(struct.data)
            shapes.append(cgutils.unpack_tuple(builder, struct.shape))
        target, left, right = data
        (r, c), (m, _), _ = shapes
        cells = [[lanes.accumulator() for _ in range(2)] for _ in range(4)]
        with vectors(builder, r, 4) as (f, _):
            behind = builder.and_(builder.add(f, I64(4 + 31)), I64(-32))
            behind = builder.select(builder.icmp_signed("<", behind, c), behind, c)
            with vectors(builder, behind, 2 * LANES) as (at, _):
                places = [builder.add(builder.mul(builder.add(f, I64(n)), c), at) for n in range(4)]
                for place, pair in zip(places, cells, strict=True):
                    for half, cell in enumerate(pair):
                        offset = builder.add(place, I64(half * LANES))
                        builder.store(lanes.load(target, offset), cell)
                with vectors(builder, m, 1) as (number, _):
                    row = builder.add(builder.mul(number, c), at)
                    halves = [lanes.load(right, builder.add(row, I64(h * LANES))) for h in range(2)]
                    first = builder.add(builder.mul(number, r), f)
                    for n, pair in enumerate(cells):
                        place = builder.gep(left, [builder.add(first, I64(n))])
                        x = broadcast(builder, builder.load(place))
                        for vector, cell in zip(halves, pair, strict=True):
                            builder.store(lanes.fma(x, vector, builder.load(cell)), cell)
                for place, pair in zip(places, cells, strict=True):
                    for half, cell in enumerate(pair):
                        offset = builder.add(place, I64(half * LANES))
                        lanes.store(builder.load(cell), target, offset)
        return context.get_dummy_value()

    return types.void(target, left, right), codegen


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, to be written soon (index unchecked)."""
    if not isinstance(array, types.Array) or array.layout != "C":
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        emit_prefetch(builder, builder.gep(struct.data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _bitcast_codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
    return builder.bitcast(args[0], context.get_value_type(signature.return_type))


@intrinsic
def float_to_bits(typing_context: Any, value: Any) -> Any:
    """The 32 bits of a float32 as uint32."""
    return (types.uint32(value), _bitcast_codegen) if value == types.float32 else None


@intrinsic
def bits_to_float(typing_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""
    return (types.float32(bits), _bitcast_codegen) if bits == types.uint32 else None
