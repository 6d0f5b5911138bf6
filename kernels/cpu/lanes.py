"""Emitting LLVM code for 16-lane vectors: what the intrinsics of `simd` and `scan` are made of."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config

from ..structures import LANES

__all__ = [
    "HAS_AVX512",
    "I32",
    "I64",
    "INDICES",
    "LANES",
    "Lanes",
    "broadcast",
    "emit_prefetch",
    "first_lanes",
    "is_matrix",
    "is_vector",
    "population",
    "vectors",
]

I32, I64 = ir.IntType(32), ir.IntType(64)
INDICES = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))


def _has_avx512() -> bool:
    """Whether the compilation target (not only this machine) has AVX-512 compress."""
    features = config.CPU_FEATURES or ""
    if "avx512" in features:  # "+avx2,-avx512f" takes it away, also from the host
        return "-avx512f" not in features
    if config.CPU_NAME is not None and config.CPU_NAME != "host":
        return config.CPU_NAME.startswith(
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
            f"llvm.masked.load.{self.suffix}.p0", self.vector, [where, I32, mask.type, self.vector]
        )
        arguments = [self.builder.bitcast(address, where), I32(self.align), mask, self.zero]
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
            [self.vector, where, I32, mask.type],
        )
        arguments = [vector, self.builder.bitcast(address, where), I32(self.align), mask]
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
                    ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))),
                )
                for start in (0, width)
            ]
            vector = builder.fadd(*halves)
        return builder.extract_element(vector, I32(0))


def broadcast(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def emit_prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Ask for the cache line of a pointer, to be written soon."""
    address = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    function_type = ir.FunctionType(ir.VoidType(), [address.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
    builder.call(function, [address, I32(1), I32(3), I32(1)])


def first_lanes(builder: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """Mask of the lanes below `n`."""
    return builder.icmp_signed("<", INDICES, broadcast(builder, builder.trunc(n, I32)))


def population(builder: ir.IRBuilder, mask: ir.Value) -> ir.Value:
    """Number of set lanes, 64 bits wide."""
    bits = builder.zext(builder.bitcast(mask, ir.IntType(LANES)), I64)
    count = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(I64, [I64]), "llvm.ctpop.i64"
    )
    return builder.call(count, [bits])


def vectors(builder: ir.IRBuilder, stop: ir.Value, step: int, start: ir.Value | None = None) -> Any:
    start = I64(0) if start is None else start
    return cgutils.for_range_slice(builder, start, stop, I64(step), intp=I64)


def is_vector(*arguments: Any) -> bool:
    return all(isinstance(a, types.Array) and a.ndim == 1 and a.layout == "C" for a in arguments)


def is_matrix(*arguments: Any) -> bool:
    return all(isinstance(a, types.Array) and a.ndim == 2 and a.layout == "C" for a in arguments)
