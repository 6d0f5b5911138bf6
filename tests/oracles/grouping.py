"""Naive grouping: numpy's stable comparison sort."""

import numpy as np


def count_sort(codes, n_groups, order=None):
    order = np.arange(len(codes)) if order is None else np.asarray(order)
    grouped = order[np.argsort(np.asarray(codes)[order], kind="stable")]
    sizes = np.array([np.count_nonzero(np.asarray(codes) == g) for g in range(n_groups)], int)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), grouped.astype(np.int64)
