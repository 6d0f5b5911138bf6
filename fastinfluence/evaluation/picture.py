"""The picture of a comparison (needs the extra ``plot``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fastinfluence.attribution.explanation import COLORS
from fastinfluence.evaluation.display import number
from fastinfluence.storage.tables import import_extra

if TYPE_CHECKING:
    from fastinfluence.evaluation.comparison import Comparison

__all__ = ["draw"]

_PANELS_ACROSS = 3
_PANEL_INCHES = 3.6


def draw(comparison: Comparison, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw a panel for each method; see `Comparison.plot`."""
    names = [row["method"] for row in comparison.rows]
    across = min(len(names), _PANELS_ACROSS)
    down = -(-len(names) // across)
    # pyplot shows its figures in a notebook, but keeps them all: not those for a file.
    if path is None:
        make = import_extra("matplotlib.pyplot", "plot()", extra="plot").figure
    else:
        make = import_extra("matplotlib.figure", "plot()", extra="plot").Figure
    size = (_PANEL_INCHES * across, _PANEL_INCHES * down + 0.3)  # a line for the legend
    figure = make(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for panel, row in zip(panels, comparison.rows, strict=False):
        _draw_panel(panel, comparison, row)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supylabel("true change, by retraining")
    kinds, words = panels[0].get_legend_handles_labels()
    figure.legend(kinds, words, loc="outside upper center", ncols=2, markerscale=3, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_panel(panel: Any, comparison: Comparison, row: dict[str, Any]) -> None:
    truth, estimate = comparison.truth, comparison.estimates[row["method"]]
    kinds = (
        (~truth.adjacent, COLORS["other"], "other example"),
        (truth.adjacent, COLORS["user"], "adjacent example"),
    )
    for chosen, color, label in kinds:
        # Thousands of points: as pixels also in a vector file.
        panel.scatter(
            estimate[chosen],
            truth.change[chosen],
            s=4,
            color=color,
            alpha=0.5,
            linewidths=0,
            label=label,
            rasterized=True,
        )
    ends = [np.min(truth.change), np.max(truth.change)]
    panel.plot(ends, ends, color="0.5", linewidth=0.8, zorder=0)
    panel.set_title(row["method"], fontsize="medium")
    claim = "estimated influence" + (" (order only)" if row["units"] == "rank" else "")
    figures = [
        f"{number(row[name])} {words}"
        for name, words in (("spearman_adjacent", "adjacent"), ("spearman_all", "all"))
        if row[name] == row[name]
    ]
    panel.set_xlabel(claim + ("\nSpearman " + ", ".join(figures) if figures else ""))
