"""Explain the predictions of factorization models by the training examples that made them."""

from __future__ import annotations

import os as _os

_here = _os.path.dirname(__file__)
if not _os.path.isdir(_os.path.join(_here, "kernels")):
    # A checkout that lost its symbolic link: the kernels live beside this package.
    __path__.append(_os.path.dirname(_here))

from fastinfluence import errors, evaluation, functional  # noqa: E402
from fastinfluence.attribution import (  # noqa: E402
    CurvatureRollback,
    DropoutInfluence,
    Explanations,
    ForwardInfluence,
    GradientRollback,
    GradientSimilarity,
    Hydra,
    InfluenceFactors,
    InfluenceFunction,
    PairInfluence,
    Replay,
    TracIn,
    TurnOverDropout,
    objectives,
)
from fastinfluence.data import (  # noqa: E402
    Interactions,
    Triples,
    datasets,
    read_interactions,
    read_triples,
)
from fastinfluence.errors import FastInfluenceError  # noqa: E402
from fastinfluence.models import ComplEx, DistMult, MatrixFactorization, load  # noqa: E402
from fastinfluence.training import Trajectory  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "ComplEx",
    "CurvatureRollback",
    "DistMult",
    "DropoutInfluence",
    "Explanations",
    "FastInfluenceError",
    "ForwardInfluence",
    "GradientRollback",
    "GradientSimilarity",
    "Hydra",
    "InfluenceFactors",
    "InfluenceFunction",
    "Interactions",
    "MatrixFactorization",
    "PairInfluence",
    "Replay",
    "TracIn",
    "Trajectory",
    "Triples",
    "TurnOverDropout",
    "datasets",
    "errors",
    "evaluation",
    "functional",
    "load",
    "objectives",
    "read_interactions",
    "read_triples",
]
