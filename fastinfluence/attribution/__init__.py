"""Attribution methods: one file each, one shared way to explain."""

from fastinfluence.attribution import (
    objectives,
    triples,  # noqa: F401  (makes the variants for models of triples known)
)
from fastinfluence.attribution.counterfactuals import (
    Counterfactual,
    TripleCounterfactual,
    counterfactual,
)
from fastinfluence.attribution.curvature_rollback import CurvatureRollback
from fastinfluence.attribution.dropout_influence import DropoutInfluence
from fastinfluence.attribution.explanations import Explanations
from fastinfluence.attribution.forward_influence import ForwardInfluence
from fastinfluence.attribution.gradient_rollback import GradientRollback
from fastinfluence.attribution.gradient_similarity import GradientSimilarity
from fastinfluence.attribution.hydra import Hydra
from fastinfluence.attribution.influence_factors import InfluenceFactors
from fastinfluence.attribution.influence_function import InfluenceFunction
from fastinfluence.attribution.pair_influence import PairInfluence
from fastinfluence.attribution.replay import Replay
from fastinfluence.attribution.sets import ExplanationSet, explain_set
from fastinfluence.attribution.tracin import TracIn
from fastinfluence.attribution.turn_over_dropout import TurnOverDropout

__all__ = [
    "Counterfactual",
    "CurvatureRollback",
    "DropoutInfluence",
    "ExplanationSet",
    "Explanations",
    "ForwardInfluence",
    "GradientRollback",
    "GradientSimilarity",
    "Hydra",
    "InfluenceFactors",
    "InfluenceFunction",
    "PairInfluence",
    "Replay",
    "TracIn",
    "TripleCounterfactual",
    "TurnOverDropout",
    "counterfactual",
    "explain_set",
    "objectives",
]
