"""Naive ranks: every score by itself, every candidate compared."""

from __future__ import annotations


def compose(is_complex, flip, entity, relation):
    """The vector that answers are multiplied with, in Python numbers."""
    if not is_complex:
        return [float(e) * float(w) for e, w in zip(entity, relation, strict=True)]
    half = len(entity) // 2
    products = []
    for f in range(half):
        w = complex(relation[f], relation[half + f])
        e = complex(entity[f], entity[half + f])
        products.append(e * (w.conjugate() if flip else w))
    return [p.real for p in products] + [p.imag for p in products]


def score(x, row):
    return sum(a * float(b) for a, b in zip(x, row, strict=True))


def counts(scores, target, excluded):
    """How many candidates score above the target, and how many others the same."""
    others = [s for c, s in enumerate(scores) if c != target and c not in excluded]
    above = sum(not s <= scores[target] for s in others)
    return above, sum(s == scores[target] for s in others)


def filtered_ranks(score_of, n_entities, triples, known, predict):
    """Realistic ranks of (h, r, t) codes; `score_of(h, r, t)` is a number.

    `known` is a set of triples that are no candidates unless they are the one in question.
    """
    ranks = []
    for h, r, t in triples:
        if predict == "tail":
            candidates = [(h, r, e) for e in range(n_entities)]
            target = t
        else:
            candidates = [(e, r, t) for e in range(n_entities)]
            target = h
        excluded = {e for e, triple in enumerate(candidates) if triple in known}
        above, ties = counts([score_of(*c) for c in candidates], target, excluded)
        ranks.append(1 + above + 0.5 * ties)
    return ranks
