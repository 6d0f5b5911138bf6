"""Vector building blocks the compiler will not find by itself, written as LLVM vectors.

Numba keeps strict IEEE order, which forbids it to vectorise a reduction. Here the order is
part of the definition (16 lanes, two accumulators, a fixed tree), so a sum has the same bits
wherever and however the caller was compiled. LLVM lowers the 16-lane vectors to whatever the
processor has; only `compress_at_least` has a variant of its own for AVX-512.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

__all__ = [
    "HAS_AVX512",
    "LANES",
    "bits_to_float",
    "compress_at_least",
    "count_at_least",
    "dot",
    "float_to_bits",
    "moments",
    "move_pair",
    "move_pair_recorded",
    "prefetch",
    "rank_merged",
]

LANES = 16

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_INDICES = ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES)))


def _has_avx512() -> bool:
    """Whether the compilation target (not only this machine) has AVX-512 compress."""
    if config.CPU_NAME is not None and config.CPU_NAME != "host":
        return "avx512" in (config.CPU_FEATURES or "") or config.CPU_NAME.startswith(
            ("skylake-avx512", "icelake", "sapphirerapids", "znver4", "znver5")
        )
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512f", False))


HAS_AVX512 = _has_avx512()


class Lanes:
    """Emits loads, stores and arithmetic on 16-lane vectors of one element type."""

    def __init__(self, context: Any, builder: ir.IRBuilder, dtype: types.Float) -> None:
        self.context, self.builder = context, builder
        self.element = context.get_value_type(dtype)
        self.vector = ir.VectorType(self.element, LANES)
        self.align = dtype.bitwidth // 8
        self.suffix = f"v{LANES}f{dtype.bitwidth}"
        self.zero = ir.Constant(self.vector, [0.0] * LANES)

    def array(self, array_type: types.Array, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Data pointer and first extent of a one-dimensional array argument."""
        struct = self.context.make_array(array_type)(self.context, self.builder, value)
        return struct.data, cgutils.unpack_tuple(self.builder, struct.shape)[0]

    def load(self, pointer: ir.Value, index: ir.Value) -> ir.Value:
        address = self.builder.gep(pointer, [index])
        return self.builder.load(
            self.builder.bitcast(address, self.vector.as_pointer()), align=self.align
        )

    def load_first(self, pointer: ir.Value, index: ir.Value, mask: ir.Value) -> ir.Value:
        """Load the lanes of `mask`; the others are zero and never touched in memory."""
        address = self.builder.gep(pointer, [index])
        where = self.vector.as_pointer()
        load = self.intrinsic(
            f"llvm.masked.load.{self.suffix}.p0", self.vector, [where, _I32, mask.type, self.vector]
        )
        arguments = [self.builder.bitcast(address, where), _I32(self.align), mask, self.zero]
        return self.builder.call(load, arguments)

    def store(self, vector: ir.Value, pointer: ir.Value, index: ir.Value) -> None:
        address = self.builder.gep(pointer, [index])
        where = self.builder.bitcast(address, self.vector.as_pointer())
        self.builder.store(vector, where, align=self.align)

    def store_first(
        self, vector: ir.Value, pointer: ir.Value, index: ir.Value, mask: ir.Value
    ) -> None:
        """Store the lanes of `mask`; the others are never touched in memory."""
        address = self.builder.gep(pointer, [index])
        where = self.vector.as_pointer()
        store = self.intrinsic(
            f"llvm.masked.store.{self.suffix}.p0",
            ir.VoidType(),
            [self.vector, where, _I32, mask.type],
        )
        arguments = [vector, self.builder.bitcast(address, where), _I32(self.align), mask]
        self.builder.call(store, arguments)

    def intrinsic(self, name: str, returns: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        function_type = ir.FunctionType(returns, arguments)
        return cgutils.get_or_insert_function(self.builder.module, function_type, name)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        name = f"llvm.fma.{self.suffix}"
        return self.builder.call(self.intrinsic(name, self.vector, [self.vector] * 3), [x, y, z])

    def absolute(self, x: ir.Value) -> ir.Value:
        name = f"llvm.fabs.{self.suffix}"
        return self.builder.call(self.intrinsic(name, self.vector, [self.vector]), [x])

    def accumulator(self) -> ir.Value:
        return cgutils.alloca_once_value(self.builder, self.zero)

    def tree_sum(self, vector: ir.Value) -> ir.Value:
        """Sum of the lanes, halving: 8 + 8, 4 + 4, 2 + 2, 1 + 1."""
        builder, width = self.builder, LANES
        while width > 1:
            width //= 2
            undefined = ir.Constant(vector.type, ir.Undefined)
            halves = [
                builder.shuffle_vector(
                    vector,
                    undefined,
                    ir.Constant(ir.VectorType(_I32, width), list(range(start, start + width))),
                )
                for start in (0, width)
            ]
            vector = builder.fadd(*halves)
        return builder.extract_element(vector, _I32(0))


def broadcast(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def first_lanes(builder: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """Mask of the lanes below `n`."""
    return builder.icmp_signed("<", _INDICES, broadcast(builder, builder.trunc(n, _I32)))


def _population(builder: ir.IRBuilder, mask: ir.Value) -> ir.Value:
    """Number of set lanes, 64 bits wide."""
    bits = builder.zext(builder.bitcast(mask, ir.IntType(LANES)), _I64)
    count = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_I64, [_I64]), "llvm.ctpop.i64"
    )
    return builder.call(count, [bits])


def _vectors(
    builder: ir.IRBuilder, stop: ir.Value, step: int, start: ir.Value | None = None
) -> Any:
    start = _I64(0) if start is None else start
    return cgutils.for_range_slice(builder, start, stop, _I64(step), intp=_I64)


def _is_vector(*arguments: Any) -> bool:
    return all(isinstance(a, types.Array) and a.ndim == 1 and a.layout == "C" for a in arguments)


@intrinsic
def dot(typing_context: Any, x: Any, y: Any) -> Any:
    """Inner product of two contiguous vectors of one dtype, in a fixed order of summation."""
    if not _is_vector(x, y) or x.dtype != y.dtype:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        left, length = lanes.array(signature.args[0], args[0])
        right, _ = lanes.array(signature.args[1], args[1])
        sums = [lanes.accumulator(), lanes.accumulator()]

        def add(accumulator: ir.Value, index: ir.Value) -> None:
            product = (lanes.load(left, index), lanes.load(right, index))
            builder.store(lanes.fma(*product, builder.load(accumulator)), accumulator)

        pairs = builder.and_(length, _I64(-2 * LANES))
        with _vectors(builder, pairs, 2 * LANES) as (index, _):
            add(sums[0], index)
            add(sums[1], builder.add(index, _I64(LANES)))
        whole = builder.and_(length, _I64(-LANES))
        with builder.if_then(builder.icmp_signed(">", whole, pairs)):
            add(sums[0], pairs)
        with builder.if_then(builder.icmp_signed(">", length, whole)):
            mask = first_lanes(builder, builder.sub(length, whole))
            product = (lanes.load_first(left, whole, mask), lanes.load_first(right, whole, mask))
            builder.store(lanes.fma(*product, builder.load(sums[1])), sums[1])
        return lanes.tree_sum(builder.fadd(builder.load(sums[0]), builder.load(sums[1])))

    return x.dtype(x, y), codegen


def _pair_codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
    lanes = Lanes(context, builder, signature.args[0].dtype)
    rows = [lanes.array(t, a) for t, a in zip(signature.args[:-2], args[:-2], strict=True)]
    pointers, length = [pointer for pointer, _ in rows], rows[0][1]
    keep = broadcast(builder, args[-2])
    back = builder.fneg(broadcast(builder, args[-1]))

    def body(load: Callable[..., ir.Value], store: Callable[..., None]) -> None:
        old = [load(pointer) for pointer in pointers[:2]]
        for row in (0, 1):
            new = lanes.fma(back, old[1 - row], builder.fmul(keep, old[row]))
            store(new, pointers[row])
            if len(pointers) == 4:
                change = builder.fsub(new, old[row])
                store(builder.fadd(load(pointers[2 + row]), change), pointers[2 + row])

    whole = builder.and_(length, _I64(-LANES))
    with _vectors(builder, whole, LANES) as (index, _):
        body(lambda p: lanes.load(p, index), lambda v, p: lanes.store(v, p, index))
    with builder.if_then(builder.icmp_signed(">", length, whole)):
        mask = first_lanes(builder, builder.sub(length, whole))
        body(
            lambda p: lanes.load_first(p, whole, mask),
            lambda v, p: lanes.store_first(v, p, whole, mask),
        )
    return context.get_dummy_value()


@intrinsic
def move_pair(typing_context: Any, p: Any, q: Any, keep: Any, step: Any) -> Any:
    """``p, q = keep * p - step * q, keep * q - step * p``, both from the old rows.

    As a Numba loop the aliasing checks of every call cost a third of the training step
    (43 against 29 ns at k=64).
    """
    if not _is_vector(p, q) or p.dtype != q.dtype:
        return None
    return types.void(p, q, p.dtype, p.dtype), _pair_codegen


@intrinsic
def move_pair_recorded(
    typing_context: Any, p: Any, q: Any, p_change: Any, q_change: Any, keep: Any, step: Any
) -> Any:
    """`move_pair`, adding the row changes to ``p_change`` and ``q_change``."""
    if not _is_vector(p, q, p_change, q_change) or len({a.dtype for a in (p, q, p_change)}) > 1:
        return None
    return types.void(p, q, p_change, q_change, p.dtype, p.dtype), _pair_codegen


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, to be written soon (index unchecked)."""
    if not isinstance(array, types.Array) or array.layout != "C":
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.bitcast(builder.gep(struct.data, [args[1]]), ir.IntType(8).as_pointer())
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [address.type, _I32, _I32, _I32]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [address, _I32(1), _I32(3), _I32(1)])
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


@intrinsic
def moments(typing_context: Any, row: Any, start: Any, stop: Any) -> Any:
    """Sum, sum of squares and sum of absolute values of ``row[start:stop]``: whole vectors.

    Bounds rather than a slice, here and below: a slice costs two calls that count references,
    as long as the rest of a short row takes.
    """
    if not _is_vector(row):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data, _ = lanes.array(signature.args[0], args[0])
        total, squares, absolute = (lanes.accumulator() for _ in range(3))
        with _vectors(builder, args[2], LANES, args[1]) as (index, _):
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
    if not _is_vector(row):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data, _ = lanes.array(signature.args[0], args[0])
        bound = broadcast(builder, args[3])
        count = cgutils.alloca_once_value(builder, _I64(0))
        with _vectors(builder, args[2], LANES, args[1]) as (index, _):
            mask = builder.fcmp_ordered(">=", lanes.load(data, index), bound)
            builder.store(builder.add(builder.load(count), _population(builder, mask)), count)
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
    if not _is_vector(row, values, positions) or positions.dtype != types.int32:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data, _ = lanes.array(signature.args[0], args[0])
        out_values, _ = lanes.array(signature.args[4], args[4])
        out_positions, _ = lanes.array(signature.args[5], args[5])
        bound = broadcast(builder, args[3])
        count = cgutils.alloca_once_value(builder, _I64(0))
        emit = _compress_vector if HAS_AVX512 and lanes.align == 4 else _compress_lanes
        with _vectors(builder, args[2], LANES, args[1]) as (index, _):
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
    numbers = builder.add(_INDICES, broadcast(builder, builder.trunc(index, _I32)))
    for source, suffix, where in ((x, "f32", values), (numbers, "i32", positions)):
        function = lanes.intrinsic(
            f"llvm.x86.avx512.mask.compress.v{LANES}{suffix}",
            source.type,
            [source.type, source.type, mask.type],
        )
        packed = builder.call(function, [source, source, mask])
        address = builder.bitcast(builder.gep(where, [at]), source.type.as_pointer())
        builder.store(packed, address, align=4)
    builder.store(builder.add(at, _population(builder, mask)), count)


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
    bits = cgutils.alloca_once(builder, _I64)
    builder.store(builder.zext(builder.bitcast(mask, ir.IntType(LANES)), _I64), bits)
    trailing = lanes.intrinsic("llvm.cttz.i64", _I64, [_I64, ir.IntType(1)])
    spill = cgutils.alloca_once(builder, lanes.vector)
    builder.store(x, spill)
    spilled = builder.bitcast(spill, lanes.element.as_pointer())

    test = builder.append_basic_block("lanes.test")
    visit = builder.append_basic_block("lanes.visit")
    done = builder.append_basic_block("lanes.done")
    builder.branch(test)
    builder.position_at_end(test)
    builder.cbranch(builder.icmp_unsigned("!=", builder.load(bits), _I64(0)), visit, done)
    builder.position_at_end(visit)
    left, at = builder.load(bits), builder.load(count)
    lane = builder.call(trailing, [left, ir.IntType(1)(1)])
    builder.store(builder.load(builder.gep(spilled, [lane])), builder.gep(values, [at]))
    position = builder.trunc(builder.add(index, lane), _I32)
    builder.store(position, builder.gep(positions, [at]))
    builder.store(builder.and_(left, builder.sub(left, _I64(1))), bits)
    builder.store(builder.add(at, _I64(1)), count)
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
    if not _is_vector(values, indices, top_values, top_indices, ranks, top_ranks):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        kinds, integers = signature.args, _INDICES.type
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
            [integers.as_pointer(), _I32, listed.type, integers],
        )
        zeros = ir.Constant(integers, [0] * LANES)
        where = whole(builder.gep(old_numbers, [at]))
        list_numbers = builder.call(load, [where, _I32(4), listed, zeros])
        new_values = lanes.load(new, _I64(0))
        new_numbers = builder.load(whole(numbers), align=4)

        list_ranks = cgutils.alloca_once_value(builder, _INDICES)
        new_ranks = cgutils.alloca_once_value(builder, zeros)
        ahead = cgutils.alloca_once_value(builder, zeros)  # list entries ahead of each new one
        slots = builder.bitcast(ahead, _I32.as_pointer())
        with _vectors(builder, count, 1) as (index, _):
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
            behind = _population(builder, builder.and_(beaten[0], listed))
            slot = builder.gep(slots, [index])
            builder.store(builder.trunc(builder.sub(k, behind), _I32), slot)
        total = builder.add(builder.load(new_ranks), builder.load(ahead))
        builder.store(total, whole(out), align=4)
        builder.store(builder.load(list_ranks), whole(old_out), align=4)
        return context.get_dummy_value()

    number = types.intp
    arguments = (values, indices, number, top_values, top_indices, number, number)
    return types.void(*arguments, ranks, top_ranks), codegen
