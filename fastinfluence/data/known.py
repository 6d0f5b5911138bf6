"""Right answers to questions about a knowledge graph, for evaluation that filters them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.data.grouping import sort_rows
from fastinfluence.data.ids import Codes, freeze
from fastinfluence.data.rows import repeated

__all__ = ["Known", "known_answers"]


class Known(NamedTuple):
    """Right answers to every question (entity, relation, ?) that some triple answers.

    Attributes
    ----------
    pointers : (n_keys + 1,) int64
        Question q has the answers ``answers[pointers[q]:pointers[q + 1]]``.
    keys : (n_keys,) int64
        ``entity * n_relations + relation``, in codes, ascending.
    answers : (m,) int32
        Entity codes, distinct and ascending inside a question.
    """

    pointers: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    answers: Codes


def known_answers(
    entities: Codes, relations: Codes, answers: Codes, n_entities: int, n_relations: int
) -> Known:
    """Group the answers (m,) of questions (entity, relation, ?), each once; in O(m)."""
    order = sort_rows((entities, n_entities), (relations, n_relations), (answers, n_entities))
    keys = entities[order].astype(np.int64) * n_relations + relations[order]
    answers = answers[order]
    distinct = ~repeated(keys, answers)
    keys, answers = keys[distinct], answers[distinct]
    starts = np.flatnonzero(~repeated(keys))
    return Known(freeze(np.append(starts, len(keys))), freeze(keys[starts]), freeze(answers))
