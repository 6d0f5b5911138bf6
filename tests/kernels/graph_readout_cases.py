"""Random changes of rows and links to read them for, and the oracle's influences."""

from __future__ import annotations

import numpy as np
from oracles import graph_readout as oracle

from fastinfluence.attribution.triples.rows import LinkReadout
from fastinfluence.data import Triples
from fastinfluence.kernels.structures import Graph, GraphTables, Links

KINDS = ("score", "log-probability", "probability")


def case(
    seed,
    *,
    n_entities=7,
    n_relations=3,
    n=25,
    d=6,
    is_complex=False,
    reciprocal=True,
    size=0.3,
    scale=1.0,
    n_links=9,
    dtype="float64",
):
    """Random rows, changes and links; about as many entities as make self loops and repeats."""
    rng = np.random.default_rng(seed)
    columns = (rng.integers(0, m, n) for m in (n_entities, n_relations, n_entities))
    data = Triples.from_arrays(
        *columns,
        entity_ids=np.arange(n_entities),
        relation_ids=np.arange(n_relations),
        duplicates="keep",
    )
    graph = Graph(n_entities, n_relations, reciprocal, is_complex)
    n_rows = n_entities + n_relations * (2 if reciprocal else 1)
    rows = rng.normal(0, scale, (n_rows, d)).astype(dtype)
    changes = rng.normal(0, size, (n, 4 if reciprocal else 3, d)).astype(dtype)
    changes[data.heads == data.tails, 1] = 0
    head = rng.random(n_links) < 0.5
    relations = n_entities + rng.integers(0, n_relations, n_links)
    links = Links(
        rng.integers(0, n_entities, n_links).astype(np.int32),
        (relations + n_relations * (head & reciprocal)).astype(np.int32),
        head & (not reciprocal),
        rng.integers(0, n_entities, n_links).astype(np.int32),
    )
    return data, graph, rows, changes, links


def compared(kind, some_case, n_threads=1, device="cpu"):
    """The read-out's matrix, dense with NaN where it has no entry, and the oracle's."""
    data, graph, rows, changes, links = some_case
    readout = LinkReadout(data, graph, GraphTables(rows), changes, n_threads, device)
    found = readout.influence(kind, links, n_threads)
    dense = np.full(found.shape, np.nan, found.dtype)
    dense[np.repeat(np.arange(found.shape[0]), np.diff(found.indptr)), found.indices] = found.data
    triples = data.heads, data.relations, data.tails
    return dense, oracle.influence(kind, graph, rows, changes, triples, links)


def stranger():
    """A link nobody shares anything with, and one of which only the target is known."""
    data = Triples.from_arrays(
        [0, 0], [0, 0], [1, 2], entity_ids=np.arange(6), relation_ids=np.arange(2)
    )
    rng = np.random.default_rng(7)
    graph = Graph(6, 2, False, False)
    rows, changes = rng.normal(size=(8, 4)), rng.normal(size=(2, 3, 4))
    links = Links(
        np.array([3, 3], np.int32),
        np.array([7, 7], np.int32),
        np.zeros(2, bool),
        np.array([4, 2], np.int32),
    )
    return data, graph, rows, changes, links
