"""Arithmetic on rows of adjoints: a vector of 16 lanes, one a quantity, for every coordinate."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import I64, LANES, Lanes, broadcast, emit_prefetch, is_matrix, is_vector, vectors

__all__ = [
    "add_four_rows",
    "add_lanes",
    "adjoint_dots",
    "dot_four_rows",
    "dot_lanes",
    "move_adjoints",
    "pull_adjoints",
    "set_lanes",
]


def _coordinates(builder: ir.IRBuilder, k: ir.Value, body: Callable[[ir.Value, int], None]) -> None:
    """Emit ``body(f, n)`` for all f below k, four to a round; n is 0 or 1 in turn."""
    whole = builder.and_(k, I64(-4))
    with vectors(builder, whole, 4) as (f, _):
        for n in range(4):
            body(builder.add(f, I64(n)), n % 2)
    with vectors(builder, k, 1, whole) as (f, _):
        body(f, 0)


def _masked(builder: ir.IRBuilder, lanes: Lanes, vector: ir.Value, bits: ir.Value) -> ir.Value:
    """The lanes of `vector` whose bit is set, zero elsewhere."""
    mask = builder.bitcast(
        builder.trunc(bits, ir.IntType(LANES)), ir.VectorType(ir.IntType(1), LANES)
    )
    return builder.select(mask, vector, lanes.zero)


def _lanes_codegen(added: bool) -> Callable[..., ir.Value]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        target, source = (lanes.array(signature.args[n], args[n])[0] for n in (0, 1))
        factor, vector = broadcast(builder, args[2]), lanes.load(source, I64(0))
        if added:
            result = lanes.fma(factor, vector, lanes.load(target, I64(0)))
        else:
            result = builder.fmul(factor, vector)
        lanes.store(result, target, I64(0))
        return context.get_dummy_value()

    return codegen


@intrinsic
def set_lanes(typing_context: Any, target: Any, source: Any, factor: Any) -> Any:
    """``target[:] = factor * source`` of two (LANES,) vectors.

    As Numba loops, which test for overlap first, the few such operations of a step took 60 ns
    more.
    """
    if not is_vector(target, source):
        return None
    return types.void(target, source, target.dtype), _lanes_codegen(added=False)


@intrinsic
def add_lanes(typing_context: Any, target: Any, source: Any, factor: Any) -> Any:
    """``target[:] += factor * source`` of two (LANES,) vectors."""
    if not is_vector(target, source):
        return None
    return types.void(target, source, target.dtype), _lanes_codegen(added=True)


@intrinsic
def adjoint_dots(
    typing_context: Any,
    user: Any,
    item: Any,
    p: Any,
    q: Any,
    p_bias: Any,
    q_bias: Any,
    share: Any,
    dots: Any,
) -> Any:
    """Inner products of the adjoints of a pair of rows, lane by lane.

    With the factors of `user` and `item` (k, LANES) and their last rows, the biases'::

        dots[0] = q . user + p . item + share * user_bias + item_bias
        dots[1] = p . user + p_bias * user_bias
        dots[2] = q . item + q_bias * item_bias

    the first is the derivative of the score along the adjoints. In BPR, where the user's bias
    cancels, `share` is 0, otherwise 1.
    """
    if not is_matrix(user, item, dots) or not is_vector(p, q):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[2].dtype)
        user, item, p, q, out = (
            lanes.array(signature.args[n], args[n])[0] for n in (0, 1, 2, 3, 7)
        )
        k = lanes.array(signature.args[2], args[2])[1]
        # Two accumulators for each of four sums: the latency of one would be the whole time.
        sums = [[lanes.accumulator() for _ in range(2)] for _ in range(4)]
        for cell in [cell for pair in sums for cell in pair]:
            builder.store(lanes.zero, cell)

        def body(f: ir.Value, n: int) -> None:
            at = builder.mul(f, I64(LANES))
            x, z = (broadcast(builder, builder.load(builder.gep(row, [f]))) for row in (p, q))
            u, v = lanes.load(user, at), lanes.load(item, at)
            for pair, (row, adjoint) in zip(sums, ((z, u), (x, v), (x, u), (z, v)), strict=True):
                builder.store(lanes.fma(row, adjoint, builder.load(pair[n])), pair[n])

        _coordinates(builder, k, body)
        q_user, p_item, p_user, q_item = (
            builder.fadd(builder.load(a), builder.load(b)) for a, b in sums
        )
        last = builder.mul(k, I64(LANES))
        u, v = lanes.load(user, last), lanes.load(item, last)
        p_bias, q_bias, share = (broadcast(builder, args[n]) for n in (4, 5, 6))
        score = builder.fadd(builder.fadd(q_user, p_item), lanes.fma(share, u, v))
        for n, total in enumerate(
            (score, lanes.fma(p_bias, u, p_user), lanes.fma(q_bias, v, q_item))
        ):
            lanes.store(total, out, I64(n * LANES))
        return context.get_dummy_value()

    number = p.dtype
    return types.void(user, item, p, q, number, number, number, dots), codegen


@intrinsic
def move_adjoints(
    typing_context: Any,
    target: Any,
    base: Any,
    user: Any,
    item: Any,
    p: Any,
    q: Any,
    bends: Any,
    push: Any,
    share: Any,
    scale: Any,
    keep: Any,
    user_lanes: Any,
    item_lanes: Any,
    next_user: Any,
    next_item: Any,
) -> Any:
    """Take the adjoints of a pair of rows back through a step, lane by lane.

    Factors f, with the adjoints as they are before on the right hand side::

        target[f] = scale * base[f] - bends * q[f] - push * item[f]
        item[f]   = keep  * item[f] - bends * p[f] - push * user[f]

    biases: ``target = scale * base - share * bends``, ``item = keep * item - bends``. Lanes whose
    bit is not set in `user_lanes` or `item_lanes` are pushed by nothing on that side. `target`
    may be `base`, and either of them may be `user`.

    Meanwhile the cache lines of `next_user` and `next_item` are asked for: loading rows while
    others are written back takes longer than all arithmetic, and the processor does not look
    far enough ahead to do both at once (a fifth of a step of MovieLens 1M at k=64).
    """
    if not is_matrix(target, base, user, item, next_user, next_item):
        return None
    if not is_vector(p, q, bends):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[4].dtype)
        target, base, user, item, p, q, bends = (
            lanes.array(signature.args[n], args[n])[0] for n in range(7)
        )
        soon = [lanes.array(signature.args[n], args[n])[0] for n in (13, 14)]
        k = lanes.array(signature.args[4], args[4])[1]
        push, share, scale, keep = (broadcast(builder, args[n]) for n in range(7, 11))
        back, push = (builder.fneg(v) for v in (lanes.load(bends, I64(0)), push))
        user_back, user_push = (_masked(builder, lanes, v, args[11]) for v in (back, push))
        item_back, item_push = (_masked(builder, lanes, v, args[12]) for v in (back, push))

        def body(f: ir.Value, n: int) -> None:
            at = builder.mul(f, I64(LANES))
            x, z = (broadcast(builder, builder.load(builder.gep(row, [f]))) for row in (p, q))
            u, v = lanes.load(user, at), lanes.load(item, at)
            for row in soon:
                emit_prefetch(builder, builder.gep(row, [at]))
            moved = lanes.fma(user_back, z, builder.fmul(scale, lanes.load(base, at)))
            item_moved = lanes.fma(item_back, x, builder.fmul(keep, v))
            lanes.store(lanes.fma(user_push, v, moved), target, at)
            lanes.store(lanes.fma(item_push, u, item_moved), item, at)

        _coordinates(builder, k, body)
        last = builder.mul(k, I64(LANES))
        u, v = lanes.load(base, last), lanes.load(item, last)
        lanes.store(lanes.fma(share, user_back, builder.fmul(scale, u)), target, last)
        lanes.store(builder.fadd(item_back, builder.fmul(keep, v)), item, last)
        return context.get_dummy_value()

    number, bits = p.dtype, types.intp
    signature = types.void(
        target, base, user, item, p, q, bends, number, number, number, number, bits, bits,
        next_user, next_item,
    )  # fmt: skip
    return signature, codegen


@intrinsic
def dot_lanes(typing_context: Any, row: Any, adjoint: Any, out: Any) -> Any:
    """``out[:] = row . adjoint``: (d,) and (d, LANES) to (LANES,)."""
    if not is_matrix(adjoint) or not is_vector(row, out):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        row, d = lanes.array(signature.args[0], args[0])
        adjoint, out = (lanes.array(signature.args[n], args[n])[0] for n in (1, 2))
        sums = [lanes.accumulator() for _ in range(2)]
        for cell in sums:
            builder.store(lanes.zero, cell)

        def body(f: ir.Value, n: int) -> None:
            x = broadcast(builder, builder.load(builder.gep(row, [f])))
            u = lanes.load(adjoint, builder.mul(f, I64(LANES)))
            builder.store(lanes.fma(x, u, builder.load(sums[n])), sums[n])

        _coordinates(builder, d, body)
        lanes.store(builder.fadd(*(builder.load(cell) for cell in sums)), out, I64(0))
        return context.get_dummy_value()

    return types.void(row, adjoint, out), codegen


@intrinsic
def pull_adjoints(
    typing_context: Any,
    target: Any,
    pulled: Any,
    adjoint: Any,
    turned: Any,
    x: Any,
    row: Any,
    bends: Any,
    slope: Any,
    factor: Any,
    weight: Any,
) -> Any:
    """Take a candidate's adjoint through a step, lane by lane.

    For all coordinates f, with `target` and `adjoint` (d, LANES) as they are before::

        pulled[f] += bends * row[f] + factor * adjoint[f]
        target[f] += weight * (bends * x[f] + slope * turned[f])

    `adjoint` may be `target`.
    """
    if not is_matrix(target, pulled, adjoint, turned) or not is_vector(x, row, bends):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[4].dtype)
        target, pulled, adjoint, turned, x, row, bends = (
            lanes.array(signature.args[n], args[n])[0] for n in range(7)
        )
        d = lanes.array(signature.args[4], args[4])[1]
        slope, factor, weight = (broadcast(builder, args[n]) for n in (7, 8, 9))
        bends = lanes.load(bends, I64(0))
        push, turn = builder.fmul(weight, bends), builder.fmul(weight, slope)

        def body(f: ir.Value, _: int) -> None:
            at = builder.mul(f, I64(LANES))
            a, b = (broadcast(builder, builder.load(builder.gep(r, [f]))) for r in (x, row))
            old, u = lanes.load(adjoint, at), lanes.load(target, at)
            moved = lanes.fma(turn, lanes.load(turned, at), u)
            lanes.store(lanes.fma(push, a, moved), target, at)
            total = lanes.fma(factor, old, lanes.load(pulled, at))
            lanes.store(lanes.fma(bends, b, total), pulled, at)

        _coordinates(builder, d, body)
        return context.get_dummy_value()

    number = x.dtype
    signature = types.void(target, pulled, adjoint, turned, x, row, bends, number, number, number)
    return signature, codegen


def _four_rows(
    lanes: Lanes, builder: ir.IRBuilder, array_type: types.Array, args: Any
) -> tuple[list[ir.Value], ir.Value]:
    """Pointers to four rows of a matrix, ``args[0][args[1]]`` and so on, and their length."""
    struct = lanes.context.make_array(array_type)(lanes.context, builder, args[0])
    length = cgutils.unpack_tuple(builder, struct.shape)[1]
    return [builder.gep(struct.data, [builder.mul(row, length)]) for row in args[1:5]], length


@intrinsic
def dot_four_rows(
    typing_context: Any, rows: Any, a: Any, b: Any, c: Any, d: Any, adjoint: Any, out: Any
) -> Any:
    """``out[n] = rows[i_n] . adjoint`` for four rows: (m, d) and (d, LANES) to (4, LANES).

    Four at once, since one row's product loads a vector of the adjoint for every multiplication.
    """
    if not is_matrix(rows, adjoint, out) or not (a == b == c == d == types.int64):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        four, length = _four_rows(lanes, builder, signature.args[0], args)
        adjoint, out = (lanes.array(signature.args[n], args[n])[0] for n in (5, 6))
        sums = [[lanes.accumulator() for _ in range(2)] for _ in four]
        for cell in [cell for pair in sums for cell in pair]:
            builder.store(lanes.zero, cell)

        def body(f: ir.Value, n: int) -> None:
            u = lanes.load(adjoint, builder.mul(f, I64(LANES)))
            for row, pair in zip(four, sums, strict=True):
                x = broadcast(builder, builder.load(builder.gep(row, [f])))
                builder.store(lanes.fma(x, u, builder.load(pair[n])), pair[n])

        _coordinates(builder, length, body)
        for n, pair in enumerate(sums):
            total = builder.fadd(*(builder.load(cell) for cell in pair))
            lanes.store(total, out, I64(n * LANES))
        return context.get_dummy_value()

    return types.void(rows, a, b, c, d, adjoint, out), codegen


@intrinsic
def add_four_rows(
    typing_context: Any, target: Any, rows: Any, a: Any, b: Any, c: Any, d: Any, factors: Any
) -> Any:
    """``target += outer(rows[i_n], factors[n])`` over four rows, one after the other.

    (d, LANES), (m, d) and (4, LANES).
    """
    if not is_matrix(target, rows, factors) or not (a == b == c == d == types.int64):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[1].dtype)
        four, length = _four_rows(lanes, builder, signature.args[1], args[1:])
        target, factors = (lanes.array(signature.args[n], args[n])[0] for n in (0, 6))
        pushes = [lanes.load(factors, I64(n * LANES)) for n in range(4)]

        def body(f: ir.Value, _: int) -> None:
            at = builder.mul(f, I64(LANES))
            total = lanes.load(target, at)
            for row, push in zip(four, pushes, strict=True):
                x = broadcast(builder, builder.load(builder.gep(row, [f])))
                total = lanes.fma(x, push, total)
            lanes.store(total, target, at)

        _coordinates(builder, length, body)
        return context.get_dummy_value()

    return types.void(target, rows, a, b, c, d, factors), codegen
