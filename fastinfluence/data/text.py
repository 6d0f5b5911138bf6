"""Delimited text to typed columns, in blocks, without a data frame library.

Blocks of plain ASCII without quotes, nearly all there are, are split by numpy; the others by
the csv module. Cells are kept as bytes until the whole column has been seen, because one "x" in
the last row makes a column of numbers a column of strings.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import Coded
from fastinfluence.errors import DataError

__all__ = ["Choose", "read_names", "read_text"]

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")
Choose: TypeAlias = Callable[[Sequence[str]], list[int]]

BLOCK = 1 << 20
SEPARATORS = ("\t", "::", ",", ";", "|")
QUOTING = (",", ";")  # elsewhere a quotation mark is a character like any other
_BOM = b"\xef\xbb\xbf"
_STAND_IN = b"\x1f"  # one character for a separator of several, or for what ends any cell


@dataclass(frozen=True)
class _Format:
    sep: str
    encoding: str
    n_columns: int = 1

    def rows(self, block: bytes, line: int) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each line that is not blank; the slow and general way."""
        text = block.decode(self.encoding)
        if self.sep not in QUOTING:
            for number, content in enumerate(text.split("\n"), line):
                if content:
                    yield number, [cell.strip() for cell in content.split(self.sep)]
            return
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.sep, strict=True)
        try:
            for row in reader:
                if row:
                    yield line + reader.line_num - 1, [cell.strip() for cell in row]
        except csv.Error as error:
            raise DataError(f"line {line + max(reader.line_num, 1) - 1}: {error}") from error


def read_text(
    stream: Any,
    choose: Choose,
    *,
    by_name: bool,
    sep: str | None,
    header: bool | None,
    encoding: str,
) -> dict[str, Array]:
    """Read the columns that `choose` picks from the names; see `readers.read_table`.

    `stream` is a binary file with ``peek``: a buffered, gzip or zip one.
    """
    has_header = partial(_has_header, header, by_name)
    names, blocks = _read_cells(stream, choose, has_header, sep, encoding, _split_to_arrays)
    parts = list(blocks)
    return {name: _typed([columns[j] for columns in parts]) for j, name in enumerate(names)}


def read_names(
    stream: Any,
    choose: Choose,
    *,
    by_name: bool,
    sep: str | None,
    header: bool | None,
    is_header: Callable[[list[str]], bool],
) -> dict[str, Coded]:
    """Read columns of names: as `read_text`, but every cell stays the string it is written as.

    `is_header` tells a header by the cells of the first line, where nothing else does.
    """

    def has_header(heads: list[list[str]]) -> bool:
        told = _told_header(header, by_name)
        return is_header(heads[0]) if told is None else told

    names, blocks = _read_cells(stream, choose, has_header, sep, "utf-8", _split_to_lists)
    coders = [_Coder() for _ in names]
    for columns in blocks:
        for coder, cells in zip(coders, columns, strict=True):
            coder.add(cells)
    return {name: coder.column() for name, coder in zip(names, coders, strict=True)}


def _read_cells(
    stream: Any,
    choose: Choose,
    has_header: Callable[[list[list[str]]], bool],
    sep: str | None,
    encoding: str,
    split: Callable[[bytes, _Format, Sequence[int], int], list[T]],
) -> tuple[list[str], Iterator[list[T]]]:
    """Names of the columns that `choose` picks, and block after block of their cells.

    `has_header` sees the cells of the first two lines; `split` makes the cells of a block.
    """
    sep = sep or _guess_separator(stream.peek(BLOCK))
    blocks = _blocks(stream, quoting=sep in QUOTING)
    first = next(blocks, b"").removeprefix(_BOM)
    line = 1 + len(first) - len(first.lstrip(b"\n"))
    first = first.lstrip(b"\n")
    if not first:
        raise DataError("the file is empty")
    form = _Format(sep, encoding)
    heads = list(islice(form.rows(first, line), 2))
    form = _Format(sep, encoding, len(heads[0][1]))
    names = [str(position) for position in range(form.n_columns)]
    if has_header([row for _, row in heads]):
        last_line, names = heads[0]
        first = first.split(b"\n", last_line - line + 1)[-1]
        line = last_line + 1
    wanted = choose(names)

    def cells(line: int) -> Iterator[list[T]]:
        for block in chain([first] if first else [], blocks):
            yield split(block, form, wanted, line)
            line += block.count(b"\n")

    return [names[j] for j in wanted], cells(line)


def _blocks(stream: Any, *, quoting: bool) -> Iterator[bytes]:
    """Blocks of whole lines that end in ``\\n``, cut nowhere inside quotation marks."""
    while block := stream.read(BLOCK):
        lines = [block, stream.readline()]
        inside = quoting and sum(line.count(b'"') for line in lines) % 2 == 1
        while inside and (more := stream.readline()):
            lines.append(more)
            inside = more.count(b'"') % 2 == 0
        block = b"".join(lines).replace(b"\r\n", b"\n")
        if b"\0" in block:
            raise DataError("this is no text file: it holds NUL bytes")
        yield block if block.endswith(b"\n") else block + b"\n"


def _guess_separator(beginning: bytes) -> str:
    line = beginning.removeprefix(_BOM).lstrip(b"\r\n").split(b"\n", 1)[0]
    return next((sep for sep in SEPARATORS if sep.encode() in line), ",")


def _told_header(header: bool | None, by_name: bool) -> bool | None:
    """Whether the first line names the columns, as far as the caller says so."""
    if header is False and by_name:
        raise DataError("without a header columns can only be asked for by position (0, 1, ...)")
    return True if by_name else header


def _has_header(header: bool | None, by_name: bool, heads: list[list[str]]) -> bool:
    """Whether the first line names the columns; told, or guessed from where numbers are."""
    told = _told_header(header, by_name)
    if told is not None:
        return told
    if any(map(_is_number, heads[0])):
        return False
    if len(heads) > 1 and any(map(_is_number, heads[1])):
        return True
    raise DataError(
        "no number in the first two lines tells whether the first is a header: "
        "pass header=True or header=False"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _split_to_arrays(block: bytes, form: _Format, wanted: Sequence[int], line: int) -> list[Array]:
    """Columns as bytes arrays (n,), or str where a cell is not ASCII."""
    plain = _plain_ends(block, form)
    if plain is None:
        return [_as_bytes(cells) for cells in _split_any(block, form, wanted, line)]
    chars, ends = plain
    starts = np.concatenate([[0], ends.ravel()[:-1] + 1]).reshape(ends.shape)
    return [_gather(chars, starts[:, j], ends[:, j]) for j in wanted]


def _split_to_lists(
    block: bytes, form: _Format, wanted: Sequence[int], line: int
) -> list[list[bytes]]:
    """Columns as lists of UTF-8 cells."""
    if _plain_ends(block, form) is None:
        columns = _split_any(block, form, wanted, line)
        return [[cell.encode() for cell in cells] for cells in columns]
    cells = block.replace(form.sep.encode(), _STAND_IN).replace(b"\n", _STAND_IN).split(_STAND_IN)
    return [cells[j : -1 : form.n_columns] for j in wanted]  # nothing is behind the last newline


def _plain_ends(
    block: bytes, form: _Format
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
    """Characters of a block, and where its cells (n, n_columns) end; None if it is not plain."""
    sep = form.sep.encode()
    padded = (b"\n ", b" \n", sep + b" ", b" " + sep)  # the slow way strips these
    blank = block.startswith(b"\n") or b"\n\n" in block
    if blank or not block.isascii() or any(pair in block for pair in padded):
        return None
    if (b'"' in block and form.sep in QUOTING) or _STAND_IN in block:
        return None
    if len(sep) > 1:
        block, sep = block.replace(sep, _STAND_IN), _STAND_IN
    chars = np.frombuffer(block, np.uint8)
    cuts = np.flatnonzero((chars == ord(sep)) | (chars == ord("\n")))
    if cuts.size % form.n_columns:
        return None
    ends = cuts.reshape(-1, form.n_columns)
    is_newline = chars[ends] == ord("\n")
    if is_newline[:, :-1].any() or not is_newline[:, -1].all():
        return None
    return chars, ends


def _gather(chars: npt.NDArray[np.uint8], starts: Array, ends: Array) -> Array:
    lengths = ends - starts
    place = np.arange(max(1, int(lengths.max(initial=0))))
    cells = chars.take(starts[:, None] + place, mode="clip")
    cells[place >= lengths[:, None]] = 0
    return cells.view(f"S{place.size}")[:, 0]


def _split_any(block: bytes, form: _Format, wanted: Sequence[int], line: int) -> list[list[str]]:
    """Columns of a block in the slow and general way."""
    rows = []
    for number, row in form.rows(block, line):
        if len(row) != form.n_columns:
            raise DataError(
                f"line {number} has {len(row)} columns where the first line has {form.n_columns}"
            )
        rows.append(row)
    return [[row[j] for row in rows] for j in wanted]


def _as_bytes(cells: list[str]) -> Array:
    try:
        return np.array(cells, dtype=np.bytes_)
    except UnicodeEncodeError:
        return np.array(cells, dtype=np.str_)


class _Coder:
    """Gathers a column of names as `Coded`, distinct ones in the order of appearance."""

    def __init__(self) -> None:
        self._position: dict[bytes, int] = {}
        self._codes = [np.empty(0, np.int32)]

    def add(self, cells: list[bytes]) -> None:
        position = self._position
        for cell in cells:
            position.setdefault(cell, len(position))
        self._codes.append(np.fromiter(map(position.__getitem__, cells), np.int32, len(cells)))

    def column(self) -> Coded:
        names = [cell.decode() for cell in self._position]
        return Coded(np.concatenate(self._codes), np.array(names, np.str_))


def _typed(parts: list[Array]) -> Array:
    """One column: int64 if every cell is an integer, float64 if a number, else str."""
    kinds = {_kind(part) for part in parts if part.size}
    for kind, dtype in (("text", np.str_), ("float", np.float64), ("int", np.int64)):
        if kind in kinds:
            return np.concatenate([part.astype(dtype) for part in parts])
    return np.empty(0, np.int64)


def _kind(cells: Array) -> str:
    """What a part of a column is: "int", "float" or "text".

    "007", and an integer too long for int64, stay text: as numbers they would be other ids.
    """
    if cells.dtype.kind == "U":
        return "text"
    chars = cells.view(np.uint8).reshape(len(cells), -1)
    allowed = _CLASS[chars]
    signed = chars[:, 0] == ord("-")
    bare = np.pad(chars, ((0, 0), (0, 2)))
    lead = np.where(signed, bare[:, 1], bare[:, 0])
    after = np.where(signed, bare[:, 2], bare[:, 1])
    leading_zero = (lead == ord("0")) & (_CLASS[after] == 1)
    if (allowed == 3).any() or leading_zero.any() or not chars[:, 0].all():
        return "text"
    integers = (allowed[:, 1:] <= 1).all() and (signed | (allowed[:, 0] == 1)).all()
    if integers:
        return "int" if chars.shape[1] <= 18 and (_CLASS[lead] == 1).all() else "text"
    try:
        cells.astype(np.float64)
    except ValueError:
        return "text"
    return "float"


# Per character: 0 end of the cell, 1 digit, 2 may occur in another number, 3 in none.
_CLASS = np.full(256, 3, np.uint8)
_CLASS[0] = 0
_CLASS[np.frombuffer(b"0123456789", np.uint8)] = 1
_CLASS[np.frombuffer(b"+-.eEnNaAiIfFtTyY", np.uint8)] = 2
