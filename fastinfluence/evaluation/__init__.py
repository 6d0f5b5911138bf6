"""Is it true? Retraining without examples, metrics against it, and methods side by side."""

from fastinfluence.evaluation.comparison import Comparison, compare
from fastinfluence.evaluation.deletion import DeletionEffect, deletion_effect
from fastinfluence.evaluation.groups import (
    DeletionCurve,
    SubsetRemoval,
    deletion_curve,
    subset_removal,
)
from fastinfluence.evaluation.link_prediction import (
    LinkPrediction,
    RelationTable,
    link_prediction,
)
from fastinfluence.evaluation.metrics import (
    auc,
    bootstrap_interval,
    linear_datamodeling_score,
    noise_ceiling,
    pearson,
    per_query,
    probability_drop,
    relative_error,
    scale,
    spearman,
    top1_change,
    top1_ratio,
)
from fastinfluence.evaluation.neighbours import sample_examples, sample_queries
from fastinfluence.evaluation.noise import corrupt, noisy_example_auc
from fastinfluence.evaluation.paper_experiment import PaperExperiment
from fastinfluence.evaluation.paper_protocol import gradient_rollback_paper
from fastinfluence.evaluation.patching import tail_patch
from fastinfluence.evaluation.retraining import leave_out, retrain_values
from fastinfluence.evaluation.stability import Stability, stability
from fastinfluence.evaluation.truth import SeedTruth, Truth, leave_one_out, multi_seed
from fastinfluence.evaluation.unlearning import UnlearningDistance, unlearning_distance

__all__ = [
    "Comparison",
    "DeletionCurve",
    "DeletionEffect",
    "LinkPrediction",
    "PaperExperiment",
    "RelationTable",
    "SeedTruth",
    "Stability",
    "SubsetRemoval",
    "Truth",
    "UnlearningDistance",
    "auc",
    "bootstrap_interval",
    "compare",
    "corrupt",
    "deletion_curve",
    "deletion_effect",
    "gradient_rollback_paper",
    "leave_one_out",
    "leave_out",
    "linear_datamodeling_score",
    "link_prediction",
    "multi_seed",
    "noise_ceiling",
    "noisy_example_auc",
    "pearson",
    "per_query",
    "probability_drop",
    "relative_error",
    "retrain_values",
    "sample_examples",
    "sample_queries",
    "scale",
    "spearman",
    "stability",
    "subset_removal",
    "tail_patch",
    "top1_change",
    "top1_ratio",
    "unlearning_distance",
]
