"""Naive balancing: a heap of loads, and the best of all assignments."""

from __future__ import annotations

import heapq
import itertools


def balance(degrees, descending, n_groups):
    """Each row, largest first, to the lightest group (the lowest of equals)."""
    heap = [(0, group) for group in range(n_groups)]
    groups = [None] * len(degrees)
    for row in descending:
        load, group = heapq.heappop(heap)
        groups[row] = group
        heapq.heappush(heap, (load + int(degrees[row]) + 1, group))
    return groups


def loads(degrees, groups, n_groups):
    """Sum over each group of degree + 1: a row without examples takes a place, too."""
    totals = [0] * n_groups
    for degree, group in zip(degrees, groups, strict=True):
        totals[group] += int(degree) + 1
    return totals


def smallest_maximum(degrees, n_groups):
    """Largest load of the best assignment there is, by trying them all."""
    assignments = itertools.product(range(n_groups), repeat=len(degrees))
    return min(max(loads(degrees, groups, n_groups)) for groups in assignments)
