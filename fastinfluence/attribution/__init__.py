"""Attribution methods: one file each, one shared way to explain."""

from fastinfluence.attribution import objectives
from fastinfluence.attribution.curvature_rollback import CurvatureRollback
from fastinfluence.attribution.explanations import Explanations
from fastinfluence.attribution.gradient_rollback import GradientRollback
from fastinfluence.attribution.replay import Replay

__all__ = ["CurvatureRollback", "Explanations", "GradientRollback", "Replay", "objectives"]
