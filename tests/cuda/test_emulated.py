"""The emulated GPU: its arithmetic, its warps and blocks, and the faults it finds."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from emulated import arithmetic
from emulated.counters import Counter, Counts, InOrder
from emulated.machine import run
from emulated.memory import Fault, Memory
from emulated.ptx import parse
from hypothesis import example, given
from hypothesis import strategies as st

KERNEL = """
.version 9.0
.target sm_90
.visible .shared .align 16 .b8 fixed[32];
.extern .shared .align 16 .b8 asked[];
.visible .entry kernel(
    .param .u64 kernel_param_0,
    .param .u64 kernel_param_1
)
{
    .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [kernel_param_0];
    ld.param.u64 %rd2, [kernel_param_1];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %ctaid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    BODY
    ret;
}
"""


def emulate(body: str, x: Any, *, blocks: int = 1, seed: int = 0, shared: int = 0) -> Any:
    """Run a body with a thread for each number: %rd4 is where it is, %rd5 where the result goes."""
    return emulate_in(Memory(), np.random.default_rng(seed), body, x, blocks=blocks, shared=shared)


def emulate_in(
    memory: Memory, draw: Any, body: str, x: Any, *, blocks: int = 1, shared: int = 0
) -> Any:
    x = np.asarray(x)
    (source, mine), (target, its) = memory.allocate(x.nbytes), memory.allocate(x.nbytes)
    mine[:] = x.view("uint8")
    parameters = [np.int64(source), np.int64(target)]
    program = parse(KERNEL.replace("BODY", body.replace(";", ";\n")))
    run(program, memory, (blocks, 1, 1), (len(x), 1, 1), shared, parameters, draw)
    return its.view(x.dtype)


def of_floats(expression: str, x: Any) -> Any:
    body = f"ld.global.f32 %f1, [%rd4]; {expression} st.global.f32 [%rd5], %f2;"
    return emulate(body, np.asarray(x, "float32"))


FLOATS = st.floats(-(2**40), 2**40, width=32)


def rounded(exact: Fraction, down: bool = False) -> np.float32:
    near = np.float32(float(exact))  # rounded twice: the right one is this or a neighbour
    near_by = [np.nextafter(near, np.float32(way)) for way in (-np.inf, np.inf)] + [near]
    if down:
        return max(n for n in near_by if Fraction(float(n)) <= exact)
    errors = [abs(Fraction(float(n)) - exact) for n in near_by]
    nearest = [n for n, error in zip(near_by, errors, strict=True) if error == min(errors)]
    return min(nearest, key=lambda n: int(n.view("int32")) & 1)  # of two, the even one


@given(FLOATS, FLOATS, FLOATS)
@example(1 + 2**-12, 1 + 2**-12, 2**-60)  # float64 alone would see a tie
@example(1 + 2**-23, 1 - 2**-23, -1.0)
def test_fma32_rounds_once(x: float, y: float, z: float) -> None:
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    given_ = [np.array([n], "float32") for n in (x, y, z)]
    if 2**-100 < abs(exact) < 2**100:
        assert arithmetic.fma32(*given_)[0] == rounded(exact)
        assert arithmetic.fma32_down(*given_)[0] == rounded(exact, down=True)


@given(*[st.floats(-1e50, 1e50, allow_subnormal=False)] * 3)
@example(1 + 2**-30, 1 + 2**-30, 2.0**-170)
def test_fma64_rounds_once(x: float, y: float, z: float) -> None:
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if min(abs(n) for n in (x, y, z)) > 1e-50 and abs(exact) > 1e-100:
        got = arithmetic.fma64(*(np.array([n]) for n in (x, y, z)))[0]
        assert got == exact.numerator / exact.denominator  # Python rounds a quotient once


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1).filter(bool))
def test_whole_numbers(a: int, b: int) -> None:
    x, y = np.array([a]), np.array([b])
    assert arithmetic.high_product(x, y)[0] == a * b >> 64
    if (a, b) != (-(2**63), -1):
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        assert arithmetic.divided(x, y)[0] == quotient
        assert arithmetic.remainder(x, y)[0] == a - quotient * b


def test_floats_that_are_no_whole_numbers() -> None:
    found = arithmetic.whole_number(np.float32([1e30, -1e30, np.nan, -2.7, 2.7]), "int64")
    assert found.tolist() == [2**63 - 1, -(2**63), 0, -2, 2]


def test_a_product_and_a_sum_are_fused_unless_they_say_how_they_round() -> None:
    x = np.float32(1 + 2**-12)
    once, twice = np.float32(float(x) * float(x) - 1), np.float32(x * x) - np.float32(1)
    assert once != twice
    for product, sum_, right in (
        ("mul.f32", "sub.f32", once),
        ("mul.rn.f32", "sub.f32", twice),
        ("mul.f32", "sub.rn.f32", twice),
    ):
        body = f"{product} %f3, %f1, %f1; {sum_} %f2, %f3, 0f3F800000;"
        assert of_floats(body, [x]) == [right]
    other = "mul.f32 %f3, %f1, %f1; mov.f32 %f1, 0f40000000; sub.f32 %f2, %f1, %f3;"
    with_the_old = of_floats(other, [x])
    assert with_the_old[0] in (2 - np.float32(x * x), np.float32(2 - float(x) * float(x)))


def test_comparisons_with_what_is_no_number() -> None:
    x = [math.nan, 0.0, 1.0, 2.0]
    less, other, equal = [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]
    unordered = [1, 0, 0, 0]
    for how, right in (
        ("lt", less), ("ltu", np.add(less, unordered)), ("ne", other), ("num", [0, 1, 1, 1]),
        ("neu", np.add(other, unordered)), ("equ", np.add(equal, unordered)),
    ):  # fmt: skip
        choose = f"setp.{how}.f32 %p1, %f1, 0f3F800000; "
        choose += "selp.f32 %f2, 0f3F800000, 0f00000000, %p1;"
        assert of_floats(choose, x).tolist() == list(right), how


@pytest.mark.parametrize(
    ("how", "b", "c", "source"),
    [
        ("bfly", 5, 0x1F, lambda n: n ^ 5),
        ("bfly", 3, 0x101F, lambda n: n ^ 3),  # in halves of a warp
        ("idx", 7, 0x1F, lambda n: n // 32 * 32 + 7),
        ("down", 4, 0x1F, lambda n: n + 4 if n % 32 < 28 else n),
        ("up", 4, 0, lambda n: n - 4 if n % 32 >= 4 else n),
    ],
)
def test_shuffles(how: str, b: int, c: int, source: Any) -> None:
    body = "ld.global.u32 %r5, [%rd4];"
    body += f"shfl.sync.{how}.b32 %r6|%p1, %r5, {b}, {c}, -1; st.global.u32 [%rd5], %r6;"
    x = np.arange(64, dtype="int32") * 10
    assert emulate(body, x).tolist() == [source(n) * 10 for n in range(64)]


@pytest.mark.parametrize(
    ("operation", "right"),
    [
        ("popc.b32", lambda n: (n % 2**32).bit_count()),
        ("clz.b32", lambda n: 32 - (n % 2**32).bit_length()),
        ("brev.b32", lambda n: int(f"{n % 2**32:032b}"[::-1], 2)),
        ("not.b32", lambda n: ~n),
        ("shr.s32 8", lambda n: n >> 8),
        ("shr.u32 8", lambda n: n % 2**32 >> 8),
        ("shl.b32 40", lambda n: 0),
        ("bfi.b32 5 8 4", lambda n: n & ~(15 << 8) | 5 << 8),
    ],
)
def test_operations_on_bits(operation: str, right: Any) -> None:
    x = np.array([0, 1, -1, 12345, -12345, 2**31 - 1, -(2**31)], "int32")
    name, *numbers = operation.split()
    if name.startswith("bfi"):
        operands = f"{numbers[0]}, %r5, {numbers[1]}, {numbers[2]}"
    else:
        operands = ", ".join(["%r5", *numbers])
    body = f"ld.global.u32 %r5, [%rd4]; {name} %r6, {operands}; st.global.u32 [%rd5], %r6;"
    assert emulate(body, x).view("uint32").tolist() == [right(n) % 2**32 for n in x.tolist()]


SHARED = """
    mov.u64 %rd6, asked; add.s64 %rd7, %rd6, %rd3;
    ld.global.u32 %r5, [%rd4]; st.shared.u32 [%rd7], %r5; {barrier}
    xor.b32 %r6, %r1, 33; mul.wide.u32 %rd8, %r6, 4; add.s64 %rd8, %rd6, %rd8;
    ld.shared.u32 %r7, [%rd8]; st.global.u32 [%rd5], %r7;
"""


def test_shared_memory_behind_a_barrier() -> None:
    x = np.arange(64, dtype="int32")
    found = emulate(SHARED.format(barrier="bar.sync 0;"), x, shared=256)
    assert found.tolist() == [n ^ 33 for n in range(64)]


DIVERGED = "setp.lt.s32 %p1, %r1, 32; @%p1 bra $L__low; bra.uni $L__high; $L__low:; {low} ret;"
DIVERGED += "$L__high:; {high}"


def test_the_order_of_threads_is_drawn() -> None:
    """Two warps write one place: who is last depends on the seed."""
    write = "mov.u32 %r5, {n}; st.global.u32 [%rd2], %r5;"
    body = DIVERGED.format(low=write.format(n=1), high=write.format(n=2))
    x = np.zeros(64, "int32")
    assert {emulate(body, x, seed=seed)[0] for seed in range(20)} == {1, 2}


def test_atomics_add_up() -> None:
    body = "atom.global.add.u32 %r5, [%rd2], 2; "
    x = np.zeros(64, "int32")
    assert emulate(body, x, blocks=3)[0] == -1 + 2 * 64 * 3


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("ld.global.u32 %r5, [%rd4+4];", Fault, "1 threads reach outside of all arrays"),
        ("st.global.u32 [%rd4+-4], %r1;", Fault, "1 threads reach outside of all arrays"),
        ("ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd4];", Fault, "16 bytes at an address that"),
        ("st.global.u32 [%rd1], %r1;", Fault, "threads write different numbers to one place"),
        ("mov.u64 %rd6, fixed; st.shared.u32 [%rd6+32], 1;", Fault, "bytes 32 to 36 of 32"),
        ("mov.u64 %rd6, asked; st.shared.u32 [%rd6], 1;", Fault, "of 32 of shared memory"),
        (DIVERGED.format(low="bar.warp.sync -1;", high="bar.warp.sync 1;"), RuntimeError,
         "a lane is not among those it waits for"),
        ("setp.eq.s32 %p1, %r1, 5; @%p1 bra $L__out; bar.warp.sync -1; $L__out:;", RuntimeError,
         "threads wait for others that do not come: 31"),
    ],
)  # fmt: skip
def test_faults_are_found(body: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        emulate(body, np.zeros(64, "int32"))


def test_ended_threads_are_not_waited_for_by_a_block() -> None:
    body = DIVERGED.format(low="", high="bar.sync 0; st.global.u32 [%rd5], %r1;")
    found = emulate(body, np.zeros(64, "int32"))
    assert found[32:].tolist() == list(range(32, 64))


def test_memory_that_was_given_back_is_nobodys() -> None:
    memory = Memory()
    memory.begin(np.zeros(1, "int64"), 0)
    address, held = memory.allocate(8)
    held[:] = 0
    where = np.array([address])
    assert memory.load(slice(None), "global", where, "int32", 2, 1) == [[0], [0]]
    memory.free(address)
    with pytest.raises(Fault, match="line 1: 1 threads reach outside"):
        memory.load(slice(None), "global", where, "int32", 2, 1)


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(NotImplementedError, match=r"@%p1 ret"):
        emulate("@%p1 ret;", np.zeros(1, "int32"))


def counted(body: str, n: int, *, blocks: int = 1, shared: int = 0) -> Counts:
    memory = Memory()
    memory.watch = Counter()
    x = np.zeros(n, "int32")
    emulate_in(memory, InOrder(), body, x, blocks=blocks, shared=shared)
    return memory.watch.kernels["kernel"]


ADDRESS = 8  # instructions before the body


@pytest.mark.parametrize(
    ("stride", "sectors"),
    [(4, 4), (8, 8), (32, 32), (0, 1)],
    ids=["coalesced", "every second number", "a sector each", "one number"],
)
def test_sectors_are_counted_for_each_warp(stride: int, sectors: int) -> None:
    body = f"mul.wide.u32 %rd6, %r1, {stride}; add.s64 %rd7, %rd1, %rd6;"
    body += "setp.ge.u32 %p1, %r1, 40; @%p1 bra $L__out; ld.global.u32 %r5, [%rd7]; $L__out:;"
    found = counted(body, 40 * 8, blocks=3)
    second = -(-8 * max(stride, 1 / 8) // 32)  # eight lanes of the second warp
    assert found.launches == 1
    assert found.asked == 3 * 40 * 4
    assert found.moved == 32 * 3 * (sectors + second)
    assert (found.turns, found.barriers) == (0, 0)
    warps = 10 * 3
    assert found.instructions == warps * (ADDRESS + 4) + 2 * 3
    assert found.lanes == 3 * (320 * (ADDRESS + 4) + 40)


@pytest.mark.parametrize(
    ("load", "stride", "turns", "ways"),
    [
        ("u32 %r5", 4, 1, 1),
        ("u32 %r5", 8, 1, 2),
        ("u32 %r5", 128, 1, 32),  # a column of 32 x 32
        ("u32 %r5", 132, 1, 1),  # of 32 x 33
        ("u32 %r5", 0, 1, 1),  # the same word
        ("u8 %r5", 1, 1, 1),
        ("u64 %rd8", 8, 2, 1),
        ("u64 %rd8", 16, 2, 2),
        ("v4.u32 {%r5, %r6, %r7, %r8}", 16, 4, 1),
        ("v4.u32 {%r5, %r6, %r7, %r8}", 128, 4, 8),
    ],
)
def test_bank_conflicts_are_counted(load: str, stride: int, turns: int, ways: int) -> None:
    kind, registers = load.split(" ", 1)
    body = f"mov.u64 %rd6, asked; mul.wide.u32 %rd7, %r1, {stride}; add.s64 %rd7, %rd6, %rd7;"
    body += f"ld.shared.{kind} {registers}, [%rd7]; bar.sync 0;"
    found = counted(body, 32, shared=32 * 132)
    assert (found.turns, found.ways) == (turns, ways)
    assert (found.asked, found.sectors, found.barriers) == (0, 0, 1)


def test_lanes_of_diverging_ways_meet_again_when_all_goes_in_order() -> None:
    body = "setp.lt.u32 %p1, %r1, 8; @%p1 bra $L__low; mov.u32 %r5, 1; bra.uni $L__both;"
    body += "$L__low:; mov.u32 %r5, 2; $L__both:; mov.u32 %r6, %r5; mov.u32 %r7, %r6;"
    found = counted(body, 32)
    assert found.instructions == ADDRESS + 2 + 2 + 2
    assert found.active == (32 * (ADDRESS + 2 + 2) + 32) / (32 * found.instructions)
