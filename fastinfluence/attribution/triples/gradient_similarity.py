"""Similarity of gradients for models of triples."""

from __future__ import annotations

from fastinfluence.attribution import gradient_similarity
from fastinfluence.attribution.triples.method import TripleAttribution
from fastinfluence.models import KnowledgeGraphModel

__all__ = ["GradientSimilarity"]


class GradientSimilarity(
    TripleAttribution, gradient_similarity.GradientSimilarity, of=KnowledgeGraphModel
):
    """Similarity of gradients at the end of training, of a DistMult or ComplEx model.

    As for users and items (`fastinfluence.GradientSimilarity`): the loss of a triple is that of
    all the questions training asks about it, its negatives those of the last epochs on average.
    """
