"""Interactions, their readers, and data sets."""

from fastinfluence.data.interactions import Grouping, Interactions

__all__ = ["Grouping", "Interactions"]
