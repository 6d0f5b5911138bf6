"""Attribution methods for models of knowledge graphs: the variants of those of the same name."""

from fastinfluence.attribution.triples.curvature_rollback import CurvatureRollback
from fastinfluence.attribution.triples.gradient_rollback import GradientRollback
from fastinfluence.attribution.triples.gradient_similarity import GradientSimilarity
from fastinfluence.attribution.triples.hydra import Hydra
from fastinfluence.attribution.triples.influence_function import InfluenceFunction
from fastinfluence.attribution.triples.replay import Replay
from fastinfluence.attribution.triples.tracin import TracIn

__all__ = [
    "CurvatureRollback",
    "GradientRollback",
    "GradientSimilarity",
    "Hydra",
    "InfluenceFunction",
    "Replay",
    "TracIn",
]
