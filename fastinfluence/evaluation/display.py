"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["number", "text_table"]


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side: the first to the left, the others, numbers, to the right."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float) -> str:
    """A figure of a table, to three places or digits; a dash where it is not defined."""
    if value != value:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"
