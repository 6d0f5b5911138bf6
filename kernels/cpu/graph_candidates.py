"""Candidates of a step on a triple: the answer, and entities drawn to be told apart from it.

Negatives are uniform over all entities but the answer, drawn by counter from (seed, epoch, side,
triple, slot) alone and never compared with what is known: leaving a triple out changes nobody
else's. An entity drawn twice is one candidate that counts twice, so the rows of a step are
distinct.
"""

from .jit import inner_kernel
from .random import draw, stream

__all__ = ["take_candidates"]


@inner_kernel
def take_candidates(
    n_entities, sampler, epoch, side, example, subject, answer, stamp, marks, places,
    candidates, counts,
):  # fmt: skip
    """Fill `candidates` with distinct entities, the answer first, and how often each counts.

    Parameters
    ----------
    n_entities : int
    sampler : GraphSampler
    epoch, side, example : int
        With the seed the key of the draws; example is a training index.
    subject, answer : int
        Entities of the question.
    stamp : int
        Another one for every call with the same `marks`, not negative.
    marks, places : (n_entities,) int64
        Scratch; `marks` holds no `stamp` yet.
    candidates : (C,) int32
    counts : (C,) dtype of the rows
        C is n_negatives + 1, or n_entities where all are candidates.

    Returns
    -------
    n : int
        Candidates.
    place : int
        Place of the subject among them, -1 if it is none.
    """
    one = counts.dtype.type(1)
    candidates[0] = answer
    counts[0] = one
    found = 1
    if sampler.n_negatives < 0:
        for entity in range(n_entities):
            if entity != answer:
                candidates[found] = entity
                counts[found] = one
                found += 1
        if subject == answer:
            return found, 0
        return found, subject + 1 if subject < answer else subject
    marks[answer] = stamp
    places[answer] = 0
    key = stream(sampler.seed, (0 if sampler.fixed else epoch) * 2 + side, example)
    for slot in range(sampler.n_negatives):
        entity = draw(key, slot, n_entities - 1)
        if entity >= answer:
            entity += 1
        if marks[entity] == stamp:
            counts[places[entity]] += one
        else:
            marks[entity] = stamp
            places[entity] = found
            candidates[found] = entity
            counts[found] = one
            found += 1
    return found, places[subject] if marks[subject] == stamp else -1
