"""PTX cut into segments: straight runs of instructions, each one function of numpy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .instructions import NAMES, REGISTER, SPECIAL, Instruction, kind_of, registers_of, statements

__all__ = ["ENDED", "Program", "Segment", "parse"]

ENDED = -1
"""Where a thread is that has returned."""

_MEETINGS = ("bar.sync", "bar.warp.sync", "shfl.sync", "vote.sync")


@dataclass
class Segment:
    """Instructions that a thread runs one after the other, and where it goes on.

    ``run(registers, T, n, parameters, memory)`` runs them for the `n` threads `T`.
    """

    lines: list[Instruction] = field(default_factory=list)
    meeting: Instruction | None = None  # instead of lines: threads wait for one another
    follows: list[Any] = field(default_factory=list)  # the next; or if the condition holds, if not
    condition: str = "None"
    run: Any = None


@dataclass
class Program:
    """A kernel."""

    name: str
    parameters: list[str]  # u64, f32, ...
    static: int  # bytes of shared memory, before those asked for at the launch
    registers: dict[str, str]  # and their dtypes
    segments: list[Segment]


def parse(ptx: str) -> Program:
    """Read the one kernel of a text."""
    header, body = re.split(r"^\{", ptx, maxsplit=1, flags=re.MULTILINE)
    symbols, static = _symbols(ptx)
    segments = _segments(body)
    registers = {kind + number: kind_of(kind) for kind, number in REGISTER.findall(body)}
    registers |= dict.fromkeys(SPECIAL.values(), "int32")
    _compile(segments, NAMES | {"symbols": symbols})
    return Program(
        re.findall(r"\.entry\s+(\w+)", header)[0],
        re.findall(r"^\s*\.param \.(\w+) ", header, re.MULTILINE),
        static,
        registers,
        segments,
    )


def _symbols(ptx: str) -> tuple[dict[str, Any], int]:
    """Where the arrays of shared memory begin, and where those end whose size is known."""
    found, end = {}, 0
    arrays = re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d*)\]", ptx)
    for align, name, size in sorted(arrays, key=lambda array: array[2] == ""):
        end = -(-end // int(align)) * int(align)
        found[name] = np.int64(end)
        end += int(size or 0)
    return found, end


def _segments(body: str) -> list[Segment]:
    segments, labels = [Segment()], {}
    for number, line in enumerate(body.splitlines()):
        line = " ".join(line.partition("//")[0].rstrip("; \t").split())
        if line.endswith(":"):
            _begin(segments)
            labels[line[:-1]] = len(segments) - 1
        elif line and line[0] not in ".{}":
            _add(segments, number, line)
    for segment in segments:
        segment.follows = [labels.get(to, to) for to in segment.follows]
    return segments


def _begin(segments: list[Segment]) -> None:
    last = segments[-1]
    if last.lines or last.meeting or last.follows:
        last.follows = last.follows or [len(segments)]
        segments.append(Segment())


def _add(segments: list[Segment], number: int, line: str) -> None:
    if branch := re.fullmatch(r"@(!?)%(p\d+) bra (\$\w+)", line):
        to = [branch[3], len(segments)]
        segments[-1].condition = branch[2]
        segments[-1].follows = to[::-1] if branch[1] else to
        segments.append(Segment())
        return
    if line.startswith("@"):
        raise NotImplementedError(line)
    operation, _, rest = line.partition(" ")
    operands = [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", rest)]
    if operation in ("ret", "bra", "bra.uni"):
        segments[-1].follows = operands or [ENDED]
        segments.append(Segment())
    elif operation.startswith(_MEETINGS):
        _begin(segments)
        segments[-1].meeting = Instruction(number, operation, operands)
        _begin(segments)
    else:
        segments[-1].lines.append(Instruction(number, operation, operands))


def _compile(segments: list[Segment], names: dict[str, Any]) -> None:
    bodies = []
    for segment in segments:
        products: dict[str, list[str]] = {}
        bodies.append([s for line in segment.lines for s in statements(line, products)])
    used = [_used(segment, body) for segment, body in zip(segments, bodies, strict=True)]
    kept = _read_later(segments, used)
    for number, (segment, body) in enumerate(zip(segments, bodies, strict=True)):
        if segment.meeting:
            continue
        reads, writes = used[number]
        lines = [
            "def run(registers, T, n, parameters, memory):",
            *(f"{name} = registers[{name!r}][T]" for name in sorted(reads)),
            *body,
            *(f"registers[{name!r}][T] = {name}" for name in sorted(writes & kept[number])),
            f"return {segment.condition}",
        ]
        made: dict[str, Any] = {}
        exec(compile("\n    ".join(lines), f"<segment {number}>", "exec"), names, made)
        segment.run = made["run"]


_NAME = re.compile(rf"\b(?:(?:rd|rs|fd|r|f|p)\d+|{'|'.join(SPECIAL.values())})\b")


def _used(segment: Segment, body: list[str]) -> tuple[set[str], set[str]]:
    """Registers that a segment reads before it writes them, and those that it writes."""
    reads: set[str] = set()
    writes: set[str] = set()
    if segment.meeting:
        returns = segment.meeting.operation.startswith(("shfl", "vote"))
        names = [registers_of(operand) for operand in segment.meeting.operands]
        writes.update(*names[:returns])
        reads.update(*names[returns:])
    for line in body:
        target, _, made = line.rpartition(" = ")
        reads |= set(_NAME.findall(made)) - writes
        writes |= {target} - {"loaded", ""}
    return reads | {segment.condition} - writes - {"None"}, writes


def _read_later(segments: list[Segment], used: Any) -> list[set[str]]:
    """Registers that are read after each segment."""
    before = [set(reads) for reads, _ in used]
    after: list[set[str]] = [set() for _ in segments]
    changed = True
    while changed:
        changed = False
        for number in reversed(range(len(segments))):
            after[number].update(*(before[to] for to in segments[number].follows if to != ENDED))
            now = used[number][0] | after[number] - used[number][1]
            changed |= now != before[number]
            before[number] = now
    return after
