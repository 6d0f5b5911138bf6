"""Is it true? Retraining without examples, metrics against it, and methods side by side."""

from fastinfluence.evaluation.comparison import Comparison, compare
from fastinfluence.evaluation.groups import (
    DeletionCurve,
    SubsetRemoval,
    deletion_curve,
    subset_removal,
)
from fastinfluence.evaluation.metrics import (
    auc,
    bootstrap_interval,
    linear_datamodeling_score,
    noise_ceiling,
    pearson,
    per_query,
    relative_error,
    scale,
    spearman,
    top1_ratio,
)
from fastinfluence.evaluation.neighbours import sample_examples
from fastinfluence.evaluation.retraining import leave_out, retrain_values
from fastinfluence.evaluation.truth import SeedTruth, Truth, leave_one_out, multi_seed

__all__ = [
    "Comparison",
    "DeletionCurve",
    "SeedTruth",
    "SubsetRemoval",
    "Truth",
    "auc",
    "bootstrap_interval",
    "compare",
    "deletion_curve",
    "leave_one_out",
    "leave_out",
    "linear_datamodeling_score",
    "multi_seed",
    "noise_ceiling",
    "pearson",
    "per_query",
    "relative_error",
    "retrain_values",
    "sample_examples",
    "scale",
    "spearman",
    "subset_removal",
    "top1_ratio",
]
