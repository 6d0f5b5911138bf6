"""Arithmetic with one rounding, loads of four numbers at once, sums over the lanes of a warp."""

from typing import Any

from llvmlite import ir

from .jit import SIMULATED, cuda, inner_kernel

__all__ = ["WHOLE", "fma", "load4", "product", "store4", "tree_sum"]

WHOLE = 0xFFFFFFFF
"""Mask of all lanes of a warp."""

if SIMULATED:
    from .simulator import fma, load4, product, store4
else:
    from numba import types
    from numba.core import cgutils
    from numba.cuda.extending import intrinsic

    _I64 = ir.IntType(64)

    def _floats(*given: Any) -> bool:
        return given[0] in (types.float32, types.float64) and len(set(given)) == 1

    def _call(builder: ir.IRBuilder, name: str, args: Any) -> ir.Value:
        kind = args[0].type
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * len(args)), name
        )
        return builder.call(function, args)

    @intrinsic
    def fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
        """``x * y + z``, rounded once."""
        if not _floats(x, y, z):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            return _call(builder, f"llvm.fma.f{x.bitwidth}", args)

        return x(x, y, z), codegen

    @intrinsic
    def product(typing_context: Any, x: Any, y: Any) -> Any:
        """``x * y``, rounded: the compiler will not make it part of a fused multiply-add."""
        if not _floats(x, y):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            return _call(builder, f"llvm.nvvm.mul.rn.{'f' if x.bitwidth == 32 else 'd'}", args)

        return x(x, y), codegen

    def _four(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
        """Pointer to the vector of four from a place of a contiguous array on."""
        data = context.make_array(array_type)(context, builder, array).data
        address = builder.gep(data, [index])
        element = address.type.pointee
        vector = ir.VectorType(element, 4).as_pointer(address.type.addrspace)
        return builder.bitcast(address, vector), 4 * array_type.dtype.bitwidth // 8

    @intrinsic
    def load4(typing_context: Any, array: Any, index: Any) -> Any:
        """The four elements of a contiguous vector from a place on, a multiple of four."""
        if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C":
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            pointer, size = _four(context, builder, array, *args)
            vector = builder.load(pointer, align=min(size, 16))
            found = [builder.extract_element(vector, ir.IntType(32)(n)) for n in range(4)]
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(array.dtype, 4)(array, types.intp), codegen

    @intrinsic
    def store4(typing_context: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """Write four elements of a contiguous vector from a place on, a multiple of four."""
        if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C":
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            pointer, size = _four(context, builder, array, *args[:2])
            vector = ir.Constant(pointer.type.pointee, ir.Undefined)
            for n, value in enumerate(args[2:]):
                vector = builder.insert_element(vector, value, ir.IntType(32)(n))
            builder.store(vector, pointer, align=min(size, 16))
            return context.get_dummy_value()

        return types.void(array, types.intp, *[array.dtype] * 4), codegen


@inner_kernel
def tree_sum(mask, value):
    """Sum over the 16 lanes of a half of a warp, the same in each of them.

    In the order of the CPU's sum over a vector: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
    """
    width = 8
    while width > 0:
        value += cuda.shfl_xor_sync(mask, value, width)
        width >>= 1
    return value
