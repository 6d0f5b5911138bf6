"""Naive read-out of row changes on triples: a copy of the tables for every candidate."""

from __future__ import annotations

import numpy as np

from . import ranks


def shares(heads, relations, tails, j, subject, relation, target):
    """Whether training triple j shares an entity, anywhere, or the relation with a link."""
    return bool({heads[j], tails[j]} & {subject, target}) or relations[j] == relation


def relation_of(graph, row):
    """The relation a row belongs to, and the slot its changes are in."""
    inverse = row >= graph.n_entities + graph.n_relations
    return row - graph.n_entities - graph.n_relations * inverse, 3 if inverse else 2


def without(graph, rows, changes, heads, relations, tails, j):
    """The table with the changes of triple j taken back."""
    moved = rows.astype(np.float64)
    moved[heads[j]] -= changes[j, 0]
    moved[tails[j]] -= changes[j, 1]
    moved[graph.n_entities + relations[j]] -= changes[j, 2]
    if graph.reciprocal:
        moved[graph.n_entities + graph.n_relations + relations[j]] -= changes[j, 3]
    return moved


def phi(kind, graph, rows, subject, relation, flip, target):
    """Score, log-probability or probability of the target among all entities."""
    x = ranks.compose(graph.complex, flip, rows[subject], rows[relation])
    scores = np.array([ranks.score(x, rows[c]) for c in range(graph.n_entities)])
    if kind == "score":
        return scores[target]
    log_probability = scores[target] - scores.max() - np.log(np.exp(scores - scores.max()).sum())
    return log_probability if kind == "log-probability" else np.exp(log_probability)


def influence(kind, graph, rows, changes, triples, links):
    """Dense (n_links, n_train), NaN where a triple shares nothing with the link."""
    heads, relations, tails = triples
    found = np.full((len(links.targets), len(heads)), np.nan)
    for q, (subject, row, flip, target) in enumerate(zip(*links, strict=True)):
        relation, _ = relation_of(graph, row)
        whole = phi(kind, graph, rows, subject, row, flip, target)
        for j in range(len(heads)):
            if shares(heads, relations, tails, j, subject, relation, target):
                moved = without(graph, rows, changes, heads, relations, tails, j)
                found[q, j] = whole - phi(kind, graph, moved, subject, row, flip, target)
    return found
