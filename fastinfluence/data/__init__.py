"""Interactions, Triples, their readers, and data sets."""

from fastinfluence.data import datasets
from fastinfluence.data.grouping import Grouping, KeyedGrouping
from fastinfluence.data.interactions import Interactions
from fastinfluence.data.known import Known
from fastinfluence.data.readers import read_interactions
from fastinfluence.data.triple_readers import read_triples
from fastinfluence.data.triples import Triples

__all__ = [
    "Grouping",
    "Interactions",
    "KeyedGrouping",
    "Known",
    "Triples",
    "datasets",
    "read_interactions",
    "read_triples",
]
