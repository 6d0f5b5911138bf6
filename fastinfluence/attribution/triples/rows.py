"""The row store of triples, and the influence on links that is read from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.data import Triples
from fastinfluence.errors import DeviceMemoryError, ParameterError
from fastinfluence.kernels.structures import (
    Graph,
    GraphTables,
    Influences,
    LinkGroups,
    Links,
    TripleRows,
)
from fastinfluence.models.link_scores import link_vectors, pack_entities

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["LinkReadout", "store_changes"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
Lists = tuple[Counts, Codes]  # bounds of each group, members

_LISTS_AT_ONCE = 256  # united by a thread before it looks for more
_PARTS_PER_THREAD = 4
_TRIPLE = 2500  # work of a triple apart from products, in multiply-adds: 100 ns
_PART = 2**25  # work that is worth a thread: 1.3 ms; starting one can cost as much


def store_changes(data: Triples, graph: Graph, changes: Array, n_threads: int = 1) -> TripleRows:
    """Put changes of rows where the read-out finds them.

    Parameters
    ----------
    data : Triples
    graph : Graph
    changes : (n, S, d) float32 or float64
        By training index; the slots are those of a `TripleRecord`. Kept, not copied, where it
        is C-contiguous.
    n_threads : int
    """
    entities = np.arange(data.n_entities, dtype=np.int32)
    entity_pointers, by_entity = _unite(
        (*_short(data.by_head), entities), (*_short(data.by_tail), entities), n_threads
    )
    return TripleRows(
        np.ascontiguousarray(changes),
        data.heads,
        data.relations,
        data.tails,
        entity_pointers,
        by_entity,
        *_short(data.by_relation),
    )


class LinkReadout:
    """Influence on links, by the changes of rows that are taken back.

    Parameters
    ----------
    data : Triples
    graph : Graph
    tables : GraphTables
        Of the model.
    changes : (n, S, d)
        As for `store_changes`; kept in the dtype of the tables.
    n_threads : int
        Of sorting and packing.
    device : str, default "cpu"
        The backend that reads; what is read from stays there.

    Raises
    ------
    ParameterError
        The changes are not those of these triples under this model.
    DeviceMemoryError
        They do not fit the device.
    """

    def __init__(
        self,
        data: Triples,
        graph: Graph,
        tables: GraphTables,
        changes: Array,
        n_threads: int,
        device: str = "cpu",
    ) -> None:
        self.graph, self.tables = graph, GraphTables(np.ascontiguousarray(tables.rows))
        expected = len(data), 4 if graph.reciprocal else 3, tables.rows.shape[1]
        if changes.shape != expected:
            raise ParameterError(
                f"the changes of {expected[0]:,} triples in {expected[1]} rows of {expected[2]} "
                f"numbers are needed, not an array of shape {changes.shape}"
            )
        changes = changes.astype(tables.rows.dtype, copy=False)
        self.store = store_changes(data, graph, changes, n_threads)
        packed = pack_entities(graph, self.tables, n_threads).rows
        self._device, self._memory = device, dispatch.memory(device)
        self._placed = self._memory.put((self.tables.rows, packed, self.store))

    def degrees(self, links: Links) -> Counts:
        """At most so many (n,) triples share an entity or the relation with each link."""
        of_entity = np.diff(self.store.entity_pointers)
        of_relation = np.diff(self.store.relation_pointers)
        found = of_entity[links.subjects] + of_entity[links.targets]
        found += of_relation[self._relation_codes(links.relations)]
        degrees: Counts = np.minimum(found, len(self.store.heads))
        return degrees

    def influence(self, kind: str, links: Links, n_threads: int) -> csr_array:
        """Influence (n, n_train) of the triples that share an entity or the relation with links.

        The exact change of the score, the log-probability or the probability of a link's target
        among all entities, when one triple's changes are taken back.

        Parameters
        ----------
        kind : {"score", "log-probability", "probability"}
        links : Links
        n_threads : int
        """
        import scipy.sparse

        pointers, indices, values = _in_halves(
            lambda some: self._read(kind, some, n_threads), links
        )
        shape = len(links.targets), len(self.store.heads)
        return scipy.sparse.csr_array((values, indices, pointers), shape=shape)

    def _read(self, kind: str, links: Links, n_threads: int) -> Influences:
        """`influence` as a matrix in CPU memory, all of it at once on the device."""
        kernels, memory = dispatch.kernels("graph_readout", self._device), self._memory
        code = {
            "score": kernels.SCORE,
            "log-probability": kernels.LOG_PROBABILITY,
            "probability": kernels.PROBABILITY,
        }[kind]
        groups, group_of = self._group(links, n_threads)
        pointers, indices = self._candidates(groups, group_of, links.targets, n_threads)
        units = _units(np.diff(groups.touched_pointers), kernels.TOGETHER)
        rows, packed, store = self._placed
        asked, cut, begins, triples = memory.put((groups, units, pointers, indices))
        values = memory.empty(len(indices), self.tables.rows.dtype)
        out = Influences(begins, triples, values)

        def part(start: int, stop: int) -> None:
            kernels.read_links(code, self.graph, rows, packed, store, asked, cut, start, stop, out)

        work = units[:, 2] - units[:, 1] + 1.0
        scored = 1 if kind == "score" else self.graph.n_entities
        cost = _TRIPLE + scored * self.tables.rows.shape[1]
        most = _PARTS_PER_THREAD * n_threads if self._device == "cpu" else 1
        n_parts = min(most, 1 + int(work.sum()) * cost // _PART)
        dispatch.run_parts(part, dispatch.even_parts(work, n_parts), n_threads)
        return Influences(pointers, indices, memory.fetch(values))

    def self_influence(self, links: Links, n_threads: int) -> Array:
        """Influence (n_train,) of every triple on the score of its own link, one for each."""
        rows, _, store = self._placed
        n, kernels = len(self.store.heads), dispatch.kernels("graph_readout", self._device)
        own = self._memory.put(links)
        result = self._memory.empty(n, self.tables.rows.dtype)

        def part(start: int, stop: int) -> None:
            kernels.self_influence(self.graph, rows, store, own, start, stop, result)

        n_parts = 4 * n_threads if self._device == "cpu" else 1
        dispatch.run_parts(part, dispatch.equal_parts(n, n_parts), n_threads)
        found: Array = self._memory.fetch(result)
        return found

    def linear(self, gradient: Array, triples: npt.NDArray[Any] | None = None) -> Array:
        """Influence (m,) of triples, or of all, on something with a gradient: to first order.

        Parameters
        ----------
        gradient : (n_rows, d)
        triples : (m,) int, optional
        """
        store, graph = self.store, self.graph
        chosen = np.arange(len(store.heads)) if triples is None else triples
        result = np.zeros(len(chosen), self.tables.rows.dtype)
        for start in range(0, len(chosen), 2**14):
            some = chosen[start : start + 2**14]
            relations = graph.n_entities + store.relations[some]
            rows = [store.heads[some], store.tails[some], relations, relations + graph.n_relations]
            for slot in range(store.changes.shape[1]):
                products = gradient[rows[slot]] * store.changes[some, slot]
                result[start : start + len(some)] += products.sum(axis=1)
        return result

    def scores(self, links: Links) -> npt.NDArray[np.float64]:
        """Scores (n,) of links as they are."""
        vectors = link_vectors(self.graph, self.tables, links).astype(np.float64)
        targets = self.tables.rows[links.targets].astype(np.float64)
        found: npt.NDArray[np.float64] = np.einsum("nd,nd->n", vectors, targets)
        return found

    def candidates(self, links: Links, n_threads: int) -> Lists:
        """Pointers (n + 1,) and training indices of the triples that share with each link."""
        return self._candidates(*self._group(links, n_threads), links.targets, n_threads)

    def _candidates(
        self, groups: LinkGroups, group_of: Codes, targets: Codes, n_threads: int
    ) -> Lists:
        touched = groups.touched_pointers, groups.touched, group_of
        own = self.store.entity_pointers, self.store.by_entity, targets
        return _unite(touched, own, n_threads)

    def _group(self, links: Links, n_threads: int) -> tuple[LinkGroups, Codes]:
        """Bring links together that ask the same question; return the group (n,) of each, too."""
        n_rows = len(self.tables.rows)
        keys = (links.subjects.astype(np.int64) * n_rows + links.relations) * 2 + links.flips
        _, first, group_of, sizes = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        order = np.argsort(group_of, kind="stable")
        subjects, relations = links.subjects[first], links.relations[first]
        touched_pointers, touched = _unite(
            (self.store.entity_pointers, self.store.by_entity, subjects),
            (
                self.store.relation_pointers,
                self.store.by_relation,
                self._relation_codes(relations),
            ),
            n_threads,
        )
        groups = LinkGroups(
            subjects,
            relations,
            links.flips[first],
            links.targets[order],
            order,
            np.concatenate([[0], np.cumsum(sizes)]),
            touched,
            touched_pointers,
        )
        return groups, group_of.astype(np.int32)

    def _relation_codes(self, rows: Codes) -> Codes:
        codes = rows - np.int32(self.graph.n_entities)
        return codes % np.int32(self.graph.n_relations)


def _in_halves(read: Callable[[Links], Influences], links: Links) -> Influences:
    """Read links, half of them at a time where the device has not memory enough for all.

    Raises
    ------
    DeviceMemoryError
        It is too small for a single link.
    """
    n = len(links.targets)
    try:
        return read(links)
    except DeviceMemoryError as error:
        if n == 1:
            raise DeviceMemoryError(
                f"the device has not memory enough to explain one link: {error}; use device='cpu'"
            ) from error
    halves = [Links(*(column[some] for column in links)) for some in np.s_[: n // 2, n // 2 :]]
    first, second = (_in_halves(read, half) for half in halves)
    return Influences(
        np.concatenate([first.pointers, first.pointers[-1] + second.pointers[1:]]),
        np.concatenate([first.indices, second.indices]),
        np.concatenate([first.values, second.values]),
    )


def _short(grouping: tuple[Counts, Counts]) -> Lists:
    """A grouping with members in half the memory, which the kernels are compiled for."""
    pointers, order = grouping
    return pointers.copy(), order.astype(np.int32)


def _unite(
    first: tuple[Counts, Codes, Codes], second: tuple[Counts, Codes, Codes], n_threads: int
) -> Lists:
    """Unite two lists for each of n numbers: pointers (n + 1,), members ascending, each once.

    Parameters
    ----------
    first, second : pointers, members, groups (n,)
        Number i takes the members of group ``groups[i]``.
    n_threads : int
    """
    kernels = dispatch.kernels("graph_readout")
    n = len(first[2])
    sizes = np.empty(n, np.int64)
    bounds = range(0, n, _LISTS_AT_ONCE)
    parts = [(start, min(start + _LISTS_AT_ONCE, n)) for start in bounds]
    dispatch.run_parts(lambda *p: kernels.union_sizes(first, second, *p, sizes), parts, n_threads)
    pointers = np.concatenate([[0], np.cumsum(sizes)])
    members = np.empty(pointers[-1], np.int32)
    dispatch.run_parts(
        lambda *p: kernels.unions(first, second, *p, pointers, members), parts, n_threads
    )
    return pointers, members


def _units(sizes: Counts, together: int) -> Counts:
    """Cut lists into units (n_units, 3) of group, first and last + 1; one of an empty list."""
    n_units = np.maximum(-(-sizes // together), 1)
    groups = np.repeat(np.arange(len(sizes)), n_units)
    starts = np.cumsum(n_units) - n_units
    first = (np.arange(len(groups)) - starts[groups]) * together
    return np.column_stack([groups, first, np.minimum(first + together, sizes[groups])])
