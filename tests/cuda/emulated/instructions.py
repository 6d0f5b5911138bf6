"""Instructions of PTX as lines of Python: the threads that run them are the elements of arrays.

Only what our kernels are compiled to is known: no calls, no local memory. Registers ``.b64`` are
int64, ``.b32`` int32, ``.b16`` int16, ``.pred`` bool.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import arithmetic

__all__ = ["NAMES", "REGISTER", "SPECIAL", "Instruction", "kind_of", "registers_of", "statements"]

_KINDS = {"p": "bool", "rs": "int16", "r": "int32", "rd": "int64", "f": "float32", "fd": "float64"}
REGISTER = re.compile(r"%(rd|rs|fd|r|f|p)(\d+)")
SPECIAL = {
    f"%{what}.{axis}": f"{what}_{axis}"
    for what in ("tid", "ntid", "ctaid", "nctaid")
    for axis in "xyz"
} | {"%dynamic_smem_size": "dynamic_size"}
"""Registers that hold where a thread is, and their names here."""


class Instruction(NamedTuple):
    line: int  # of the body of the kernel
    operation: str
    operands: Sequence[str]


def kind_of(register: str) -> str:
    """dtype of a register, by its name: ``rd12`` is int64."""
    return _KINDS[register.rstrip("0123456789")]


def registers_of(operand: str) -> list[str]:
    """Names of the registers of an operand: one, a vector, a value and whether it is one."""
    return [kind + number for kind, number in REGISTER.findall(operand)]


def statements(instruction: Instruction, products: dict[str, list[str]]) -> list[str]:
    """An instruction as Python.

    Parameters
    ----------
    instruction : Instruction
    products : dict
        Factors of the registers that are products of floats which ptxas may fuse with a sum that
        follows; kept up to date here.
    """
    line, operation, operands = instruction
    name, _, kind = operation.rpartition(".")
    for written in registers_of(operands[0]):
        for product in [
            p for p, factors in products.items() if f"%{written}" in [f"%{p}", *factors]
        ]:
            del products[product]
    if name == "ld.param":
        number = re.findall(r"\d+", operands[1])[-1]
        return [f"{registers_of(operands[0])[0]} = parameters[{number}]"]
    if name.startswith(("ld", "st", "atom")):
        return _memory(name.split("."), kind, operands, line)
    if operation == "mov.b64" and "{" in "".join(operands):
        return _halves(*operands)
    target = registers_of(operands[0])[0]
    if name.startswith("cvta"):
        made = _value(operands[1], "s64")
    elif name == "mov" and kind[0] == "b":
        source = registers_of(operands[1])
        made = f"{source[0]}.view('{kind_of(target)}')" if source else _value(operands[1], kind)
    elif kind[0] == "f" and name in ("add", "sub"):
        made = _sum(name, kind, operands[1:], products)
    else:
        if name == "mul" and kind[0] == "f":
            products[target] = list(operands[1:])
        made = _expression(name, kind, operands[1:])
    return [f"{target} = registered({made}, '{kind_of(target)}', n)"]


def _value(operand: str, kind: str) -> str:
    """An operand as an expression of a type: s64, u32, b32, f32, pred."""
    wanted = _dtype(kind)
    if register := registers_of(operand):
        name, have = register[0], np.dtype(kind_of(register[0]))
        if have.itemsize != wanted.itemsize:
            return f"{name}.astype('{wanted.name}')"
        return name if have == wanted else f"{name}.view('{wanted.name}')"
    if operand in SPECIAL:
        return SPECIAL[operand]
    if kind == "pred":
        return str(operand != "0")
    if match := re.fullmatch(r"0([fd])([0-9A-F]+)", operand):
        code = {"f": ">f", "d": ">d"}[match[1]]
        number = struct.unpack(code, bytes.fromhex(match[2]))[0]
        return f"np.{wanted.name}('{number!r}')"
    if re.fullmatch(r"-?\d+", operand):
        bits = int(operand) % 2 ** (8 * wanted.itemsize)
        number = np.array(bits, f"u{wanted.itemsize}").view(f"{wanted.kind}{wanted.itemsize}")
        return f"np.{wanted.name}({number})"
    return f"symbols[{operand!r}]"


def _dtype(kind: str) -> np.dtype[Any]:
    if kind == "pred":
        return np.dtype(bool)
    letter = {"s": "i", "u": "u", "b": "i", "f": "f"}[kind[0]]
    return np.dtype(f"{letter}{int(kind[1:]) // 8}")


_PLAIN = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "mul.lo": "{0} * {1}",
    "add.rn": "{0} + {1}", "sub.rn": "{0} - {1}", "mul.rn": "{0} * {1}", "div.rn": "{0} / {1}",
    "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}",
    "neg": "-{0}", "abs": "np.abs({0})", "mov": "{0}", "sqrt.rn": "np.sqrt({0})",
    "rcp.rn": "1 / {0}", "rcp.approx.ftz": "approximate_inverse({0})",
    "ex2.approx": "power_of_two({0})", "ex2.approx.ftz": "power_of_two({0})",
    "div": "divided({0}, {1})", "rem": "remainder({0}, {1})", "mul.hi": "high_product({0}, {1})",
    "clz": "leading_zeros({0})",
    "bfind.shiftamt": "np.where({0} == 0, -1, leading_zeros({0}))", "brev": "mirrored({0})",
    "fma.rm": "fma32_down({0}, {1}, {2})",
}  # fmt: skip


def _expression(name: str, kind: str, sources: Sequence[str]) -> str:
    """What an instruction without memory computes."""
    if name.startswith("setp."):
        return _comparison(name.split(".")[1], kind, *(_value(s, kind) for s in sources))
    if name.startswith("cvt"):
        return _conversion(name.split(".")[1:], kind, sources[0])
    if name == "selp":
        a, b = (_value(s, kind) for s in sources[:2])
        return f"np.where({_value(sources[2], 'pred')}, {a}, {b})"
    if name == "bfi":
        wide = f"u{kind[1:]}"
        a, b = (_value(s, wide) for s in sources[:2])
        return f"with_bits({a}, {b}, {sources[2]}, {sources[3]})"
    if name in ("shl", "shr"):  # by more bits than there are nothing is left, as in numpy
        to = kind.replace("b", "u")
        by = f"np.asarray({_value(sources[1], 'u32')}).astype('{_dtype(to).name}')"
        return f"{_value(sources[0], to)} {'<<' if name == 'shl' else '>>'} {by}"
    if name == "mul.wide":
        wide_name = _dtype(f"{kind[0]}{2 * int(kind[1:])}").name
        a, b = (f"np.asarray({_value(s, kind)}).astype('{wide_name}')" for s in sources)
        return f"{a} * {b}"
    if name == "popc":  # numpy counts the bits of a signed number's size
        return f"np.bitwise_count({_value(sources[0], kind.replace('b', 'u'))})"
    values = [_value(s, kind) for s in sources]
    if name in ("min", "max"):
        return f"np.{'f' + name if kind[0] == 'f' else name + 'imum'}({values[0]}, {values[1]})"
    if name == "fma.rn":
        return f"fma{kind[1:]}({', '.join(values)})"
    return _PLAIN[name].format(*values)


def _sum(name: str, kind: str, sources: Sequence[str], products: dict[str, list[str]]) -> str:
    """A sum that does not say how it is rounded: with a product ptxas makes one operation of it."""
    a, b = (_value(s, kind) for s in sources)
    minus = "-" if name == "sub" else ""
    for mine, other, signs in ((0, b, ("", minus)), (1, a, (minus, ""))):
        factors = products.get("".join(registers_of(sources[mine])))
        if factors:
            x, y = (_value(f, kind) for f in factors)
            return f"fma{kind[1:]}({signs[0]}({x}), {y}, {signs[1]}({other}))"
    return _PLAIN[name].format(a, b)


def _comparison(how: str, kind: str, a: str, b: str) -> str:
    ordered = f"({a} == {a}) & ({b} == {b})"
    if how in ("num", "nan"):
        return ordered if how == "num" else f"~({ordered})"
    signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    found = f"({a} {signs[how[:2]]} {b})"
    if kind[0] != "f":
        return found
    return f"{found} | ~({ordered})" if how.endswith("u") else f"{found} & {ordered}"


def _conversion(how: Sequence[str], kind: str, source: str) -> str:
    *modes, to = how
    value, name = _value(source, kind), _dtype(to).name
    if "sat" in modes:
        return f"saturated({value})"
    if kind[0] == "f" and to[0] != "f":
        if modes != ["rzi"]:
            raise NotImplementedError(f"cvt.{'.'.join(how)}.{kind}")
        return f"whole_number({value}, '{name}')"
    return f"np.asarray({f'np.rint({value})' if 'rni' in modes else value}).astype('{name}')"


def _halves(target: str, source: str) -> list[str]:
    """``mov.b64`` between a wide register and two narrow ones, of which %temp is nowhere."""
    if target.startswith("{"):
        wide = registers_of(source)[0]
        return [
            f"{registers_of(part)[0]} = np.ascontiguousarray({wide}).view('int32')[{half}::2]"
            for half, part in enumerate(target.split(","))
            if "%temp" not in part
        ]
    low, high = (_value(part.strip("{} "), "b32") for part in source.split(","))
    name = registers_of(target)[0]
    return [f"{name} = joined({low}, {high}, n).view('{kind_of(name)}')"]


def _memory(parts: Sequence[str], kind: str, operands: Sequence[str], line: int) -> list[str]:
    space = next((part for part in parts if part in ("global", "shared")), "global")
    count = next((int(part[1]) for part in parts if re.fullmatch("v[24]", part)), 1)
    where = _address(operands[0 if parts[0] == "st" else 1])
    dtype = _dtype(kind).name
    if parts[0] == "st":
        values = (_value(v.strip(), kind) for v in operands[1].strip("{}").split(","))
        return [f"memory.store(T, {space!r}, {where}, {dtype!r}, ({', '.join(values)},), {line})"]
    targets = registers_of(operands[0])
    if parts[0] == "atom":
        values = (_value(v, kind) for v in operands[2:])
        made = f"memory.atomic(T, {space!r}, {where}, {dtype!r}, {parts[2]!r}, "
        made += f"{', '.join(values)}, {line})"
        return [f"{targets[0]} = registered({made}, '{kind_of(targets[0])}', n)"]
    lines = [f"loaded = memory.load(T, {space!r}, {where}, {dtype!r}, {count}, {line})"]
    for number, target in enumerate(targets):
        lines.append(f"{target} = registered(loaded[{number}], '{kind_of(target)}', n)")
    return lines


def _address(operand: str) -> str:
    match = re.fullmatch(r"\[(%?\w+?)(?:\+(-?\d+))?\]", operand)
    if match is None:
        raise NotImplementedError(operand)
    return f"{_value(match[1], 's64')} + np.int64({match[2] or 0})"


def _registered(made: Any, kind: str, n: int) -> Any:
    """A result as a register of `n` threads holds it, a copy."""
    found = np.asarray(made)
    if found.dtype != kind:
        same = found.dtype.itemsize == np.dtype(kind).itemsize and found.dtype.kind in "iu"
        found = found.view(kind) if same else found.astype(kind)
    return np.array(np.broadcast_to(found, n))


def _joined(low: Any, high: Any, n: int) -> Any:
    found = np.empty((n, 2), "int32")
    found[:, 0], found[:, 1] = low, high
    return found.view("int64")[:, 0].copy()


NAMES = {
    "np": np,
    "joined": _joined,
    "registered": _registered,
    **{name: getattr(arithmetic, name) for name in arithmetic.__all__},
}
"""What the lines of Python refer to, but for ``T, n, parameters, memory, symbols``."""
