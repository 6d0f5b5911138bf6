"""Interactions, their readers, and data sets."""

from fastinfluence.data import datasets
from fastinfluence.data.interactions import Grouping, Interactions
from fastinfluence.data.readers import read_interactions

__all__ = ["Grouping", "Interactions", "datasets", "read_interactions"]
