"""Triples as the questions that a model answers: which end is asked for, through which row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import Graph, Links

if TYPE_CHECKING:
    from fastinfluence.training import GraphRecipe

__all__ = ["make_links"]

PREDICTED = ("tail", "head")


def make_links(
    recipe: GraphRecipe,
    graph: Graph,
    heads: npt.NDArray[np.int32],
    relations: npt.NDArray[np.int32],
    tails: npt.NDArray[np.int32],
    predict: str | npt.NDArray[np.bool_] = "tail",
) -> Links:
    """Questions behind triples of codes; see `KnowledgeGraphModel.links`."""
    if isinstance(predict, str):
        if predict not in PREDICTED:
            raise ParameterError(f"predict={predict!r} is not known: use 'tail' or 'head'")
        predict = np.full(len(heads), predict == "head")
    if predict.any() and recipe.reciprocal and recipe.sides == "tail":
        raise ParameterError(
            "the model was trained with sides='tail' and has no rows to predict heads with: "
            "ask for predict='tail', or train it with sides='both' or reciprocal=False"
        )
    rows = graph.n_entities + relations
    if graph.reciprocal:
        rows = rows + graph.n_relations * predict
    return Links(
        np.where(predict, tails, heads).astype(np.int32),
        rows.astype(np.int32),
        predict & (not graph.reciprocal),
        np.where(predict, heads, tails).astype(np.int32),
    )
