"""What the entities and relations of a knowledge graph are called."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import Codes, IdMap, Ids

__all__ = ["GraphNames"]


class GraphNames:
    """Ids and names by code, over the maps that whoever inherits this holds."""

    entity_map: IdMap
    relation_map: IdMap

    @property
    def n_entities(self) -> int:
        """Number of entities, those that no training triple holds included."""
        return len(self.entity_map)

    @property
    def n_relations(self) -> int:
        """Number of relations, those that no training triple holds included."""
        return len(self.relation_map)

    @property
    def entity_ids(self) -> Ids:
        """(n_entities,) int64 or str: raw ids by code."""
        return self.entity_map.ids

    @property
    def relation_ids(self) -> Ids:
        """(n_relations,) int64 or str: raw ids by code."""
        return self.relation_map.ids

    @property
    def entity_labels(self) -> npt.NDArray[np.str_] | None:
        """(n_entities,) str or None: names by code, empty where there is none."""
        return self.entity_map.labels

    @property
    def relation_labels(self) -> npt.NDArray[np.str_] | None:
        """(n_relations,) str or None: names by code, empty where there is none."""
        return self.relation_map.labels

    def entity_index(self, raw_ids: object) -> Codes:
        """Codes (n,) int32 of raw entity ids, a scalar or (n,); UnknownIdError names strangers."""
        return self.entity_map.index(raw_ids)

    def relation_index(self, raw_ids: object) -> Codes:
        """Codes (n,) int32 of raw relation ids, a scalar or (n,); as `entity_index`."""
        return self.relation_map.index(raw_ids)

    def entity_name(self, code: int) -> str:
        """The entity's label, or the raw id where there is none."""
        return self.entity_map.name(code)

    def relation_name(self, code: int) -> str:
        """The relation's label, or the raw id where there is none."""
        return self.relation_map.name(code)

    def name(self, head: int, relation: int, tail: int) -> str:
        """A triple of codes for people to read: ``"brazil — exports3 → china"``."""
        ends = self.entity_name(head), self.entity_name(tail)
        return f"{ends[0]} — {self.relation_name(relation)} → {ends[1]}"
