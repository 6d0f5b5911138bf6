"""Four rank-one updates of a small matrix in one sweep, as LLVM vectors.

A row's matrix M of Curvature Rollback meets its touches one after the other: multiply, then
subtract an outer product. Done one at a time that is two sweeps over the matrix a touch and
bound by loads and stores. Here four touches share one sweep: it subtracts the four outer
products that are still pending and multiplies with the next four vectors; what the four lack of
one another is put right afterwards with their inner products (`gram`, `finish`).

The matrix is kept transposed, ``matrix[f, r] = M[r, f]``: f runs over the factors and
the bias, r over the factors, padded with zeros to `width`, a multiple of 16. The last row of M,
that of the bias, stands apart. Vectors of inputs (`lefts`, `rights`) are rows of factors and
bias, padded with zeros to `stride` = width + 16; vectors of outputs (`products`, `pending`) are
rows of `width`. Group g is rows 4 g to 4 g + 3.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import I64, LANES, Lanes, broadcast, first_lanes, is_matrix, is_vector, vectors

__all__ = ["PAIRS", "RANK", "finish", "gram", "put_scaled", "shrink", "sweep"]

RANK = 4
PAIRS = tuple((q, r) for r in range(RANK) for q in range(r))


def _offset(lanes: Lanes, pointer: ir.Value, group: ir.Value, stride: ir.Value) -> ir.Value:
    """Start of the vectors of a group of RANK."""
    builder = lanes.builder
    return builder.gep(pointer, [builder.mul(builder.mul(group, I64(RANK)), stride)])


@intrinsic
def put_scaled(
    typing_context: Any, row: Any, left: Any, lefts: Any, right: Any, rights: Any, number: Any
) -> Any:
    """``lefts[number, :k] = left * row`` and ``rights[number, :k] = right * row``."""
    if not is_vector(row) or not is_matrix(lefts, rights):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        source, length = lanes.array(signature.args[0], args[0])
        targets = []
        for at in (2, 4):
            held = context.make_array(signature.args[at])(context, builder, args[at])
            stride = cgutils.unpack_tuple(builder, held.shape)[1]
            targets.append(builder.gep(held.data, [builder.mul(args[5], stride)]))
        scales = [broadcast(builder, args[1]), broadcast(builder, args[3])]
        whole = builder.and_(length, I64(-LANES))
        with vectors(builder, whole, LANES) as (index, _):
            part = lanes.load(source, index)
            for target, scale in zip(targets, scales, strict=True):
                lanes.store(builder.fmul(scale, part), target, index)
        with builder.if_then(builder.icmp_signed(">", length, whole)):
            mask = first_lanes(builder, builder.sub(length, whole))
            part = lanes.load_first(source, whole, mask)
            for target, scale in zip(targets, scales, strict=True):
                lanes.store_first(builder.fmul(scale, part), target, whole, mask)
        return context.get_dummy_value()

    return types.void(row, row.dtype, lefts, row.dtype, rights, types.intp), codegen


@intrinsic
def shrink(typing_context: Any, row: Any, scale: Any, negligible: Any) -> Any:
    """``row *= scale``, and 0 what is then not above `negligible`; whole vectors of 16."""
    if not is_vector(row):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        pointer, length = lanes.array(signature.args[0], args[0])
        scale, least = broadcast(builder, args[1]), broadcast(builder, args[2])
        with vectors(builder, length, LANES) as (index, _):
            scaled = builder.fmul(scale, lanes.load(pointer, index))
            large = builder.fcmp_ordered(">", lanes.absolute(scaled), least)
            lanes.store(builder.select(large, scaled, lanes.zero), pointer, index)
        return context.get_dummy_value()

    return types.void(row, row.dtype, row.dtype), codegen


@intrinsic
def sweep(
    typing_context: Any,
    matrix: Any,
    pending: Any,
    rights: Any,
    pending_group: Any,
    lefts: Any,
    products: Any,
    group: Any,
) -> Any:
    """``M += sum_r pending_r rights_r^T``, then ``products_r = M lefts_r``, r < 4.

    Parameters
    ----------
    matrix : (d, width)
    pending, products : (n, width)
    rights, lefts : (n, stride)
    pending_group, group : int
        Which four of pending and rights, which four of lefts and products.
    """
    if not is_matrix(matrix, pending, rights, lefts, products):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        at = dict(zip("mprglyh", args, strict=True))
        types_ = dict(zip("mprglyh", signature.args, strict=True))
        data = {key: lanes.array(types_[key], at[key])[0] for key in "mprly"}
        matrix = context.make_array(types_["m"])(context, builder, at["m"])
        d, width = cgutils.unpack_tuple(builder, matrix.shape)
        stride = builder.add(width, I64(LANES))
        data["p"] = _offset(lanes, data["p"], at["g"], width)
        data["r"] = _offset(lanes, data["r"], at["g"], stride)
        data["l"] = _offset(lanes, data["l"], at["h"], stride)
        data["y"] = _offset(lanes, data["y"], at["h"], width)
        ranks = range(RANK)
        across = [builder.mul(stride, I64(r)) for r in ranks]
        down = [builder.mul(width, I64(r)) for r in ranks]
        rights = [builder.gep(data["r"], [o]) for o in across]
        lefts = [builder.gep(data["l"], [o]) for o in across]

        def columns(first: ir.Value, n: int) -> None:
            """All of 16 n columns (outputs) in registers, down the rows of the matrix."""
            where = [builder.add(first, I64(LANES * v)) for v in range(n)]
            held = [[lanes.load(data["p"], builder.add(o, c)) for c in where] for o in down]
            sums = [[lanes.accumulator() for _ in where] for _ in ranks]
            for row in sums:
                for cell in row:
                    builder.store(lanes.zero, cell)
            with cgutils.for_range(builder, d, intp=I64) as loop:
                row = builder.mul(loop.index, width)
                places = [builder.add(row, c) for c in where]
                block = [lanes.load(data["m"], place) for place in places]
                for r in ranks:
                    x = builder.load(builder.gep(rights[r], [loop.index]))
                    block = [
                        lanes.fma(broadcast(builder, x), held[r][v], block[v]) for v in range(n)
                    ]
                for v in range(n):
                    lanes.store(block[v], data["m"], places[v])
                for r in ranks:
                    x = broadcast(builder, builder.load(builder.gep(lefts[r], [loop.index])))
                    for v in range(n):
                        builder.store(lanes.fma(x, block[v], builder.load(sums[r][v])), sums[r][v])
            for r in ranks:
                for v in range(n):
                    lanes.store(builder.load(sums[r][v]), data["y"], builder.add(down[r], where[v]))

        pairs = builder.and_(width, I64(-2 * LANES))
        with vectors(builder, pairs, 2 * LANES) as (index, _):
            columns(index, 2)
        with builder.if_then(builder.icmp_signed(">", width, pairs)):
            columns(pairs, 1)
        return context.get_dummy_value()

    i = types.intp
    return types.void(matrix, pending, rights, i, lefts, products, i), codegen


@intrinsic
def gram(
    typing_context: Any,
    last_row: Any,
    pending: Any,
    old_rights: Any,
    pending_group: Any,
    lefts: Any,
    rights: Any,
    group: Any,
    stride: Any,
    result: Any,
) -> Any:
    """Do for the bias row of M what `sweep` does for the others, and multiply all pairs.

    ``last_row += sum_r pending[4 g + r] old_rights_r``; then ``result[r] = last_row . lefts_r``
    and ``result[4 + n] = rights_q . lefts_r`` for pair n, (q, r), of `PAIRS`.
    """
    if not is_vector(last_row, pending, result) or not is_matrix(old_rights, lefts, rights):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        last, push, old, left, right, out = (
            lanes.array(signature.args[i], args[i])[0] for i in (0, 1, 2, 4, 5, 8)
        )
        before, group, stride = args[3], args[6], args[7]
        old = _offset(lanes, old, before, stride)
        left, right = (_offset(lanes, p, group, stride) for p in (left, right))
        push = _offset(lanes, push, before, I64(1))
        ranks = range(RANK)
        steps = [broadcast(builder, builder.load(builder.gep(push, [I64(r)]))) for r in ranks]
        across = [builder.mul(stride, I64(r)) for r in ranks]
        sums = [lanes.accumulator() for _ in range(RANK + len(PAIRS))]
        for cell in sums:
            builder.store(lanes.zero, cell)
        with vectors(builder, stride, LANES) as (index, _):
            row = lanes.load(last, index)
            for r in ranks:
                row = lanes.fma(steps[r], lanes.load(old, builder.add(across[r], index)), row)
            lanes.store(row, last, index)
            x = [lanes.load(left, builder.add(o, index)) for o in across]
            z = [lanes.load(right, builder.add(o, index)) for o in across[:-1]]
            products = [(row, x[r]) for r in ranks] + [(z[q], x[r]) for q, r in PAIRS]
            for cell, (a, b) in zip(sums, products, strict=True):
                builder.store(lanes.fma(a, b, builder.load(cell)), cell)
        for number, cell in enumerate(sums):
            total = lanes.tree_sum(builder.load(cell))
            builder.store(total, builder.gep(out, [I64(number)]))
        return context.get_dummy_value()

    i = types.intp
    signature = types.void(last_row, pending, old_rights, i, lefts, rights, i, i, result)
    return signature, codegen


@intrinsic
def finish(
    typing_context: Any,
    products: Any,
    pending: Any,
    bias_pending: Any,
    group: Any,
    value: Any,
    bias_value: Any,
    inner: Any,
    scalars: Any,
    steps: Any,
    targets: Any,
    rows: Any,
    biases: Any,
    nowhere: Any,
) -> Any:
    """Put four products right, credit them to their examples, and leave them pending.

    Of vector r, number 4 g + r: its step, its target (below 0: `nowhere`, (width + 1,)), and
    its scalars own, decay, step, push. For r = 0 .. 3::

        y_r += sum_{q < r, of another step} push_q inner[q, r] y_q
        rows[target_r] += own_r y_r + decay_r value
        value += step_r y_r
        pending_r = push_r y_r

    and likewise of the biases, with the products ``inner[:4]``. Returns the new `bias_value`.
    """
    if not is_vector(bias_pending, value, inner, steps, targets, biases, nowhere):
        return None
    if not is_matrix(products, pending, scalars, rows):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(context, builder, signature.args[0].dtype)
        data = [
            lanes.array(t, a)[0] if isinstance(t, types.Array) else a
            for t, a in zip(signature.args, args, strict=True)
        ]
        y, pend, bias_pend, group, value, bias_value, inner = data[:7]
        scalars, steps, targets, rows, biases, trash = data[7:]
        width = lanes.array(signature.args[4], args[4])[1]
        shape = context.make_array(signature.args[10])(context, builder, args[10]).shape
        length = cgutils.unpack_tuple(builder, shape)[1]
        y, pend = (_offset(lanes, p, group, width) for p in (y, pend))
        bias_pend, steps, targets = (
            _offset(lanes, p, group, I64(1)) for p in (bias_pend, steps, targets)
        )
        scalars = _offset(lanes, scalars, group, I64(4))
        ranks = range(RANK)

        def number(pointer: ir.Value, index: int) -> ir.Value:
            return builder.load(builder.gep(pointer, [I64(index)]))

        own, decay, step, push = ([number(scalars, 4 * r + n) for r in ranks] for n in range(4))
        step_numbers = [number(steps, r) for r in ranks]
        zero = ir.Constant(lanes.element, 0.0)
        corrections = {}
        for n, (q, r) in enumerate(PAIRS):
            lacking = builder.fmul(push[q], number(inner, RANK + n))
            # The vectors of one step all meet the M behind it.
            together = builder.icmp_signed("==", step_numbers[q], step_numbers[r])
            corrections[q, r] = builder.select(together, zero, lacking)
        credits, bias_products = [], []
        for r in ranks:
            target = number(targets, r)
            known = builder.icmp_signed(">=", target, I64(0))
            credit = builder.gep(rows, [builder.mul(target, length)])
            credits.append(builder.select(known, credit, trash))
            product = number(inner, r)
            for q in range(r):
                more = builder.fmul(corrections[q, r], bias_products[q])
                product = builder.fadd(product, more)
            bias_products.append(product)
            where = builder.gep(biases, [target])
            where = builder.select(known, where, builder.gep(trash, [width]))
            credit = builder.fadd(builder.load(where), builder.fmul(own[r], product))
            builder.store(builder.fadd(credit, builder.fmul(decay[r], bias_value)), where)
            bias_value = builder.fadd(bias_value, builder.fmul(step[r], product))
            builder.store(builder.fmul(push[r], product), builder.gep(bias_pend, [I64(r)]))

        wide = {pair: broadcast(builder, x) for pair, x in corrections.items()}
        own, decay, step, push = (
            [broadcast(builder, x) for x in of_all] for of_all in (own, decay, step, push)
        )
        down = [builder.mul(width, I64(r)) for r in ranks]

        def body(index: ir.Value, load: Any, store: Any) -> None:
            done: list[ir.Value] = []
            held = lanes.load(value, index)
            for r in ranks:
                at = builder.add(down[r], index)
                vector = lanes.load(y, at)
                for q in range(r):
                    vector = lanes.fma(wide[q, r], done[q], vector)
                done.append(vector)
                credit = lanes.fma(decay[r], held, load(credits[r]))
                store(lanes.fma(own[r], vector, credit), credits[r])
                held = lanes.fma(step[r], vector, held)
                lanes.store(builder.fmul(push[r], vector), pend, at)
            lanes.store(held, value, index)

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
        return bias_value

    i = types.intp
    signature = value.dtype(
        products, pending, bias_pending, i, value, value.dtype, inner, scalars, steps, targets,
        rows, biases, nowhere,
    )  # fmt: skip
    return signature, codegen
