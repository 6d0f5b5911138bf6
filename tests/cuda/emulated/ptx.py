"""PTX as numpy: each straight run of instructions becomes one function on the threads that run it.

Only what our kernels are compiled to is known: no calls, no local memory. Registers are arrays of
one element a thread: ``.b64`` int64, ``.b32`` int32, ``.b16`` int16, ``.pred`` bool.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import arithmetic

__all__ = ["Program", "Segment", "parse"]

DTYPES = {
    "p": "bool", "rs": "int16", "r": "int32", "rd": "int64", "f": "float32", "fd": "float64"
}  # fmt: skip
"""dtype of the registers, by the beginning of their names."""

_SPECIAL = {f"%{what}.{axis}": f"{what}_{axis}" for what in ("tid", "ntid", "ctaid", "nctaid")
            for axis in "xyz"} | {"%dynamic_smem_size": "dynamic_size"}  # fmt: skip
_MEETINGS = ("bar.sync", "bar.warp.sync", "shfl.sync", "vote.sync")
_REGISTER = re.compile(r"%(rd|rs|fd|r|f|p)(\d+)")


@dataclass
class Segment:
    """Instructions that a thread runs one after the other, and where it goes on."""

    lines: list[tuple[int, str, list[str]]] = field(default_factory=list)
    meeting: tuple[str, list[str]] | None = None  # instead of lines: threads wait for others
    follows: list[str | int] = field(default_factory=list)  # [next] or [if true, if false]; or end
    condition: str | None = None
    run: Any = None
    source: str = ""


@dataclass
class Program:
    """A kernel: its segments, from the first on."""

    name: str
    parameters: list[str]  # types: u64, f32, ...
    shared: dict[str, tuple[int, int]]  # symbols: place and bytes
    static: int  # bytes of shared memory
    registers: dict[str, str]  # and their dtypes
    segments: list[Segment]


def parse(ptx: str) -> Program:
    """Read the one kernel of a text."""
    name = re.search(r"\.entry\s+(\w+)", ptx)
    assert name is not None
    parameters = re.findall(r"^\s*\.param \.(\w+) ", ptx, re.MULTILINE)
    shared, static = _shared_symbols(ptx)
    body = ptx[ptx.index("{", name.end()) + 1 : ptx.rindex("}")]
    segments, labels = _segments(body)
    for segment in segments:
        segment.follows = [labels[to] if isinstance(to, str) else to for to in segment.follows]
    registers = {f"{kind}{number}": DTYPES[kind] for kind, number in _REGISTER.findall(body)}
    registers |= dict.fromkeys(_SPECIAL.values(), "int32")
    _compile(segments, shared)
    return Program(name[1], parameters, shared, static, registers, segments)


def _shared_symbols(ptx: str) -> tuple[dict[str, tuple[int, int]], int]:
    found, end, dynamic = {}, 0, []
    for align, name, size in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d*)\]", ptx):
        if size:
            start = -(-end // int(align)) * int(align)
            found[name] = start, int(size)
            end = start + int(size)
        else:
            dynamic.append(name)
    end = -(-end // 16) * 16  # where dynamic shared memory begins
    return found | {name: (end, 0) for name in dynamic}, end


def _segments(body: str) -> tuple[list[Segment], dict[str, int]]:
    segments, labels = [Segment()], {}

    def begin() -> None:
        if segments[-1].lines or segments[-1].meeting or segments[-1].follows:
            if not segments[-1].follows:
                segments[-1].follows = [len(segments)]
            segments.append(Segment())

    for number, line in enumerate(body.splitlines()):
        line = " ".join(re.sub(r"//.*", "", line).split())
        if label := re.match(r"(\$\w+):", line):
            begin()
            labels[label[1]] = len(segments) - 1
        elif line and not line.startswith((".", "{", "}")):
            _add(segments, begin, number, line.rstrip(";"))
    return segments, labels


def _add(segments: list[Segment], begin: Any, number: int, line: str) -> None:
    if branch := re.match(r"@(!?)%(p\d+) bra (\$\w+)", line):
        to = [branch[3], len(segments)]
        segments[-1].condition = branch[2]
        segments[-1].follows = to[::-1] if branch[1] else to
        segments.append(Segment())
        return
    if line.startswith("@"):
        raise NotImplementedError(line)
    operation, _, rest = line.partition(" ")
    operands = [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", rest)]
    if operation == "ret":
        segments[-1].follows = [-1]
        segments.append(Segment())
    elif operation in ("bra", "bra.uni"):
        segments[-1].follows = [operands[0]]
        segments.append(Segment())
    elif operation.startswith(_MEETINGS):
        begin()
        segments[-1].meeting = operation, operands
        segments[-1].follows = [len(segments)]
        segments.append(Segment())
    else:
        segments[-1].lines.append((number, operation, operands))


def _value(operand: str, kind: str) -> str:
    """An operand as an expression, where a type is wanted: s64, u32, f32, pred, ..."""
    if match := re.fullmatch(r"(-?)%(rd|rs|fd|r|f|p)(\d+)", operand):
        name = match[2] + match[3]
        have, want = np.dtype(DTYPES[match[2]]), _dtype(kind)
        if have.kind in "iu" and want.kind in "iu" and have != want:
            return f"{name}.view('{have.name.replace(chr(105), chr(117) + chr(105), 1)}').astype('{want.name}')" if (
                have.itemsize > want.itemsize or want.kind == "u"
            ) and have.itemsize != want.itemsize else f"{name}.view('{want.name}')"
        return match[1] + name
    if operand in _SPECIAL:
        return _SPECIAL[operand]
    if kind == "pred":
        return str(operand != "0")
    if match := re.fullmatch(r"0([fd])([0-9A-F]+)", operand):
        code, size = (">f", 8) if match[1] == "f" else (">d", 16)
        number = struct.unpack(code, bytes.fromhex(match[2].zfill(size)))[0]
        return f"np.float{size * 4}({number!r})".replace("inf", "np.inf").replace("nan", "np.nan")
    if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)", operand):
        dtype = _dtype(kind)
        bits = 8 * dtype.itemsize
        number = int(operand, 0) % 2**bits
        if dtype.kind == "i" and number >= 2 ** (bits - 1):
            number -= 2**bits
        return f"np.{dtype.name}({number})"
    return f"symbol[{operand!r}]"


def _dtype(kind: str) -> np.dtype[Any]:
    if kind == "pred":
        return np.dtype("?")
    letter = {"s": "i", "u": "u", "b": "i", "f": "f"}[kind[0]]
    return np.dtype(f"{letter}{int(kind[1:]) // 8}")


_ARITHMETIC = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "and": "{0} & {1}", "or": "{0} | {1}",
    "xor": "{0} ^ {1}", "mul.lo": "{0} * {1}", "not": "~{0}", "neg": "-{0}", "abs": "np.abs({0})",
    "shl": "{0} << {1}", "shr": "{0} >> {1}", "mov": "np.array({0})",
}  # fmt: skip
_OF_FLOATS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "add.rn": "{0} + {1}",
    "sub.rn": "{0} - {1}", "mul.rn": "{0} * {1}", "div.rn": "{0} / {1}", "neg": "-{0}",
    "abs": "np.abs({0})", "sqrt.rn": "np.sqrt({0})", "rcp.rn": "np.{t}(1) / {0}",
    "min": "np.fmin({0}, {1})", "max": "np.fmax({0}, {1})", "mov": "np.array({0})",
    "fma.rm": "fma32_down({0}, {1}, {2})", "rcp.approx.ftz": "approximate_inverse({0})",
    "ex2.approx": "np.exp2({0}.astype('float64')).astype('float32')",
    "ex2.approx.ftz": "np.exp2({0}.astype('float64')).astype('float32')",
}  # fmt: skip
_COMPARED = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OPPOSITE = {"lt": ">=", "le": ">", "gt": "<=", "ge": "<", "eq": "!="}


def _expression(operation: str, sources: list[str]) -> str:
    """What an instruction without memory computes."""
    name, _, kind = operation.rpartition(".")
    if name.startswith("setp."):
        return _comparison(name.split(".")[1], kind, [_value(s, kind) for s in sources])
    if name == "selp":
        a, b = (_value(s, kind) for s in sources[:2])
        return f"np.where({_value(sources[2], 'pred')}, {a}, {b})"
    if name.startswith("cvt"):
        return _conversion(name, kind, sources[0])
    if name == "bfi":
        a, b = (_value(s, "u" + kind[1:]) for s in sources[:2])
        start, length = int(sources[2]), int(sources[3])
        mask = ((1 << length) - 1) << start
        wide = f"np.uint{kind[1:]}"
        return f"({b} & ~{wide}({mask})) | (({a} << {wide}({start})) & {wide}({mask}))"
    if kind == "pred":
        return _ARITHMETIC[name].format(*(_value(s, kind) for s in sources))
    if kind[0] == "f":
        values = [_value(s, kind) for s in sources]
        if name == "fma.rn":
            return f"fma{kind[1:]}({', '.join(values)})"
        return _OF_FLOATS[name].format(*values, t=f"float{kind[1:]}")
    if name in ("shl", "shr"):
        amount = _value(sources[1], "u32")
        kind = kind if name == "shr" else "u" + kind[1:]
        kind = kind.replace("b", "u")
        return _ARITHMETIC[name].format(
            _value(sources[0], kind), f"np.asarray({amount}).astype('{_dtype(kind).name}')"
        )
    if name.startswith("mul.wide"):
        wide = _dtype(f"{kind[0]}{2 * int(kind[1:])}").name
        a, b = (f"np.asarray({_value(s, kind)}).astype('{wide}')" for s in sources)
        return f"{a} * {b}"
    if name == "popc":
        return f"np.bitwise_count({_value(sources[0], 'u' + kind[1:])}).astype('int32')"
    if name == "clz":
        return f"leading_zeros({_value(sources[0], 'u' + kind[1:])}, {kind[1:]})"
    if name == "brev":
        return f"reversed_bits({_value(sources[0], 'u' + kind[1:])}, {kind[1:]})"
    if name == "mul.hi":
        return f"high_product({_value(sources[0], kind)}, {_value(sources[1], kind)})"
    values = [_value(s, kind) for s in sources]
    if name in ("div", "rem"):
        return f"{'divide' if name == 'div' else 'remainder'}({values[0]}, {values[1]})"
    if name in ("min", "max"):
        return f"np.{name}imum({values[0]}, {values[1]})"
    return _ARITHMETIC[name].format(*values)


def _comparison(how: str, kind: str, values: list[str]) -> str:
    a, b = values
    if how == "ne":
        return f"({a} != {b})" + (f" & ({a} == {a}) & ({b} == {b})" if kind[0] == "f" else "")
    if how in ("nan", "num"):
        either = f"(np.isnan({a}) | np.isnan({b}))"
        return either if how == "nan" else f"~{either}"
    if how == "neu":
        return f"{a} != {b}"
    if kind[0] == "f" and how.endswith("u"):
        if how == "equ":
            return f"({a} == {b}) | np.isnan({a}) | np.isnan({b})"
        return f"~({a} {_OPPOSITE[how[:-1]]} {b})"
    return f"{a} {_COMPARED[how]} {b}"


def _conversion(name: str, source_kind: str, source: str) -> str:
    *modes, kind = name.split(".")[1:]
    value, to = _value(source, source_kind), _dtype(kind).name
    if "sat" in modes:
        return f"saturated({value})"
    if source_kind[0] == "f" and kind[0] == "f":
        rounded = f"np.rint({value})" if "rni" in modes else value
        return f"np.asarray({rounded}).astype('{to}')"
    if source_kind[0] == "f":
        assert modes == ["rzi"], name
        return f"float_to_int({value}, '{to}')"
    return f"np.asarray({value}).astype('{to}')"


def _targets(operand: str) -> list[str]:
    """Registers written by an operand: one, a vector, or a value and whether it is one."""
    return [kind + number for kind, number in _REGISTER.findall(operand)]


def _statements(operation: str, operands: list[str], where: str) -> list[str]:
    """An instruction as Python."""
    if operation.startswith("ld.param"):
        return [f"{_targets(operands[0])[0]} = parameter[{re.findall(r'[0-9]+', operands[1])[-1]}]"]
    if operation.startswith(("ld.", "st.", "atom.")):
        return _memory(operation, operands, where)
    if operation.startswith("cvta"):
        target = _targets(operands[0])[0]
        return [f"{target} = np.array({_value(operands[1], 'u64')}).astype('int64')"]
    if operation == "mov.b64" and "{" in "".join(operands):
        return _halves(operands)
    target = _targets(operands[0])[0]
    if operation in ("mov.b32", "mov.b64"):
        return [f"{target} = {_value(operands[1], _like(operands[1], operation))}.view('{_kind(target)}')"]
    kind = _kind(target)
    made = _expression(operation, operands[1:])
    return [f"{target} = as_('{kind}', {made}, n)"]


def _like(operand: str, operation: str) -> str:
    """The type of a register itself, for moves of bits."""
    if match := re.fullmatch(r"%(rd|rs|fd|r|f|p)\d+", operand):
        return {"rd": "b64", "r": "b32", "fd": "f64", "f": "f32"}[match[1]]
    return operation.rpartition(".")[2]


def _kind(register: str) -> str:
    return DTYPES[register.rstrip("0123456789")]


def _halves(operands: list[str]) -> list[str]:
    """``mov.b64`` between a wide register and two narrow ones; %temp is nowhere."""
    if operands[0].startswith("{"):
        parts = operands[0].strip("{}").split(",")
        wide = _value(operands[1].strip(), _like(operands[1].strip(), "mov.b64"))
        return [
            f"{_targets(part)[0]} = np.ascontiguousarray({wide}).view('int32')[{half}::2].copy()"
            for half, part in enumerate(parts)
            if "%temp" not in part
        ]
    low, high = (_value(p.strip(), "b32") for p in operands[1].strip("{}").split(","))
    target = _targets(operands[0])[0]
    return [f"{target} = halves({low}, {high}, n).view('{_kind(target)}')"]


def _memory(operation: str, operands: list[str], where: str) -> list[str]:
    parts = operation.split(".")
    space = parts[1] if parts[1] in ("global", "shared") else "global"
    kind, count = parts[-1], next((int(p[1:]) for p in parts if re.fullmatch("v[24]", p)), 1)
    address = operands[1 if parts[0] != "st" else 0].strip("[]")
    base, sign, offset = re.fullmatch(r"(%?\w+?)(?:([+-])(-?\d+))?", address).groups()  # type: ignore[union-attr]
    distance = int(offset or 0) * (-1 if sign == "-" else 1)
    place = f"np.asarray({_value(base, 's64')}) + np.int64({distance})"
    dtype = _dtype(kind).name
    if parts[0] == "atom":
        values = [_value(v, kind) for v in operands[2:]]
        target = _targets(operands[0])[0]
        found = f"memory.atomic_{parts[2]}(T, '{space}', {place}, '{dtype}', {', '.join(values)}, {where})"
        return [f"{target} = {found}.astype('{_kind(target)}')"]
    if parts[0] == "ld":
        targets = _targets(operands[0])
        found = f"memory.load(T, '{space}', {place}, '{dtype}', {count}, {where})"
        lines = [f"loaded = {found}"]
        for number, target in enumerate(targets):
            have = f"loaded[{number}]" if count > 1 else "loaded"
            lines.append(f"{target} = widened({have}, '{_kind(target)}')")
        return lines
    values = operands[1].strip("{}").split(",")
    stored = ", ".join(f"as_('{dtype}', {_value(v.strip(), kind)}, n)" for v in values)
    return [f"memory.store(T, '{space}', {place}, '{dtype}', ({stored},), {where})"]


def _as(kind: str, made: Any, n: int) -> Any:
    found = np.asarray(made)
    if found.dtype.name != kind:
        found = found.view(kind) if found.dtype.itemsize == np.dtype(kind).itemsize and found.ndim else found.astype(kind)
    return found if found.shape == (n,) else np.broadcast_to(found, (n,)).copy()


def _widened(loaded: Any, kind: str) -> Any:
    if loaded.dtype.itemsize == np.dtype(kind).itemsize:
        return loaded.view(kind)
    return loaded.astype(kind)


def _packed(low: Any, high: Any, n: int) -> Any:
    found = np.empty((n, 2), "i4")
    found[:, 0], found[:, 1] = low, high
    return found.view("i8").ravel()


def _high_product(a: Any, b: Any) -> Any:
    wide = np.asarray(a).astype(object) * int(b) if np.ndim(b) == 0 else np.asarray(a).astype(object) * np.asarray(b).astype(object)
    return (wide >> 64).astype("i8")


def _compile(segments: list[Segment], shared: dict[str, tuple[int, int]]) -> None:
    names = {
        "np": np, "as_": _as, "widened": _widened, "halves": _packed, "high_product": _high_product,
        "symbol": {name: np.int64(start) for name, (start, _) in shared.items()},
        **{name: getattr(arithmetic, name) for name in arithmetic.__all__},
    }  # fmt: skip
    bodies = [[s for line in seg.lines for s in _statements(line[1], line[2], str(line[0]))] for seg in segments]
    reads, writes = _used(segments, bodies)
    live = _live(segments, reads, writes)
    for number, (segment, body) in enumerate(zip(segments, bodies, strict=True)):
        if segment.meeting:
            continue
        lines = [f"def run(R, T, n, parameter, memory):"]
        lines += [f"    {name} = R[{name!r}][T]" for name in sorted(reads[number])]
        lines += [f"    {line}" for line in body]
        kept = sorted(writes[number] & live[number])
        lines += [f"    R[{name!r}][T] = {name}" for name in kept]
        lines += [f"    return {segment.condition}" if segment.condition else "    return None"]
        segment.source = "\n".join(lines)
        place: dict[str, Any] = {}
        exec(compile(segment.source, f"<segment {number}>", "exec"), names, place)
        segment.run = place["run"]


_NAME = re.compile(r"\b((?:rd|rs|fd|r|f|p)\d+|" + "|".join(_SPECIAL.values()) + r")\b")


def _used(segments: list[Segment], bodies: list[list[str]]) -> tuple[list[set[str]], list[set[str]]]:
    """Registers a segment reads before it writes them, and those it writes."""
    all_reads, all_writes = [], []
    for segment, body in zip(segments, bodies, strict=True):
        reads: set[str] = set()
        writes: set[str] = set()
        if segment.meeting:
            operation, operands = segment.meeting
            first = 1 if operation.startswith(("shfl", "vote")) else 0
            reads |= {name for o in operands[first:] for name in _targets(o)}
            writes |= {name for o in operands[:first] for name in _targets(o)}
        for line in body:
            target, assigned, made = line.partition(" = ")
            if not re.fullmatch(r"\w+", target):
                target, made = "", line
            reads |= set(_NAME.findall(made)) - writes
            if target:
                writes.add(target)
        if segment.condition and segment.condition not in writes:
            reads.add(segment.condition)
        all_reads.append(reads)
        all_writes.append(writes)
    return all_reads, all_writes


def _live(segments: list[Segment], reads: list[set[str]], writes: list[set[str]]) -> list[set[str]]:
    """Registers that are read after each segment."""
    before = [set(r) for r in reads]
    after: list[set[str]] = [set() for _ in segments]
    changed = True
    while changed:
        changed = False
        for number in range(len(segments) - 1, -1, -1):
            follows = [to for to in segments[number].follows if isinstance(to, int) and 0 <= to < len(segments)]
            after[number] = set().union(*(before[to] for to in follows)) if follows else set()
            now = reads[number] | (after[number] - writes[number])
            if now != before[number]:
                before[number] = now
                changed = True
    return after
