"""How `Interactions` show themselves to people."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastinfluence.data.interactions import Interactions

__all__ = ["as_html", "as_text"]

ROWS_SHOWN = 5


def as_text(data: Interactions) -> str:
    """A line of figures and the first rows."""
    lines = [_summary(data)]
    for user, item, value in _first_rows(data):
        lines.append(f"  {user} → {item}" + (f": {value}" if value else ""))
    if len(data) > ROWS_SHOWN:
        lines.append("  …")
    return "\n".join(lines)


def as_html(data: Interactions) -> str:
    """The same as an escaped HTML table."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in _first_rows(data)
    )
    head = "<tr><th>user</th><th>item</th><th>value</th></tr>"
    return f"<p>{html.escape(_summary(data))}</p><table>{head}{rows}</table>"


def _summary(data: Interactions) -> str:
    share = len(data) / (data.n_users * data.n_items)
    text = (
        f"Interactions: {len(data):,} rows, {data.n_users:,} users, {data.n_items:,} items "
        f"({share:.2%} of all pairs)"
    )
    if data.has_values:
        text += f", values {data.values.min():g} to {data.values.max():g}"
    return text


def _first_rows(data: Interactions) -> list[tuple[str, str, str]]:
    return [
        (
            data.user_name(int(data.users[row])),
            data.item_name(int(data.items[row])),
            f"{data.values[row]:g}" if data.has_values else "",
        )
        for row in range(min(len(data), ROWS_SHOWN))
    ]
