"""`Triples`: what a knowledge graph says, as training examples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastinfluence.data.display import show_triples
from fastinfluence.data.graph_names import GraphNames
from fastinfluence.data.grouping import Grouping, KeyedGrouping, group, group_by_pair, sort_rows
from fastinfluence.data.ids import Codes, IdMap, Ids, freeze
from fastinfluence.data.known import Known, known_answers
from fastinfluence.data.npz import write_npz
from fastinfluence.data.pykeen import factory_columns
from fastinfluence.data.rows import check_policy, first_of_each, repeated, selected
from fastinfluence.data.tables import Column, table_columns, triple_columns
from fastinfluence.data.triple_parts import (
    COLUMNS,
    SPLITS,
    TRAINING,
    Columns,
    encode_parts,
    saved_rows,
    three_columns,
)
from fastinfluence.errors import DataError, ParameterError

__all__ = ["TripleDuplicates", "Triples"]

TripleDuplicates: TypeAlias = Literal["error", "first", "keep"]
Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Triples(GraphNames):
    """Training examples of a knowledge graph: (head, relation, tail) rows over two maps of ids.

    Immutable, and its arrays are read-only. Built by `from_arrays`, `from_table`,
    `from_pykeen` or `fastinfluence.read_triples`; never empty. A row's position is its
    *training index*, the number every explanation refers to.

    Attributes
    ----------
    heads, relations, tails : (n,) int32
        Codes: positions in `entity_ids` (heads and tails) and `relation_ids`.
    entity_map, relation_map : IdMap
        Raw ids and labels by code. Entities that no training triple holds are in it too.
    validation, test : Triples or None
        Other triples over the same maps; they have no splits of their own.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Triples.from_arrays(
    ...     ["brazil", "china"], ["exports to", "trades with"], ["china", "usa"],
    ...     test=[("chile", "exports to", "usa")],
    ... )
    >>> data
    Triples: 2 triples, 4 entities, 2 relations, test 1
      1 entity occurs only in test
      brazil — exports to → china
      china — trades with → usa
    >>> data.entity_ids[data.unseen_entities].tolist()
    ['chile']
    """

    heads: Codes
    relations: Codes
    tails: Codes
    entity_map: IdMap
    relation_map: IdMap
    validation: Triples | None = None
    test: Triples | None = None

    # ---------------------------------------------------------------- constructors

    @classmethod
    def from_arrays(
        cls,
        heads: object,
        relations: object,
        tails: object,
        *,
        validation: object = None,
        test: object = None,
        entity_ids: object = None,
        relation_ids: object = None,
        entity_labels: object = None,
        relation_labels: object = None,
        duplicates: TripleDuplicates = "error",
    ) -> Triples:
        """Build from parallel arrays.

        Parameters
        ----------
        heads, relations, tails : array_like, (n,)
            Raw ids, integers from 0 up or strings; heads and tails of one type. Codes follow
            the sorted order of the ids, those that training holds before those that only
            `validation` or `test` holds. With `entity_ids` or `relation_ids` given, codes.
        validation, test : tuple of three arrays or array_like (m, 3), optional
            Held-out triples in the same form. What training does not hold is kept, and
            counted where the data show themselves.
        entity_ids, relation_ids : array_like, optional
            All raw ids in code order; may hold ids without a triple.
        entity_labels, relation_labels : sequence of str or mapping, optional
            Names for people: one for each id in code order, or a mapping from raw id.
        duplicates : {"error", "first", "keep"}
            What to do with a triple that occurs twice in the same part: refuse it, keep its
            first row, or keep every row.

        Raises
        ------
        DataError
            Empty or mismatched arrays, a missing or negative id, integers among strings, an
            empty split, a repeated triple.
        """
        check_policy(duplicates, get_args(TripleDuplicates))
        parts: dict[str, Columns] = {TRAINING: (heads, relations, tails)}
        for split, given in zip(SPLITS, (validation, test), strict=True):
            if given is not None:
                parts[split] = three_columns(given, split)
        rows, entity_map, relation_map = encode_parts(
            parts, (entity_ids, entity_labels), (relation_ids, relation_labels)
        )
        made = {
            part: cls(*codes, entity_map, relation_map)._settled(part, duplicates)
            for part, codes in rows.items()
        }
        validation, test = (made.get(split) for split in SPLITS)
        return replace(made[TRAINING], validation=validation, test=test)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        head: Column | None = None,
        relation: Column | None = None,
        tail: Column | None = None,
        validation: Any = None,
        test: Any = None,
        entity_labels: object = None,
        relation_labels: object = None,
        duplicates: TripleDuplicates = "error",
    ) -> Triples:
        """Build from a pandas or polars frame, an Arrow table, or a dict of arrays.

        Parameters
        ----------
        table : table
            Anything with ``__arrow_c_stream__`` will do.
        head, relation, tail : str or int, optional
            Columns by name or position. May all be left out for a table of exactly three
            columns in this order; any other must be told.
        validation, test : table, optional
            With the same columns.
        entity_labels, relation_labels, duplicates
            As in `from_arrays`, whose errors apply.

        Raises
        ------
        DataError
            A column that does not exist; those that do are listed.
        """

        def columns(table: Any) -> tuple[Any, ...]:
            names, column_at = table_columns(table)
            return tuple(column_at(j) for j in triple_columns(names, head, relation, tail))

        heads, relations, tails = columns(table)
        return cls.from_arrays(
            heads,
            relations,
            tails,
            validation=None if validation is None else columns(validation),
            test=None if test is None else columns(test),
            entity_labels=entity_labels,
            relation_labels=relation_labels,
            duplicates=duplicates,
        )

    @classmethod
    def from_pykeen(cls, factory: Any, validation: Any = None, test: Any = None) -> Triples:
        """Take over PyKEEN triples factories, codes and all; PyKEEN itself is not needed.

        Parameters
        ----------
        factory, validation, test : TriplesFactory
            ``mapped_triples`` (n, 3), ``entity_to_id`` and ``relation_to_id``, the latter two
            the same in all. Inverse triples that PyKEEN would add are not taken over.

        Raises
        ------
        DataError
            No triples factory, splits over other ids, ids that do not number 0, 1, 2, ...
        """
        return cls.from_arrays(**factory_columns(factory, validation, test), duplicates="keep")

    @classmethod
    def from_parts(cls, parts: Mapping[str, Array]) -> Triples:
        """Rebuild from what `arrays` returned, without a copy of the rows (memory maps stay)."""
        missing = {*COLUMNS, "entity_ids", "relation_ids"} - set(parts)
        if missing:
            raise DataError(f"saved triples lack {', '.join(sorted(missing))}")
        entity_map = IdMap.build("entity", parts["entity_ids"], parts.get("entity_labels"))
        relation_map = IdMap.build("relation", parts["relation_ids"], parts.get("relation_labels"))
        sizes = (len(entity_map), len(relation_map), len(entity_map))

        def rebuilt(split: str) -> Triples | None:
            rows = saved_rows(parts, f"{split}_", sizes)
            return None if rows is None else cls(*rows, entity_map, relation_map)

        rows = saved_rows(parts, "", sizes)
        assert rows is not None
        return cls(*rows, entity_map, relation_map, *map(rebuilt, SPLITS))

    # ---------------------------------------------------------------- sizes, ids and names

    def __len__(self) -> int:
        return len(self.heads)

    def triple_name(self, index: int) -> str:
        """The training triple of a training index, as `name` writes it."""
        return self.name(int(self.heads[index]), int(self.relations[index]), int(self.tails[index]))

    def columns(self, index: object = None) -> dict[str, Ids]:
        """Raw ids by ``"head"``, ``"relation"``, ``"tail"``: of all rows or of training indices."""
        rows = slice(None) if index is None else np.asarray(index)
        return {
            "head": self.entity_ids[self.heads[rows]],
            "relation": self.relation_ids[self.relations[rows]],
            "tail": self.entity_ids[self.tails[rows]],
        }

    def with_labels(self, entity_labels: object = None, relation_labels: object = None) -> Triples:
        """The same triples with names for people, as `from_arrays` takes them; None: as before."""
        entities, relations = self.entity_map, self.relation_map
        if entity_labels is not None:
            entities = IdMap.build("entity", entities.ids, entity_labels)
        if relation_labels is not None:
            relations = IdMap.build("relation", relations.ids, relation_labels)

        def relabelled(split: Triples | None) -> Triples | None:
            if split is None:
                return None
            return replace(split, entity_map=entities, relation_map=relations)

        return replace(
            self,
            entity_map=entities,
            relation_map=relations,
            validation=relabelled(self.validation),
            test=relabelled(self.test),
        )

    # ---------------------------------------------------------------- splits and strangers

    @property
    def splits(self) -> dict[str, Triples]:
        """The held-out triples there are: ``"validation"``, ``"test"``."""
        both = zip(SPLITS, (self.validation, self.test), strict=True)
        return {name: split for name, split in both if split is not None}

    @cached_property
    def unseen_entities(self) -> Codes:
        """(m,) int32, ascending: codes of entities that no training triple holds."""
        seen = np.zeros(self.n_entities, bool)
        seen[self.heads] = True
        seen[self.tails] = True
        return freeze(np.flatnonzero(~seen).astype(np.int32))

    @cached_property
    def unseen_relations(self) -> Codes:
        """(m,) int32, ascending: codes of relations that no training triple holds."""
        seen = np.zeros(self.n_relations, bool)
        seen[self.relations] = True
        return freeze(np.flatnonzero(~seen).astype(np.int32))

    def select(self, rows: object) -> Triples:
        """The rows of a boolean mask (n,) or of training indices; same maps, same splits."""
        return self._with_rows(selected(rows, len(self)))

    # ---------------------------------------------------------------- orders

    @cached_property
    def by_head(self) -> Grouping:
        """Training indices grouped by head; built once, in O(n)."""
        return group(self.heads, self.n_entities)

    @cached_property
    def by_tail(self) -> Grouping:
        """Training indices grouped by tail; built once, in O(n)."""
        return group(self.tails, self.n_entities)

    @cached_property
    def by_relation(self) -> Grouping:
        """Training indices grouped by relation; built once, in O(n)."""
        return group(self.relations, self.n_relations)

    @cached_property
    def by_head_relation(self) -> KeyedGrouping:
        """Training indices grouped by key ``head * n_relations + relation``; built once."""
        return group_by_pair(self.heads, self.n_entities, self.relations, self.n_relations)

    @cached_property
    def by_relation_tail(self) -> KeyedGrouping:
        """Training indices grouped by key ``tail * n_relations + relation``; built once."""
        return group_by_pair(self.tails, self.n_entities, self.relations, self.n_relations)

    @cached_property
    def alone(self) -> Triples:
        """The training triples without the held-out parts, over the same maps; made once."""
        return replace(self, validation=None, test=None)

    @cached_property
    def taught(self) -> Triples:
        """The same triples without those of the test: what they hold is known to be right."""
        return self if self.test is None else replace(self, test=None)

    def known(self, predict: Literal["tail", "head"]) -> Known:
        """What is known to be right, in training, validation and test together; built once.

        Parameters
        ----------
        predict : {"tail", "head"}
            Questions (head, relation, ?) or (?, relation, tail).
        """
        if predict not in ("tail", "head"):
            raise ParameterError(f"predict={predict!r} is neither 'tail' nor 'head'")
        return self._known_tails if predict == "tail" else self._known_heads

    def answers(
        self, predict: Literal["tail", "head"], entities: object, relations: object
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the right answers of questions lie in ``known(predict).answers``.

        Parameters
        ----------
        predict : {"tail", "head"}
        entities, relations : (m,) codes
            The given side of each question: heads where tails are predicted, and the reverse.

        Returns
        -------
        starts, stops : (m,) int64
            Question i has the answers ``answers[starts[i]:stops[i]]``, none if it is unknown.
        """
        known = self.known(predict)
        keys = np.asarray(entities, np.int64) * self.n_relations + np.asarray(relations, np.int64)
        starts = known.pointers[np.searchsorted(known.keys, keys)]
        stops = known.pointers[np.searchsorted(known.keys, keys, side="right")]
        return starts, stops

    @cached_property
    def _known_tails(self) -> Known:
        return self._known_answers("heads", "tails")

    @cached_property
    def _known_heads(self) -> Known:
        return self._known_answers("tails", "heads")

    def _known_answers(self, given: str, asked: str) -> Known:
        parts = [self, *self.splits.values()]
        entities, relations, answers = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in (given, "relations", asked)
        )
        return known_answers(entities, relations, answers, self.n_entities, self.n_relations)

    # ---------------------------------------------------------------- out again

    def arrays(self) -> dict[str, Array]:
        """Plain arrays from which `from_parts` rebuilds the same object, codes and splits."""
        parts: dict[str, Array | None] = {
            "entity_ids": self.entity_ids,
            "relation_ids": self.relation_ids,
            "entity_labels": self.entity_labels,
            "relation_labels": self.relation_labels,
        }
        for prefix, triples in (("", self), *((f"{s}_", t) for s, t in self.splits.items())):
            parts |= {prefix + name: getattr(triples, name) for name in COLUMNS}
        return {name: array for name, array in parts.items() if array is not None}

    def to_npz(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file, whole or not at all; `read_triples` reads it back."""
        write_npz(path, self.arrays())

    def __repr__(self) -> str:
        return show_triples(self).text()

    def _repr_html_(self) -> str:
        return show_triples(self).html()

    # ---------------------------------------------------------------- inner

    def _settled(self, part: str, policy: TripleDuplicates) -> Triples:
        if policy == "keep":
            return self
        n = self.n_entities
        order = sort_rows((self.heads, n), (self.relations, self.n_relations), (self.tails, n))
        repeats = repeated(self.heads[order], self.relations[order], self.tails[order])
        if not repeats.any():
            return self
        if policy == "first":
            return self._with_rows(first_of_each(order, repeats))
        row = int(order[repeats].min())
        raw = tuple(column.item() for column in self.columns(row).values())
        raise DataError(
            f"{np.count_nonzero(repeats):,} of {len(self):,} {part} triples repeat an earlier one, "
            f"first {raw!r} in row {row}: pass duplicates='first' to keep the first row of each, "
            "or 'keep' to keep every row"
        )

    def _with_rows(self, index: npt.NDArray[np.integer[Any]]) -> Triples:
        return replace(
            self,
            heads=freeze(self.heads[index]),
            relations=freeze(self.relations[index]),
            tails=freeze(self.tails[index]),
        )
