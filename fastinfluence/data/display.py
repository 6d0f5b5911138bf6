"""How data show themselves to people."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastinfluence.errors import plural

if TYPE_CHECKING:
    from fastinfluence.data.ids import Codes
    from fastinfluence.data.interactions import Interactions
    from fastinfluence.data.triples import Triples

__all__ = ["Display", "show_interactions", "show_triples"]

ROWS_SHOWN = 5


class Display(NamedTuple):
    """Some figures, and the first rows as a table and as lines."""

    summary: list[str]
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    lines: list[str]
    n_rows: int  # of which the first are shown

    def text(self) -> str:
        """The figures and the first rows."""
        more = ["…"] if self.n_rows > len(self.lines) else []
        first, *others = self.summary
        return "\n  ".join([first, *others, *self.lines, *more])

    def html(self) -> str:
        """The same as an escaped HTML table."""
        figures = "<br>".join(map(html.escape, self.summary))
        head = _html_row("th", self.columns)
        rows = "".join(_html_row("td", row) for row in self.rows)
        return f"<p>{figures}</p><table>{head}{rows}</table>"


def show_interactions(data: Interactions) -> Display:
    """Sizes, density and the first rows."""
    share = len(data) / (data.n_users * data.n_items)
    summary = (
        f"Interactions: {len(data):,} rows, {data.n_users:,} users, {data.n_items:,} items "
        f"({share:.2%} of all pairs)"
    )
    if data.has_values:
        summary += f", values {data.values.min():g} to {data.values.max():g}"
    rows = [
        (
            data.user_name(int(data.users[row])),
            data.item_name(int(data.items[row])),
            f"{data.values[row]:g}" if data.has_values else "",
        )
        for row in range(min(len(data), ROWS_SHOWN))
    ]
    lines = [f"{user} → {item}" + (f": {value}" if value else "") for user, item, value in rows]
    return Display([summary], ("user", "item", "value"), rows, lines, len(data))


def show_triples(data: Triples) -> Display:
    """Sizes, splits, what training does not see, and the first rows."""
    sizes = [f"{len(data):,} {plural('triple', len(data))}"]
    for kind, count in (("entity", data.n_entities), ("relation", data.n_relations)):
        sizes.append(f"{count:,} {plural(kind, count)}")
    sizes += [f"{name} {len(split):,}" for name, split in data.splits.items()]
    summary = [f"Triples: {', '.join(sizes)}"]
    splits = data.splits.values()
    used_entities = [codes for split in splits for codes in (split.heads, split.tails)]
    used_relations = [split.relations for split in splits]
    summary += _unseen("entity", data.unseen_entities, used_entities, " or ".join(data.splits))
    summary += _unseen("relation", data.unseen_relations, used_relations, " or ".join(data.splits))
    shown = range(min(len(data), ROWS_SHOWN))
    rows = [
        (
            data.entity_name(int(data.heads[row])),
            data.relation_name(int(data.relations[row])),
            data.entity_name(int(data.tails[row])),
        )
        for row in shown
    ]
    lines = [data.triple_name(row) for row in shown]
    return Display(summary, ("head", "relation", "tail"), rows, lines, len(data))


def _unseen(kind: str, unseen: Codes, used: list[Codes], where: str) -> list[str]:
    """How many codes that no training triple holds some split holds, and how many none does."""
    n_used = int(np.isin(unseen, np.concatenate(used)).sum()) if used else 0
    counts = {f"only in {where}": n_used, "in none of these triples": len(unseen) - n_used}
    return [
        f"{count:,} {plural(kind, count)} {'occurs' if count == 1 else 'occur'} {place}"
        for place, count in counts.items()
        if count
    ]


def _html_row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
