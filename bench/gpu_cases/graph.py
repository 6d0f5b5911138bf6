"""ComplEx on FB15k-237, d=128: probabilities of links, each triple taken back, and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import data_sets
import numpy as np

import fastinfluence as fi
from fastinfluence import dispatch, readout
from fastinfluence.attribution.triples.rows import LinkReadout
from fastinfluence.kernels.structures import Graph, GraphTables, Links
from fastinfluence.models.link_scores import link_vectors, pack_entities

from . import Case, Size
from .shared import plain_torch

__all__ = ["cases"]

CPU_LINKS = 10  # of those explained


def cases(size: Size) -> Iterator[Case]:
    """Make them: of random rows, as training changes neither the work nor the shapes."""
    data, d, explained, ranked = _tiny(), 4, 2, 5
    if size == "small":
        data, d, explained, ranked = data_sets.synthetic_graph(500, 10, 3_000), 128, 3, 200
    elif size == "full":
        data, d, explained, ranked = data_sets.fb15k_237(smoke=False)[0], 128, 200, 20_000
    rng = np.random.default_rng(0)
    graph = Graph(data.n_entities, data.n_relations, False, True)
    n_rows = data.n_entities + data.n_relations
    tables = GraphTables(rng.standard_normal((n_rows, d)).astype(np.float32) / 3)
    yield from _explained(data, graph, tables, explained)
    yield _ranked(data, graph, tables, ranked)


def _tiny() -> fi.Triples:
    rng = np.random.default_rng(1)
    codes = rng.permutation(6 * 2 * 6)[:12]
    return fi.Triples.from_arrays(codes // 12, codes // 6 % 2, codes % 6)


def _links(data: fi.Triples, n: int) -> Links:
    """Tails asked for: of some training triples."""
    some = np.random.default_rng(2).integers(0, len(data), n)
    return Links(
        data.heads[some],
        data.relations[some] + np.int32(data.n_entities),
        np.zeros(n, bool),
        data.tails[some],
    )


def _explained(data: fi.Triples, graph: Graph, tables: GraphTables, n: int) -> Iterator[Case]:
    d, rng = tables.rows.shape[1], np.random.default_rng(3)
    changes = 0.1 * rng.standard_normal((len(data), 3, d), np.float32)
    changes[data.heads == data.tails, 1] = 0  # a loop's entity is changed once
    here, there = (
        LinkReadout(data, graph, tables, changes, 1, device) for device in ("cpu", "cuda")
    )
    links, n_threads = _links(data, n), dispatch.thread_count(None)
    few = Links(*(column[:CPU_LINKS] for column in links))
    pointers, triples = here.candidates(links, n_threads)
    compared = slice(pointers[len(few.targets)])
    touched = here._group(links, n_threads)[0].touched
    plain = plain_torch()
    if plain:
        columns = data.heads, data.relations, data.tails
        theirs = plain.LinkReadout(tables.rows, data.n_entities, changes, columns)
        of_links = plain.put(triples)
    made: list[Any] = []
    for kind in ("probability", "score"):
        by_score = kind == "score"

        def run(kind: str = kind) -> None:
            made.append(there.influence(kind, links, n_threads).data[compared])

        def on_cpu(kind: str = kind) -> Any:
            return here.influence(kind, few, 1).data

        yield Case(
            f"{n} links by {kind}, {data.n_entities:,} entities, d={d}",
            before=made.clear,
            run=run,
            found=lambda: (made[0],),
            expected=(on_cpu(),),
            tolerance=1e-4,
            # Changes of the rows of head, tail and relation, indices and influences.
            n_bytes=len(triples) * (3 * d + 2) * 4,
            # Every triple that moves the question moves the scores of all entities.
            n_flops=2 * d * len(touched) * (1 if by_score else data.n_entities),
            bound="bytes" if by_score else "flops",
            cpu=on_cpu,
            cpu_share=pointers[len(few.targets)] / len(triples),
            torch=None
            if by_score or not plain
            else lambda: (theirs(links, pointers, of_links)[compared],),
            torch_tolerance=1e-2,
            note=f"with the search for the {len(triples):,} influences on {n_threads} threads of "
            f"the CPU; of the CPU's kernel {len(few.targets)} links are timed and compared"
            + (
                "; torch would spend its time on the search as well"
                if by_score
                else "; torch is given the triples, and subtracts two rounded probabilities"
            ),
        )


def _ranked(data: fi.Triples, graph: Graph, tables: GraphTables, n: int) -> Case:
    memory, d = dispatch.memory("cuda"), tables.rows.shape[1]
    ours, cpu = (dispatch.kernels("ranks", backend).count_ranks for backend in ("cuda", "cpu"))
    links = _links(data, n)
    vectors, packed = link_vectors(graph, tables, links), pack_entities(graph, tables).rows
    asked = packed, data.n_entities, vectors, links.targets, readout.none_excluded(n), 0, n
    expected = np.empty(n, np.int64), np.empty(n, np.int64)
    cpu(*asked, *expected)
    there, counts = memory.put(asked), memory.put((expected[0] - 1, expected[1] - 1))
    plain = plain_torch()
    entities = tables.rows[: data.n_entities]
    return Case(
        f"ranks of {n:,} links, {data.n_entities:,} entities, d={d}",
        run=lambda: ours(*there, *counts),
        found=lambda: memory.fetch(counts),
        expected=expected,
        tolerance=0.0,
        n_bytes=4 * d * (n + data.n_entities) + 20 * n,
        n_flops=2 * d * n * data.n_entities,
        bound="flops",
        cpu=lambda: cpu(*asked, *expected),
        torch=plain and plain.Ranks(entities, vectors, links.targets),
        note="counts are the CPU's, ties and all",
    )
