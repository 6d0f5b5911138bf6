"""The work of the cases in plain torch, as someone who knows torch well would write it.

For the squared loss, plain SGD and weights of 1. Steps that depend on one another go level by
level: those of a level share no row, and the levels are found beforehand, which is not timed.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from gpu_ceilings import torch_device

from fastinfluence.kernels.structures import CURVATURE, GRADIENT, ITEM_BIAS, LANES, USER_BIAS

__all__ = [
    "CurvatureWalk",
    "Factors",
    "GaussNewton",
    "GroupReadout",
    "LinkReadout",
    "Ranks",
    "ReplayWalk",
    "Training",
    "put",
]

Array = Any
Tensor = torch.Tensor

_NUMBERS = 2**26  # of a gathered array: a quarter of a gigabyte


def put(array: Array) -> Tensor:
    """A copy on the device; whole numbers as torch indexes with them."""
    array = np.asarray(array)
    dtype = torch.int64 if array.dtype.kind in "iu" else None
    return torch.tensor(array, dtype=dtype, device=torch_device())


def ends(rows: Tensor) -> Tensor:
    """Rows as the scores of the other side's rows see them: with a one for the bias."""
    return torch.cat([rows[:, :-1], torch.ones_like(rows[:, -1:])], 1)


def levels(users: Array, items: Array) -> list[Tensor]:
    """The steps (m,) of each level: those whose rows no earlier step of their own level has."""
    of_users, of_items = [0] * (int(users.max()) + 1), [0] * (int(items.max()) + 1)
    found = np.empty(len(users), np.int64)
    for t, (u, i) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
        found[t] = level = max(of_users[u], of_items[i])
        of_users[u] = of_items[i] = level + 1
    steps = put(np.argsort(found, kind="stable"))
    return list(steps.split(np.bincount(found).tolist()))


class Training:
    """An epoch of SGD: gathers, updates and scatters for each level."""

    def __init__(self, tables: Any, examples: Any, hyper: Any, recorded: bool) -> None:
        factors, biases = tables[:2], tables[2:]
        self.start = [put(np.column_stack(half)) for half in zip(factors, biases, strict=True)]
        self.levels = levels(examples.users, examples.items)
        self.users, self.items = put(examples.users), put(examples.items)
        self.values = put(examples.values)
        self.mean, self.rate, self.l2 = map(float, hyper[:3])
        self.recorded = recorded

    def __call__(self) -> tuple[Tensor, ...]:
        """Rows of users and of items behind the epoch, and how every step changed them."""
        users, items = (rows.clone() for rows in self.start)
        record = []
        if self.recorded:
            shape = len(self.values), users.shape[1]
            record = [torch.zeros(shape, device=users.device) for _ in range(2)]
        for steps in self.levels:
            u, i = self.users[steps], self.items[steps]
            mine, its = users[u], items[i]
            x, z = ends(its), ends(mine)
            errors = self.mean + (mine * x).sum(1) + its[:, -1] - self.values[steps]
            push = self.rate * errors[:, None]
            changes = -push * x - self.rate * self.l2 * mine, -push * z - self.rate * self.l2 * its
            users[u], items[i] = mine + changes[0], its + changes[1]
            for rows, change in zip(record, changes, strict=False):
                rows[steps] += change
        return users, items, *record


class CurvatureWalk:
    """Curvature Rollback of some rows, the most touched first: touch by touch, rows batched."""

    def __init__(self, of_users: bool, touches: Any, log: Any, hyper: Any, n: int) -> None:
        biases = log.numbers[:, USER_BIAS], log.numbers[:, ITEM_BIAS]
        sides = [np.column_stack(s) for s in zip((log.user_rows, log.item_rows), biases)]  # noqa: B905
        own, other = sides if of_users else sides[::-1]
        counts = np.diff(touches.pointers)
        behind = np.repeat(touches.pointers[1:], counts) - 1
        position = behind - np.arange(len(behind))  # of each touch, from the last of its row on
        order = np.argsort(position, kind="stable")
        entries = touches.entries[order]
        self.rows, self.x = put(own[entries]), ends(put(other[entries]))
        self.gradients = put(log.numbers[entries, GRADIENT])[:, None]
        self.curvatures = put(log.numbers[entries, CURVATURE])[:, None]
        self.targets = put(touches.places[order])
        self.bounds = list(itertools.pairwise(np.cumsum([0, *np.bincount(position)]).tolist()))
        self.n, self.rate, self.l2 = n, float(hyper.learning_rate), float(hyper.regularization)
        self.n_rows = len(counts)

    def __call__(self) -> Tensor:
        """What is credited to the row's examples: (n, k + 1)."""
        d = self.x.shape[1]
        matrices = torch.eye(d, device=self.x.device).repeat(self.n_rows, 1, 1)
        credits = torch.zeros((self.n, d), device=self.x.device)
        for start, stop in self.bounds:
            some, x = slice(start, stop), self.x[start:stop]
            matrix = matrices[: stop - start]
            products = self.rate * (matrix @ torch.stack([x, self.rows[some]], 2))
            of_x, of_row = products.unbind(2)
            credits[self.targets[some]] -= self.gradients[some] * of_x + self.l2 * of_row
            matrix.baddbmm_(
                of_x[:, :, None], (self.curvatures[some] * x)[:, None],
                beta=1 - self.rate * self.l2, alpha=-1,
            )  # fmt: skip
        return credits


class ReplayWalk:
    """Adjoints of a block of quantities back over an epoch, the last level first."""

    def __init__(self, adjoint: Any, examples: Any, log: Any, hyper: Any) -> None:
        self.start = [put(rows) for rows in adjoint]
        self.levels = levels(examples.users, examples.items)[::-1]
        self.users, self.items = put(examples.users), put(examples.items)
        numbers = put(log.numbers)
        self.mine = torch.cat([put(log.user_rows), numbers[:, USER_BIAS, None]], 1)
        self.its = torch.cat([put(log.item_rows), numbers[:, ITEM_BIAS, None]], 1)
        self.gradients, self.curvatures = numbers[:, GRADIENT], numbers[:, CURVATURE]
        self.rate, self.l2 = float(hyper.learning_rate), float(hyper.regularization)

    def __call__(self) -> tuple[Tensor, ...]:
        """Influence (n, LANES) of every step, and the adjoints before the epoch."""
        users, items = (rows.clone() for rows in self.start)
        influence = torch.zeros((len(self.users), LANES), device=users.device)
        for steps in self.levels:
            u, i = self.users[steps], self.items[steps]
            mine, its = self.mine[steps], self.its[steps]
            x, z = ends(its), ends(mine)
            v, w = users[u], items[i]
            slopes = torch.einsum("md,mdl->ml", x, v) + torch.einsum("md,mdl->ml", z, w)
            norms = torch.einsum("md,mdl->ml", mine, v) + torch.einsum("md,mdl->ml", its, w)
            g, bends = self.gradients[steps, None], self.curvatures[steps, None] * slopes
            influence[steps] -= self.rate * (g * slopes + self.l2 * norms)
            of_user, of_item = x[:, :, None] * bends[:, None], z[:, :, None] * bends[:, None]
            of_user[:, :-1] += g[:, :, None] * w[:, :-1]
            of_item[:, :-1] += g[:, :, None] * v[:, :-1]
            keep = 1 - self.rate * self.l2
            users[u], items[i] = keep * v - self.rate * of_user, keep * w - self.rate * of_item
        return influence, users, items


class GaussNewton:
    """The Gauss-Newton matrix of the ratings' losses, by gathers and scattered sums."""

    def __init__(self, rows: Array, users: Array, items: Array, errors: Array, l2: float) -> None:
        self.rows, self.users, self.items = put(rows), put(users), put(items)
        self.x, self.errors, self.l2 = ends(self.rows), put(errors), l2
        degrees = torch.bincount(torch.cat([self.users, self.items]), minlength=len(rows))
        self.of_rows = l2 * degrees.to(self.x.dtype)
        size = max(1, _NUMBERS // (rows.shape[1] * LANES))
        self.parts = list(zip(self.users.split(size), self.items.split(size), strict=True))

    def _slopes(self, panel: Tensor, u: Tensor, i: Tensor) -> Tensor:
        of_user = torch.einsum("md,mdl->ml", self.x[i], panel[u])
        return of_user + torch.einsum("md,mdl->ml", self.x[u], panel[i])

    def product(self, panel: Tensor) -> Tensor:
        """The matrix times a panel (n_rows, d, LANES)."""
        out = self.of_rows[:, None, None] * panel
        for u, i in self.parts:
            bends = self._slopes(panel, u, i)[:, None]
            out.index_add_(0, u, self.x[i][:, :, None] * bends)
            out.index_add_(0, i, self.x[u][:, :, None] * bends)
        return out

    def credit(self, panel: Tensor) -> Tensor:
        """Minus the slope of every rating's loss along the panel: (n, LANES)."""
        slopes = torch.cat([self._slopes(panel, u, i) for u, i in self.parts])
        dots = torch.einsum("rd,rdl->rl", self.rows, panel)
        return -self.errors[:, None] * slopes - self.l2 * (dots[self.users] + dots[self.items])

    def blocks(self) -> Tensor:
        """The diagonal blocks: rows with about as many ratings in batches of products."""
        d, device = self.x.shape[1], self.x.device
        codes, others = torch.cat([self.users, self.items]), torch.cat([self.items, self.users])
        others = others[codes.argsort(stable=True)]
        degrees = torch.bincount(codes, minlength=len(self.x))
        first, order = degrees.cumsum(0) - degrees, degrees.argsort()
        found = torch.diag_embed(self.of_rows[:, None].expand(-1, d))
        for some in order.split(256):
            places = torch.arange(int(degrees[some[-1]]), device=device).expand(len(some), -1)
            there = places < degrees[some, None]
            at = (first[some, None] + places).clamp(max=len(others) - 1)
            x = self.x[others[at]].masked_fill_(~there[:, :, None], 0)
            found[some] += x.mT @ x
        return found

    def solve(self, right: Tensor, damping: float, rtol: float) -> Tensor:
        """Conjugate gradients with block-Jacobi, for all lanes side by side."""
        factors = Factors(self.blocks(), damping).factors
        x, residual = torch.zeros_like(right), right.clone()
        target = torch.cholesky_solve(residual, factors)
        direction, products = target.clone(), (residual * target).sum((0, 1))
        goals = rtol**2 * right.square().sum((0, 1))
        while True:
            waiting = residual.square().sum((0, 1)) > goals
            if not waiting.any():
                return x
            image = self.product(direction).add_(direction, alpha=damping)
            steps = torch.where(waiting, products / (direction * image).sum((0, 1)), 0)
            x.addcmul_(direction, steps)
            residual.addcmul_(image, steps, value=-1)
            target = torch.cholesky_solve(residual, factors)
            before, products = products, (residual * target).sum((0, 1))
            keeps = torch.where(waiting, products / before, 0)
            direction = target.addcmul_(direction, keeps)


class Factors:
    """Cholesky factors of damped blocks."""

    def __init__(self, blocks: Tensor, damping: float) -> None:
        self.blocks = blocks.clone()
        self.blocks.diagonal(dim1=1, dim2=2).add_(damping)
        self.factors = self.factored()

    def factored(self) -> Tensor:
        """Factor them."""
        return torch.linalg.cholesky_ex(self.blocks)[0]


class GroupReadout:
    """The k greatest of every query over the rows of its group: a product and a top-k each."""

    def __init__(self, rows: Array, pointers: Array, vectors: Array) -> None:
        self.rows, self.vectors = put(rows).split(np.diff(pointers).tolist()), put(vectors)

    def __call__(self, columns: list[Tensor], queries: list[Tensor], n: int, k: int) -> Tensor:
        """Values (n, k) of queries that read each group with some columns of the vectors."""
        found = torch.full((n, k), -torch.inf, device=self.vectors.device)
        for rows, some, numbers in zip(self.rows, columns, queries, strict=True):
            if len(numbers) and len(rows):
                scores = self.vectors[some] @ rows.T
                values = scores.topk(min(k, len(rows))).values
                found[numbers, : values.shape[1]] = values
        return found


class LinkReadout:
    """Probabilities of links with and without what each triple changed, for a ComplEx model."""

    def __init__(self, rows: Array, n_entities: int, changes: Array, triples: Any) -> None:
        self.rows, self.changes = put(rows), put(changes)
        self.entities = self.rows[:n_entities]
        self.heads, self.relations, self.tails = map(put, triples)

    def __call__(self, links: Any, pointers: Array, triples: Tensor) -> Tensor:
        """Influence of the triples of every link, link after link."""
        found = torch.empty(len(triples), device=self.rows.device)
        at_once = max(1, _NUMBERS // len(self.entities))
        for n, (subject, relation, _, target) in enumerate(zip(*map(np.ndarray.tolist, links))):  # noqa: B905
            before = _composed(self.rows[subject][None], self.rows[relation][None])
            own = (before @ self.entities.T).softmax(1)[0, target]
            for start in range(pointers[n], pointers[n + 1], at_once):
                some = slice(start, min(start + at_once, pointers[n + 1]))
                after = self._probabilities(triples[some], subject, relation, target)
                found[some] = own - after
        return found

    def _probabilities(self, j: Tensor, subject: int, relation: int, target: int) -> Tensor:
        heads, tails, changes = self.heads[j], self.tails[j], self.changes[j]
        loops = heads == tails
        entity, other = self.rows[subject].repeat(len(j), 1), self.rows[relation].repeat(len(j), 1)
        entity -= (heads == subject)[:, None] * changes[:, 0]
        entity -= (tails == subject)[:, None] * ~loops[:, None] * changes[:, 1]
        own = self.relations[j] + len(self.entities) == relation
        x = _composed(entity, other - own[:, None] * changes[:, 2])
        scores, numbers = x @ self.entities.T, torch.arange(len(j), device=x.device)
        scores[numbers, heads] -= (x * changes[:, 0]).sum(1)
        scores[numbers, tails] -= (x * changes[:, 1]).sum(1) * ~loops
        return (scores[:, target] - scores.logsumexp(1)).exp()


def _composed(entities: Tensor, relations: Tensor) -> Tensor:
    (a, b), (c, s) = entities.chunk(2, 1), relations.chunk(2, 1)
    return torch.cat([a * c - b * s, a * s + b * c], 1)


class Ranks:
    """How many entities score above each answer, and how many others tie with it."""

    def __init__(self, entities: Array, vectors: Array, targets: Array) -> None:
        self.entities, self.vectors, self.targets = put(entities), put(vectors), put(targets)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Counts (n,) of both."""
        counts = []
        size = max(1, _NUMBERS // len(self.entities))
        for x, target in zip(self.vectors.split(size), self.targets.split(size), strict=True):
            scores = x @ self.entities.T
            own = scores.gather(1, target[:, None])
            counts.append([(scores > own).sum(1), (scores == own).sum(1) - 1])
        greater, equal = (torch.cat(parts) for parts in zip(*counts, strict=True))
        return greater, equal
