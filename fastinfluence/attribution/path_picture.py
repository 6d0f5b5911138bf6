"""Paths through a knowledge graph as a picture."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fastinfluence.attribution.paths import Path
from fastinfluence.storage import tables

if TYPE_CHECKING:
    from fastinfluence.data import Triples

__all__ = ["draw_paths"]

_MOST_PATHS = 8  # what a picture of this size can show
_RAISED, _LOWERED = "#0072b2", "#d55e00"
_WIDEST = 5.0  # points


def draw_paths(
    paths: list[Path], ends: tuple[int, int], data: Triples, title: str, ax: Any = None
) -> Any:
    """Draw the first paths between two entities; see `TripleExplanations.plot_paths`."""
    pyplot = tables.import_extra("matplotlib.pyplot", "plot_paths()", extra="plot")
    if ax is None:
        _, ax = pyplot.subplots(layout="constrained")
    paths = paths[:_MOST_PATHS]
    places = _places(paths, ends)
    _draw_triples(ax, paths, places)
    for entity, (x, y) in places.items():
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "0.4"}
        name = data.entity_name(entity)
        ax.text(x, y, name, ha="center", va="center", bbox=box, zorder=3, parse_math=False)
    if not paths:
        ax.text(0.5, 0.5, "no path among these triples", ha="center", color="0.4")
    ax.set(xlim=(-0.15, 1.15), ylim=(-0.15, 1.15))
    ax.set_axis_off()
    ax.set_title(title, parse_math=False)
    return ax


def _places(paths: list[Path], ends: tuple[int, int]) -> dict[int, tuple[float, float]]:
    """Where entities stand: from left to right as on their first path, each at its own height."""
    column = {ends[1]: 1.0, ends[0]: 0.0}
    for path in paths:
        for step, entity in enumerate(path.entities.tolist()):
            column.setdefault(entity, step / len(path))
    between = [entity for entity in column if entity not in ends]
    heights = np.linspace(1, 0, len(between))
    places = {entity: (column[entity], 0.5) for entity in ends}
    for entity, height in zip(between, heights, strict=True):
        places[entity] = column[entity], float(height)
    return places


def _draw_triples(ax: Any, paths: list[Path], places: dict[int, tuple[float, float]]) -> None:
    """An arrow for every triple, drawn once however many paths take it."""
    widest = max((float(np.abs(path.influences).max()) for path in paths), default=1.0)
    drawn = set()
    for path in paths:
        steps = zip(
            path.train_index.tolist(),
            pairwise(path.entities.tolist()),
            path.forward.tolist(),
            path.influences.tolist(),
            path.relation_names,
            strict=True,
        )
        for row, (start, stop), forward, influence, relation in steps:
            if row in drawn:
                continue
            drawn.add(row)
            tail, head = (start, stop) if forward else (stop, start)
            color = _RAISED if influence > 0 else _LOWERED
            style = {
                "arrowstyle": "-|>",
                "color": color,
                "linewidth": max(0.5, _WIDEST * abs(influence) / widest),
                "shrinkA": 18,
                "shrinkB": 18,
            }
            ax.annotate("", places[head], places[tail], arrowprops=style, zorder=1)
            x, y = np.mean([places[start], places[stop]], axis=0)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(
                x,
                y,
                relation,
                ha="center",
                va="center",
                color=color,
                bbox=box,
                zorder=2,
                fontsize="small",
                parse_math=False,
            )
