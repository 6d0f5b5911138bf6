"""Interactions, Triples, their readers, and data sets."""

from fastinfluence.data import datasets
from fastinfluence.data.grouping import Grouping
from fastinfluence.data.interactions import Interactions
from fastinfluence.data.readers import read_interactions
from fastinfluence.data.triples import Triples

__all__ = ["Grouping", "Interactions", "Triples", "datasets", "read_interactions"]
