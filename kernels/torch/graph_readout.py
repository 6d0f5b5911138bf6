"""Read-out of row changes on triples: what a link would be with a triple's changes taken back.

As in the twin in kernels.cpu everything is computed as a change, never as the difference of two
results: one matrix product has the changes of the scores of all entities for thousands of
triples, and the normaliser follows by ``log(1 + sum_c p_c (exp(change of c) - 1))``, with
exponentials in the dtype of the rows and sums in float64.
"""

from typing import Any, NamedTuple

import torch

from .batches import CHUNK, ranges, stretches
from .reports import reported

__all__ = [
    "LOG_PROBABILITY",
    "PROBABILITY",
    "SCORE",
    "TOGETHER",
    "read_links",
    "self_influence",
]

SCORE, LOG_PROBABILITY, PROBABILITY = range(3)

TOGETHER = 256
"""Triples of a unit."""

_LIMIT = 60.0  # of a change of a score whose exponential is weighted and summed
_ROUNDED = 1e-3  # of a normaliser: where less is left, the rounding of 1 would be seen


class _Questions(NamedTuple):
    """Some groups of links, and the model's answer to each."""

    subjects: Any  # (g,)
    slots: Any  # (g,): where triples keep what they changed in the relation's row
    codes: Any  # (g,): the relation
    flips: Any  # (g,)
    relations: Any  # (g,): its row
    x: Any  # (g, d)
    scores: Any  # (g, n_entities), or (g, 0) where only scores are explained
    log_totals: Any  # (g,) float64: logs of the normalisers


def _compose(graph, flips, entities, relations):
    """``x = e * w`` (m, d), products of complex numbers if the model is."""
    if not graph.complex:
        return entities * relations
    (a, b), (c, s) = entities.chunk(2, 1), relations.chunk(2, 1)
    s = torch.where(flips[:, None], -s, s)
    return torch.cat([a * c - b * s, a * s + b * c], 1)


@reported("the read-out of links")
def read_links(kind, graph, rows, packed, store, groups, units, start, stop, out):
    """Influence of triples on links: phi with all rows minus phi with the triple's taken back.

    See the twin in kernels.cpu; `packed` is not read.
    """
    units = units[start:stop]
    n_train = len(store.heads)
    links = torch.arange(len(out.pointers) - 1, device=rows.device)
    owners = links.repeat_interleave(out.pointers.diff())
    keys = owners * n_train + out.indices  # ascending: finds the place of a link and a triple
    scored = 1 if kind == SCORE else graph.n_entities
    triples = units[:, 2] - units[:, 1] + 2
    for first, last in stretches(triples * (scored + rows.shape[1]) * 6 * rows.itemsize):
        some = units[first:last]
        numbers, which = torch.unique_consecutive(some[:, 0], return_inverse=True)
        questions = _asked(kind, graph, rows, groups, numbers)
        fresh = some[:, 1] == 0
        _read_untouched(
            kind, graph, rows, store, groups, numbers[which[fresh]], which[fresh], questions, keys,
            out,
        )  # fmt: skip
        _read_touched(kind, graph, rows, store, groups, some, which, questions, keys, out)


def _asked(kind, graph, rows, groups, numbers):
    subjects, relations, flips = (column[numbers] for column in groups[:3])
    slots, codes = _relation_slots(graph, relations)
    x = _compose(graph, flips, rows[subjects], rows[relations])
    entities = rows[: 0 if kind == SCORE else graph.n_entities]
    scores = x @ entities.mT
    log_totals = scores.double().logsumexp(1)
    return _Questions(subjects, slots, codes, flips, relations, x, scores, log_totals)


def _relation_slots(graph, relations):
    """Where triples keep what they changed in these rows, and the codes of the relations."""
    inverse = relations >= graph.n_entities + graph.n_relations
    codes = relations - graph.n_entities - graph.n_relations * inverse
    return torch.where(inverse, 3, 2), codes


def _entity_slots(store, triples, entities):
    """Where triples keep what they changed in the rows of entities; -1: they do not hold them."""
    slots = torch.where(store.tails[triples] == entities, 1, -1)
    return torch.where(store.heads[triples] == entities, 0, slots)


def _moves(graph, rows, store, triples, questions, which):
    """What triples added to x (t, d), and to the scores of their head and tail by their rows."""
    at = _entity_slots(store, triples, questions.subjects[which])
    of_subject = store.changes[triples, at.clamp(min=0)].masked_fill_((at < 0)[:, None], 0)
    others = store.relations[triples] != questions.codes[which]
    of_relation = store.changes[triples, questions.slots[which]].masked_fill_(others[:, None], 0)
    subject, relation = rows[questions.subjects[which]], rows[questions.relations[which]]
    flips = questions.flips[which]
    moves = _compose(graph, flips, of_subject, relation - of_relation)
    moves += _compose(graph, flips, subject, of_relation)
    left = questions.x[which] - moves
    fixes = (store.changes[triples, :2] @ left[:, :, None])[:, :, 0]
    return moves, fixes


def _fixes_of(store, triples, entities, fixes):
    """How far scores of entities move because triples moved the entities' own rows."""
    at = _entity_slots(store, triples, entities)[:, None]
    return fixes.gather(1, at.clamp(min=0)).masked_fill_(at < 0, 0)[:, 0]


def _read_touched(kind, graph, rows, store, groups, units, which, questions, keys, out):
    """Fill in triples that move the subject or the relation of a group."""
    behind = groups.touched_pointers[units[:, 0]]
    unit_of, at = ranges(behind + units[:, 1], behind + units[:, 2])
    triples = groups.touched[at].long()
    moves, fixes = _moves(graph, rows, store, triples, questions, which[unit_of])
    logs = torch.zeros(len(triples), dtype=torch.float64, device=rows.device)
    if kind != SCORE:
        logs = _log_changes(graph, rows, store, triples, moves, fixes, questions, which[unit_of])
    bounds = groups.pointers[units[:, 0]], groups.pointers[units[:, 0] + 1]
    # Every triple of a unit with every link of its group.
    starts, stops = (bound[unit_of] for bound in bounds)
    for first, last in stretches((stops - starts) * (rows.shape[1] * 3 * rows.itemsize + 100)):
        owners, places = ranges(starts[first:last], stops[first:last])
        owners += first
        links, targets, j = groups.links[places], groups.targets[places], triples[owners]
        change = (moves[owners] * rows[targets]).sum(1)
        change = change.double() + _fixes_of(store, j, targets, fixes[owners]) + logs[owners]
        own = _own_logs(kind, questions, which[unit_of[owners]], targets)
        where = torch.searchsorted(keys, links * len(store.heads) + j)
        out.values[where] = _phi_change(kind, own, change).to(out.values.dtype)


def _own_logs(kind, questions, which, targets):
    """Log-probabilities (m,) float64 of targets."""
    if kind == SCORE:
        return 0
    return questions.scores[which, targets].double() - questions.log_totals[which]


def _log_changes(graph, rows, store, triples, moves, fixes, questions, which):
    """How far triples moved the log of the normaliser, negated: (t,) float64."""
    changes = moves @ rows[: graph.n_entities].mT
    numbers = torch.arange(len(triples), device=rows.device)
    heads, tails = store.heads[triples].long(), store.tails[triples].long()
    changes[numbers, heads] += fixes[:, 0]
    changes[numbers, tails] += torch.where(tails != heads, fixes[:, 1], 0)
    weights = (questions.scores - questions.log_totals[:, None]).exp_().to(rows.dtype)[which]
    less_one = (weights * torch.expm1(-changes)).sum(1, dtype=torch.float64)
    whole = (weights * torch.exp(-changes)).sum(1, dtype=torch.float64)
    logs = torch.where(less_one.abs() < 0.5, torch.log1p(less_one), whole.log())
    far = (-changes).amax(1) > _LIMIT
    slow = (far | ~(whole > torch.exp(-0.5 * whole.new_tensor(_LIMIT)))).nonzero()[:, 0]
    for some in slow.split(max(1, CHUNK // (24 * graph.n_entities))):
        moved = questions.scores[which[some]].double() - changes[some]
        logs[some] = moved.logsumexp(1) - questions.log_totals[which[some]]
    return logs


def _phi_change(kind, log_probability, change):
    """Change of phi, of the change of the score or of the log-probability."""
    if kind != PROBABILITY:
        return change
    small = -log_probability.exp() * torch.expm1(-change)
    large = log_probability.exp() - (log_probability - change).exp()
    return torch.where(change.abs() < 1.0, small, large)


def _read_untouched(kind, graph, rows, store, groups, numbers, which, questions, keys, out):
    """Fill in triples that move the targets of groups, but neither subject nor relation."""
    group_of, places = ranges(groups.pointers[numbers], groups.pointers[numbers + 1])
    starts = store.entity_pointers[groups.targets[places]]
    stops = store.entity_pointers[groups.targets[places] + 1]
    for first, last in stretches((stops - starts) * (rows.shape[1] * 6 * rows.itemsize + 200)):
        owners, at = ranges(starts[first:last], stops[first:last])
        owners += first
        j, place, ours = store.by_entity[at].long(), places[owners], which[group_of[owners]]
        touched = store.relations[j] == questions.codes[ours]
        touched |= _entity_slots(store, j, questions.subjects[ours]) >= 0
        j, place, ours = j[~touched], place[~touched], ours[~touched]
        targets = groups.targets[place].long()
        slots = _entity_slots(store, j, targets)
        change = (questions.x[ours] * store.changes[j, slots]).sum(1).double()
        own = _own_logs(kind, questions, ours, targets)
        if kind != SCORE:
            others = torch.where(slots == 0, store.tails[j], store.heads[j]).long()
            second = -(questions.x[ours] * store.changes[j, 1 - slots]).sum(1).double()
            second.masked_fill_(others == targets, 0)
            change += _log_changes_of_two(questions, ours, targets, -change, others, second)
        where = torch.searchsorted(keys, groups.links[place] * len(store.heads) + j)
        out.values[where] = _phi_change(kind, own, change).to(out.values.dtype)


def _log_changes_of_two(questions, which, targets, first, others, second):
    """As `_log_changes` where only the scores of two entities move, the other may be none.

    By `first` and `second`. What the rest of the entities have is 1 less these two: where hardly
    more than that difference's rounding is left of the normaliser it is added up instead.
    """
    logs = questions.log_totals[which]
    first_log = questions.scores[which, targets].double() - logs
    second_log = questions.scores[which, others].double() - logs
    second_log.masked_fill_(others == targets, -torch.inf)
    a, b = first_log.exp(), second_log.exp()
    top = torch.maximum(first, second).clamp(min=0)
    less_one = a * torch.expm1(first) + b * torch.expm1(second)
    near = (top < 1.0) & (less_one.abs() < 0.5)
    rest = (1.0 - a - b).clamp(min=0)
    moved = (first_log + first - top).exp() + (second_log + second - top).exp()
    left = rest * (-top).exp() + moved
    rounded = (~near & (left < _ROUNDED * (-top).exp())).nonzero()[:, 0]
    for some in rounded.split(max(1, CHUNK // (24 * questions.scores.shape[1]))):
        scores = questions.scores[which[some]].double()
        for entities in (targets, others):
            scores.scatter_(1, entities[some, None], -torch.inf)
        rest[some] = (scores - logs[some, None]).exp().sum(1)
    far = top + (rest * (-top).exp() + moved).log()
    return torch.where(near, torch.log1p(less_one), far)


@reported("self-influence")
def self_influence(graph, rows, store, links, start, stop, out):
    """Influence of triples ``start:stop`` on the scores of their own links, to `out` (n,)."""
    step = max(1, CHUNK // (16 * rows.shape[1] * rows.itemsize))
    for first in range(start, stop, step):
        triples = torch.arange(first, min(first + step, stop), device=rows.device)
        subjects, relations, flips, targets = (column[triples] for column in links)
        slots, codes = _relation_slots(graph, relations)
        x = _compose(graph, flips, rows[subjects], rows[relations])
        questions = _Questions(subjects, slots, codes, flips, relations, x, None, None)
        moves, fixes = _moves(graph, rows, store, triples, questions, triples - first)
        found = (moves * rows[targets]).sum(1)
        out[triples] = found + _fixes_of(store, triples, targets, fixes)
