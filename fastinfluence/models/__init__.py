"""Factorization models: hyper-parameters, fit, predict, recommend."""

from fastinfluence.models.base import Model, load
from fastinfluence.models.knowledge_graph import ComplEx, DistMult, KnowledgeGraphModel
from fastinfluence.models.matrix_factorization import MatrixFactorization

__all__ = ["ComplEx", "DistMult", "KnowledgeGraphModel", "MatrixFactorization", "Model", "load"]
