"""The greatest norms that the steps of a training run on triples met.

What a step reads are a subject s, a relation w and candidates o. The derivatives of the score of
one candidate have the norms of the products w o, s o and s w; the second derivatives are bounded
by the largest modulus in a row.
"""

import numpy as np

from .bilinear import compose
from .graph_sgd import question
from .jit import inner_kernel, kernel
from .simd import dot

__all__ = ["graph_norms"]

# Entries of the result
SUBJECT_RELATION, RELATION_OBJECT, SUBJECT_OBJECT, ENTITY, RELATION, TRIPLE, OWN = range(7)


@inner_kernel
def _norm(row):
    return np.sqrt(np.float64(dot(row, row)))


@inner_kernel
def _largest(is_complex, row):
    """The largest modulus of a row's numbers."""
    half = row.shape[0] // 2 if is_complex else row.shape[0]
    greatest = 0.0
    for f in range(half):
        square = np.float64(row[f]) * row[f]
        if is_complex:
            square += np.float64(row[half + f]) * row[half + f]
        greatest = max(greatest, square)
    return np.sqrt(greatest)


@kernel
def graph_norms(norms, graph, examples, log, sides, start, stop):
    """Raise `norms` to those of the logged visits from `start` to `stop`.

    Parameters
    ----------
    norms : (7,) float64
        Greatest norms of subject * relation, relation * candidate and subject * candidate;
        largest modulus in an entity's and in a relation's row; greatest norm of the rows of
        subject, relation and answer together; 1 if some subject was among its own candidates,
        else 0.
    graph : Graph
    examples : TripleExamples
    log : GraphLog
    sides, start, stop : int
    """
    product = np.empty_like(log.rows[0, 0])
    for t in range(start, stop):
        if examples.weights[t] == 0 or log.slots[t] < 0:
            continue
        for side in range(sides):
            entry = log.slots[t] * sides + side
            subject, _, _, _ = question(graph, examples, t, side)
            s, w = log.rows[entry, 0], log.rows[entry, 1]
            # Conjugating a row, which asking for heads may do, changes no modulus.
            compose(graph.complex, False, s, w, product)
            norms[SUBJECT_RELATION] = max(norms[SUBJECT_RELATION], _norm(product))
            norms[ENTITY] = max(norms[ENTITY], _largest(graph.complex, s))
            norms[RELATION] = max(norms[RELATION], _largest(graph.complex, w))
            answer = log.rows[entry, 2]
            triple = np.sqrt(_norm(s) ** 2 + _norm(w) ** 2 + _norm(answer) ** 2)
            norms[TRIPLE] = max(norms[TRIPLE], triple)
            for c in range(log.n_candidates[entry]):
                o = log.rows[entry, 2 + c]
                compose(graph.complex, False, w, o, product)
                norms[RELATION_OBJECT] = max(norms[RELATION_OBJECT], _norm(product))
                compose(graph.complex, False, s, o, product)
                norms[SUBJECT_OBJECT] = max(norms[SUBJECT_OBJECT], _norm(product))
                norms[ENTITY] = max(norms[ENTITY], _largest(graph.complex, o))
                if log.candidates[entry, c] == subject:
                    norms[OWN] = 1.0
