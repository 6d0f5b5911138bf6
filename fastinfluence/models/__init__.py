"""Factorization models: hyper-parameters, fit, predict, recommend."""

from fastinfluence.models.base import load
from fastinfluence.models.matrix_factorization import MatrixFactorization

__all__ = ["MatrixFactorization", "load"]
