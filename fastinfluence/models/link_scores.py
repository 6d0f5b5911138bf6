"""Scores of links: of given answers, of the best answers, and the rank of given ones.

Questions are composed to vectors block by block; all entities answer them through the packed
rows and tiles of the read-out, so no matrix of scores ever exists, and a score among all
entities has bits of its own that no block, tile or number of threads changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import Exclusions, Graph, GraphTables, Links, Side

__all__ = ["Counts", "count_ranks", "link_vectors", "pack_entities", "score_links", "top_entities"]

Array = npt.NDArray[Any]

_LINKS_AT_ONCE = 8192  # vectors of so many exist at a time
_RANKED_TOGETHER = 256  # questions: a tile of the kernel


class Counts(NamedTuple):
    """Where the right answers stand among the candidates of n questions."""

    greater: npt.NDArray[np.int64]  # (n,): candidates with a higher score
    equal: npt.NDArray[np.int64]  # (n,): other candidates with the same score


def link_vectors(graph: Graph, tables: GraphTables, links: Links) -> Array:
    """What the row of an answer is multiplied with: ``score = x . e_target``.

    Parameters
    ----------
    graph : Graph
    tables : GraphTables
    links : Links
        Their targets are not looked at.

    Returns
    -------
    (n, d) dtype of the rows
        The bits are those of the kernels' `compose`.
    """
    entities, relations = tables.rows[links.subjects], tables.rows[links.relations]
    if not graph.complex:
        return entities * relations
    half = entities.shape[1] // 2
    a, b = entities[:, :half], entities[:, half:]
    c, s = relations[:, :half], relations[:, half:]
    np.negative(s, out=s, where=links.flips[:, None])
    vectors = np.empty_like(entities)
    vectors[:, :half] = a * c - b * s
    vectors[:, half:] = a * s + b * c
    return vectors


def score_links(graph: Graph, tables: GraphTables, links: Links) -> Array:
    """Scores (n,) of links, in the dtype of the rows.

    Parameters
    ----------
    graph : Graph
    tables : GraphTables
    links : Links
    """
    scores = np.empty(len(links.targets), tables.rows.dtype)
    for block, some in _blocks(links):
        vectors = link_vectors(graph, tables, some)
        scores[block] = np.einsum("nd,nd->n", vectors, tables.rows[some.targets])
    return scores


def pack_entities(graph: Graph, tables: GraphTables, n_threads: int = 1) -> Side:
    """Pack the entities' rows, as one group, for `top_entities` and `count_ranks`."""
    entities = tables.rows[: graph.n_entities]
    order = np.arange(graph.n_entities)
    pointers = np.array([0, graph.n_entities])
    # The last coordinate takes the place of the bias that these rows do not have.
    factors, last = entities[:, :-1], entities[:, -1]
    return readout.pack_side(factors, last, order, pointers, order, n_threads=n_threads)


def top_entities(
    graph: Graph,
    tables: GraphTables,
    links: Links,
    k: int,
    *,
    excluded: Exclusions | None = None,
    n_threads: int = 1,
    device: str = "cpu",
) -> tuple[npt.NDArray[np.int32], Array]:
    """Find the k entities that answer each question with the highest scores.

    Parameters
    ----------
    graph : Graph
    tables : GraphTables
    links : Links
        Their targets are not looked at.
    k : int
    excluded : Exclusions, optional
        Entity codes that are no candidates, distinct for each question. For what is known:
        ``Exclusions(*data.answers(predict, entities, relations), data.known(predict).answers)``.
    n_threads : int
    device : str
        The backend.

    Returns
    -------
    codes : (n, k) int32
        The best first; ties break by code.
    scores : (n, k) dtype of the rows

    Raises
    ------
    ParameterError
        k < 1, or more than some question has candidates.
    """
    n = len(links.subjects)
    left_out = _places(excluded, n)
    _check_k(k, graph.n_entities - (left_out.stops - left_out.starts))
    side = pack_entities(graph, tables, n_threads)
    codes = np.empty((n, k), np.int32)
    scores = np.empty((n, k), tables.rows.dtype)
    for block, some in _blocks(links):
        vectors = link_vectors(graph, tables, some)
        top = readout.start_lists(len(vectors), k, vectors.dtype, totals=False)
        readout.read_side(
            side,
            np.zeros(len(vectors), np.int32),
            np.arange(len(vectors), dtype=np.int32),
            vectors,
            Exclusions(left_out.starts[block], left_out.stops[block], left_out.places),
            top,
            n_threads=n_threads,
            device=device,
        )
        codes[block], scores[block] = top.indices, top.values
    return codes, scores


def count_ranks(
    graph: Graph,
    tables: GraphTables,
    side: Side,
    links: Links,
    *,
    excluded: Exclusions | None = None,
    n_threads: int = 1,
    device: str = "cpu",
) -> Counts:
    """Count the entities that score above each link's target, and those that tie with it.

    Parameters
    ----------
    graph : Graph
    tables : GraphTables
    side : Side
        From `pack_entities`, on the device if it is to stay there.
    links : Links
        The vectors of all of them exist at a time.
    excluded : Exclusions, optional
        As in `top_entities`, ascending for each question; a target may be among its own.
    n_threads : int
    device : str
        The backend.
    """
    n = len(links.targets)
    left_out = _places(excluded, n)
    vectors = link_vectors(graph, tables, links)
    memory, kernel = dispatch.memory(device), dispatch.kernels("ranks", device).count_ranks
    rows, vectors, targets, left_out = memory.put((side.rows, vectors, links.targets, left_out))
    counts = Counts(memory.empty(n, np.int64), memory.empty(n, np.int64))

    def part(start: int, stop: int) -> None:
        kernel(
            rows, graph.n_entities, vectors, targets, left_out, start, stop,
            counts.greater, counts.equal,
        )  # fmt: skip

    bounds = [*range(0, n, _RANKED_TOGETHER), n] if device == "cpu" else [0, n]
    dispatch.run_parts(part, list(itertools.pairwise(bounds)), n_threads)
    found: Counts = memory.fetch(counts)
    return found


def _blocks(links: Links) -> Iterator[tuple[slice, Links]]:
    n = len(links.subjects)
    for start in range(0, n, _LINKS_AT_ONCE):
        block = slice(start, min(start + _LINKS_AT_ONCE, n))
        yield block, Links(*(column[block] for column in links))


def _places(excluded: Exclusions | None, n: int) -> Exclusions:
    """Exclusions as the kernels are compiled for."""
    if excluded is None:
        return readout.none_excluded(n)
    return excluded._replace(places=excluded.places.astype(np.int64))


def _check_k(k: int, left: npt.NDArray[np.int64]) -> None:
    readout.check_k(k)
    if len(left) and k > left.min():
        worst = int(left.argmin())
        raise ParameterError(
            f"k={k} is more than the {left[worst]:,} entities left to answer question {worst}: "
            "lower k, or exclude nothing"
        )
