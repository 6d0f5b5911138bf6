"""Naive training on triples: complex numbers, one row at a time, dense Adam by moving every row.

A row of ComplEx is a vector of complex numbers here, a row of DistMult one of real numbers in
the same arithmetic. A link asks for the entity e with the greatest score

    z = Re(sum(s * w * conj(e)))

of subject s and relation w (w conjugated where the link runs backwards). The gradient of a real
function by a complex vector is ``d/dRe + i d/dIm``: the same numbers, laid out as a row is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .random import draw, stream

SOFTMAX, LOGISTIC = "softmax", "logistic"
SGD, ADAGRAD, ADAM, DENSE = "sgd", "adagrad", "adam", "adam-dense"
UPDATE, GRADIENT = "update", "gradient"


class Setting(NamedTuple):
    """All that a run is made of but its examples and its start."""

    n_entities: int
    n_relations: int
    complex: bool = False
    reciprocal: bool = True
    sides: int = 2
    loss: str = SOFTMAX
    n_negatives: int | str = 3  # or "all"
    seed: int = 0
    fixed: bool = False
    optimizer: str = SGD
    learning_rate: float = 0.1
    n_epochs: int = 2
    linear: bool = True  # decay of the learning rate
    regularization: float = 0.0
    epsilon: float = 1e-7
    beta1: float = 0.9
    beta2: float = 0.999
    unit_norm: bool = False

    @property
    def n_slots(self):
        return 4 if self.reciprocal and self.sides == 2 else 3


class Example(NamedTuple):
    """A triple in codes, all from 0; `id` keys its draws."""

    head: int
    relation: int
    tail: int
    weight: float
    id: int


class Link(NamedTuple):
    """What a step asks: row numbers, and whether the relation is read backwards."""

    subject: int
    relation: int
    flip: bool
    target: int


class Step(NamedTuple):
    """One step of training; the dictionaries hold every row it touches, by row number."""

    t: int  # position of the triple in the order of visits
    side: int
    k: int  # number of the step, the skipped ones counted
    link: Link
    candidates: list[int]  # distinct rows, the answer first
    counts: list[int]
    weight: float
    loss: float  # of the prediction, without weight and regularization
    before: dict[int, np.ndarray]  # rows
    after: dict[int, np.ndarray]
    gradients: dict[int, np.ndarray]  # of the triple's loss, regularization and weight included
    momenta: dict[int, np.ndarray]  # Adam's, the step included
    squares: dict[int, np.ndarray]  # Adagrad's or Adam's, the step included
    rates: dict[int, np.ndarray]  # a gradient moves its row by minus its rate

    def credit(self, row, kind):
        """What the step did to a row, or what its own gradient did."""
        if kind == UPDATE:
            return self.after[row] - self.before[row]
        return -self.rates[row] * self.gradients[row]


class Run(NamedTuple):
    rows: np.ndarray
    momenta: np.ndarray  # 0 where the optimizer has none
    squares: np.ndarray
    steps: list[Step]
    losses: list[float]  # of every epoch: sum of weighted prediction losses


# ---------------------------------------------------------------- model and loss


def vector(setting, row):
    """A row as the numbers the score multiplies."""
    if not setting.complex:
        return row
    half = len(row) // 2
    return row[:half] + 1j * row[half:]


def flat(setting, numbers):
    return np.concatenate([numbers.real, numbers.imag]) if setting.complex else numbers


def link_of(setting, example, side):
    relation = setting.n_entities + example.relation
    if side == 0:
        return Link(example.head, relation, False, example.tail)
    if setting.reciprocal:
        return Link(example.tail, relation + setting.n_relations, False, example.head)
    return Link(example.tail, relation, True, example.head)


def score(setting, rows, link, entity):
    s, w, e = (vector(setting, rows[at]) for at in (link.subject, link.relation, entity))
    if link.flip:
        w = np.conj(w)
    return float(np.sum(s * w * np.conj(e)).real)


def score_gradients(setting, rows, link, entity):
    """Pairs of row number and dz/drow; a subject that is the entity stands there twice."""
    s, w, e = (vector(setting, rows[at]) for at in (link.subject, link.relation, entity))
    if link.flip:
        found = s * np.conj(w), w * e, s * np.conj(e)
    else:
        found = s * w, np.conj(w) * e, np.conj(s) * e
    names = entity, link.subject, link.relation
    return [(name, flat(setting, np.asarray(g))) for name, g in zip(names, found, strict=True)]


def candidates_of(setting, example, link, side, epoch):
    """Distinct rows, the answer first, and how often each stands there."""
    gold = link.target
    if setting.n_negatives == "all":
        others = [entity for entity in range(setting.n_entities) if entity != gold]
        return [gold, *others], [1] * setting.n_entities
    key = stream(setting.seed, (0 if setting.fixed else epoch) * 2 + side, example.id)
    rows, counts = [gold], [1]
    for slot in range(setting.n_negatives):
        others = [entity for entity in range(setting.n_entities) if entity != gold]
        drawn = others[draw(key, slot, len(others))]
        if drawn in rows:
            counts[rows.index(drawn)] += 1
        else:
            rows.append(drawn)
            counts.append(1)
    return rows, counts


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x):
    return math.exp(-softplus(-x))


def slots(scores, counts):
    """Scores one by one, each negative as often as it was drawn."""
    return [z for z, count in zip(scores, counts, strict=True) for _ in range(count)]


def prediction_loss(setting, scores, counts):
    """Loss of the candidates' scores, the answer's first; without regularization."""
    drawn = slots(scores, counts)
    if setting.loss == SOFTMAX:
        top = max(drawn)
        return top + math.log(sum(math.exp(z - top) for z in drawn)) - drawn[0]
    return (softplus(-drawn[0]) + sum(softplus(z) for z in drawn[1:])) / len(drawn)


def score_slopes(setting, scores, counts):
    """dloss/dz of every candidate."""
    drawn = slots(scores, counts)
    found = []
    for place, (z, count) in enumerate(zip(scores, counts, strict=True)):
        if setting.loss == SOFTMAX:
            share = count / sum(math.exp(other - z) for other in drawn)
            found.append(share - (place == 0))
        elif place == 0:
            found.append((sigmoid(z) - 1) / len(drawn))
        else:
            found.append(count * sigmoid(z) / len(drawn))
    return found


def example_loss(setting, rows, link, candidates, counts):
    """The step's own loss, regularization included."""
    scores = [score(setting, rows, link, entity) for entity in candidates]
    penalty = sum(float(rows[at] @ rows[at]) for at in {link.subject, link.relation, link.target})
    return prediction_loss(setting, scores, counts) + setting.regularization / 2 * penalty


def gradients(setting, rows, link, candidates, counts):
    """Gradient of `example_loss` by every row it reads."""
    scores = [score(setting, rows, link, entity) for entity in candidates]
    found = {at: np.zeros_like(rows[at]) for at in [link.subject, link.relation, *candidates]}
    for entity, slope in zip(candidates, score_slopes(setting, scores, counts), strict=True):
        for at, gradient in score_gradients(setting, rows, link, entity):
            found[at] = found[at] + slope * gradient
    for at in {link.subject, link.relation, link.target}:
        found[at] = found[at] + setting.regularization * rows[at]
    return found


# ---------------------------------------------------------------- training


def rate_at(setting, k, n):
    """Learning rate of step k of a run over n triples."""
    total = setting.n_epochs * n * setting.sides if setting.linear else math.inf
    return setting.learning_rate * (1 - k / total)


def adam_rate(setting, k, n):
    """Adam's learning rate with its corrections for the zeros the moments start from."""
    time = k + 1
    warm = math.sqrt(1 - setting.beta2**time) / (1 - setting.beta1**time)
    return rate_at(setting, k, n) * warm


class Trainer:
    """Rows and the optimizer's state, moved one step at a time."""

    def __init__(self, setting, start, examples, momenta=None, squares=None):
        self.setting, self.examples = setting, [Example(*example) for example in examples]
        self.rows, self.momenta, self.squares = (
            np.zeros_like(start, float) if table is None else np.array(table, float)
            for table in (start, momenta, squares)
        )

    def rate(self, row, k):
        """Rate of every coordinate of a row, the step's squares included."""
        setting, n = self.setting, len(self.examples)
        if setting.optimizer == SGD:
            return np.full(self.rows.shape[1], rate_at(setting, k, n))
        rate = rate_at(setting, k, n) if setting.optimizer == ADAGRAD else adam_rate(setting, k, n)
        return rate / (np.sqrt(self.squares[row]) + setting.epsilon)

    def move(self, row, gradient, k):
        """One row by the optimizer's rule."""
        setting = self.setting
        if setting.optimizer == SGD:
            self.rows[row] -= self.rate(row, k) * gradient
        elif setting.optimizer == ADAGRAD:
            self.squares[row] += gradient**2
            self.rows[row] -= self.rate(row, k) * gradient
        else:
            b1, b2 = setting.beta1, setting.beta2
            self.momenta[row] = b1 * self.momenta[row] + (1 - b1) * gradient
            self.squares[row] = b2 * self.squares[row] + (1 - b2) * gradient**2
            self.rows[row] -= self.rate(row, k) * self.momenta[row]

    def step(self, epoch, t, side):
        """One step; None where the triple's weight is 0."""
        setting, example = self.setting, self.examples[t]
        k = (epoch * len(self.examples) + t) * setting.sides + side
        slopes = {}
        if example.weight != 0:
            link = link_of(setting, example, side)
            candidates, counts = candidates_of(setting, example, link, side, epoch)
            scores = [score(setting, self.rows, link, entity) for entity in candidates]
            slopes = {
                row: example.weight * gradient
                for row, gradient in gradients(setting, self.rows, link, candidates, counts).items()
            }
        before = {row: self.rows[row].copy() for row in slopes}
        still = np.zeros(self.rows.shape[1])
        for row in range(len(self.rows)) if setting.optimizer == DENSE else slopes:
            self.move(row, slopes.get(row, still), k)
        for row in slopes:
            if setting.unit_norm and row < setting.n_entities:
                self.rows[row] /= math.sqrt(float(self.rows[row] @ self.rows[row]))
        if example.weight == 0:
            return None
        after, momenta, squares = (
            {row: table[row].copy() for row in slopes}
            for table in (self.rows, self.momenta, self.squares)
        )
        loss = prediction_loss(setting, scores, counts)
        rates = {row: self.rate(row, k) for row in slopes}
        return Step(
            t, side, k, link, candidates, counts, example.weight, loss,
            before, after, slopes, momenta, squares, rates,
        )  # fmt: skip


def run(setting, start, examples, momenta=None, squares=None):
    """Train for all epochs from the rows `start`, examples in the order of visits."""
    trainer = Trainer(setting, start, examples, momenta, squares)
    steps, losses = [], []
    for epoch in range(setting.n_epochs):
        visits = [(t, side) for t in range(len(trainer.examples)) for side in range(setting.sides)]
        made = [trainer.step(epoch, *visit) for visit in visits]
        steps += [step for step in made if step is not None]
        losses.append(sum(step.weight * step.loss for step in made if step is not None))
    return Run(trainer.rows, trainer.momenta, trainer.squares, steps, losses)


# ---------------------------------------------------------------- credit and influence


def slots_of(setting, example):
    """Row numbers of an example's slots in a record; None where the slot stays 0."""
    relation = setting.n_entities + example.relation
    tail = None if example.tail == example.head else example.tail
    found = [example.head, tail, relation, relation + setting.n_relations]
    return found[: setting.n_slots]


def record(setting, examples, steps, kind):
    """Credits of every example added up over the run, (n, S, d)."""
    examples = [Example(*example) for example in examples]
    width = len(next(iter(steps[0].before.values())))
    found = np.zeros((len(examples), setting.n_slots, width))
    for step in steps:
        for slot, row in enumerate(slots_of(setting, examples[step.t])):
            if row in step.gradients:
                found[step.t, slot] += step.credit(row, kind)
    return found


def influence_by_differences(setting, start, examples, phi, places=None, distance=1e-5):
    """d phi(rows at the end) / d weight of each example, by retraining twice for each.

    `phi` takes the rows and may return an array; its axes stand behind that of the examples.
    """
    examples = [Example(*example) for example in examples]

    def outcome(place, weight):
        changed = examples.copy()
        changed[place] = changed[place]._replace(weight=weight)
        return np.asarray(phi(run(setting, start, changed).rows))

    found = []
    for place in range(len(examples)) if places is None else places:
        weight = examples[place].weight
        ends = outcome(place, weight + distance), outcome(place, weight - distance)
        found.append((ends[0] - ends[1]) / (2 * distance))
    return np.array(found)
